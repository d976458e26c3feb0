# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Laws of the formats: parse-then-write is byte-identical, order never matters, what parses has one spelling."""

from __future__ import annotations

import io
import json
import random

import msgspec
import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.bundle.contents import Artifact, Blob, ContentClass, Contents, check_contents, merge_blobs
from appliance.bundle.documents import MAX_INTEGER, Record, decode, encode
from appliance.bundle.lock import Lock
from appliance.bundle.media import PartTable, encode_head, parse_header, parse_table, with_offsets
from appliance.bundle.release import Release
from appliance.bundle.safetensors import read_header
from appliance.bundle.weights import WeightsFile, build_statement, parse_statement
from appliance.digests import CHUNK_BYTES, Digest, chunk_count
from appliance.errors import ApplianceError, FormatError
from appliance.trust.publication import Publication
from appliance.trust.state import SeenVersions
from tests.support.simulator import contents_of

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
DIGESTS = st.binary(min_size=32, max_size=32).map(lambda data: Digest("sha256:" + data.hex()))
COUNTS = st.integers(0, MAX_INTEGER)
CLASSES = st.sampled_from(ContentClass)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:/@+~-]{0,20}", fullmatch=True)
VERSIONS = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9.+~:_-]{0,20}", fullmatch=True)
PATHS = st.lists(st.from_regex(r"[a-z0-9_-]{1,8}(\.[a-z]{1,4})?", fullmatch=True), min_size=1, max_size=3).map("/".join)


@st.composite
def blobs(draw: st.DrawFn) -> Blob:
    size = draw(st.one_of(st.integers(0, CHUNK_BYTES), st.integers(CHUNK_BYTES + 1, 6 * CHUNK_BYTES)))
    count = chunk_count(size)
    chunks = draw(st.lists(DIGESTS, min_size=count, max_size=count)) if count > 1 else []
    return Blob(digest=draw(DIGESTS), size=size, chunks=tuple(chunks))


@st.composite
def valid_contents(draw: st.DrawFn) -> Contents:
    listed = draw(st.lists(blobs(), min_size=1, max_size=6, unique_by=lambda blob: blob.digest))
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    artifacts = []
    for name in names:
        chosen = tuple(sorted({blob.digest for blob in draw(st.lists(st.sampled_from(listed), min_size=1))}))
        artifacts.append(
            Artifact(
                name=name,
                version=draw(VERSIONS),
                media_type=draw(TEXT),
                root=chosen[0],
                blobs=chosen,
                license=draw(TEXT),
                source=draw(TEXT),
            )
        )
    used = {digest for artifact in artifacts for digest in artifact.blobs}
    return contents_of(draw(st.sampled_from(ContentClass)), artifacts, [blob for blob in listed if blob.digest in used])


DOCUMENTS: dict[type[Record], st.SearchStrategy[Record]] = {
    kind: st.builds(kind, **{"format": st.just(kind.FORMAT), **more})
    for kind, more in (
        (
            Release,
            {
                "charts": st.just(()),
                **dict.fromkeys(("name", "line", "version", "platform", "kubernetes", "engine", "minimum_appliance"), TEXT),
                "lock": DIGESTS,
            },
        ),
        (
            Publication,
            {
                "line": TEXT,
                **dict.fromkeys(("timestamp", "snapshot", "targets"), COUNTS),
                "classes": st.dictionaries(CLASSES, COUNTS),
                "delegations": st.just({}),
            },
        ),
        (
            SeenVersions,
            {
                "line": TEXT,
                "issued": TEXT,
                "release": DIGESTS,
                "classes": st.dictionaries(CLASSES, COUNTS.map(lambda count: max(count, 1))),
                "contents": st.dictionaries(CLASSES, DIGESTS),
                **dict.fromkeys(("root", "timestamp", "snapshot", "targets"), COUNTS.map(lambda count: max(count, 1))),
            },
        ),
        (
            Lock,
            {
                "profile": DIGESTS,
                "name": TEXT,
                "version": TEXT,
                "platform": TEXT,
                "kubernetes": TEXT,
                "images": st.just(()),
                "charts": st.just(()),
                "models": st.just(()),
                "files": st.just(()),
                "packages": st.none(),
            },
        ),
    )
}


@given(valid_contents())
def test_contents_written_and_parsed_are_the_same(contents: Contents) -> None:
    check_contents(contents)
    data = encode(contents)
    parsed = decode(data, Contents, what="contents")
    assert parsed == contents
    assert encode(parsed) == data


@pytest.mark.parametrize("kind", DOCUMENTS, ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_every_document_is_in_the_form_of_rfc_8785(kind: type[Record], data: st.DataObject) -> None:
    document = data.draw(DOCUMENTS[kind])
    written = encode(document)
    assert written == rfc8785.dumps(json.loads(written))
    parsed = msgspec.json.decode(written, type=kind)
    assert parsed == document
    assert encode(parsed) == written


@given(valid_contents(), st.integers())
def test_the_order_in_which_things_were_found_never_matters(contents: Contents, seed: int) -> None:
    shuffle = random.Random(seed)
    artifacts, listed = list(contents.artifacts), list(contents.blobs)
    shuffle.shuffle(artifacts)
    shuffle.shuffle(listed)
    assert encode(contents_of(contents.content_class, artifacts, listed)) == encode(contents)


@given(st.lists(valid_contents(), max_size=4), st.randoms())
def test_merging_does_not_depend_on_the_order_of_classes(classes: list[Contents], shuffle: random.Random) -> None:
    def merged(order: list[Contents]) -> object:
        try:
            return dict(merge_blobs(order))
        except ApplianceError:
            return "refused"

    other = list(classes)
    shuffle.shuffle(other)
    assert merged(classes) == merged(other)


@given(valid_contents(), st.data())
def test_whatever_parses_has_one_spelling(contents: Contents, data: st.DataObject) -> None:
    """Mutated bytes are refused, or they are exactly what the parsed record writes."""
    mutated = bytearray(encode(contents))
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(mutated) - 1))
        mutated[place : place + data.draw(st.integers(0, 2))] = data.draw(
            st.sampled_from([b"", b"0", b'"', b",", b" ", b"}", b"\xff", b"a"])
        )
    try:
        parsed = decode(bytes(mutated), Contents, what="contents")
    except FormatError:
        return
    assert encode(parsed) == bytes(mutated)


@st.composite
def weights_files(draw: st.DrawFn) -> list[WeightsFile]:
    found = []
    for path in draw(st.lists(PATHS, min_size=1, max_size=5, unique=True)):
        blob = draw(blobs())
        found.append(WeightsFile(path=path, size=blob.size, digest=blob.digest, chunks=blob.chunks))
    return found


@given(TEXT, TEXT, weights_files(), st.randoms())
def test_a_weights_manifest_is_canonical_whatever_the_order(
    name: str, version: str, files: list[WeightsFile], shuffle: random.Random
) -> None:
    data = build_statement(name, version, files)
    assert data == rfc8785.dumps(json.loads(data))
    other = list(files)
    shuffle.shuffle(other)
    assert build_statement(name, version, other) == data
    parsed = parse_statement(data, what="weights")
    assert build_statement(parsed.name, parsed.version, parsed.files) == data


@given(st.lists(st.tuples(st.binary(min_size=32, max_size=32), st.integers(0, CHUNK_BYTES)), max_size=20))
def test_a_parts_table_tiles_the_part(entries: list[tuple[bytes, int]]) -> None:
    table = with_offsets(
        msgspec.convert(
            {
                "format": "part/1",
                "set": "sha256:" + "0" * 64,
                "name": "n",
                "version": "1",
                "platform": "p",
                "index": 1,
                "count": 1,
                "metadata": [],
                "chunks": [{"digest": "sha256:" + digest.hex(), "offset": 0, "size": size} for digest, size in entries],
            },
            PartTable,
        )
    )
    head = encode_head(table)
    length, digest = parse_header(head[:64], what="part")
    assert parse_table(head[64 : 64 + length], digest, what="part") == table


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_never_a_safetensors_file_by_accident(data: bytes) -> None:
    """No exception but ours; what is accepted covers the file to its last byte."""
    try:
        found = read_header(io.BytesIO(data), size=len(data), what="x")
    except FormatError:
        return
    assert found.data_offset + (found.tensors[-1].end if found.tensors else 0) == len(data)


@settings(max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from(["F32", "BF16", "U8", "I64"]), st.lists(st.integers(0, 5), max_size=3)), max_size=6), st.randoms()
)
def test_a_tensor_moved_by_one_byte_is_refused(shapes: list[tuple[str, list[int]]], shuffle: random.Random) -> None:
    width = {"F32": 4, "BF16": 2, "U8": 1, "I64": 8}
    header: dict[str, dict[str, object]] = {}
    places: dict[str, tuple[int, int]] = {}
    offset = 0
    for number, (dtype, shape) in enumerate(shapes):
        size = width[dtype]
        for each in shape:
            size *= each
        places[f"t{number}"] = (offset, offset + size)
        header[f"t{number}"] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size

    def file(entries: dict[str, dict[str, object]]) -> bytes:
        names = list(entries)
        shuffle.shuffle(names)
        text = json.dumps({name: entries[name] for name in names}).encode()
        return len(text).to_bytes(8, "little") + text + bytes(offset)

    data = file(header)
    assert len(read_header(io.BytesIO(data), size=len(data), what="x").tensors) == len(shapes)
    for name, (begin, end) in places.items():
        if begin == end:
            continue  # a tensor without bytes may stand between any two others
        moved = file({**header, name: {**header[name], "data_offsets": [begin + 1, end + 1]}})
        with pytest.raises(FormatError):
            read_header(io.BytesIO(moved), size=len(moved), what="x")
