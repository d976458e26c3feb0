# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Which tensor goes into which file, and the index that says so, in Hugging Face's form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import prod

INDEX = "model.safetensors.index.json"
FLOAT32 = 4


def split(tensors: Mapping[str, tuple[int, ...]], count: int) -> list[list[str]]:
    """The names in their order, cut into ``count`` runs of about equal bytes, none of them empty.

    Raises:
        ValueError: fewer tensors than shards.
    """
    if len(tensors) < count:
        raise ValueError(f"{len(tensors)} tensors do not fill {count} shards")
    names = list(tensors)
    ends = list(accumulate(prod(dims) for dims in tensors.values()))
    shards: list[list[str]] = []
    start = 0
    for shard in range(1, count + 1):
        fair = ends[-1] * shard / count
        stops = range(start + 1, len(names) - (count - shard) + 1)
        stop = min(stops, key=lambda at: abs(ends[at - 1] - fair))
        shards.append(names[start:stop])
        start = stop
    return shards


def file_name(shard: int, count: int) -> str:
    """The name of the ``shard``-th (from 1) of ``count`` files."""
    return f"model-{shard:05d}-of-{count:05d}.safetensors"


def index(tensors: Mapping[str, tuple[int, ...]], shards: Sequence[Sequence[str]]) -> dict[str, object]:
    """``model.safetensors.index.json``: bytes and parameters of all tensors, and each tensor's file."""
    parameters = sum(prod(dims) for dims in tensors.values())
    files = {name: file_name(number, len(shards)) for number, names in enumerate(shards, 1) for name in names}
    return {
        "metadata": {"total_parameters": parameters, "total_size": parameters * FLOAT32},
        "weight_map": dict(sorted(files.items())),
    }
