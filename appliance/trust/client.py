# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The client workflow: from a pinned root and the bytes below `metadata/` to a release that may be believed.

Pure: the files, the pinned root, the versions seen before and the time are arguments; nothing is read or written. The
steps are those of the TUF specification 1.0.31 section 5 ("detailed client workflow"), named where they are done, with
the rules of docs/bundle-format.md section 4.4 added. Each step trusts only what the steps before it proved.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from tuf.api.exceptions import LengthOrHashMismatchError
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

import appliance
from appliance.bundle.contents import Blob, ContentClass, Contents, merge_blobs
from appliance.bundle.formats import STATEMENT_PAYLOAD
from appliance.bundle.release import Release
from appliance.bundle.weights import Weights, check_agreement, parse_statement
from appliance.digests import Digest, digest_of
from appliance.errors import FormatError, VerificationError
from appliance.trust.clock import format_instant, parse_instant, trusted_now
from appliance.trust.envelope import open_own
from appliance.trust.metadata import RELEASE_TARGET, contents_target, weights_path
from appliance.trust.release_rules import check_charts, check_release, check_same_content, read_contents
from appliance.trust.roles import ISSUED_FIELD, SignedT, check_delegator, check_signatures, line_of, read_role
from appliance.trust.state import SeenVersions

MAX_FILES: Final = 1100
"""More files below `metadata/` are refused: 1,024 roots and what one release needs."""

_ROOT_NAME = re.compile(r"([1-9][0-9]{0,8})\.root\.json", re.ASCII)
_OLDER: Final = "use the newest bundle of this line; if this is the newest, ask the publisher why its versions went back"
_WHOLE: Final = "carry the whole bundle again: its metadata folder is incomplete"


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedBundle:
    """A release whose every claim was signed by the keys it should be, is in time, and is not older than the last one.

    `blobs` are all blobs of all classes; `weights` are the weights manifests by the digest that contents pin;
    `metadata` is exactly what was verified, by path below `metadata/`; `seen` is what to remember; `digest` is that of
    `release.json`; `expires` is by role; `issued` is the timestamp's `x-issued`; `root` is the newest root's bytes, the
    pin for the next time.
    """

    line: str
    release: Release
    contents: Mapping[ContentClass, Contents]
    blobs: Mapping[Digest, Blob]
    weights: Mapping[Digest, Weights]
    metadata: Mapping[str, bytes]
    seen: SeenVersions
    digest: Digest
    expires: Mapping[str, datetime]
    issued: datetime
    root: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RootChain:
    """The verified roots: every one by version, the newest, and its bytes."""

    roots: Mapping[int, Root]
    newest: Root
    data: bytes
    line: str


class MetadataFiles:
    """The files below `metadata/`, remembering which were used."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = files
        self.used: dict[str, bytes] = {}

    def take(self, name: str, *, why: str) -> bytes:
        """Return the file `name`."""
        data = self.files.get(name)
        if data is None:
            raise VerificationError(f"metadata/{name} is missing, which {why} names", hint=_WHOLE)
        self.used[name] = data
        return data


def verify_metadata(
    files: Mapping[str, bytes], *, pinned_root: bytes, seen: SeenVersions | None, now: datetime, version: str = appliance.__version__
) -> VerifiedBundle:
    """Return the release that `files` (paths below `metadata/`) describe.

    `pinned_root` is a root this side already trusts, never one from the bundle; `seen` is what it remembers of the line;
    `now` is this machine's clock; `version` is this appliance's own version.

    Raises:
        VerificationError: a signature, version, expiry, line, hash or rule is not as it must be.
        FormatError: a file is malformed, or was made by a newer appliance.
        HostError: the clock is behind a moment that a signature proves to have passed.
    """
    if len(files) > MAX_FILES:
        raise FormatError(f"metadata has {len(files)} files, at most {MAX_FILES} are read", hint=_WHOLE)
    source = MetadataFiles(files)
    chain = update_root(source, pinned_root)
    known = None if _check_seen_root(chain, seen) else seen
    timestamp, issued = _update_timestamp(source, chain, known, now)
    snapshot = _update_snapshot(source, chain, timestamp, known, now)
    targets = _update_targets(source, chain, snapshot, now)
    classes = {each: _update_class(source, snapshot, targets, each, now) for each in ContentClass}
    release_data = take_target(source, targets, RELEASE_TARGET)
    release = check_release(release_data, chain.line, version)
    contents_data = {each: take_target(source, role, contents_target(each)) for each, role in classes.items()}
    contents = {each: read_contents(each, data) for each, data in contents_data.items()}
    blobs = merge_blobs(contents.values())
    check_charts(release, contents)
    weights = _read_weights(source, targets, contents[ContentClass.MODELS], blobs)
    if stray := files.keys() - source.used.keys():
        raise VerificationError(f"metadata/{min(stray)} is named by no role", hint="carry the bundle again; only verified files are kept")
    new = SeenVersions(
        format=SeenVersions.FORMAT,
        line=chain.line,
        root=chain.newest.version,
        timestamp=timestamp.version,
        snapshot=snapshot.version,
        targets=targets.version,
        classes={each: role.version for each, role in classes.items()},
        contents={each: digest_of(data) for each, data in contents_data.items()},
        release=digest_of(release_data),
        issued=format_instant(issued if known is None else max(issued, parse_instant(known.issued, what="seen.json"))),
    )
    if known is not None:
        check_same_content(new, known)
    expiring: dict[str, Root | Timestamp | Snapshot | Targets] = {
        "root": chain.newest,
        "timestamp": timestamp,
        "snapshot": snapshot,
        "targets": targets,
        **{each.value: role for each, role in classes.items()},
    }
    return VerifiedBundle(
        line=chain.line,
        release=release,
        contents=contents,
        blobs=blobs,
        weights=weights,
        metadata=dict(source.used),
        seen=new,
        digest=digest_of(release_data),
        expires={name: signed.expires for name, signed in expiring.items()},
        issued=issued,
        root=chain.data,
    )


def update_root(source: MetadataFiles, pinned_data: bytes) -> RootChain:
    """TUF 5.2 and 5.3: start from the pinned root, follow the chain; no root is believed because a bundle holds it.

    The whole chain from root 1 travels: roots older than the pinned one are for machines that pinned earlier, and their
    links are checked the same way.
    """
    pinned = _read_root(pinned_data, what="pinned root")
    check_signatures(pinned, "root", {"itself": pinned.signed}, what="pinned root", alone=True)
    line = line_of(pinned.signed, what="pinned root")
    versions = sorted(int(match[1]) for name in source.files if (match := _ROOT_NAME.fullmatch(name)))
    if not versions:
        raise VerificationError("metadata holds no root file", hint=_WHOLE)
    if versions[-1] < pinned.signed.version:
        raise VerificationError(
            f"this bundle knows only root {versions[-1]}; this side already trusts root {pinned.signed.version}", hint=_OLDER
        )
    found: dict[int, Metadata[Root]] = {}
    for number in versions:
        name = f"{number}.root.json"
        what = f"metadata/{name}"
        data = source.take(name, why="the root chain")
        metadata = _read_root(data, what=what)
        if metadata.signed.version != number:  # TUF 5.3.5
            raise VerificationError(f"{what}: it says it is version {metadata.signed.version}", hint=_WHOLE)
        theirs = line_of(metadata.signed, what=what)
        if theirs != line:
            raise VerificationError(
                f"this bundle is of line {theirs!r}; this side trusts line {line!r}", hint="use a bundle of the line this side trusts"
            )
        if number == pinned.signed.version and data != pinned_data:
            raise VerificationError(
                f"{what} is not the root {number} that this side pinned for line {line!r}",
                hint="do not use this bundle: another publication uses the same line name",
            )
        found[number] = metadata
    for expected, number in enumerate(versions, 1):  # TUF 5.3.3: 1, 2, ... without a gap
        if number != expected:
            raise VerificationError(f"metadata/{expected}.root.json is missing: the root chain has a gap", hint=_WHOLE)
    for number, metadata in found.items():  # TUF 5.3.4: signed by the threshold of root N and by its own
        links = {"itself": metadata.signed}
        if number - 1 in found:
            links[f"root {number - 1}"] = found[number - 1].signed
        check_signatures(metadata, "root", links, what=f"metadata/{number}.root.json")
    newest = found[versions[-1]].signed  # TUF 5.3.8, 5.3.9: the last of the chain is the trusted root
    data = source.files[f"{versions[-1]}.root.json"]
    return RootChain(roots={number: each.signed for number, each in found.items()}, newest=newest, data=data, line=line)


def _read_root(data: bytes, *, what: str) -> Metadata[Root]:
    metadata = read_role(data, Root, what=what)
    check_delegator(metadata.signed, what=what)
    if metadata.signed.consistent_snapshot is not True:
        raise FormatError(f"{what}: consistent_snapshot is not true", hint="create the bundle with appliance bundle create")
    return metadata


def _check_seen_root(chain: RootChain, seen: SeenVersions | None) -> bool:
    """Refuse an older root than seen; return whether timestamp or snapshot keys were replaced since (TUF 5.3.11).

    Replacing them is how a publisher recovers from a thief who raised versions or `x-issued` to the end of time: what
    those keys said before is then forgotten, as the specification asks.
    """
    if seen is None:
        return False
    if seen.line != chain.line:
        raise VerificationError(
            f"this bundle is of line {chain.line!r}; seen.json is of line {seen.line!r}", hint="use a bundle of the line this side trusts"
        )
    if chain.newest.version < seen.root:
        raise VerificationError(f"root went back from version {seen.root} to {chain.newest.version}", hint=_OLDER)
    before = chain.roots[seen.root]
    return any(set(before.roles[role].keyids) - set(chain.newest.roles[role].keyids) for role in ("timestamp", "snapshot"))


def _role(source: MetadataFiles, name: str, kind: type[SignedT], *, role: str, by: Root | Targets, line: str, why: str) -> SignedT:
    """Return the signed part of one file, its signatures and its line checked."""
    what = f"metadata/{name}"
    metadata = read_role(source.take(name, why=why), kind, what=what)
    check_signatures(metadata, role, {why: by}, what=what)
    theirs = line_of(metadata.signed, what=what)
    if theirs != line:
        raise VerificationError(
            f"{what} is of line {theirs!r}; this side trusts line {line!r}", hint="use a bundle of the line this side trusts"
        )
    return metadata.signed


def _check_expiry(role: str, signed: Root | Timestamp | Snapshot | Targets, now: datetime) -> None:
    if signed.is_expired(now):
        days = (now - signed.expires).days
        raise VerificationError(
            f"{role} expired on {format_instant(signed.expires)}, {days} days ago by this machine's clock",
            hint="carry a newer bundle of this line; if this is the newest, ask the publisher for a fresh one",
        )


def _check_rollback(role: str, version: int, seen_version: int) -> None:
    if version < seen_version:
        raise VerificationError(
            f"{role} went back from version {seen_version} to {version}: this bundle is older than the last one", hint=_OLDER
        )


def _update_timestamp(source: MetadataFiles, chain: RootChain, seen: SeenVersions | None, now: datetime) -> tuple[Timestamp, datetime]:
    """TUF 5.4: signatures (5.4.2), rollback of timestamp and of the snapshot it names (5.4.3), expiry (5.4.4).

    The clock is believed only from the floor on: what was seen before, and this timestamp's own `x-issued`. Only then is
    anything's expiry judged, the newest root's first (TUF 5.3.10). Return `x-issued` too.
    """
    if seen is not None:
        trusted_now(now, floor=parse_instant(seen.issued, what="seen.json"))
    timestamp = _role(source, "timestamp.json", Timestamp, role="timestamp", by=chain.newest, line=chain.line, why="root")
    issued = parse_instant(timestamp.unrecognized_fields.get(ISSUED_FIELD), what=f"metadata/timestamp.json, {ISSUED_FIELD}")
    trusted_now(now, floor=issued)
    _check_expiry("root", chain.newest, now)
    if seen is not None:
        _check_rollback("timestamp", timestamp.version, seen.timestamp)
        _check_rollback("snapshot", timestamp.snapshot_meta.version, seen.snapshot)
    _check_expiry("timestamp", timestamp, now)
    return timestamp, issued


def _update_snapshot(source: MetadataFiles, chain: RootChain, timestamp: Timestamp, seen: SeenVersions | None, now: datetime) -> Snapshot:
    """TUF 5.5: signatures (5.5.3), the version the timestamp names (5.5.4), rollback of any role (5.5.5), expiry (5.5.6)."""
    number = timestamp.snapshot_meta.version
    snapshot = _role(source, f"{number}.snapshot.json", Snapshot, role="snapshot", by=chain.newest, line=chain.line, why="timestamp")
    if snapshot.version != number:
        raise VerificationError(
            f"snapshot is version {snapshot.version}, timestamp names {number}: parts of two releases are mixed", hint=_WHOLE
        )
    expected = {"targets.json", *(f"{each}.json" for each in ContentClass)}
    if snapshot.meta.keys() != expected:
        odd = min(snapshot.meta.keys() ^ expected)
        raise VerificationError(f"snapshot names other roles than targets and the eight classes: {odd}", hint="do not use this bundle")
    if seen is not None:
        _check_rollback("targets", snapshot.meta["targets.json"].version, seen.targets)
        for each in ContentClass:
            _check_rollback(each, snapshot.meta[f"{each}.json"].version, seen.classes.get(each, 1))
    _check_expiry("snapshot", snapshot, now)
    return snapshot


def _update_targets(source: MetadataFiles, chain: RootChain, snapshot: Snapshot, now: datetime) -> Targets:
    """TUF 5.6: signatures (5.6.3), the version the snapshot names (5.6.4), expiry (5.6.5); then the delegations' shape."""
    number = snapshot.meta["targets.json"].version
    targets = _role(source, f"{number}.targets.json", Targets, role="targets", by=chain.newest, line=chain.line, why="snapshot")
    _check_version("targets", targets, number)
    _check_expiry("targets", targets, now)
    if targets.targets.keys() != {RELEASE_TARGET}:
        raise VerificationError(f"targets signs other things than {RELEASE_TARGET}", hint="do not use this bundle")
    roles = targets.delegations.roles if targets.delegations is not None else None
    if roles is None or roles.keys() != {each.value for each in ContentClass}:
        raise VerificationError("targets does not delegate exactly the eight classes", hint="do not use this bundle")
    for name, role in roles.items():
        if role.paths != [f"contents/{name}.json"] or role.terminating is not True or role.unrecognized_fields:
            raise VerificationError(f"targets delegates to {name} other paths than contents/{name}.json", hint="do not use this bundle")
    check_delegator(targets, what="targets")
    return targets


def _check_version(role: str, signed: Targets, number: int) -> None:
    if signed.version != number:
        raise VerificationError(
            f"{role} is version {signed.version}, snapshot names {number}: parts of two releases are mixed", hint=_WHOLE
        )


def _update_class(source: MetadataFiles, snapshot: Snapshot, targets: Targets, each: ContentClass, now: datetime) -> Targets:
    """TUF 5.6.7 for one class: the same checks for a delegated role, which delegates nothing further."""
    number = snapshot.meta[f"{each}.json"].version
    role = _role(source, f"{number}.{each}.json", Targets, role=each, by=targets, line=line_of(targets, what="targets"), why="targets")
    _check_version(each, role, number)
    _check_expiry(each, role, now)
    if role.delegations is not None or role.targets.keys() != {contents_target(each)}:
        raise VerificationError(f"{each} signs other things than {contents_target(each)}", hint="do not use this bundle")
    return role


def take_target(source: MetadataFiles, role: Targets, path: str) -> bytes:
    """TUF 5.7: the target's bytes, of the length and SHA-256 that `role` signs."""
    target = role.targets[path]
    if target.hashes.keys() != {"sha256"} or target.unrecognized_fields:
        raise FormatError(f"target {path} has other hashes or fields than sha256", hint="create the bundle with appliance bundle create")
    folder, slash, name = path.rpartition("/")
    data = source.take(f"targets/{folder}{slash}{target.hashes['sha256']}.{name}", why=f"{role.type} ({path})")
    try:
        target.verify_length_and_hashes(data)
    except LengthOrHashMismatchError as error:
        raise VerificationError(f"target {path} is not the file that was signed: {error}", hint=_WHOLE) from error
    return data


def _read_weights(source: MetadataFiles, targets: Targets, models: Contents, blobs: Mapping[Digest, Blob]) -> dict[Digest, Weights]:
    """Return every model's weights manifest: signed by the models role, pinned by contents, agreeing with it."""
    role = targets.get_delegated_role(ContentClass.MODELS)
    keys = {keyid: targets.get_key(keyid) for keyid in role.keyids}
    found: dict[Digest, Weights] = {}
    for artifact in models.artifacts:
        if artifact.weights is None:
            raise VerificationError(f"model {artifact.name} has no weights manifest", hint="do not use this bundle")
        path = weights_path(artifact.weights)
        envelope = source.take(path, why=f"contents of models ({artifact.name})")
        what = f"metadata/{path}"
        opened = open_own(envelope, payload_type=STATEMENT_PAYLOAD, keys=keys, threshold=role.threshold, what=what)
        if digest_of(opened.payload) != artifact.weights:
            raise VerificationError(f"{what} is not the weights manifest that contents pin for {artifact.name}", hint=_WHOLE)
        weights = parse_statement(opened.payload, what=what)
        check_agreement(weights, artifact, blobs)
        found[artifact.weights] = weights
    return found
