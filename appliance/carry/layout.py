# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Which chunk lies in which part: known for the whole set before the first byte is written. Pure.

The same bundle and part size give the same parts, byte for byte (docs/bundle-format.md section 7): blobs by digest, the
chunks of each in order, parts filled one after the other; a chunk that several blobs share travels once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgspec

from appliance.bundle.contents import Blob
from appliance.bundle.documents import encode
from appliance.bundle.media import (
    HEADER_BYTES,
    MAX_PARTS,
    PART_SUFFIX,
    TRAILER_BYTES,
    ChunkEntry,
    MetadataEntry,
    PartTable,
    encode_head,
    part_length,
    with_offsets,
)
from appliance.bundle.release import Release
from appliance.digests import Digest, chunk_count, chunk_size, digest_of
from appliance.errors import FormatError, UsageError

PRESETS: Mapping[str, int] = {
    "fat32": 2**32 - 1,
    "dvd": 4_600_000_000,
    "dvd-dl": 8_400_000_000,
    "bd25": 24_900_000_000,
}
"""Largest part in bytes. FAT32 holds files up to 4 GiB less one byte; discs keep 1 to 2 % for their file system, the
installer and the sheet."""

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_SIZE = re.compile(r"([0-9]{1,15})\s*([A-Za-z]{0,3})", re.ASCII)
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._+-]")
_ZERO = Digest("sha256:" + 64 * "0")
_WIDEST = 10**15
_CHUNK_ENTRY_BYTES = len(encode(ChunkEntry(digest=_ZERO, offset=_WIDEST, size=99_999_999))) + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkSource:
    """Where a chunk lies in the bundle: `size` bytes at `offset` of `blob`."""

    blob: Digest
    offset: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaPlan:
    """A whole media set: the table of every part, in order, and where each chunk comes from."""

    tables: tuple[PartTable, ...]
    sources: Mapping[Digest, ChunkSource]

    @property
    def total_bytes(self) -> int:
        """The size of all parts together."""
        return sum(part_length(table) for table in self.tables)


def parse_part_size(text: str) -> int:
    """Return the bytes that a preset or a size such as `700MB`, `4GiB` or `5000000000` means.

    Raises:
        UsageError: anything else, also `4G`, which people read in two ways.
    """
    if text.lower() in PRESETS:
        return PRESETS[text.lower()]
    match = _SIZE.fullmatch(text.strip())
    unit = (match[2].upper() or "B") if match else ""
    if match is None or unit not in _UNITS or int(match[1]) == 0:
        raise UsageError(
            f"--part-size {text!r} is neither one of {', '.join(PRESETS)} nor a size such as 700MB or 4GiB",
            hint="write MB and GB for powers of ten, MiB and GiB for powers of two",
        )
    return int(match[1]) * _UNITS[unit]


def chunks_of(blob: Blob) -> Iterator[tuple[Digest, int, int]]:
    """Yield digest, offset and size of every chunk of `blob`."""
    digests = blob.chunks or (blob.digest,)
    if len(digests) != chunk_count(blob.size):
        raise FormatError(f"blob {blob.digest} of {blob.size} bytes lists {len(digests)} chunks", hint="create the bundle again")
    offset = 0
    for index, digest in enumerate(digests):
        size = chunk_size(blob.size, index)
        yield digest, offset, size
        offset += size


def stem(release: Release) -> str:
    """Return `<name>-<version>-<platform>` with every character that a FAT name may not have as `_`."""
    return _NOT_IN_NAMES.sub("_", f"{release.name}-{release.version}-{release.platform}")


def part_name(table: PartTable) -> str:
    """Return the file name of the part."""
    return _NOT_IN_NAMES.sub("_", f"{table.name}-{table.version}-{table.platform}") + f".{table.index:04d}{PART_SUFFIX}"


def plan_parts(release: Release, blobs: Mapping[Digest, Blob], metadata: Mapping[str, bytes], *, part_size: int) -> MediaPlan:
    """Lay the bundle out over parts of at most `part_size` bytes; `metadata` is by path below `metadata/`.

    A bundle without blobs gives one part that holds the metadata alone.

    Raises:
        UsageError: a part could not hold all metadata and one chunk, or there would be too many parts.
    """
    blank = PartTable(
        format=PartTable.FORMAT,
        set=_ZERO,
        name=release.name,
        version=release.version,
        platform=release.platform,
        index=MAX_PARTS,
        count=MAX_PARTS,
        metadata=tuple(
            MetadataEntry(path=path, offset=_WIDEST, size=len(data), digest=digest_of(data)) for path, data in sorted(metadata.items())
        ),
        chunks=(),
    )
    fixed = HEADER_BYTES + len(encode(blank)) + sum(len(data) for data in metadata.values()) + TRAILER_BYTES
    sources = {
        digest: ChunkSource(blob=blob.digest, offset=offset, size=size)
        for blob in sorted(blobs.values(), key=lambda blob: blob.digest)
        for digest, offset, size in chunks_of(blob)
    }
    filled = _fill(sources, part_size - fixed)
    if len(filled) > MAX_PARTS:
        raise UsageError(f"{len(filled)} parts are more than a set may have ({MAX_PARTS})", hint="choose a larger --part-size")
    tables = [
        with_offsets(msgspec.structs.replace(blank, index=number, count=len(filled), chunks=chunks))
        for number, chunks in enumerate(filled, start=1)
    ]
    name = hashlib.sha256()
    for table in tables:
        name.update(encode_head(table))
    set_digest = Digest("sha256:" + name.hexdigest())
    return MediaPlan(tables=tuple(msgspec.structs.replace(table, set=set_digest) for table in tables), sources=sources)


def _fill(sources: Mapping[Digest, ChunkSource], room: int) -> list[tuple[ChunkEntry, ...]]:
    largest = max((source.size for source in sources.values()), default=0)
    if room < largest + (_CHUNK_ENTRY_BYTES if sources else 0):
        raise UsageError(
            f"a part cannot hold all metadata and one chunk: it is {largest + _CHUNK_ENTRY_BYTES - room} bytes too small",
            hint=f"choose a --part-size larger by {largest + _CHUNK_ENTRY_BYTES - room} bytes or more",
        )
    parts: list[tuple[ChunkEntry, ...]] = []
    chunks: list[ChunkEntry] = []
    left = room
    for digest, source in sources.items():
        need = source.size + _CHUNK_ENTRY_BYTES
        if need > left:
            parts.append(tuple(chunks))
            chunks, left = [], room
        chunks.append(ChunkEntry(digest=digest, offset=0, size=source.size))
        left -= need
    if chunks or not parts:
        parts.append(tuple(chunks))
    return parts
