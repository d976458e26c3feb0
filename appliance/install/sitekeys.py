# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The site's own keys, made once on the depot and never replaced by running `site init` again.

`keys/` (0700, files 0600, PKCS#8 PEM without passphrase: services use them unattended, root's permissions guard them):
`site-ed25519.key` and `site-ml-dsa-65.key` sign the site policy and what the site states; `log-ed25519.key` and
`log-ml-dsa-44.key` sign the site log's checkpoints (C2SP tlog-cosignature); `ca.key` is the site CA's. Public halves
lie beside them as `site.pub` and `log.pub`, both blocks in one PEM file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner, SSlibKey

from appliance.adapters.disk import read_small
from appliance.errors import FormatError
from appliance.install.places import PRIVATE_FILE, PUBLIC_FILE, SitePlaces, ensure_private, write_if_changed
from appliance.trust.keys import load_public_keys

PrivateKey = ed25519.Ed25519PrivateKey | mldsa.MLDSA65PrivateKey | mldsa.MLDSA44PrivateKey | ec.EllipticCurvePrivateKey

_KINDS: Mapping[str, Callable[[], PrivateKey]] = {
    "site-ed25519": ed25519.Ed25519PrivateKey.generate,
    "site-ml-dsa-65": mldsa.MLDSA65PrivateKey.generate,
    "log-ed25519": ed25519.Ed25519PrivateKey.generate,
    "log-ml-dsa-44": mldsa.MLDSA44PrivateKey.generate,
    "ca": lambda: ec.generate_private_key(ec.SECP256R1()),
}
_PUBLIC = {"site.pub": ("site-ed25519", "site-ml-dsa-65"), "log.pub": ("log-ed25519", "log-ml-dsa-44")}
_MAX_KEY_BYTES = 64 * 1024


def make_site_keys(places: SitePlaces) -> tuple[str, ...]:
    """Make the keys that are not there yet; return the names of those that were made.

    Raises:
        HostError: they cannot be written.
        FormatError: a file there is not a key.
    """
    ensure_private(places.keys)
    made = []
    for name, generate in _KINDS.items():
        if not _file(places, name).exists():
            write_private_key(_file(places, name), generate())
            made.append(name)
    for name, halves in _PUBLIC.items():
        write_if_changed(places.keys / name, b"".join(_public(load_key(places, half)) for half in halves), mode=PUBLIC_FILE)
    return tuple(made)


def write_private_key(path: Path, key: PrivateKey) -> None:
    """Write `key` to `path`, readable by its owner only."""
    write_if_changed(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=PRIVATE_FILE)


def load_key(places: SitePlaces, name: str) -> PrivateKey:
    """Return the private key `name`.

    Raises:
        HostError: it is missing or cannot be read.
        FormatError: it is not a key of its kind.
    """
    path = _file(places, name)
    data = read_small(path, limit=_MAX_KEY_BYTES)
    hint = "restore it from the site's backup; a new key is a new site"
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError) as error:
        raise FormatError(f"{path}: not a private key", hint=hint) from error
    if isinstance(key, PrivateKey):
        return key
    raise FormatError(f"{path}: {type(key).__name__} is not the kind of key that belongs there", hint=hint)


def site_signers(places: SitePlaces) -> tuple[CryptoSigner, CryptoSigner]:
    """Return the site key's two signers: Ed25519, then ML-DSA-65.

    Raises:
        HostError: one is missing.
        FormatError: one is not a key of its kind.
    """
    first, second = load_key(places, "site-ed25519"), load_key(places, "site-ml-dsa-65")
    if not isinstance(first, ed25519.Ed25519PrivateKey) or not isinstance(second, mldsa.MLDSA65PrivateKey):
        raise FormatError(f"{places.keys}: the site key is not Ed25519 and ML-DSA-65", hint="restore it from the site's backup")
    return CryptoSigner(first), CryptoSigner(second)


def site_keys(places: SitePlaces) -> tuple[SSlibKey, ...]:
    """Return the public halves of the site key, from `site.pub`.

    Raises:
        HostError: it is missing.
        FormatError: it does not hold two keys of this format.
    """
    path = places.keys / "site.pub"
    keys = load_public_keys(read_small(path, limit=_MAX_KEY_BYTES), what=str(path))
    if len(keys) != len(_PUBLIC["site.pub"]):
        raise FormatError(f"{path}: expected two public keys, got {len(keys)}", hint="restore it from the site's backup")
    return keys


def _file(places: SitePlaces, name: str) -> Path:
    return places.keys / f"{name}.key"


def _public(key: PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
