# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import json
from typing import Any

import pytest

from appliance.bundle import safetensors
from appliance.bundle.gguf import read_gguf_header
from appliance.bundle.safetensors import MAX_HEADER_BYTES, parse_strict_json, read_header
from appliance.errors import FormatError

Header = dict[str, Any]
A = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
B = {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}


def tensors(header: Header | bytes, data: int = 32, *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + bytes(data)


class Counting(io.BytesIO):
    """Counts the bytes that are read."""

    taken = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.taken += len(data)
        return data


def read(data: bytes) -> Counting:
    stream = Counting(data)
    read_header(stream, size=len(data), what="model.safetensors")
    return stream


def test_a_valid_file_is_read_up_to_its_data() -> None:
    data = tensors({"a": A, "b": B, "__metadata__": {"format": "pt"}}, 32)
    found = read_header(io.BytesIO(data), size=len(data), what="x")
    assert [(tensor.name, tensor.begin, tensor.end) for tensor in found.tensors] == [("a", 0, 24), ("b", 24, 32)]
    assert found.metadata == {"format": "pt"}
    assert read(data).taken == found.data_offset == len(data) - 32


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"a": {**A, "shape": [], "dtype": "F64", "data_offsets": [0, 8]}},
        {"a": {**A, "shape": [0, 5], "data_offsets": [0, 0]}},
        {"a": A, "empty": {**A, "shape": [0], "data_offsets": [24, 24]}},
        {"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}},
        json.dumps({"a": A}).encode() + b"     ",
    ],
    ids=["empty", "scalar", "no elements", "empty beside another", "half bytes", "padded"],
)
def test_corners_of_the_format_are_read(header: Header | bytes) -> None:
    entries = json.loads(header) if isinstance(header, bytes) else header
    size = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
    read(tensors(header, size))


def changed(**change: object) -> Header:
    return {"a": {**A, **change}, "b": B}


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "shorter than the 8 bytes"),
    "seven bytes": (b"\x00" * 7, "shorter than the 8 bytes"),
    "header beyond the file": (tensors({"a": A}, 24, length=10_000), "does not fit"),
    "header beyond the limit": (tensors({"a": A}, 24, length=MAX_HEADER_BYTES + 1), "does not fit"),
    "huge length": (tensors({"a": A}, 24, length=2**64 - 1), "does not fit"),
    "length of zero": (tensors(b""), "does not begin with an object"),
    "no object": (tensors(b"[]"), "does not begin with an object"),
    "space first": (tensors(b" {}"), "does not begin with an object"),
    "not JSON": (tensors(b"{]"), "not strict JSON"),
    "not UTF-8": (tensors(b'{"\xff":1}'), "not strict JSON"),
    "deep": (tensors(b'{"a":' + b"[" * 100_000), "not strict JSON"),
    "trailing bytes in the header": (tensors(json.dumps({"a": A}).encode() + b"x", 24), "not strict JSON"),
    "duplicate tensor": (tensors(b'{"a":' + json.dumps(A).encode() + b',"a":' + json.dumps(A).encode() + b"}", 24), "stands twice"),
    "duplicate field": (
        tensors(b'{"a":{"dtype":"F32","dtype":"U8","shape":[2,3],"data_offsets":[0,24]}}', 24),
        "stands twice",
    ),
    "NaN": (tensors(b'{"a":NaN}'), "not strict JSON"),
    "overlap": (tensors({"a": A, "b": {**B, "data_offsets": [20, 28]}}, 28), "an overlap at tensor 'b'"),
    "the same bytes twice": (tensors({"a": A, "b": A}, 24), "an overlap at"),
    "gap": (tensors({"a": A, "b": {**B, "data_offsets": [28, 36]}}, 36), "a gap before tensor 'b'"),
    "gap at the start": (tensors({"a": {**A, "data_offsets": [8, 32]}}), "a gap before tensor 'a'"),
    "trailing bytes": (tensors({"a": A, "b": B}, 33), "tensors end at byte 32, the data has 33"),
    "cut": (tensors({"a": A, "b": B}, 31), "tensors end at byte 32, the data has 31"),
    "data without tensors": (tensors({}, 1), "tensors end at byte 0"),
    "wrong length": (tensors(changed(shape=[2, 4])), "256 bits, data_offsets give 24 bytes"),
    "end before begin": (tensors(changed(data_offsets=[24, 0])), "data_offsets give -24 bytes"),
    "half a byte": (tensors({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}, 2), "12 bits"),
    "product beyond 64 bits": (tensors(changed(shape=[2**62, 2**62])), "bits, data_offsets"),
    "unknown dtype": (tensors(changed(dtype="F33")), "unknown dtype 'F33'"),
    "dtype is a number": (tensors(changed(dtype=1)), "unknown dtype"),
    "negative dimension": (tensors(changed(shape=[-2, -3])), "not a list of at most"),
    "float dimension": (tensors(changed(shape=[2.0, 3])), "not a list of at most"),
    "bool dimension": (tensors(changed(shape=[True, 6])), "not a list of at most"),
    "too many dimensions": (tensors(changed(shape=[1] * 33)), "not a list of at most 32"),
    "huge dimension": (tensors(changed(shape=[2**63])), "not a list of at most"),
    "shape is no list": (tensors(changed(shape="23")), "not a list of at most"),
    "one offset": (tensors(changed(data_offsets=[24])), "not a pair of counts"),
    "negative offset": (tensors(changed(data_offsets=[-24, 0])), "not a pair of counts"),
    "extra field": (tensors(changed(more=1)), "and nothing else"),
    "missing field": (tensors({"a": {"dtype": "F32", "shape": [6]}}, 24), "expected dtype, shape and data_offsets"),
    "tensor is no object": (tensors({"a": []}, 0), "expected dtype, shape and data_offsets"),
    "metadata of numbers": (tensors({"__metadata__": {"a": 1}}, 0), "not an object of strings"),
    "metadata is a list": (tensors({"__metadata__": []}, 0), "not an object of strings"),
}


@pytest.mark.parametrize(("data", "match"), BROKEN.values(), ids=BROKEN.keys())
def test_a_file_with_a_fault_is_refused(data: bytes, match: str) -> None:
    with pytest.raises(FormatError, match=match) as caught:
        read(data)
    assert caught.value.hint
    assert "model.safetensors" in str(caught.value)


def test_too_many_tensors_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors, "MAX_TENSORS", 1)
    with pytest.raises(FormatError, match="2 tensors, at most 1"):
        read(tensors({"a": A, "b": B}, 32))


def test_every_truncation_is_refused() -> None:
    data = tensors({"a": A, "b": B}, 32)
    for length in range(len(data)):
        with pytest.raises(FormatError):
            read(data[:length])


@pytest.mark.parametrize("data", [b'{"a":1,"a":2}', b"NaN", b"[Infinity]", b'{"a":{"b":1,"b":1}}', b"\xef\xbb\xbf{}", b"[" * 100_000, b""])
def test_strict_json_refuses_what_has_two_meanings(data: bytes) -> None:
    with pytest.raises(FormatError, match="not strict JSON"):
        parse_strict_json(data, what="x")


def gguf(magic: bytes = b"GGUF", version: int = 3, tensors: int = 1, pairs: int = 1, rest: int = 100) -> bytes:
    return magic + version.to_bytes(4, "little") + tensors.to_bytes(8, "little") + pairs.to_bytes(8, "little") + bytes(rest)


def test_a_gguf_header_is_read() -> None:
    found = read_gguf_header(io.BytesIO(gguf()), size=len(gguf()), what="x")
    assert (found.version, found.tensors, found.pairs) == (3, 1, 1)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "shorter than"),
        (gguf()[:20], "shorter than"),
        (gguf(b"GGML"), "does not begin with GGUF"),
        (gguf(version=1), "version 1, expected"),
        (gguf(version=0x03000000), "expected 2 or 3"),
        (gguf(tensors=2**63), "do not fit"),
        (gguf(pairs=2**63), "do not fit"),
        (gguf(tensors=5, rest=100), "do not fit"),
    ],
)
def test_a_gguf_header_with_a_fault_is_refused(data: bytes, match: str) -> None:
    with pytest.raises(FormatError, match=match):
        read_gguf_header(io.BytesIO(data), size=len(data), what="x.gguf")
