# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Bundle to parts: every byte read once, hashed on the way and written once (docs/bundle-format.md section 7).

A part grows as `<name>.partial` and gets its name when it is whole and synced. Beside it, `<name>.journal` lists the
units (runs of at most 64 MiB of chunks) that are on the medium: a line is written after the unit's data was synced, so
it holds after a killed process as well as after a stick that was pulled out. Running again goes on from there.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from appliance.adapters import disk, hashing
from appliance.adapters.copying import Sink, Source, copy_file, copy_range
from appliance.adapters.parallel import AHEAD, for_each
from appliance.bundle.media import TRAILER_BYTES, PartTable, encode_head, encode_trailer, part_length
from appliance.carry.layout import MediaPlan, part_name, plan_parts, stem
from appliance.carry.listing import Listing, check_sizes, read_listing
from appliance.carry.sheet import INSTALLER_NAME, render_sheet
from appliance.digests import CHUNK_BYTES
from appliance.errors import UsageError, VerificationError
from appliance.progress import SILENT, Progress
from appliance.trust.countersign import check_signed

SHEET_SUFFIX = ".sheet.txt"
_CREATE_AGAIN = "create the bundle again from its lock, then run this command again"


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenSet:
    """What lies on the medium: the parts in order with their sizes, the sheet, and the installer if the bundle has one."""

    tables: tuple[PartTable, ...]
    parts: tuple[tuple[str, int], ...]
    sheet: Path
    installer: Path | None
    bytes_copied: int


@dataclass(slots=True, kw_only=True)
class _Part:
    """One part being written."""

    table: PartTable
    path: Path
    head: bytes
    length: int

    @property
    def partial(self) -> Path:
        return self.path.with_name(self.path.name + ".partial")

    @property
    def journal(self) -> Path:
        return self.path.with_name(self.path.name + ".journal")

    def units(self) -> list[range]:
        """Runs of chunk entries of at most one full chunk's bytes: what a worker does between two syncs."""
        units: list[range] = []
        first = size = 0
        for number, entry in enumerate(self.table.chunks):
            if number > first and size + entry.size > CHUNK_BYTES:
                units.append(range(first, number))
                first, size = number, 0
            size += entry.size
        if first < len(self.table.chunks):
            units.append(range(first, len(self.table.chunks)))
        return units


def write_media(bundle: Path, target: Path, *, part_size: int, workers: int, written_by: str, progress: Progress = SILENT) -> WrittenSet:
    """Write the bundle folder `bundle` as parts of at most `part_size` bytes into `target`, with sheet and installer.

    Running it again after any interruption goes on; a finished part is not read again.

    Raises:
        UsageError: `part_size` is too small, or `target` holds other files under these names.
        VerificationError: signatures are still lacking, or a file is not what contents list ("changed since create").
        HostError: no space (checked before the first byte), an unreadable bundle, a medium that fails.
    """
    listing = read_listing(bundle)
    check_signed(listing.metadata, what=str(bundle))
    plan = plan_parts(listing.release, listing.blobs, listing.metadata, part_size=part_size)
    check_sizes(listing)
    disk.make_directory(target)
    with disk.locked_folder(target):
        return _write_set(listing, plan, target, workers, written_by, progress)


def _write_set(listing: Listing, plan: MediaPlan, target: Path, workers: int, written_by: str, progress: Progress) -> WrittenSet:  # noqa: PLR0917 - private
    parts = [
        _Part(table=table, path=target / part_name(table), head=encode_head(table), length=part_length(table)) for table in plan.tables
    ]
    whole = [part for part in parts if _is_whole(part)]
    _check_space(target, listing, [part for part in parts if part not in whole])
    progress.start("write", total=plan.total_bytes)
    copied = 0
    for part in parts:
        if part in whole:
            _remove(part.journal)
            progress.advance(part.length)
        else:
            copied += _write_part(part, listing, plan, workers, progress)
    installer = _place_installer(listing, target)
    sheet = target / (stem(listing.release) + SHEET_SUFFIX)
    version, root = listing.root
    text = render_sheet(
        release=listing.release,
        root=root,
        root_version=version,
        installer=listing.installer.digest if listing.installer else None,
        parts=[(part.path.name, part.length) for part in parts],
        set_digest=plan.tables[0].set,
        written_by=written_by,
    )
    if not _has_bytes(sheet, text.encode()):
        disk.write_atomic(sheet, text.encode())
    progress.finish()
    return WrittenSet(
        tables=plan.tables,
        parts=tuple((part.path.name, part.length) for part in parts),
        sheet=sheet,
        installer=installer,
        bytes_copied=copied,
    )


def _remove(path: Path) -> None:
    """Remove a leftover; a finished medium that cannot be written has none."""
    if os.path.lexists(path):
        with disk.at(path):
            path.unlink()


def _has_bytes(path: Path, data: bytes) -> bool:
    return path.is_file() and disk.read_small(path, limit=max(len(data), path.lstat().st_size)) == data


def _is_whole(part: _Part) -> bool:
    """Whether the finished part is there already; it got its name only after it was synced."""
    if not os.path.lexists(part.path):
        return False
    descriptor = disk.open_regular(part.path)
    try:
        with disk.at(part.path):
            same = os.fstat(descriptor).st_size == part.length and os.pread(descriptor, len(part.head), 0) == part.head
    finally:
        os.close(descriptor)
    if not same:
        raise UsageError(f"{part.path} is there and is not part of this set", hint="move it away, or write to another folder")
    return True


def _check_space(target: Path, listing: Listing, parts: Sequence[_Part]) -> None:
    """Refuse before the first byte when the set does not fit; what a stopped run left counts as there."""
    needed = sum(part.length for part in parts)
    for part in parts:
        with suppress(OSError):
            status = part.partial.lstat()
            needed -= min(part.length, status.st_blocks * 512)
    if listing.installer is not None and not (target / INSTALLER_NAME).exists():
        needed += listing.installer.size
    if needed > 0:
        disk.require_space(target, needed, what="the media set")


def _write_part(part: _Part, listing: Listing, plan: MediaPlan, workers: int, progress: Progress) -> int:
    """Write what is missing of one part, then give it its name; return the bytes copied."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with disk.at(part.partial, needed=part.length):
        target = os.open(part.partial, flags, 0o644)
        journal = os.open(part.journal, flags | os.O_APPEND, 0o644)
    try:
        done = _resume(part, target, journal)
        if done is None:
            _begin(part, listing, target, journal)
            done = set()
        units = part.units()
        left = [number for number in range(len(units)) if number not in done]
        copied = sum(part.table.chunks[index].size for number in left for index in units[number])
        progress.advance(part.length - copied)
        lock = threading.Lock()

        def copy(number: int) -> None:
            _copy_unit(part, units[number], listing, plan, target, progress)
            with disk.at(part.partial, needed=part.length):
                os.fdatasync(target)
                with lock:
                    disk.append(journal, f"{number}\n".encode())

        for_each(left, copy, workers=workers)
        with disk.at(part.partial, needed=part.length):
            disk.write_fully(target, encode_trailer(part.head, part.length), part.length - TRAILER_BYTES)
            os.ftruncate(target, part.length)
            os.fsync(target)
            part.partial.replace(part.path)
            part.journal.unlink()
        disk.sync_directory(part.path.parent)
        return copied
    finally:
        os.close(target)
        os.close(journal)


def _resume(part: _Part, target: int, journal: int) -> set[int] | None:
    """Return the units already on the medium, or None when nothing of this very part is."""
    with disk.at(part.journal):
        lines = os.pread(journal, 1024 * 1024, 0).decode("ascii", "replace").split("\n")[:-1]
    if not lines or lines[0] != part.table.set:
        return None
    with disk.at(part.partial):
        if os.pread(target, len(part.head), 0) != part.head:
            return None
    count = len(part.units())
    return {int(line) for line in lines[1:] if line.isascii() and line.isdigit() and int(line) < count}


def _begin(part: _Part, listing: Listing, target: int, journal: int) -> None:
    """Empty both files, write header, table and metadata, sync them, then name the set in the journal."""
    with disk.at(part.partial, needed=part.length):
        os.ftruncate(journal, 0)
        os.ftruncate(target, 0)
        disk.reserve(target, part.length, part.partial)
        disk.write_fully(target, part.head, 0)
        for entry in part.table.metadata:
            disk.write_fully(target, listing.metadata[entry.path], entry.offset)
        os.fsync(target)
        disk.append(journal, f"{part.table.set}\n".encode())


def _copy_unit(part: _Part, unit: range, listing: Listing, plan: MediaPlan, target: int, progress: Progress) -> None:  # noqa: PLR0917 - private
    for index in unit:
        entry = part.table.chunks[index]
        _prefetch(part, index + AHEAD, unit, listing, plan)
        source = plan.sources[entry.digest]
        path = listing.blob_path(source.blob)
        reading = disk.open_regular(path)
        try:
            with disk.at(part.partial, needed=part.length):
                found = copy_range(
                    Source(reading),
                    source.offset,
                    source.size,
                    target=Sink(target),
                    at_byte=entry.offset,
                    path=path,
                    advance=progress.advance,
                )
        finally:
            os.close(reading)
        if found != entry.digest:
            raise VerificationError(
                f"changed since create: {path}: {source.size} bytes at {source.offset} are {found}, expected {entry.digest}",
                hint=_CREATE_AGAIN,
            )


def _prefetch(part: _Part, index: int, unit: range, listing: Listing, plan: MediaPlan) -> None:
    """Have the disk fetch the beginning of a chunk a few ahead; at the beginning of a unit, of all before it too."""
    for each in range(unit.start if index == unit.start + AHEAD else index, index + 1):
        if each in unit:
            source = plan.sources[part.table.chunks[each].digest]
            hashing.prefetch(listing.blob_path(source.blob), source.offset, source.size)


def _place_installer(listing: Listing, target: Path) -> Path | None:
    """Put `install.pyz` beside the parts, hashed on the way."""
    blob = listing.installer
    if blob is None:
        return None
    path = target / INSTALLER_NAME
    source = listing.blob_path(blob.digest)
    if os.path.lexists(path):
        if hashing.hash_file(path).digest == blob.digest:
            return path
        raise UsageError(f"{path} is there and is not this bundle's installer", hint="move it away, or write to another folder")
    partial = path.with_name(path.name + ".partial")
    _remove(partial)
    found = copy_file(source, partial, mode=0o755)
    if found != blob.digest:
        _remove(partial)
        raise VerificationError(f"changed since create: {source} is {found}", hint=_CREATE_AGAIN)
    with disk.at(path):
        descriptor = os.open(partial, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        partial.replace(path)
    disk.sync_directory(target)
    return path
