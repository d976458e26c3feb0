# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Every way in which the signatures of one role may be wrong, each made of valid metadata and complete otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ed25519, mldsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from securesystemslib.signer import CryptoSigner, SSlibKey
from tuf.api.metadata import Metadata, Role, Root

from appliance.adapters.publication import load_signers
from appliance.bundle.contents import ContentClass
from appliance.trust.keys import keyid_of
from tests.support.simulator import Files, Line, path_of, person

ROLES = ("root", "timestamp", "snapshot", "targets", *(each.value for each in ContentClass))


def published(line: Line) -> Files:
    """A valid release under root 2 of `line`, so that the root too is a file whose signatures count."""
    keyids = Metadata[Root].from_bytes(line.roots[-1]).signed.roles["root"].keyids
    line.new_root(signers=[signer for signer in line.signers if signer.public_key.keyid in keyids])
    return line.publish()


def twin_of(signer: CryptoSigner) -> CryptoSigner:
    """The same ML-DSA key in another spelling, under the identifier that this spelling has."""
    key = signer.public_key
    twin = SSlibKey("x", key.keytype, key.scheme, {"public": str(key.keyval["public"]).rstrip("\n")})
    twin.keyid = keyid_of(twin)
    return CryptoSigner(signer._private_key, twin)


def alias_of(signer: CryptoSigner) -> CryptoSigner:
    """The same key under an identifier that is not its hash."""
    key = signer.public_key
    return CryptoSigner(signer._private_key, SSlibKey("0" * 64, key.keytype, key.scheme, dict(key.keyval)))


Double = Callable[[CryptoSigner], CryptoSigner]
DOUBLES: Mapping[str, Double] = {"spelled otherwise": twin_of, "under another identifier": alias_of}


def doubled_root(line: Line, double: Double, roles: tuple[str, ...]) -> Files:
    """A release under root 2, where alice's ML-DSA key counts twice among three of four in `roles`: she signs alone."""
    other = double(line.signers[1])
    keys = [*(signer.public_key for signer in line.signers), other.public_key, person("bob")[0].public_key]

    def change(root: Root) -> None:
        root.keys.update({key.keyid: key for key in keys})
        for role in roles:
            root.roles[role] = Role(sorted(key.keyid for key in keys), 3)

    files = line.publish()
    files["2.root.json"] = line.new_root(change, signers=[*line.signers, other])
    for role in roles:
        if role != "root":
            files = line.edit(files, path_of(files, role), _same, sign=[*line.signers, other])
    return files


def doubled_delegation(line: Line, double: Double, content_class: str) -> Files:
    """A release whose targets delegate `content_class` to three of four keys, of which alice's ML-DSA key is two."""
    other = double(line.signers[1])
    keys = [*(signer.public_key for signer in line.signers), other.public_key, person("bob")[0].public_key]

    def change(signed: dict[str, Any]) -> None:
        delegations = signed["delegations"]
        delegations["keys"].update({key.keyid: key.to_dict() for key in keys})
        role = next(each for each in delegations["roles"] if each["name"] == content_class)
        role.update(keyids=sorted(key.keyid for key in keys), threshold=3)

    files = line.publish()
    files = line.edit(files, path_of(files, "targets"), change)
    return line.edit(files, path_of(files, content_class), _same, sign=[*line.signers, other])


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is wrong with a role's signatures, and how the refusal says so."""

    make: Callable[[Line, Files, str], Files]
    says: str


def _same(signed: dict[str, Any]) -> None:
    """Leave the signed part as it is; only signatures are made again."""


def _signed_by(choose: Callable[[Line], list[CryptoSigner]]) -> Callable[[Line, Files, str], Files]:
    return lambda line, files, role: line.edit(files, path_of(files, role), _same, sign=choose(line))


def _changed(line: Line, files: Files, role: str) -> Files:
    return line.edit(files, path_of(files, role), lambda signed: signed.update(expires="2040-01-01T00:00:00Z"), sign=False)


FAULTS: Mapping[str, Fault] = {
    "classical only": Fault(make=_signed_by(lambda line: line.signers[:1]), says="1 of 2 needed signatures.*ml-dsa is missing"),
    "ml-dsa only": Fault(make=_signed_by(lambda line: line.signers[1:]), says="1 of 2 needed signatures.*classical is missing"),
    "none": Fault(make=_signed_by(lambda _: []), says="0 of 2 needed signatures"),
    "a stranger's": Fault(make=_signed_by(lambda _: [*person("mallory")]), says="is not a key of role"),
    "one key and a stranger's": Fault(make=_signed_by(lambda line: [line.signers[0], person("mallory")[1]]), says="is not a key of role"),
    "of other bytes": Fault(make=_changed, says="does not verify"),
}
"""By name; each for a line of one person, whose two keys both are needed."""


def private_secrets(folder: Path, passphrase: bytes) -> dict[str, bytes]:
    """What would give away the private keys in `folder`, by name: each key's seed, and the key as an unencrypted file has it."""
    found: dict[str, bytes] = {}
    for number, signer in enumerate(load_signers(folder, passphrase)):
        key = signer._private_key
        found[f"key {number}, whole"] = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        if isinstance(key, ed25519.Ed25519PrivateKey | mldsa.MLDSA65PrivateKey):
            found[f"key {number}, seed"] = key.private_bytes_raw()
    return found
