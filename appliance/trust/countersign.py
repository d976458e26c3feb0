# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A second person's signature: what metadata still lacks, and adding it (docs/bundle-format.md section 4.8).

Works on the files below `metadata/` alone, so that it can be done offline on small files. Nothing that is signed
already may be wrong, and what is signed is read and checked first; only the number of signatures may fall short.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from tuf.api.metadata import Role, Root, Snapshot, Targets, Timestamp

from appliance.bundle.contents import Artifact, ContentClass
from appliance.bundle.documents import decode
from appliance.bundle.formats import STATEMENT_PAYLOAD
from appliance.bundle.release import Release
from appliance.errors import UsageError, VerificationError
from appliance.trust.client import MetadataFiles, RootChain, take_target, update_root
from appliance.trust.envelope import add_seals, open_own
from appliance.trust.keys import Signer
from appliance.trust.metadata import RELEASE_TARGET, add_signatures, contents_target, weights_path
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Signable:
    """One file that signatures are added to: `add` returns it with those of some signers added."""

    state: RoleState
    add: Callable[[Sequence[Signer]], bytes]


def _signable(role: str, path: str, metadata: AnyMetadata, keys: Role, says: str) -> _Signable:
    state = _state(role, path, version=metadata.signed.version, keys=keys, signed=metadata.signatures.keys(), says=says)
    return _Signable(state=state, add=lambda signers: add_signatures(metadata, keys, signers).to_bytes())


def _state(role: str, path: str, *, version: int, keys: Role, signed: Collection[str], says: str) -> RoleState:
    return RoleState(
        role=role,
        path=path,
        version=version,
        signed=tuple(keyid for keyid in keys.keyids if keyid in signed),
        unsigned=tuple(keyid for keyid in keys.keyids if keyid not in signed),
        threshold=keys.threshold,
        says=says,
    )


def _walk(files: Mapping[str, bytes], pinned_root: bytes) -> list[_Signable]:
    """Return everything but roots that is signed, top down."""
    source = MetadataFiles(files)
    chain = update_root(source, pinned_root)
    root = chain.newest
    timestamp = _load(source, chain, "timestamp.json", Timestamp, role="timestamp", by=root)
    number = timestamp.signed.snapshot_meta.version
    snapshot = _load(source, chain, f"{number}.snapshot.json", Snapshot, role="snapshot", by=root)
    meta = snapshot.signed.meta
    if {f"{each}.json" for each in ("targets", *ContentClass)} != meta.keys():
        raise VerificationError("snapshot names other roles than targets and the eight classes", hint="create the bundle again")
    targets_path = f"{meta['targets.json'].version}.targets.json"
    targets = _load(source, chain, targets_path, Targets, role="targets", by=root)
    check_delegator(targets.signed, what="targets")
    release = decode(take_target(source, targets.signed, RELEASE_TARGET), Release, what=RELEASE_TARGET)
    named = f"release {release.name} {release.version}, and who signs each class"
    found = [
        _signable("timestamp", "timestamp.json", timestamp, root.roles["timestamp"], f"snapshot {number} is the newest"),
        _signable("snapshot", f"{number}.snapshot.json", snapshot, root.roles["snapshot"], "these versions of all roles belong together"),
        _signable("targets", targets_path, targets, root.roles["targets"], named),
    ]
    for each in ContentClass:
        path = f"{meta[f'{each}.json'].version}.{each}.json"
        role = _load(source, chain, path, Targets, role=each, by=targets.signed)
        contents = read_contents(each, take_target(source, role.signed, contents_target(each)))
        size = sum(blob.size for blob in contents.blobs)
        says = f"class {each} holds {len(contents.artifacts)} artifacts of {size} bytes"
        found.append(_signable(each.value, path, role, targets.signed.get_delegated_role(each), says))
        if each is ContentClass.MODELS:
            found += [_seal(files, targets.signed, artifact, role.signed.version) for artifact in contents.artifacts]
    return found


def _seal(files: Mapping[str, bytes], targets: Targets, artifact: Artifact, version: int) -> _Signable:
    """Return the signed weights manifest of a model; who signs the class `models` signs it."""
    role = targets.get_delegated_role(ContentClass.MODELS)
    keys = {keyid: targets.get_key(keyid) for keyid in role.keyids}
    path = weights_path(artifact.weights or artifact.root)
    what = f"metadata/{path}"
    envelope = files.get(path)
    if envelope is None:
        raise VerificationError(f"{what} is missing, which contents of models names", hint="create the bundle again")
    opened = open_own(envelope, payload_type=STATEMENT_PAYLOAD, keys=keys, threshold=role.threshold, what=what, partly=True)
    says = f"weights manifest of {artifact.name} {artifact.version}"

    def add(signers: Sequence[Signer]) -> bytes:
        return add_seals(envelope, [signer for signer in signers if signer.public_key.keyid in keys], what=what)

    return _Signable(state=_state(ContentClass.MODELS.value, path, version=version, keys=role, signed=opened.signed_by, says=says), add=add)


def signature_states(files: Mapping[str, bytes], *, pinned_root: bytes) -> tuple[RoleState, ...]:
    """Return how far each signed file but roots is signed, top down; `files` are by path below `metadata/`.

    Raises:
        VerificationError: a file is missing, a signature is wrong, or a file is not what another one names.
        FormatError: a file is malformed.
    """
    return tuple(each.state for each in _walk(files, pinned_root))


def check_signed(files: Mapping[str, bytes], *, what: str) -> None:
    """Check that every file of a bundle has the signatures it needs, by the first root that lies in the bundle itself.

    That says whether the bundle is finished, not whether to trust it: for that a root is pinned. `what` names the bundle.

    Raises:
        VerificationError: a role lacks signatures, or one is wrong.
        FormatError: a file is malformed.
    """
    first = files.get("1.root.json")
    if first is None:
        raise VerificationError(f"{what}: metadata/1.root.json is missing", hint="create the bundle again")
    states = signature_states(files, pinned_root=first)
    if lacking := {state.role: state.lacking for state in states if state.lacking}:
        named = ", ".join(f"{role} ({count})" for role, count in lacking.items())
        raise VerificationError(
            f"{what}: signatures are still lacking: {named}; no site would accept it",
            hint=f"have the holders of the missing keys run: appliance keys sign {what} --publication DIR --keys DIR",
        )


def countersign(
    files: Mapping[str, bytes], *, pinned_root: bytes, signers: Sequence[Signer], roles: Sequence[str] = ()
) -> tuple[dict[str, bytes], tuple[RoleState, ...]]:
    """Return the files that change when `signers` sign what lacks signatures, and the states of those before.

    Only files below their threshold are signed, and of them only those of `roles` where any are named.

    Raises:
        UsageError: nothing that lacks signatures has one of these keys.
        VerificationError, FormatError: as `signature_states`.
    """
    every = _walk(files, pinned_root)
    held = {signer.public_key.keyid for signer in signers}
    wanted = [each for each in every if each.state.lacking and held & set(each.state.unsigned) and (not roles or each.state.role in roles)]
    if not wanted:
        lacking = ", ".join(dict.fromkeys(each.state.role for each in every if each.state.lacking)) or "none"
        raise UsageError(
            f"nothing to sign with these keys; roles that lack signatures: {lacking}",
            hint="use the keys of the person the role was delegated to; appliance keys show DIR lists them",
        )
    return {each.state.path: each.add(signers) for each in wanted}, tuple(each.state for each in wanted)
