# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Hash while reading: the engine under create, write, read and verify.

* Bytes go from the kernel into a few reusable buffers (`preadv`), never into one object per read; a worker thread
  needs `BUFFER_BYTES`, a twin hash `RING` times that, whatever the size of the file.
* `hashlib` releases the interpreter lock, so every worker thread uses a core.
* A blob of more than one chunk gets its own SHA-256 and its chunks' from the same buffer, in two threads (`Twin`);
  a smaller one is hashed once, since its only chunk is the blob.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from appliance.adapters.disk import host_error, open_regular
from appliance.digests import CHUNK_BYTES, Digest
from appliance.errors import HostError

BUFFER_BYTES = 2 * 1024 * 1024
RING = 4
ALIGN = 4096
"""What reading and writing past the page cache asks of memory, offsets and lengths."""
_AHEAD = 8 * 1024 * 1024

Advance = Callable[[int], None]


def ignore(amount: int) -> None:
    """Take no notice of progress."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileHashes:
    """What a file is: `chunks` is empty for a blob of one chunk, whose chunk digest is `digest`."""

    size: int
    digest: Digest
    chunks: tuple[Digest, ...] = ()

    @property
    def chunk_digests(self) -> tuple[Digest, ...]:
        """The digest of every chunk, also of the only one."""
        return self.chunks or (self.digest,)


_local = threading.local()


def new_buffer() -> memoryview:
    """Return aligned memory for `BUFFER_BYTES` from any offset, of which whole blocks are read."""
    return memoryview(mmap.mmap(-1, BUFFER_BYTES + 2 * ALIGN))


def buffer() -> memoryview:
    """Return this thread's own reusable buffer, as `new_buffer` makes it."""
    view: memoryview | None = getattr(_local, "view", None)
    if view is None:
        view = _local.view = new_buffer()
    return view


class Twin:
    """A second SHA-256 over the same buffers, in a thread of its own; used by one worker thread at a time."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._free: SimpleQueue[memoryview] = SimpleQueue()
        self._full: SimpleQueue[tuple[memoryview, memoryview] | None] = SimpleQueue()
        for _ in range(RING):
            self._free.put(new_buffer())
        self._thread = threading.Thread(target=self._loop, name="twin-hash", daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        while (item := self._full.get()) is not None:
            view, data = item
            self._hash.update(data)
            self._free.put(view)

    def buffer(self) -> memoryview:
        """Return a buffer that the twin has done with."""
        return self._free.get()

    def give(self, view: memoryview, data: memoryview) -> None:
        """Hash `data`, which lies in the buffer `view`; the caller may go on reading it until it asks for a buffer again."""
        self._full.put((view, data))

    def close(self) -> Digest:
        """End the thread and return the digest of all bytes given."""
        if self._thread.is_alive():
            self._full.put(None)
            self._thread.join()
        return Digest("sha256:" + self._hash.hexdigest())


def fill(descriptor: int, view: memoryview, offset: int) -> int:
    """Read at `offset` until `view` is full or the file ends; return the number of bytes."""
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


def read_ahead(descriptor: int, offset: int, size: int = _AHEAD) -> None:
    """Ask the kernel to fetch the beginning of that range while this thread computes."""
    os.posix_fadvise(descriptor, offset, min(size, _AHEAD), os.POSIX_FADV_WILLNEED)


def prefetch(path: Path, offset: int = 0, size: int = _AHEAD) -> None:
    """Have the disk fetch the first bytes of a range of a file that is read soon; never fails, never waits for them."""
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            read_ahead(descriptor, offset, size)
        finally:
            os.close(descriptor)


def hash_range(descriptor: int, offset: int, size: int, *, path: Path, twin: Twin | None = None, advance: Advance = ignore) -> Digest:
    """Return the digest of `size` bytes at `offset` of an open file; `path` names it in errors, `twin` gets the same bytes.

    Raises:
        HostError: unreadable, or the file ends before.
    """
    state = hashlib.sha256()
    end = offset + size
    while offset < end:
        view = twin.buffer() if twin else buffer()
        want = min(BUFFER_BYTES, end - offset)
        try:
            got = fill(descriptor, view[:want], offset)
        except OSError as error:
            raise host_error(error, f"{path} at byte {offset}") from error
        if got != want:
            raise HostError(f"{path}: ends at byte {offset + got}, expected at least {end}", hint="take a whole copy of this file")
        if twin:
            twin.give(view, view[:got])
        if offset % _AHEAD == 0:
            read_ahead(descriptor, offset + want)
        state.update(view[:got])
        offset += got
        advance(got)
    return Digest("sha256:" + state.hexdigest())


def hash_with_reader(descriptor: int, size: int, *, path: Path, advance: Advance = ignore) -> Digest:
    """Return the digest of the first `size` bytes, this thread reading while another hashes: for one large file.

    Raises:
        HostError: as `hash_range`.
    """
    twin = Twin()
    done = 0
    try:
        while done < size:
            view = twin.buffer()
            want = min(BUFFER_BYTES, size - done)
            try:
                got = fill(descriptor, view[:want], done)
            except OSError as error:
                raise host_error(error, f"{path} at byte {done}") from error
            if got != want:
                raise HostError(f"{path}: ends at byte {done + got}, expected {size}", hint="take a whole copy of this file")
            twin.give(view, view[:got])
            if done % _AHEAD == 0:
                read_ahead(descriptor, done + want)
            done += got
            advance(got)
    finally:
        digest = twin.close()
    return digest


def hash_file(path: Path, *, advance: Advance = ignore) -> FileHashes:
    """Read the regular file `path` once and return its size, digest and chunk digests.

    Raises:
        HostError: unreadable, a symbolic link, or changed while it was read.
        FormatError: not a regular file.
    """
    descriptor = open_regular(path)
    try:
        return hash_open(descriptor, path=path, advance=advance)
    finally:
        os.close(descriptor)


def hash_open(descriptor: int, *, path: Path, advance: Advance = ignore) -> FileHashes:
    """Read the open file `descriptor` once and return what it is; `path` names it in errors.

    Raises:
        HostError: unreadable, or it changed while it was read.
    """
    before = os.fstat(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    hashes = _hash_all(descriptor, before.st_size, path, advance)
    check_unchanged(descriptor, before, path)
    return hashes


def check_unchanged(descriptor: int, before: os.stat_result, path: Path) -> None:
    """Compare an open file with what it was `before`.

    Raises:
        HostError: it changed while it was read.
    """
    after = os.fstat(descriptor)
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise HostError(f"{path}: changed while it was read", hint="stop what writes to it and run the same command again")


def _hash_all(descriptor: int, size: int, path: Path, advance: Advance) -> FileHashes:
    if size <= CHUNK_BYTES:
        return FileHashes(size=size, digest=hash_range(descriptor, 0, size, path=path, advance=advance))
    twin = Twin()
    chunks: list[Digest] = []
    try:
        for offset in range(0, size, CHUNK_BYTES):
            length = min(CHUNK_BYTES, size - offset)
            chunks.append(hash_range(descriptor, offset, length, path=path, twin=twin, advance=advance))
    finally:
        digest = twin.close()
    return FileHashes(size=size, digest=digest, chunks=tuple(chunks))
