# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Parts as they lie on media: found in folders, their own form checked, nothing in them believed."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance.adapters import disk
from appliance.bundle.media import (
    HEADER_BYTES,
    PART_MAGIC,
    PART_SUFFIX,
    TRAILER_BYTES,
    PartTable,
    check_trailer,
    encode_head,
    parse_header,
    parse_table,
    part_length,
)
from appliance.digests import Digest, digest_of
from appliance.errors import ApplianceError, FormatError, HostError, UsageError
from appliance.trust.client import MAX_FILES
from appliance.verify.metadata import MAX_METADATA_BYTES

_CARRY_AGAIN = "carry this part again from where it was written"


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFile:
    """A part whose header, table and trailer have the right form."""

    path: Path
    table: PartTable
    length: int

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return str(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What folders hold: usable parts in the order of their index, and why other parts are not."""

    parts: tuple[PartFile, ...]
    bad: tuple[ApplianceError, ...]

    def sets(self) -> dict[Digest, list[PartFile]]:
        """The parts by set."""
        found: dict[Digest, list[PartFile]] = {}
        for part in self.parts:
            found.setdefault(part.table.set, []).append(part)
        return found


def scan(folders: Sequence[Path]) -> Scan:
    """Return the parts directly in `folders`, known by their first bytes as well as by their names.

    Raises:
        HostError: a folder cannot be read.
        UsageError: there is no part at all.
    """
    parts: list[PartFile] = []
    bad: list[ApplianceError] = []
    for path in _candidates(folders):
        try:
            parts.append(read_part(path))
        except (FormatError, HostError) as error:
            bad.append(error)
    if not parts and not bad:
        raise UsageError(f"no part in {', '.join(map(str, folders))}", hint=f"give the folders that hold files ending in {PART_SUFFIX}")
    return Scan(parts=tuple(sorted(parts, key=lambda part: (part.table.index, part.path))), bad=tuple(bad))


def _candidates(folders: Sequence[Path]) -> Iterator[Path]:
    for folder in folders:
        with disk.at(folder):
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        for entry in entries:
            if entry.name.endswith(PART_SUFFIX) or (entry.is_file(follow_symlinks=False) and _has_magic(Path(entry.path))):
                yield Path(entry.path)


def _has_magic(path: Path) -> bool:
    if path.name.endswith(".partial"):
        return False
    try:
        with disk.at(path), path.open("rb") as stream:
            return stream.read(len(PART_MAGIC)) == PART_MAGIC
    except HostError:
        return False


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open a part for reading while the block runs; never through a symbolic link."""
    descriptor = disk.open_regular(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_part(path: Path) -> PartFile:
    """Return the part at `path`, every byte of header, table and trailer checked.

    Raises:
        FormatError: truncated, longer than it says, damaged, a link, or made by a newer appliance; the offset is named.
        HostError: unreadable.
    """
    what = str(path)
    with disk.at(path):
        if stat.S_ISLNK(path.lstat().st_mode):
            raise FormatError(f"{what}: a symbolic link, expected the part itself", hint="copy the part instead of linking to it")
    with opened(path) as descriptor, disk.at(path):
        size = os.fstat(descriptor).st_size
        header = os.pread(descriptor, HEADER_BYTES, 0)
        length, digest = parse_header(header, what=what)
        table = parse_table(_exactly(descriptor, min(length, size), HEADER_BYTES), digest, what=what)
        expected = part_length(table)
        if size < expected:
            raise FormatError(f"{what}: offset {size}: ends here, expected {expected} bytes: truncated", hint=_CARRY_AGAIN)
        if size > expected:
            raise FormatError(f"{what}: offset {expected}: {size - expected} bytes behind the end", hint=_CARRY_AGAIN)
        trailer = os.pread(descriptor, TRAILER_BYTES, expected - TRAILER_BYTES)
        check_trailer(trailer, head=encode_head(table), length=expected, what=what)
    return PartFile(path=path, table=table, length=expected)


def read_part_metadata(part: PartFile) -> dict[str, bytes]:
    """Return the metadata files in `part` by path, each as the table says it is. Still not verified.

    Raises:
        FormatError: one is damaged; its offset is named.
        HostError: unreadable.
    """
    total = sum(entry.size for entry in part.table.metadata)
    if len(part.table.metadata) > MAX_FILES or total > MAX_METADATA_BYTES:
        limit = f"at most {MAX_FILES} of {MAX_METADATA_BYTES} are read"
        raise FormatError(f"{part.name}: {len(part.table.metadata)} metadata files of {total} bytes, {limit}", hint=_CARRY_AGAIN)
    files: dict[str, bytes] = {}
    with opened(part.path) as descriptor:
        for entry in part.table.metadata:
            with disk.at(f"{part.path} at byte {entry.offset}"):
                data = _exactly(descriptor, entry.size, entry.offset)
            if digest_of(data) != entry.digest:
                raise FormatError(
                    f"{part.name}: offset {entry.offset}: metadata {entry.path} is not what the table states: damaged", hint=_CARRY_AGAIN
                )
            files[entry.path] = data
    return files


def _exactly(descriptor: int, size: int, offset: int) -> bytes:
    data = b""
    while len(data) < size and (more := os.pread(descriptor, size - len(data), offset + len(data))):
        data += more
    return data
