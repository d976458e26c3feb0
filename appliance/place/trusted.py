# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What the depot says, judged by the node itself: from its own pinned root, its own memory and its own clock.

The depot is not believed. It hands over the files below `metadata/`; the node runs the whole client workflow over them,
from the root that was pinned on it when it joined the site. A release that this node accepted before stays acceptable
after it has expired (a site may go on with what it has); one that it sees for the first time must be in time.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec
from tuf.api.metadata import Root

from appliance.adapters.depot import DepotConnection
from appliance.adapters.disk import read_small
from appliance.bundle.documents import JSON_ERRORS
from appliance.bundle.metadata_artifact import MAX_MANIFEST_BYTES, METADATA_REPOSITORY, parse_metadata_manifest
from appliance.digests import Digest, hex_of
from appliance.errors import FormatError, HostError, VerificationError
from appliance.place.places import NodePlaces
from appliance.trust.client import MAX_FILES, VerifiedBundle, verify_metadata
from appliance.trust.clock import parse_instant, trusted_now
from appliance.trust.roles import MAX_BYTES, line_of
from appliance.verify import Trust, check_root, load_trust, pin_root, save_seen
from appliance.verify.metadata import MAX_METADATA_BYTES

_ASK: Final = "find out who changed it; the root is pinned once, by appliance site install, and never replaced"


def node_trust(places: NodePlaces, pinned: Path) -> Trust:
    """Return what this node trusts: the root in `pinned`, and what it has seen of that line since.

    Raises:
        HostError: no root is pinned.
        VerificationError: another root, or a root of another line, than this node trusted before.
        FormatError: not a root.
    """
    if not pinned.is_file():
        raise HostError(
            f"{pinned}: no root is pinned on this node", hint="run appliance site install on the depot; it pins the site's root"
        )
    data = read_small(pinned, limit=MAX_BYTES[Root])
    line = line_of(check_root(data, what=str(pinned)), what=str(pinned))
    lines = sorted(path.parent.name for path in places.trust.glob("*/root.json"))
    if lines and lines != [line]:
        raise VerificationError(f"{pinned} is of line {line!r}; this node trusts {', '.join(lines)} since before", hint=_ASK)
    folder = places.trust / line
    if not lines:
        return Trust(directory=folder, line=line, pin=data, seen=None)
    if read_small(folder / "root.json", limit=MAX_BYTES[Root]) != data:
        raise VerificationError(f"{pinned} is not the root that this node trusted before ({folder / 'root.json'})", hint=_ASK)
    return load_trust(folder)


def fetch_metadata(connection: DepotConnection, release: Digest) -> dict[str, bytes]:
    """Return the files below `metadata/` that the depot offers for `release`, unverified, by path.

    Raises:
        ToolError: the depot does not answer, or does not offer the release.
        VerificationError: not this site's depot, or a file is not what its manifest names.
        FormatError: too much, or not metadata.
    """
    manifest = connection.manifest(METADATA_REPOSITORY, hex_of(release), limit=MAX_MANIFEST_BYTES)
    wanted = parse_metadata_manifest(manifest, max_files=MAX_FILES, max_bytes=MAX_METADATA_BYTES)
    return {file.path: connection.blob(METADATA_REPOSITORY, file.digest, size=file.size) for file in wanted}


def verify_release(files: Mapping[str, bytes], trust: Trust, *, release: Digest, now: datetime) -> VerifiedBundle:
    """Return the release that `files` prove, which must be `release`; `now` is this node's clock.

    Raises:
        VerificationError: see `verify_metadata`; or another release than was asked for.
        FormatError: malformed, or made by a newer appliance.
        HostError: the clock is behind a moment that a signature proves to have passed.
    """
    bundle = _accepted_before(files, trust, now) or verify_metadata(files, pinned_root=trust.pin, seen=trust.seen, now=now)
    if bundle.digest != release:
        raise VerificationError(
            f"the depot gave release {hex_of(bundle.digest)} for {hex_of(release)}", hint="on the depot, run appliance site install again"
        )
    return bundle


class _IssuedAt(msgspec.Struct, frozen=True):
    issued: str = msgspec.field(name="x-issued")


class _Timestamp(msgspec.Struct, frozen=True):
    signed: _IssuedAt


def _accepted_before(files: Mapping[str, bytes], trust: Trust, now: datetime) -> VerifiedBundle | None:
    """Return the release if it is exactly what this node has seen last, judged when it was issued; else None."""
    if trust.seen is None:
        return None
    try:
        timestamp = msgspec.json.decode(files.get("timestamp.json", b""), type=_Timestamp)
        issued = parse_instant(timestamp.signed.issued, what="timestamp.json")
    except (*JSON_ERRORS, FormatError):
        return None
    floor = parse_instant(trust.seen.issued, what="seen.json")
    if issued != floor:
        return None
    trusted_now(now, floor=floor)
    bundle = verify_metadata(files, pinned_root=trust.pin, seen=trust.seen, now=issued)
    return bundle if bundle.seen == trust.seen else None


def remember(places: NodePlaces, trust: Trust, bundle: VerifiedBundle) -> bool:
    """Keep the pin (the first time), the root chain and the versions that `bundle` proved; says whether that was new.

    Raises:
        HostError: it cannot be written.
    """
    if trust.seen == bundle.seen:
        return False
    if not (trust.directory / "root.json").is_file():
        pin_root(places.trust, trust.pin)
    save_seen(trust.directory, bundle)
    return True
