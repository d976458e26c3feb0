# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A strict safetensors parser: reads the header from a stream and nothing else (docs/bundle-format.md section 5.6).

Source: the safetensors format description (8 bytes length, JSON header, data). Stricter than the reference reader:
duplicate keys, gaps, overlaps, unknown fields and trailing bytes are refused, so a file has one meaning only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from appliance.bundle.documents import reason_of
from appliance.errors import FormatError

MAX_HEADER_BYTES: Final = 100_000_000
"""The limit of the format itself."""

MAX_TENSORS: Final = 1_000_000
MAX_DIMENSIONS: Final = 32
_LENGTH_BYTES: Final = 8
_BITS: Final[Mapping[str, int]] = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
_HINT: Final = "get the file again from where the model was published"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor: `begin` and `end` are byte offsets after the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetensorsHeader:
    """A checked header: tensors in the order of their bytes; `data_offset` is where those begin in the file."""

    tensors: tuple[Tensor, ...]
    metadata: Mapping[str, str]
    data_offset: int


def read_header(stream: BinaryIO, *, size: int, what: str) -> SafetensorsHeader:
    """Return the header of the safetensors file of `size` bytes that `stream` is at the start of; `what` names it.

    Raises:
        FormatError: a bound, an offset, a type or a shape is not as it must be.
    """
    prefix = stream.read(_LENGTH_BYTES)
    if len(prefix) != _LENGTH_BYTES:
        raise FormatError(f"{what}: shorter than the 8 bytes a safetensors file begins with", hint=_HINT)
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES or length > size - _LENGTH_BYTES:
        raise FormatError(f"{what}: a header of {length} bytes does not fit a file of {size} bytes", hint=_HINT)
    data = stream.read(length)
    if len(data) != length or not data.startswith(b"{"):
        raise FormatError(f"{what}: the header is cut short or does not begin with an object", hint=_HINT)
    entries = _parse_json(data, what=what)
    metadata = _check_metadata(entries.pop("__metadata__", {}), what=what)
    if len(entries) > MAX_TENSORS:
        raise FormatError(f"{what}: {len(entries)} tensors, at most {MAX_TENSORS} are read", hint=_HINT)
    tensors = sorted((_tensor(name, entry, what=what) for name, entry in entries.items()), key=lambda tensor: (tensor.begin, tensor.end))
    position = 0
    for tensor in tensors:
        if tensor.begin != position:
            kind = "a gap before" if tensor.begin > position else "an overlap at"
            raise FormatError(f"{what}: {kind} tensor {tensor.name!r}: it begins at {tensor.begin}, expected {position}", hint=_HINT)
        position = tensor.end
    if position != size - _LENGTH_BYTES - length:
        raise FormatError(f"{what}: tensors end at byte {position}, the data has {size - _LENGTH_BYTES - length} bytes", hint=_HINT)
    return SafetensorsHeader(tensors=tuple(tensors), metadata=metadata, data_offset=_LENGTH_BYTES + length)


def parse_strict_json(data: bytes, *, what: str) -> object:
    """Return the JSON in `data`, refusing duplicate keys, `NaN` and nesting beyond what Python reads.

    Raises:
        FormatError: it is not such JSON.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            keys = [key for key, _ in pairs]
            raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
        return found

    def refuse(constant: str) -> object:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what}: not strict JSON: {reason_of(error)}", hint=_HINT) from error


def _parse_json(data: bytes, *, what: str) -> dict[str, Any]:
    value = parse_strict_json(data, what=what)
    if not isinstance(value, dict):
        raise FormatError(f"{what}: the header is not an object", hint=_HINT)
    return value


def _check_metadata(value: object, *, what: str) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise FormatError(f"{what}: __metadata__ is not an object of strings", hint=_HINT)
    return value


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _tensor(name: str, entry: object, *, what: str) -> Tensor:
    where = f"{what}: tensor {name[:80]!r}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{where}: expected dtype, shape and data_offsets and nothing else", hint=_HINT)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise FormatError(f"{where}: unknown dtype {str(dtype)[:40]!r}", hint=_HINT)
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(_is_count(each) for each in shape):
        raise FormatError(f"{where}: the shape is not a list of at most {MAX_DIMENSIONS} counts", hint=_HINT)
    if not isinstance(offsets, list) or len(offsets) != len(("begin", "end")) or not all(_is_count(each) for each in offsets):
        raise FormatError(f"{where}: data_offsets is not a pair of counts", hint=_HINT)
    begin, end = offsets
    bits = math.prod(shape) * _BITS[dtype]
    if bits % 8 or end - begin != bits // 8:
        raise FormatError(f"{where}: {dtype} of shape {shape} is {bits} bits, data_offsets give {end - begin} bytes", hint=_HINT)
    return Tensor(name=name, dtype=dtype, shape=tuple(shape), begin=begin, end=end)
