# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Making metadata: a line's first root, and the TUF metadata of one release (docs/bundle-format.md section 4).

Snapshot and timestamp name versions and no hashes (TUF specification sections 4.4 and 4.5 leave them optional), so a
second person can still add a signature to a file that another file names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
from securesystemslib.signer import SSlibKey
from tuf.api.metadata import (
    DelegatedRole,
    Delegations,
    Key,
    Metadata,
    MetaFile,
    Role,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)

from appliance.bundle.contents import ContentClass, Contents
from appliance.bundle.documents import encode
from appliance.bundle.formats import STATEMENT_PAYLOAD
from appliance.digests import Digest, digest_of, hex_of
from appliance.errors import UsageError
from appliance.trust.clock import format_instant
from appliance.trust.envelope import seal
from appliance.trust.keys import Signer, check_keys, least_threshold
from appliance.trust.publication import Publication, as_key
from appliance.trust.roles import ISSUED_FIELD, LINE_FIELD, AnyMetadata, check_delegator, line_of, read_role

ROOT_DAYS: Final = 730
TARGETS_DAYS: Final = 365
TIMESTAMP_DAYS: Final = 90
TOP_LEVEL: Final = ("root", "timestamp", "snapshot", "targets")
RELEASE_TARGET: Final = "release.json"


def contents_target(content_class: ContentClass) -> str:
    """Return the target path of one class."""
    return f"contents/{content_class}.json"


def weights_path(payload: Digest) -> str:
    """Return where below `metadata/` the signed weights manifest with this payload lies."""
    return f"weights/{hex_of(payload)}.dsse.json"


def empty_contents(content_class: ContentClass) -> bytes:
    """Return the contents of a class of which a release carries nothing."""
    return encode(Contents(format=Contents.FORMAT, content_class=content_class, artifacts=(), blobs=()))


def _expiry(now: datetime, days: int) -> datetime:
    return now.astimezone(UTC).replace(microsecond=0) + timedelta(days=days)


def new_root(*, line: str, signers: Sequence[Signer], now: datetime) -> bytes:
    """Return `1.root.json` of a new line: all four roles with all keys, the least threshold that needs both families.

    Raises:
        VerificationError: the keys of `signers` break the rules of section 4.2.
    """
    keys: dict[str, Key] = {signer.public_key.keyid: signer.public_key for signer in signers}
    check_keys(keys, what="new root")
    threshold = least_threshold(list(keys.values()))
    roles = {name: Role(sorted(keys), threshold) for name in TOP_LEVEL}
    root = Root(1, expires=_expiry(now, ROOT_DAYS), keys=keys, roles=roles, unrecognized_fields={LINE_FIELD: line})
    check_delegator(root, what="new root")
    return _sign(Metadata(root), root.roles["root"], signers)


def sign_release(
    *,
    publication: Publication,
    roots: Sequence[bytes],
    signers: Sequence[Signer],
    release: bytes,
    contents: Mapping[ContentClass, bytes],
    now: datetime,
    statements: Sequence[bytes] = (),
) -> tuple[Publication, dict[str, bytes]]:
    """Return `publication` with raised counters, and every file below `metadata/` by its relative path.

    `roots` is the whole chain, oldest first; `contents` may lack classes, which are then empty; `statements` are the
    weights manifests of all models, which the keys of role models sign too. Each file is signed by those `signers` whose
    key it has, even if they are fewer than its threshold: `signature_states` says what is left.

    Raises:
        UsageError: no signer has a key of the newest root.
        FormatError: a root is malformed or of another line.
        VerificationError: keys or thresholds break the rules of section 4.2.
    """
    root, files = _read_roots(roots, publication.line)
    if not any(signer.public_key.keyid in root.roles["timestamp"].keyids for signer in signers):
        raise UsageError("none of the keys given is a key of this publication", hint="give the folder keys init wrote with --keys")
    raised = msgspec.structs.replace(
        publication,
        timestamp=publication.timestamp + 1,
        snapshot=publication.snapshot + 1,
        targets=publication.targets + 1,
        classes={each: publication.classes.get(each, 0) + 1 for each in ContentClass},
        issued=format_instant(now),
    )
    fields = {LINE_FIELD: publication.line}
    long, short = _expiry(now, TARGETS_DAYS), _expiry(now, TIMESTAMP_DAYS)
    targets = Targets(
        raised.targets,
        expires=long,
        targets={RELEASE_TARGET: _target(RELEASE_TARGET, release, files)},
        delegations=_delegations(root, publication),
        unrecognized_fields=dict(fields),
    )
    check_delegator(targets, what="targets")
    files[f"{raised.targets}.targets.json"] = _sign(Metadata(targets), root.roles["targets"], signers)
    for each in ContentClass:
        path = contents_target(each)
        role = Targets(
            raised.classes[each],
            expires=long,
            targets={path: _target(path, contents.get(each) or empty_contents(each), files)},
            unrecognized_fields=dict(fields),
        )
        name = f"{raised.classes[each]}.{each}.json"
        files[name] = _sign(Metadata(role), targets.get_delegated_role(each), signers)
    models = targets.get_delegated_role(ContentClass.MODELS)
    for statement in statements:
        chosen = [signer for signer in signers if signer.public_key.keyid in models.keyids]
        files[weights_path(digest_of(statement))] = seal(STATEMENT_PAYLOAD, statement, chosen)
    meta = {f"{each}.json": MetaFile(raised.classes[each]) for each in ContentClass}
    meta["targets.json"] = MetaFile(raised.targets)
    snapshot = Snapshot(raised.snapshot, expires=long, meta=meta, unrecognized_fields=dict(fields))
    files[f"{raised.snapshot}.snapshot.json"] = _sign(Metadata(snapshot), root.roles["snapshot"], signers)
    issued = {**fields, ISSUED_FIELD: format_instant(now)}
    timestamp = Timestamp(raised.timestamp, expires=short, snapshot_meta=MetaFile(raised.snapshot), unrecognized_fields=issued)
    files["timestamp.json"] = _sign(Metadata(timestamp), root.roles["timestamp"], signers)
    return raised, files


def _read_roots(roots: Sequence[bytes], line: str) -> tuple[Root, dict[str, bytes]]:
    """Return the newest root and all root files by path."""
    files: dict[str, bytes] = {}
    newest: Root | None = None
    for data in roots:
        newest = read_role(data, Root, what="root").signed
        check_delegator(newest, what=f"root {newest.version}")
        if line_of(newest, what=f"root {newest.version}") != line:
            raise UsageError(f"root {newest.version} is not of line {line!r}", hint="give the publication folder that keys init made")
        files[f"{newest.version}.root.json"] = data
    if newest is None:
        raise UsageError("the publication has no root", hint="run appliance keys init")
    return newest, files


def _target(path: str, data: bytes, files: dict[str, bytes]) -> TargetFile:
    """Return the target entry of `data`, and add its file under its consistent-snapshot name to `files`."""
    digest = hex_of(digest_of(data))
    folder, slash, name = path.rpartition("/")
    files[f"targets/{folder}{slash}{digest}.{name}"] = data
    return TargetFile(len(data), {"sha256": digest}, path)


def _delegations(root: Root, publication: Publication) -> Delegations:
    """Return the delegation of every class: to the publication's own keys unless it was given to others."""
    own = root.roles["targets"]
    keys: dict[str, Key] = {keyid: root.keys[keyid] for keyid in own.keyids}
    roles: dict[str, DelegatedRole] = {}
    for each in ContentClass:
        other = publication.delegations.get(each)
        keyids, threshold = list(own.keyids), own.threshold
        if other is not None:
            given: dict[str, SSlibKey] = {keyid: as_key(keyid, entry) for keyid, entry in other.keys.items()}
            keys |= given
            keyids, threshold = sorted(given), other.threshold
        roles[each.value] = DelegatedRole(each.value, keyids, threshold, terminating=True, paths=[contents_target(each)])
    used = {keyid for role in roles.values() for keyid in role.keyids}
    return Delegations({keyid: key for keyid, key in sorted(keys.items()) if keyid in used}, roles)


def _sign(metadata: AnyMetadata, role: Role, signers: Sequence[Signer]) -> bytes:
    """Return `metadata` signed by those of `signers` that `role` has."""
    return add_signatures(metadata, role, signers).to_bytes()


def add_signatures(metadata: AnyMetadata, role: Role, signers: Sequence[Signer]) -> AnyMetadata:
    """Return `metadata` with the signatures of those `signers` that `role` has, all in order of their key."""
    payload = metadata.signed_bytes
    for signer in signers:
        keyid = signer.public_key.keyid
        if keyid in role.keyids and keyid not in metadata.signatures:
            metadata.signatures[keyid] = signer.sign(payload)
    ordered = dict(sorted(metadata.signatures.items()))
    metadata.signatures.clear()
    metadata.signatures.update(ordered)
    return metadata
