# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What really lies in a model's folder, found by reading it again: nothing here knows what was placed, or when.

An observation is made of bytes read now and of the weights manifest alone. No record of a placement and no file time
enters it (an import contract says so), so that it may become evidence. It may cover a part of the chunks: an agent
that re-hashes at a set rate observes a few at a time and adds up the coverage.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from appliance.adapters import hashing
from appliance.adapters.disk import at
from appliance.adapters.ingest import open_beneath
from appliance.adapters.parallel import for_each
from appliance.bundle.weights import Weights, WeightsFile
from appliance.digests import CHUNK_BYTES, Digest, chunk_count, chunk_size
from appliance.errors import ApplianceError, HostError

ChunkName = tuple[str, int]
"""A file's path in the model, and the index of a chunk of it."""

_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class Wrong(StrEnum):
    """How a file differs from the weights manifest."""

    MISSING = "missing"
    EXTRA = "extra"
    KIND = "kind"
    SIZE = "size"
    BYTES = "bytes"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One difference: the file's path in the model, the chunk where bytes differ, what was expected and what is there."""

    path: str
    wrong: Wrong
    expected: str
    found: str
    chunk: int | None = None

    def __str__(self) -> str:
        """Return one line for people."""
        where = f", chunk {self.chunk} at byte {self.chunk * CHUNK_BYTES}" if self.chunk is not None else ""
        return f"{self.path}{where}: {self.wrong.value}: expected {self.expected}, found {self.found}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What was read of a model, and how it differs from its weights manifest.

    `chunks_read` and `bytes_read` say how much was really hashed, `chunks` and `size` (bytes) how much there is by the
    manifest. `differences` counts all found; `first` is the first of them by path and chunk.
    """

    files: int
    chunks: int
    size: int
    chunks_read: int
    bytes_read: int
    differences: int
    first: Difference | None

    @property
    def whole(self) -> bool:
        """Whether everything was read and nothing differs."""
        return self.differences == 0 and (self.chunks_read, self.bytes_read) == (self.chunks, self.size)

    @property
    def coverage(self) -> float:
        """The part of the model's bytes that was hashed, 0 to 1; of its chunks if it has no bytes."""
        return self.bytes_read / self.size if self.size else self.chunks_read / self.chunks


def chunk_names(weights: Weights) -> tuple[ChunkName, ...]:
    """Return every chunk of the model, by path and index."""
    return tuple((file.path, index) for file in weights.files for index in range(chunk_count(file.size)))


def observe(
    folder: Path,
    weights: Weights,
    *,
    workers: int,
    only: Collection[ChunkName] | None = None,
    advance: hashing.Advance = hashing.ignore,
) -> Observation:
    """Read the model in `folder` and compare it with its manifest `weights`; nothing is written.

    Names, kinds and sizes of all files are always compared; bytes of all chunks, or of `only` these. No symbolic link
    below `folder` is followed.

    Raises:
        HostError: `folder` itself cannot be read.
    """
    there = survey(folder)
    expected = {file.path: file for file in weights.files}
    found = [_unexpected(path, mode) for path, (mode, _) in there.items() if path not in expected]
    sound: list[WeightsFile] = []
    for file in weights.files:
        difference = _compare(file, there.get(file.path))
        found += [difference] if difference else []
        sound += [] if difference else [file]
    chosen = set(chunk_names(weights) if only is None else only)
    jobs = [(file, index) for file in sound for index in range(chunk_count(file.size)) if (file.path, index) in chosen]
    results = for_each(jobs, lambda job: _read_chunk(folder, *job, advance), workers=workers)
    found += [result for result in results if isinstance(result, Difference)]
    ordered = sorted(found, key=lambda each: (each.path, each.chunk or 0))
    hashed = [job for job, result in zip(jobs, results, strict=True) if result is None or result.wrong is Wrong.BYTES]
    return Observation(
        files=len(weights.files),
        chunks=len(chunk_names(weights)),
        size=sum(file.size for file in weights.files),
        chunks_read=len(hashed),
        bytes_read=sum(chunk_size(file.size, index) for file, index in hashed),
        differences=len(ordered),
        first=ordered[0] if ordered else None,
    )


def survey(folder: Path) -> Mapping[str, tuple[int, int]]:
    """Return every entry below `folder` that is not a folder, by POSIX path: its mode (with kind) and size in bytes.

    Empty folders are entries too, since no manifest can name them.

    Raises:
        HostError: a folder cannot be read.
    """
    found: dict[str, tuple[int, int]] = {}
    with at(folder):
        _survey(os.open(folder, _READ | os.O_DIRECTORY), "", found)
    return found


def _survey(descriptor: int, prefix: str, found: dict[str, tuple[int, int]]) -> None:
    try:
        for name in sorted(os.listdir(descriptor)):
            status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            before = len(found)
            if stat.S_ISDIR(status.st_mode):
                _survey(os.open(name, _READ | os.O_DIRECTORY, dir_fd=descriptor), f"{prefix}{name}/", found)
            if before == len(found):
                found[f"{prefix}{name}"] = (status.st_mode, status.st_size)
    finally:
        os.close(descriptor)


def _unexpected(path: str, mode: int) -> Difference:
    return Difference(path=path, wrong=Wrong.EXTRA, expected="nothing", found=_kind(mode))


def _compare(file: WeightsFile, there: tuple[int, int] | None) -> Difference | None:
    expected = f"a file of {file.size} bytes"
    if there is None:
        return Difference(path=file.path, wrong=Wrong.MISSING, expected=expected, found="nothing")
    mode, size = there
    if not stat.S_ISREG(mode):
        return Difference(path=file.path, wrong=Wrong.KIND, expected=expected, found=_kind(mode))
    if size != file.size:
        return Difference(path=file.path, wrong=Wrong.SIZE, expected=f"{file.size} bytes", found=f"{size} bytes")
    return None


def _kind(mode: int) -> str:
    kinds = {stat.S_IFREG: "a file", stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a folder"}
    return kinds.get(stat.S_IFMT(mode), "a device, pipe or socket")


def expected_chunk(file: WeightsFile, index: int) -> Digest:
    """Return the digest of one chunk; a file of one chunk has none listed, since its own digest is that."""
    return file.chunks[index] if file.chunks else file.digest


def _read_chunk(folder: Path, file: WeightsFile, index: int, advance: hashing.Advance) -> Difference | None:
    expected, path = expected_chunk(file, index), folder / file.path
    try:
        descriptor = open_beneath(folder, file.path)
        try:
            if os.fstat(descriptor).st_size != file.size:
                raise HostError(f"{path}: changed while it was read", hint="stop what writes to it")
            size = chunk_size(file.size, index)
            found = hashing.hash_range(descriptor, index * CHUNK_BYTES, size, path=path, advance=advance)
        finally:
            os.close(descriptor)
    except ApplianceError as error:
        return Difference(path=file.path, wrong=Wrong.UNREADABLE, expected=expected, found=error.message, chunk=index)
    if found == expected:
        return None
    return Difference(path=file.path, wrong=Wrong.BYTES, expected=expected, found=found, chunk=index)
