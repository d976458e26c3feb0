# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""One TUF metadata file: read strictly, signatures checked (docs/bundle-format.md section 4.3).

The data model, canonical form and signature checks are `tuf.api`'s. Stricter than the TUF specification, so that no byte
of a carried file is free:

* a file is the compact JSON that `tuf.api` writes for what it holds, byte for byte;
* every signature in a file is by a key of its role and verifies: none is merely ignored;
* every signed part names its line (`x-line`).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any, Final, TypeVar

from securesystemslib.exceptions import UnverifiedSignatureError
from tuf.api.metadata import Metadata, Role, Root, Snapshot, Targets, Timestamp
from tuf.api.serialization import DeserializationError, SerializationError

from appliance.bundle.documents import MAX_INTEGER, reason_of
from appliance.errors import FormatError, VerificationError
from appliance.trust.keys import Family, check_keys, check_threshold, family, family_counts

LINE_FIELD: Final = "x-line"
ISSUED_FIELD: Final = "x-issued"
MAX_BYTES: Final[Mapping[type[object], int]] = {Root: 512_000, Timestamp: 64_000, Snapshot: 2_000_000, Targets: 5_000_000}
"""Longer files are refused unread; as `tuf.ngclient` has them, but for a timestamp with many ML-DSA signatures."""

_HEX = re.compile(r"(?:[0-9a-f]{2})+")
_AGAIN: Final = "carry the bundle again; if it stays so, do not use it"

AnyMetadata = Metadata[Any]
SignedT = TypeVar("SignedT", Root, Timestamp, Snapshot, Targets)
Delegator = Root | Targets


def read_role(data: bytes, kind: type[SignedT], *, what: str) -> Metadata[SignedT]:
    """Return the metadata in `data`; no signature is checked yet. `what` names the file in errors.

    Raises:
        FormatError: too long, not JSON, of another type, not in canonical form, with floats or unsigned fields.
    """
    if len(data) > MAX_BYTES[kind]:
        raise FormatError(f"{what}: {len(data)} bytes is more than it may have ({MAX_BYTES[kind]})", hint=_AGAIN)
    try:
        metadata: AnyMetadata = Metadata.from_bytes(data)
        canonical = metadata.to_bytes()
        metadata.signed_bytes  # noqa: B018 - raises where the signed part has no canonical form, such as for floats
    except (DeserializationError, SerializationError) as error:
        raise FormatError(f"{what}: not TUF metadata ({reason_of(error.__cause__ or error)})", hint=_AGAIN) from error
    if not isinstance(metadata.signed, kind):
        raise FormatError(f"{what}: it says it is {metadata.signed.type}, expected {kind.type}", hint=_AGAIN)
    if canonical != data or metadata.unrecognized_fields:
        raise FormatError(f"{what}: not in canonical form", hint=_AGAIN)
    for signature in metadata.signatures.values():
        if signature.unrecognized_fields or _HEX.fullmatch(signature.signature) is None:
            raise FormatError(f"{what}: signature by {signature.keyid[:16]} is not in canonical form", hint=_AGAIN)
    _check_numbers(metadata.signed, what=what)
    return metadata


def _check_numbers(signed: Root | Timestamp | Snapshot | Targets, *, what: str) -> None:
    """Refuse booleans and huge integers where Python would take them for numbers."""
    numbers: list[object] = [signed.version]
    if isinstance(signed, Root):
        numbers += [role.threshold for role in signed.roles.values()]
    elif isinstance(signed, Timestamp):
        numbers += [signed.snapshot_meta.version]
    elif isinstance(signed, Snapshot):
        numbers += [meta.version for meta in signed.meta.values()]
    else:
        numbers += [target.length for target in signed.targets.values()]
        roles = signed.delegations.roles if signed.delegations else None
        numbers += [role.threshold for role in (roles or {}).values()]
    for number in numbers:
        if type(number) is not int or not 0 <= number <= MAX_INTEGER:
            raise FormatError(f"{what}: {str(number)[:40]} is not a version, length or threshold", hint=_AGAIN)


def line_of(signed: Root | Timestamp | Snapshot | Targets, *, what: str) -> str:
    """Return the line that `signed` belongs to.

    Raises:
        FormatError: it names none.
    """
    line = signed.unrecognized_fields.get(LINE_FIELD)
    if not isinstance(line, str):
        raise FormatError(f"{what}: it names no line ({LINE_FIELD})", hint="create the bundle with appliance bundle create")
    return line


def check_delegator(delegator: Delegator, *, what: str) -> None:
    """Check keys and thresholds of every role that `delegator` delegates to.

    Raises:
        VerificationError: see `check_keys` and `check_threshold`.
    """
    if isinstance(delegator, Root):
        keys, roles = delegator.keys, dict(delegator.roles)
    else:
        keys = delegator.delegations.keys if delegator.delegations else {}
        roles = dict(delegator.delegations.roles or {}) if delegator.delegations else {}
    check_keys(keys, what=what)
    for name, role in sorted(roles.items()):
        check_threshold(role, keys, what=f"{what}, role {name}")


def check_signatures(
    metadata: AnyMetadata, role: str, delegators: Mapping[str, Delegator], *, what: str, partly: bool = False, alone: bool = False
) -> None:
    """Check that each of `delegators` (by a name for errors) finds `role`'s threshold of signatures on `metadata`.

    With `partly` (before the last person has signed) fewer are enough, but none may be wrong. With `alone` (a pinned root,
    whose predecessor is not at hand) signatures by other keys are left unjudged.

    Raises:
        VerificationError: a signature by a foreign key, one that does not verify, or fewer than the threshold.
    """
    payload = metadata.signed_bytes
    allowed: set[str] = set()
    for delegator in delegators.values():
        for keyid in delegator.get_delegated_role(role).keyids:
            if keyid in metadata.signatures and keyid not in allowed:
                try:
                    delegator.get_key(keyid).verify_signature(metadata.signatures[keyid], payload)
                except UnverifiedSignatureError as error:
                    raise VerificationError(f"{what}: the signature by key {keyid[:16]} does not verify", hint=_AGAIN) from error
            allowed.add(keyid)
    foreign = metadata.signatures.keys() - allowed
    if foreign and not alone:
        raise VerificationError(
            f"{what}: signed by key {min(foreign)[:16]}, which is not a key of role {role}",
            hint="check that the bundle belongs to the publication that this side trusts",
        )
    for name, delegator in ({} if partly else delegators).items():
        _check_count(delegator, delegator.get_delegated_role(role), metadata.signatures.keys(), f"{what} by {name}")


def _check_count(delegator: Delegator, role: Role, valid: Collection[str], what: str) -> None:
    signed = [keyid for keyid in role.keyids if keyid in valid]
    if len(signed) >= role.threshold:
        return
    counts = family_counts(delegator.get_key(keyid) for keyid in signed)
    only = [name for name, count in counts.items() if count == len(signed)] if signed else []
    unsigned = ", ".join(f"{keyid[:16]} ({family(delegator.get_key(keyid))})" for keyid in role.keyids if keyid not in valid)
    other = {Family.CLASSICAL: Family.ML_DSA, Family.ML_DSA: Family.CLASSICAL}
    why = f"; only {only[0]} keys signed, {other[only[0]]} is missing" if only else ""
    raise VerificationError(
        f"{what}: {len(signed)} of {role.threshold} needed signatures{why}; unsigned by {unsigned}",
        hint="have the holder of a missing key run: appliance keys sign BUNDLE --publication DIR --keys DIR",
    )
