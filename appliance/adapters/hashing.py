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
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from appliance.adapters.disk import at, host_error, open_regular, start_writeback, write_fully
from appliance.adapters.parallel import for_each
from appliance.digests import CHUNK_BYTES, Digest
from appliance.errors import HostError

BUFFER_BYTES = 1024 * 1024
RING = 4
_AHEAD = 8 * 1024 * 1024
_EMPTY = 0

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


def buffer() -> memoryview:
    """Return this thread's own reusable buffer of `BUFFER_BYTES`."""
    view: memoryview | None = getattr(_local, "view", None)
    if view is None:
        view = _local.view = memoryview(bytearray(BUFFER_BYTES))
    return view


class Twin:
    """A second SHA-256 over the same buffers, in a thread of its own; used by one worker thread at a time."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._free: SimpleQueue[memoryview] = SimpleQueue()
        self._full: SimpleQueue[tuple[memoryview, int]] = SimpleQueue()
        for _ in range(RING):
            self._free.put(memoryview(bytearray(BUFFER_BYTES)))
        self._thread = threading.Thread(target=self._loop, name="twin-hash", daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        while True:
            view, size = self._full.get()
            if size == _EMPTY:
                return
            self._hash.update(view[:size])
            self._free.put(view)

    def buffer(self) -> memoryview:
        """Return a buffer that the twin has done with."""
        return self._free.get()

    def give(self, view: memoryview, size: int) -> None:
        """Hash the first `size` bytes of `view`; the caller may go on reading them until it asks for a buffer again."""
        if size:
            self._full.put((view, size))
        else:
            self._free.put(view)

    def close(self) -> Digest:
        """End the thread and return the digest of all bytes given."""
        if self._thread.is_alive():
            self._full.put((memoryview(b""), _EMPTY))
            self._thread.join()
        return Digest("sha256:" + self._hash.hexdigest())


class _Side:
    """The hash of one chunk beside a twin, in a third thread, so that the worker only moves bytes.

    Twin and side take the buffers in the same order; a buffer is used again only when both have done with it.
    """

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._full: SimpleQueue[memoryview | None] = SimpleQueue()
        self._done = threading.Semaphore(RING)
        self._thread = threading.Thread(target=self._loop, name="chunk-hash", daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        while (view := self._full.get()) is not None:
            self._hash.update(view)
            self._done.release()

    def turn(self, twin: Twin) -> memoryview:
        """Return a buffer that neither has to read any more."""
        self._done.acquire()
        return twin.buffer()

    def give(self, view: memoryview) -> None:
        """Hash `view`; the caller may go on reading it until its next turn."""
        self._full.put(view)

    def close(self) -> hashlib._Hash:
        """End the thread and return the hash of all that was given."""
        self._full.put(None)
        self._thread.join()
        return self._hash


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
            twin.give(view, got)
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
            twin.give(view, got)
            if done % _AHEAD == 0:
                read_ahead(descriptor, done + want)
            done += got
            advance(got)
    finally:
        digest = twin.close()
    return digest


def copy_range(
    source: int, offset: int, size: int, *, target: int, at_byte: int, path: Path, twin: Twin | None = None, advance: Advance = ignore
) -> Digest:
    """Copy `size` bytes at `offset` of `source` to `at_byte` of `target`; return their digest, taken on the way.

    `twin` gets the same bytes. Errors of reading name `path`; errors of writing leave as `OSError` for the caller,
    who knows the target's name.

    Raises:
        HostError: the source is unreadable or ends before.
        OSError: the target cannot be written.
    """
    side = _Side() if twin else None
    state = hashlib.sha256()
    done = 0
    try:
        while done < size:
            view = side.turn(twin) if side and twin else buffer()
            want = min(BUFFER_BYTES, size - done)
            try:
                got = fill(source, view[:want], offset + done)
            except OSError as error:
                raise host_error(error, f"{path} at byte {offset + done}") from error
            if got != want:
                raise HostError(
                    f"{path}: ends at byte {offset + done + got}, expected at least {offset + size}", hint="take a whole copy of this file"
                )
            if side and twin:
                twin.give(view, got)
                side.give(view[:got])
            else:
                state.update(view[:got])
            if done % _AHEAD == 0:
                read_ahead(source, offset + done + want)
            write_fully(target, view[:got], at_byte + done)
            done += got
            if done % _AHEAD == 0:
                start_writeback(target, at_byte + done - _AHEAD, _AHEAD)
            advance(got)
    finally:
        if side:
            state = side.close()
    return Digest("sha256:" + state.hexdigest())


def _hash_open(descriptor: int, size: int, path: Path, target: int | None, advance: Advance) -> FileHashes:
    if size <= CHUNK_BYTES:
        if target is None:
            return FileHashes(size=size, digest=hash_range(descriptor, 0, size, path=path, advance=advance))
        return FileHashes(size=size, digest=copy_range(descriptor, 0, size, target=target, at_byte=0, path=path, advance=advance))
    twin = Twin()
    chunks: list[Digest] = []
    try:
        for offset in range(0, size, CHUNK_BYTES):
            length = min(CHUNK_BYTES, size - offset)
            if target is None:
                chunks.append(hash_range(descriptor, offset, length, path=path, twin=twin, advance=advance))
            else:
                chunks.append(copy_range(descriptor, offset, length, target=target, at_byte=offset, path=path, twin=twin, advance=advance))
    finally:
        digest = twin.close()
    return FileHashes(size=size, digest=digest, chunks=tuple(chunks))


def hash_file(path: Path, *, copy_to: Path | None = None, mode: int = 0o444, advance: Advance = ignore) -> FileHashes:
    """Read the regular file `path` once and return its size, digest and chunk digests.

    With `copy_to` the same bytes are written there in the same pass (a new file, not synced: `sync_filesystem` once
    after many).

    Raises:
        HostError: unreadable, a symbolic link, no space, or changed while it was read. No `copy_to` is left then.
        FormatError: not a regular file.
    """
    descriptor = open_regular(path)
    target: int | None = None
    done = False
    try:
        before = os.fstat(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        with at(copy_to or path, needed=before.st_size):
            if copy_to is not None:
                target = os.open(copy_to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
            hashes = _hash_open(descriptor, before.st_size, path, target, advance)
        after = os.fstat(descriptor)
        if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
            raise HostError(f"{path}: changed while it was read", hint="stop what writes to it and run the same command again")
        done = True
        return hashes
    finally:
        os.close(descriptor)
        if target is not None:
            os.close(target)
            if not done and copy_to is not None:
                copy_to.unlink(missing_ok=True)


def hash_files(paths: Sequence[Path], *, workers: int, advance: Advance = ignore) -> list[FileHashes]:
    """Return the hashes of `paths`, in their order, with up to `workers` files open at a time, largest first.

    Raises:
        HostError, FormatError: as `hash_file`.
    """
    sizes = []
    for path in paths:
        with at(path):
            sizes.append(path.lstat().st_size)
    order = sorted(range(len(paths)), key=lambda index: (-sizes[index], index))
    hashed = for_each([paths[index] for index in order], lambda path: hash_file(path, advance=advance), workers=workers, prepare=prefetch)
    by_index = dict(zip(order, hashed, strict=True))
    return [by_index[index] for index in range(len(paths))]
