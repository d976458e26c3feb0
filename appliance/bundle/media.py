# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A media set: the bundle laid out over self-describing parts (docs/bundle-format.md section 7).

A part is one file:

```
0        8   magic "APLPART1"
8        8   length T of the table, unsigned big-endian
16      32   SHA-256 of the table
48      16   zero
64       T   table: canonical JSON `PartTable`
64+T         metadata files in the order of the table, back to back
...          chunks in the order of the table, back to back
end-48   8   magic "APLPEND1"
end-40   8   length of the whole part, unsigned big-endian
end-32  32   SHA-256 of the 64 header bytes and the table
```

No byte is padding: each is compared or hashed. Nothing in a part is trusted: metadata is verified from the pinned root,
chunks against the signed contents. `PartTable` only says where to look.
"""

from __future__ import annotations

import hashlib
import re
import struct
from typing import ClassVar

import msgspec

from appliance.bundle.documents import MAX_DOCUMENT_BYTES, Document, Record, Sha256, Size, decode, encode
from appliance.digests import CHUNK_BYTES
from appliance.errors import FormatError

PART_MAGIC = b"APLPART1"
END_MAGIC = b"APLPEND1"
HEADER_BYTES = 64
TRAILER_BYTES = 48
MAX_PARTS = 9999
PART_SUFFIX = ".part"
"""`<name>-<version>-<platform>.<index of 4 digits>.part`, index from 1."""

_METADATA_PATH = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9._-]*/){0,4}[A-Za-z0-9_-][A-Za-z0-9._-]*")
_HEADER = struct.Struct(">8sQ32s16x")
_TRAILER = struct.Struct(">8sQ32s")
_CARRY_AGAIN = "carry this part again from where it was written"


class MetadataEntry(Record, frozen=True, kw_only=True):
    """One file below `metadata/`: relative POSIX path, offset in the part, size, digest."""

    path: str
    offset: Size
    size: Size
    digest: Sha256


class ChunkEntry(Record, frozen=True, kw_only=True):
    """One whole chunk in this part: its digest, offset in the part and size in bytes."""

    digest: Sha256
    offset: Size
    size: Size


class PartTable(Document, frozen=True, kw_only=True):
    """What one part holds. `set` is the same in all `count` parts of a set; `index` counts from 1."""

    FORMAT: ClassVar[str] = "part/1"

    set: Sha256
    name: str
    version: str
    platform: str
    index: Size
    count: Size
    metadata: tuple[MetadataEntry, ...]
    chunks: tuple[ChunkEntry, ...]


def encode_head(table: PartTable) -> bytes:
    """Return the header and the table of a part."""
    body = encode(table)
    return _HEADER.pack(PART_MAGIC, len(body), hashlib.sha256(body).digest()) + body


def encode_trailer(head: bytes, length: int) -> bytes:
    """Return the trailer of a part of `length` bytes in all that begins with `head` (header and table)."""
    return _TRAILER.pack(END_MAGIC, length, hashlib.sha256(head).digest())


def part_length(table: PartTable) -> int:
    """Return how many bytes the whole part has, trailer included."""
    sizes = sum(entry.size for entry in table.metadata) + sum(entry.size for entry in table.chunks)
    return HEADER_BYTES + len(encode(table)) + sizes + TRAILER_BYTES


def with_offsets(table: PartTable) -> PartTable:
    """Return `table` with every offset filled in: entries back to back after header and table, in their order.

    The table's own length depends on the digits of its offsets; it only grows from step to step, so this ends.
    """
    length = 0
    while True:
        offset = HEADER_BYTES + length
        metadata, chunks = [], []
        for entry in table.metadata:
            metadata.append(msgspec.structs.replace(entry, offset=offset))
            offset += entry.size
        for chunk in table.chunks:
            chunks.append(msgspec.structs.replace(chunk, offset=offset))
            offset += chunk.size
        placed = msgspec.structs.replace(table, metadata=tuple(metadata), chunks=tuple(chunks))
        if len(encode(placed)) == length:
            return placed
        length = len(encode(placed))


def parse_header(data: bytes, *, what: str) -> tuple[int, bytes]:
    """Return the length of the table and its SHA-256 from the first `HEADER_BYTES` of a part; `what` names the part.

    Raises:
        FormatError: too short, another magic, padding that is not zero, or a table longer than a document may be.
    """
    if len(data) != HEADER_BYTES:
        raise FormatError(f"{what}: offset {len(data)}: ends here, expected a header of {HEADER_BYTES} bytes: truncated", hint=_CARRY_AGAIN)
    magic, length, digest = _HEADER.unpack(data)
    if magic != PART_MAGIC:
        raise FormatError(f"{what}: offset 0: expected {PART_MAGIC!r}, got {magic!r}: not a part, or damaged", hint=_CARRY_AGAIN)
    if data[48:] != bytes(16):
        raise FormatError(f"{what}: offset 48: expected 16 zero bytes: damaged", hint=_CARRY_AGAIN)
    if length > MAX_DOCUMENT_BYTES:
        raise FormatError(f"{what}: offset 8: a table of {length} bytes is more than a document may have", hint=_CARRY_AGAIN)
    return length, digest


def parse_table(data: bytes, digest: bytes, *, what: str) -> PartTable:
    """Return the table `data` whose SHA-256 the header states as `digest`, its entries checked to tile the part.

    Raises:
        FormatError: other bytes, not canonical, entries with a gap or overlap, an index beyond the count, a path that
            leaves `metadata/`, or a part made by a newer appliance.
    """
    if hashlib.sha256(data).digest() != digest:
        raise FormatError(
            f"{what}: offset {HEADER_BYTES}: the table is not what the header states: damaged or truncated", hint=_CARRY_AGAIN
        )
    table = decode(data, PartTable, what=f"{what}: table")
    if not 1 <= table.index <= table.count <= MAX_PARTS:
        raise FormatError(f"{what}: part {table.index} of {table.count} cannot be", hint=_CARRY_AGAIN)
    offset = HEADER_BYTES + len(data)
    entries: tuple[MetadataEntry | ChunkEntry, ...] = (*table.metadata, *table.chunks)
    for entry in entries:
        if entry.offset != offset:
            raise FormatError(f"{what}: an entry begins at {entry.offset}, expected {offset}: the parts of a part touch", hint=_CARRY_AGAIN)
        offset += entry.size
    for path in [item.path for item in table.metadata]:
        if _METADATA_PATH.fullmatch(path) is None:
            raise FormatError(f"{what}: {path[:200]!r} is no name of a metadata file", hint=_CARRY_AGAIN)
    if len({item.path for item in table.metadata}) != len(table.metadata):
        raise FormatError(f"{what}: one metadata file is listed twice", hint=_CARRY_AGAIN)
    if max((item.size for item in table.chunks), default=0) > CHUNK_BYTES:
        raise FormatError(f"{what}: a chunk of more than {CHUNK_BYTES} bytes", hint=_CARRY_AGAIN)
    return table


def check_trailer(data: bytes, *, head: bytes, length: int, what: str) -> None:
    """Check the last `TRAILER_BYTES` of a part that begins with `head` and should have `length` bytes in all.

    Raises:
        FormatError: truncated, other bytes, or bytes behind the end; the offset is named.
    """
    at = length - TRAILER_BYTES
    if len(data) != TRAILER_BYTES:
        raise FormatError(f"{what}: offset {at}: no whole trailer: truncated", hint=_CARRY_AGAIN)
    magic, stated, digest = _TRAILER.unpack(data)
    if magic != END_MAGIC:
        raise FormatError(f"{what}: offset {at}: expected {END_MAGIC!r}, got {magic!r}: damaged", hint=_CARRY_AGAIN)
    if stated != length:
        raise FormatError(f"{what}: offset {at + 8}: states {stated} bytes in all, expected {length}: damaged", hint=_CARRY_AGAIN)
    if digest != hashlib.sha256(head).digest():
        raise FormatError(f"{what}: offset {at + 16}: the trailer is not of this header and table: damaged", hint=_CARRY_AGAIN)
