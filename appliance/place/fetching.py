# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A model's bytes from the depot into its partial folder: each received once, hashed while it arrives, written once.

A worker takes one file at a time and its chunks in order, so that the file's own SHA-256 goes along over the same
buffers; nothing is read again, except behind a boot or where the state of a hash cannot be kept.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from appliance.adapters import disk, hashing
from appliance.adapters.depot import Depot
from appliance.adapters.ingest import ResumableTwin
from appliance.adapters.parallel import for_each
from appliance.bundle.weights import WeightsFile
from appliance.digests import CHUNK_BYTES, Digest, chunk_count, chunk_size
from appliance.errors import VerificationError
from appliance.place.observe import expected_chunk
from appliance.place.partial import Partial

_HINT = "the depot's copy is damaged: run appliance store verify there and read the media again; nothing was placed"


def fetch_files(depot: Depot, repository: str, partial: Partial, *, workers: int, advance: hashing.Advance) -> None:
    """Fetch and verify every chunk that `partial` lacks, and every file as a whole; `repository` is the model's.

    Raises:
        VerificationError: a chunk or a file is not what was signed; its file, chunk and digests are named.
        ToolError: the depot does not answer, or does not offer a blob.
        HostError: no space, or it cannot be written.
    """
    files = sorted(enumerate(partial.weights.files), key=lambda pair: (-pair[1].size, pair[0]))
    for_each(files, lambda pair: _FileFetch(depot, repository, partial, *pair, advance).run(), workers=workers)


@dataclass(slots=True)
class _FileFetch:
    depot: Depot
    repository: str
    partial: Partial
    number: int
    file: WeightsFile
    advance: hashing.Advance
    path: Path = field(init=False)

    def __post_init__(self) -> None:
        self.path = self.partial.folder / self.file.path

    def run(self) -> None:
        with self.partial.opened(self.file) as descriptor:
            if self.file.chunks:
                self._large(descriptor)
            elif not self.partial.done(self.number, 0):
                self._receive(descriptor, 0, None)
                self.partial.record(self.number, 0)

    def _large(self, descriptor: int) -> None:
        count = chunk_count(self.file.size)
        front = 0
        while front < count and self.partial.state(self.number, front):
            front += 1
        twin = ResumableTwin(self.partial.state(self.number, front - 1))
        try:
            for chunk in range(front, count):
                if self.partial.done(self.number, chunk):
                    self._read_again(descriptor, chunk, twin)
                else:
                    self._receive(descriptor, chunk, twin)
                self.partial.record(self.number, chunk, twin.freeze())
        finally:
            whole = twin.close()
        if whole != self.file.digest and front:
            whole = hashing.hash_with_reader(descriptor, self.file.size, path=self.path)  # a kept hash state may have been damaged
        if whole != self.file.digest:
            raise VerificationError(
                f"model {self.partial.weights.name}: {self.file.path}: every chunk is as signed, but the whole is {whole}, "
                f"expected {self.file.digest}",
                hint="do not use this release: its publisher signed a chunk list of another file",
            )

    def _read_again(self, descriptor: int, chunk: int, twin: ResumableTwin) -> None:
        size = chunk_size(self.file.size, chunk)
        found = hashing.hash_range(descriptor, chunk * CHUNK_BYTES, size, path=self.path, twin=twin)
        self._check(chunk, found, source=str(self.path))

    def _receive(self, descriptor: int, chunk: int, twin: ResumableTwin | None) -> None:
        offset, size = chunk * CHUNK_BYTES, chunk_size(self.file.size, chunk)
        sink = _ChunkSink(descriptor, offset, self.path, twin, self.advance)
        self.depot.connection().blob_range(self.repository, self.file.digest, offset=offset, size=size, sink=sink)
        self._check(chunk, sink.digest(), source=f"the depot ({self.depot.address})")

    def _check(self, chunk: int, found: Digest, *, source: str) -> None:
        expected = expected_chunk(self.file, chunk)
        if found != expected:
            raise VerificationError(
                f"model {self.partial.weights.name}: {self.file.path}, chunk {chunk} (byte {chunk * CHUNK_BYTES}): "
                f"{source} has {found}, expected {expected}",
                hint=_HINT,
            )


class _ChunkSink:
    """Writes one chunk to its place while it is hashed; the twin, if there is one, hashes the same buffers."""

    def __init__(self, descriptor: int, offset: int, path: Path, twin: ResumableTwin | None, advance: hashing.Advance) -> None:
        self._descriptor = descriptor
        self._offset = offset
        self._path = path
        self._twin = twin
        self._advance = advance
        self._hash = hashlib.sha256()
        self._view: memoryview = memoryview(b"")

    def room(self, most: int) -> memoryview:
        self._view = self._twin.buffer() if self._twin else hashing.buffer()
        return self._view[:most]

    def filled(self, count: int) -> None:
        view = self._view
        if self._twin:
            self._twin.give(view, view[:count])
        self._hash.update(view[:count])
        with disk.at(self._path):
            disk.write_fully(self._descriptor, view[:count], self._offset)
            disk.start_writeback(self._descriptor, self._offset, count)
        self._offset += count
        self._advance(count)

    def digest(self) -> Digest:
        return Digest("sha256:" + self._hash.hexdigest())
