# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Keys: two families, their identifiers, and the thresholds that no one family can meet (docs/bundle-format.md section 4.2).

Key objects, schemes and signature checks are securesystemslib's (TUF specification section 4.2; ML-DSA as in TAP 21).
Private keys rest as encrypted PKCS#8: PBES2 with scrypt and AES-256-CBC (RFC 8018, RFC 7914).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Final, Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key, load_pem_public_key
from securesystemslib.formats import encode_canonical
from securesystemslib.signer import CryptoSigner, Key, Signature, SSlibKey

from appliance.errors import FormatError, UsageError, VerificationError
from appliance.trust.pkcs8 import encrypt_private_key

MIN_PASSPHRASE: Final = 8
"""Shorter passphrases are refused when keys are made."""


class Family(StrEnum):
    """The two mathematical families; every threshold needs both."""

    CLASSICAL = "classical"
    ML_DSA = "ml-dsa"


_SCHEMES: Final[Mapping[tuple[str, str], Family]] = {
    ("ed25519", "ed25519"): Family.CLASSICAL,
    ("ecdsa", "ecdsa-sha2-nistp256"): Family.CLASSICAL,
    ("ecdsa", "ecdsa-sha2-nistp384"): Family.CLASSICAL,
    ("ml-dsa", "ml-dsa-65/1"): Family.ML_DSA,
    ("ml-dsa", "ml-dsa-87/1"): Family.ML_DSA,
}
_PEM = re.compile(rb"-----BEGIN PUBLIC KEY-----.+?-----END PUBLIC KEY-----\n?", re.DOTALL)
_PrivateKey = (ed25519.Ed25519PrivateKey, ec.EllipticCurvePrivateKey, mldsa.MLDSA65PrivateKey, mldsa.MLDSA87PrivateKey)


class Signer(Protocol):
    """What signs: securesystemslib's `CryptoSigner` is one."""

    @property
    def public_key(self) -> SSlibKey:
        """The public half."""

    def sign(self, payload: bytes) -> Signature:
        """Return the signature over `payload`."""


class RoleKeys(Protocol):
    """The key identifiers of a role and how many of them must sign; `tuf.api.metadata.Role` is one."""

    keyids: list[str]
    threshold: int


def family(key: Key) -> Family:
    """Return the family of `key`.

    Raises:
        VerificationError: a key type or scheme this format does not have.
    """
    found = _SCHEMES.get((key.keytype, key.scheme))
    if found is None:
        raise VerificationError(
            f"key {key.keyid[:16]}: {key.keytype} with {key.scheme} is not a key of this format",
            hint="use Ed25519, P-256 or P-384 as the classical key and ML-DSA-65 or ML-DSA-87 as the other",
        )
    return found


def keyid_of(key: Key) -> str:
    """Return the SHA-256 of the canonical JSON of `key` (TUF specification section 4.2)."""
    text = encode_canonical({"keytype": key.keytype, "scheme": key.scheme, "keyval": key.keyval})
    if text is None:
        raise AssertionError("encode_canonical returns text when it has no output function")
    return hashlib.sha256(text.encode()).hexdigest()


def _spki(key: Key) -> bytes:
    """Return the DER public key of `key`, the one form in which equal keys are equal bytes."""
    public = str(key.keyval["public"])
    try:
        if key.keytype == "ed25519":
            loaded: object = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
        else:
            loaded = load_pem_public_key(public.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise VerificationError(f"key {key.keyid[:16]}: not a public key: {error}", hint="ask its owner for the key file again") from error
    if not isinstance(loaded, ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey | mldsa.MLDSA65PublicKey | mldsa.MLDSA87PublicKey):
        raise VerificationError(f"key {key.keyid[:16]}: {type(loaded).__name__} is not a key of this format", hint="make it with keys init")
    return loaded.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def check_keys(keys: Mapping[str, Key], *, what: str) -> None:
    """Check the keys of one root or delegation; `what` names it.

    Raises:
        VerificationError: a foreign type, the same public key under two identifiers, an identifier that is not the
            key's hash, or a key that is not in its canonical form.
    """
    seen: dict[bytes, str] = {}
    ordered = sorted(keys.items())
    for keyid, key in ordered:
        family(key)
        first = seen.setdefault(_spki(key), keyid)
        if first != keyid:
            raise VerificationError(
                f"{what}: one public key stands under two identifiers, {first[:16]} and {keyid[:16]}",
                hint="do not use this publication: one key could count twice",
            )
    for keyid, key in ordered:
        if keyid_of(key) != keyid or key.unrecognized_fields or set(key.keyval) != {"public"}:
            raise VerificationError(
                f"{what}: identifier {keyid[:16]} is not the hash of its key, {keyid_of(key)[:16]}",
                hint="do not use this publication: its keys are not what their names say",
            )
        if load_public_keys(public_pem(key))[0].keyid != keyid:
            raise VerificationError(f"{what}: key {keyid[:16]} is not in its canonical form", hint="do not use this publication")


def check_threshold(role: RoleKeys, keys: Mapping[str, Key], *, what: str) -> None:
    """Check that `role` can be signed, and by no one family alone.

    Raises:
        VerificationError: a key is missing, the threshold exceeds the keys, or one family alone could meet it.
    """
    if missing := [keyid for keyid in role.keyids if keyid not in keys]:
        raise VerificationError(f"{what}: key {missing[0][:16]} is named but absent", hint="do not use this publication")
    if role.threshold > len(role.keyids):
        raise VerificationError(f"{what}: threshold {role.threshold} of only {len(role.keyids)} keys", hint="do not use this publication")
    counts = family_counts(keys[keyid] for keyid in role.keyids)
    for name, count in counts.items():
        if count >= role.threshold:
            raise VerificationError(
                f"{what}: {count} {name} keys alone could meet the threshold {role.threshold}",
                hint="give every person one classical and one ML-DSA key, and a threshold above either family",
            )


def family_counts(keys: Iterable[Key]) -> Mapping[Family, int]:
    """Return how many of `keys` each family has."""
    counts = dict.fromkeys(Family, 0)
    for key in keys:
        counts[family(key)] += 1
    return counts


def least_threshold(keys: Sequence[Key]) -> int:
    """Return the smallest threshold that neither family of `keys` meets alone: one more than the larger family."""
    return max(family_counts(keys).values()) + 1


def generate_pair() -> tuple[CryptoSigner, CryptoSigner]:
    """Return a person's two new keys: Ed25519 and ML-DSA-65."""
    return CryptoSigner(ed25519.Ed25519PrivateKey.generate()), CryptoSigner(mldsa.MLDSA65PrivateKey.generate())


def private_pem(signer: CryptoSigner, passphrase: bytes) -> bytes:
    """Return `signer`'s private key as encrypted PKCS#8 PEM.

    Raises:
        UsageError: the passphrase is shorter than `MIN_PASSPHRASE` bytes.
    """
    if len(passphrase) < MIN_PASSPHRASE:
        raise UsageError(
            f"the passphrase has fewer than {MIN_PASSPHRASE} characters", hint="choose a longer one, such as five random words"
        )
    return encrypt_private_key(signer.private_bytes, passphrase)


def load_signer(pem: bytes, passphrase: bytes, *, what: str) -> CryptoSigner:
    """Return the signer of an encrypted PKCS#8 PEM; `what` names the file in errors.

    Raises:
        UsageError: wrong passphrase, or the key is not encrypted.
        FormatError: not a private key of this format.
    """
    if b"BEGIN ENCRYPTED PRIVATE KEY" not in pem:
        raise FormatError(f"{what}: not an encrypted PKCS#8 private key", hint="use the files that keys init wrote")
    try:
        key = load_pem_private_key(pem, passphrase)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{what}: the passphrase does not open this key", hint="check the passphrase and the key folder") from error
    if not isinstance(key, _PrivateKey):
        raise FormatError(f"{what}: {type(key).__name__} is not a key of this format", hint="make keys with keys init")
    signer = CryptoSigner(key)
    family(signer.public_key)
    return signer


def public_pem(key: Key) -> bytes:
    """Return `key` as `PUBLIC KEY` PEM."""
    der = _spki(key)
    if key.keytype != "ed25519":
        return str(key.keyval["public"]).encode()
    loaded = ed25519.Ed25519PublicKey.from_public_bytes(der[-32:])
    return loaded.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def load_public_keys(pem: bytes, *, what: str = "public key file") -> tuple[SSlibKey, ...]:
    """Return all public keys of a PEM file: one person's file holds both of theirs.

    Raises:
        FormatError: no public key in it, or one that is not of this format.
    """
    found: list[SSlibKey] = []
    for block in _PEM.findall(pem):
        try:
            key = SSlibKey.from_crypto(load_pem_public_key(block))
        except (ValueError, UnsupportedAlgorithm) as error:
            raise FormatError(f"{what}: not a public key of this format: {error}", hint="ask its owner for public.pem") from error
        family(key)
        found.append(key)
    if not found:
        raise FormatError(f"{what}: no PUBLIC KEY block in it", hint="give the public.pem that keys init wrote")
    return tuple(found)
