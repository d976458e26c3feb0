# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The moment a release appears: all its blobs are in the store, its metadata was verified, and now the site remembers it.

Order, each step durable before the next: the release's folder beside its place; what the site has seen; the folder in
its place; `current`; the line in the log of imports. A run that dies in between does the rest when it runs again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import ClassVar

from appliance.adapters import disk
from appliance.bundle.documents import Document, Sha256, encode
from appliance.digests import Digest, hex_of
from appliance.errors import HostError
from appliance.store import CURRENT, Store
from appliance.trust.client import VerifiedBundle
from appliance.trust.clock import format_instant
from appliance.verify import save_seen


class ImportRecord(Document, frozen=True, kw_only=True):
    """One line of `imports.jsonl`: what a receipt will state (docs/bundle-format.md section 7).

    `when` is trusted time; `parts` are the indices read, over all visits; `timestamp` is the version accepted.
    """

    FORMAT: ClassVar[str] = "import/1"

    line: str
    name: str
    version: str
    release: Sha256
    timestamp: int
    set: Sha256
    parts: tuple[int, ...]
    count: int
    bytes_written: int
    who: str
    when: str


def activate(
    store: Store, bundle: VerifiedBundle, *, set_name: Digest, parts: tuple[int, ...], count: int, written: int, who: str, now: datetime
) -> bool:
    """Make the complete release `bundle` appear; return False when exactly this was imported before.

    Raises:
        HostError: the state cannot be written, or a blob is missing after all.
    """
    if missing := store.missing(bundle.blobs):
        raise HostError(f"{len(missing)} blobs of the release are not in the store", hint="read the media again")
    place = store.releases_folder / hex_of(bundle.digest)
    fresh = store.releases_folder / f".{hex_of(bundle.digest)}.new"
    known = _same_metadata(place, bundle.metadata)
    with disk.at(fresh):
        shutil.rmtree(fresh, ignore_errors=True)
    if not known:
        _write_metadata(fresh, bundle.metadata)
    save_seen(store.trust_of(bundle.line), bundle)
    if not known:
        _into_place(fresh, place)
    _point(store.releases_folder / CURRENT, place.name)
    if known and _logged(store.imports_log, bundle):
        return False
    record = ImportRecord(
        format=ImportRecord.FORMAT,
        line=bundle.line,
        name=bundle.release.name,
        version=bundle.release.version,
        release=bundle.digest,
        timestamp=bundle.seen.timestamp,
        set=set_name,
        parts=parts,
        count=count,
        bytes_written=written,
        who=who,
        when=format_instant(now),
    )
    disk.append_line(store.imports_log, encode(record))
    return True


def _same_metadata(place: Path, metadata: Mapping[str, bytes]) -> bool:
    folder = place / "metadata"
    if not folder.is_dir():
        return False
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    return there == set(metadata) and all((folder / name).read_bytes() == data for name, data in metadata.items())


def _write_metadata(folder: Path, metadata: Mapping[str, bytes]) -> None:
    places = {folder / "metadata" / name: data for name, data in metadata.items()}
    for path in places:
        disk.make_directory(path.parent)
    for path, data in places.items():
        with disk.at(path, needed=len(data)):
            path.write_bytes(data)
            path.chmod(0o444)
    disk.sync_filesystem(folder)


def _into_place(fresh: Path, place: Path) -> None:
    """Move the whole release in, or, where it is known with older signatures, exchange its metadata in one step."""
    with disk.at(place):
        if not place.exists():
            fresh.rename(place)
        else:
            if os.path.lexists(place / "metadata"):
                disk.exchange(fresh / "metadata", place / "metadata")
            else:
                (fresh / "metadata").rename(place / "metadata")
            shutil.rmtree(fresh)
    disk.sync_directory(place.parent)


def _point(link: Path, name: str) -> None:
    with disk.at(link):
        if link.is_symlink() and str(link.readlink()) == name:
            return
        beside = link.with_name(f".{link.name}.new")
        beside.unlink(missing_ok=True)
        beside.symlink_to(name)
        beside.rename(link)
    disk.sync_directory(link.parent)


def _logged(log: Path, bundle: VerifiedBundle) -> bool:
    """Whether the last line of the log is of this very import: a run may have died just before writing it."""
    if not log.is_file():
        return False
    with disk.at(log):
        lines = log.read_bytes().splitlines()
    wanted = (f'"release":"{bundle.digest}"'.encode(), f'"timestamp":{bundle.seen.timestamp},'.encode())
    return any(all(each in line for each in wanted) for line in lines)
