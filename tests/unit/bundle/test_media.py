# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A part's header, table and trailer as bytes: every flipped byte and every truncation is refused, part and offset named."""

from __future__ import annotations

import re

import msgspec
import pytest

from appliance.bundle.documents import MAX_DOCUMENT_BYTES, encode
from appliance.bundle.media import (
    HEADER_BYTES,
    TRAILER_BYTES,
    ChunkEntry,
    MetadataEntry,
    PartTable,
    check_trailer,
    encode_head,
    encode_trailer,
    parse_header,
    parse_table,
    part_length,
    with_offsets,
)
from appliance.digests import CHUNK_BYTES, digest_of
from appliance.errors import FormatError

WHAT = "tiny-1-debian-12-amd64.0001.part"
TABLE = with_offsets(
    PartTable(
        format=PartTable.FORMAT,
        set=digest_of(b"set"),
        name="tiny",
        version="1",
        platform="debian-12-amd64",
        index=1,
        count=2,
        metadata=(MetadataEntry(path="timestamp.json", offset=0, size=5, digest=digest_of(b"12345")),),
        chunks=(ChunkEntry(digest=digest_of(b"chunk"), offset=0, size=5),),
    )
)
HEAD = encode_head(TABLE)
LENGTH = part_length(TABLE)
TRAILER = encode_trailer(HEAD, LENGTH)


def parse(head: bytes, trailer: bytes) -> PartTable:
    length, digest = parse_header(head[:HEADER_BYTES], what=WHAT)
    table = parse_table(head[HEADER_BYTES : HEADER_BYTES + length], digest, what=WHAT)
    check_trailer(trailer, head=head, length=part_length(table), what=WHAT)
    return table


def test_a_part_is_read_as_it_was_written() -> None:
    assert parse(HEAD, TRAILER) == TABLE
    assert TABLE.metadata[0].offset == len(HEAD)
    assert len(HEAD) + 10 + TRAILER_BYTES == LENGTH


def named(position: int) -> set[int]:
    """Which offsets a refusal may name for a wrong byte at `position`: where the thing begins that is not as it must be."""
    if position >= len(HEAD):
        field = position - len(HEAD)
        return {LENGTH - TRAILER_BYTES + (0 if field < 8 else 8 if field < 16 else 16)}
    if position < 8:
        return {0}
    return {8, HEADER_BYTES, LENGTH - TRAILER_BYTES + 16} if position < 16 else {48} if 48 <= position < HEADER_BYTES else {HEADER_BYTES}


@pytest.mark.parametrize("mask", [1 << bit for bit in range(8)] + [0xFF])
def test_every_flipped_byte_is_refused_with_the_parts_name_and_an_offset(mask: int) -> None:
    whole = HEAD + TRAILER
    for position in range(len(whole)):
        broken = bytearray(whole)
        broken[position] ^= mask
        with pytest.raises(FormatError) as caught:
            parse(bytes(broken[: len(HEAD)]), bytes(broken[len(HEAD) :]))
        found = re.match(rf"{re.escape(WHAT)}: offset (\d+): ", caught.value.message)
        assert found is not None, caught.value.message
        assert int(found[1]) in named(position), (position, caught.value.message)
        assert caught.value.hint


def test_every_truncation_is_refused() -> None:
    for length in range(len(HEAD)):
        with pytest.raises(FormatError, match=rf"offset ({length}|{HEADER_BYTES}): .*truncated"):
            parse(HEAD[:length], TRAILER)
    for length in range(TRAILER_BYTES):
        with pytest.raises(FormatError, match=rf"offset {LENGTH - TRAILER_BYTES}: .*truncated"):
            parse(HEAD, TRAILER[:length])


@pytest.mark.parametrize("position", [*range(8), *range(48, 64)])
def test_magic_and_padding_are_refused_by_the_header_alone(position: int) -> None:
    broken = bytearray(HEAD[:HEADER_BYTES])
    broken[position] ^= 1
    with pytest.raises(FormatError, match=r"offset (0|48): expected"):
        parse_header(bytes(broken), what=WHAT)


def test_bytes_behind_the_end_are_refused() -> None:
    with pytest.raises(FormatError):
        check_trailer(TRAILER, head=HEAD, length=LENGTH + 1, what=WHAT)


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "", ".hidden", "a\\b", "a b"])
def test_a_table_that_names_a_file_elsewhere_is_refused(path: str) -> None:
    entry = MetadataEntry(path=path, offset=0, size=5, digest=digest_of(b"12345"))
    head = encode_head(with_offsets(msgspec.structs.replace(TABLE, metadata=(entry,))))
    with pytest.raises(FormatError, match="no name of a metadata file"):
        parse(head, TRAILER)


def test_a_table_whose_entries_do_not_tile_the_part_is_refused() -> None:
    metadata, chunk = TABLE.metadata[0], TABLE.chunks[0]
    replace = msgspec.structs.replace
    for match, table in (
        ("an entry begins at", replace(TABLE, chunks=(replace(chunk, offset=chunk.offset + 1),))),
        ("an entry begins at", replace(TABLE, metadata=(replace(metadata, offset=0),))),
        ("listed twice", with_offsets(replace(TABLE, metadata=(metadata, metadata)))),
        ("a chunk of more than", with_offsets(replace(TABLE, chunks=(replace(chunk, size=CHUNK_BYTES + 1),)))),
        ("part 0 of 2 cannot be", with_offsets(replace(TABLE, index=0))),
        ("part 3 of 2 cannot be", with_offsets(replace(TABLE, index=3))),
        ("part 1 of 10000 cannot be", with_offsets(replace(TABLE, count=10_000))),
    ):
        head = encode_head(table)
        length, digest = parse_header(head[:HEADER_BYTES], what=WHAT)
        with pytest.raises(FormatError, match=match):
            parse_table(head[HEADER_BYTES : HEADER_BYTES + length], digest, what=WHAT)


def test_a_table_longer_than_a_document_is_refused_unread() -> None:
    head = HEAD[:8] + (MAX_DOCUMENT_BYTES + 1).to_bytes(8, "big") + HEAD[16:HEADER_BYTES]
    with pytest.raises(FormatError, match="more than a document may have"):
        parse_header(head, what=WHAT)


def test_a_table_made_by_a_newer_appliance_says_so() -> None:
    data = encode(TABLE).replace(b"part/1", b"part/2")
    with pytest.raises(FormatError, match="made by a newer appliance"):
        parse_table(data, bytes.fromhex(digest_of(data).removeprefix("sha256:")), what=WHAT)
