# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The header of a GGUF file, checked (docs/bundle-format.md section 5.6): magic, version, counts.

Source: the GGUF description of ggml (versions 2 and 3, little-endian). Key-values and tensor descriptions are not
parsed: they are data to the engine, as the weights are.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import BinaryIO, Final

from appliance.errors import FormatError

MAGIC: Final = b"GGUF"
_VERSIONS: Final = (2, 3)
_HEADER: Final = struct.Struct("<4sIQQ")
_LEAST_TENSOR: Final = 24
_LEAST_PAIR: Final = 13
_HINT: Final = "get the file again from where the model was published"


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufHeader:
    """Version, and how many tensors and key-value pairs follow."""

    version: int
    tensors: int
    pairs: int


def read_gguf_header(stream: BinaryIO, *, size: int, what: str) -> GgufHeader:
    """Return the header of the GGUF file of `size` bytes that `stream` is at the start of; `what` names it.

    Raises:
        FormatError: not GGUF, an unknown version, or counts that cannot fit the file.
    """
    data = stream.read(_HEADER.size)
    if len(data) != _HEADER.size:
        raise FormatError(f"{what}: shorter than a GGUF header", hint=_HINT)
    magic, version, tensors, pairs = _HEADER.unpack(data)
    if magic != MAGIC:
        raise FormatError(f"{what}: it does not begin with GGUF", hint=_HINT)
    if version not in _VERSIONS:
        raise FormatError(f"{what}: GGUF version {version}, expected 2 or 3", hint=_HINT)
    if tensors * _LEAST_TENSOR + pairs * _LEAST_PAIR > size - _HEADER.size:
        raise FormatError(f"{what}: {tensors} tensors and {pairs} pairs do not fit a file of {size} bytes", hint=_HINT)
    return GgufHeader(version=version, tensors=tensors, pairs=pairs)
