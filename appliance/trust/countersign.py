# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A second person's signature: what metadata still lacks, and adding it (docs/bundle-format.md section 4.8).

Works on the files below `metadata/` alone, so that it can be done offline on small files. Nothing that is signed
already may be wrong, and what is signed is read and checked first; only the number of signatures may fall short.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tuf.api.metadata import Role, Root, Snapshot, Targets, Timestamp

from appliance.bundle.contents import ContentClass, check_contents
from appliance.bundle.documents import decode
from appliance.bundle.release import Release
from appliance.errors import UsageError, VerificationError
from appliance.trust.client import MetadataFiles, RootChain, take_target, update_root
from appliance.trust.keys import Signer
from appliance.trust.metadata import RELEASE_TARGET, add_signatures, contents_target
from appliance.trust.release_rules import read_contents
from appliance.trust.roles import AnyMetadata, check_delegator, check_signatures, line_of, read_role


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleState:
    """How far one role's file is signed; `says` is in words what its signature states."""

    role: str
    path: str
    version: int
    signed: tuple[str, ...]
    unsigned: tuple[str, ...]
    threshold: int
    says: str

    @property
    def lacking(self) -> int:
        """How many signatures are still needed."""
        return max(0, self.threshold - len(self.signed))


def _load(
    source: MetadataFiles, chain: RootChain, path: str, kind: type[Timestamp | Snapshot | Targets], *, role: str, by: Root | Targets
) -> AnyMetadata:
    metadata: AnyMetadata = read_role(source.take(path, why="the release"), kind, what=f"metadata/{path}")
    check_signatures(metadata, role, {"its delegator": by}, what=f"metadata/{path}", partly=True)
    if line_of(metadata.signed, what=f"metadata/{path}") != chain.line:
        raise VerificationError(
            f"metadata/{path} is of another line than {chain.line!r}", hint="give the metadata of this publication's bundle"
        )
    return metadata


def _roles(files: Mapping[str, bytes], pinned_root: bytes) -> list[tuple[str, str, AnyMetadata, Role, str]]:
    """Return (role, path, metadata, its keys, what it says) of every role but root, top down."""
    source = MetadataFiles(files)
    chain = update_root(source, pinned_root)
    root = chain.newest
    timestamp = _load(source, chain, "timestamp.json", Timestamp, role="timestamp", by=root)
    number = timestamp.signed.snapshot_meta.version
    snapshot_path = f"{number}.snapshot.json"
    snapshot = _load(source, chain, snapshot_path, Snapshot, role="snapshot", by=root)
    meta = snapshot.signed.meta
    expected = {"targets", *ContentClass}
    if {f"{each}.json" for each in expected} != meta.keys():
        raise VerificationError("snapshot names other roles than targets and the eight classes", hint="create the bundle again")
    targets_path = f"{meta['targets.json'].version}.targets.json"
    targets = _load(source, chain, targets_path, Targets, role="targets", by=root)
    check_delegator(targets.signed, what="targets")
    release = decode(take_target(source, targets.signed, RELEASE_TARGET), Release, what=RELEASE_TARGET)
    found = [
        ("timestamp", "timestamp.json", timestamp, root.roles["timestamp"], f"snapshot {number} is the newest"),
        ("snapshot", snapshot_path, snapshot, root.roles["snapshot"], "these versions of all roles belong together"),
        ("targets", targets_path, targets, root.roles["targets"], f"release {release.name} {release.version}, and who signs each class"),
    ]
    for each in ContentClass:
        path = f"{meta[f'{each}.json'].version}.{each}.json"
        role = _load(source, chain, path, Targets, role=each, by=targets.signed)
        contents = read_contents(each, take_target(source, role.signed, contents_target(each)))
        check_contents(contents)
        size = sum(blob.size for blob in contents.blobs)
        says = f"class {each} holds {len(contents.artifacts)} artifacts of {size} bytes"
        found.append((each.value, path, role, targets.signed.get_delegated_role(each), says))
    return found


def signature_states(files: Mapping[str, bytes], *, pinned_root: bytes) -> tuple[RoleState, ...]:
    """Return how far each role of `files` (paths below `metadata/`) is signed.

    Raises:
        VerificationError: a file is missing, a signature is wrong, or a file is not what another one names.
        FormatError: a file is malformed.
    """
    return tuple(
        RoleState(
            role=role,
            path=path,
            version=metadata.signed.version,
            signed=tuple(keyid for keyid in keys.keyids if keyid in metadata.signatures),
            unsigned=tuple(keyid for keyid in keys.keyids if keyid not in metadata.signatures),
            threshold=keys.threshold,
            says=says,
        )
        for role, path, metadata, keys, says in _roles(files, pinned_root)
    )


def countersign(
    files: Mapping[str, bytes], *, pinned_root: bytes, signers: Sequence[Signer], roles: Sequence[str] = ()
) -> tuple[dict[str, bytes], tuple[RoleState, ...]]:
    """Return the files that change when `signers` sign the roles which lack signatures, and the states before.

    Only roles below their threshold are signed, and of them only `roles` where any are named.

    Raises:
        UsageError: no role that lacks signatures has one of these keys.
        VerificationError, FormatError: as `signature_states`.
    """
    states = signature_states(files, pinned_root=pinned_root)
    held = {signer.public_key.keyid for signer in signers}
    wanted = [state for state in states if state.lacking and held & set(state.unsigned) and (not roles or state.role in roles)]
    if not wanted:
        lacking = ", ".join(state.role for state in states if state.lacking) or "none"
        raise UsageError(
            f"nothing to sign with these keys; roles that lack signatures: {lacking}",
            hint="use the keys of the person the role was delegated to; appliance keys show DIR lists them",
        )
    changed: dict[str, bytes] = {}
    names = {state.role for state in wanted}
    for role, path, metadata, keys, _ in _roles(files, pinned_root):
        if role in names:
            changed[path] = add_signatures(metadata, keys, signers).to_bytes()
    return changed, tuple(wanted)
