# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Copy while hashing: every byte is read once, written once, and hashed on the way.

Large pieces go past the page cache (`O_DIRECT`) where a file system offers that: the kernel's time for fresh pages is more
than that of both hashes (docs/adr/0009), and nobody reads a stick, or a blob that was just stored, again at once. The kernel
then wants memory, offset and length in multiples of `ALIGN`; what does not fit goes the ordinary way.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import mmap
import os
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Self

from appliance.adapters import hashing
from appliance.adapters.disk import at, host_error, open_regular, start_writeback, write_fully
from appliance.adapters.hashing import ALIGN, BUFFER_BYTES, RING, Advance, Twin, ignore
from appliance.digests import Digest
from appliance.errors import HostError

DIRECT_FROM = 256 * 1024
"""Smaller pieces go through the page cache, which gathers them."""
_WRITEBACK_EVERY = 8 * 1024 * 1024
_NOT_DIRECT = {errno.EINVAL, errno.EOPNOTSUPP}


class _File:
    """An open file of the caller's, and another way to it past the page cache where there is one."""

    def __init__(self, descriptor: int, *, flags: int, direct: bool) -> None:
        """`direct`: look for that way, with `flags`."""
        self.descriptor = descriptor
        self._direct: int | None = None
        if direct:
            with suppress(OSError):
                self._direct = os.open(f"/proc/self/fd/{descriptor}", flags | os.O_DIRECT | os.O_CLOEXEC)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up the way past the page cache; the ordinary one is the caller's."""
        direct, self._direct = self._direct, None
        if direct is not None:
            os.close(direct)


def _fill_blocks(descriptor: int, view: memoryview, offset: int) -> int:
    """Read whole blocks at `offset` until `view` is full or the file ends, which shows as less than whole blocks."""
    done = 0
    while done < len(view) and done % ALIGN == 0:
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


class Source(_File):
    """An open file that is read at given offsets, by any number of threads."""

    def __init__(self, descriptor: int, *, direct: bool = False) -> None:
        """Read from `descriptor`, which stays the caller's; `direct`: past the page cache where that can be."""
        super().__init__(descriptor, flags=os.O_RDONLY, direct=direct)
        if self._direct is None:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def read_ahead(self, offset: int, size: int) -> None:
        """Ask the kernel to fetch the beginning of that piece while this thread computes, unless it will be read past the cache."""
        if self._direct is None or size < DIRECT_FROM:
            hashing.read_ahead(self.descriptor, offset, size)

    def read(self, into: memoryview, offset: int, size: int, *, whole: int) -> memoryview:
        """Read `size` bytes at `offset`, a part of a piece of `whole` bytes; return them: fewer if the file ends before.

        They lie somewhere in `into`, a buffer of `hashing.new_buffer`.

        Raises:
            OSError: unreadable.
        """
        direct = self._direct
        if direct is not None and whole >= DIRECT_FROM:
            skip = offset % ALIGN
            wanted = -(-(skip + size) // ALIGN) * ALIGN
            try:
                got = _fill_blocks(direct, into[:wanted], offset - skip)
            except OSError as error:
                if error.errno not in _NOT_DIRECT:
                    raise
            else:
                return into[skip : max(skip, min(skip + size, got))]
        return into[: hashing.fill(self.descriptor, into[:size], offset)]


class Sink(_File):
    """An open file that is written at given offsets, by one thread at a time."""

    def __init__(self, descriptor: int, *, direct: bool = False) -> None:
        """Write to `descriptor`, which stays the caller's; `direct`: past the page cache where that can be."""
        super().__init__(descriptor, flags=os.O_WRONLY, direct=direct)
        self._aligned: memoryview | None = None
        self._unwritten = 0

    def write(self, data: memoryview, offset: int, *, whole: int) -> None:
        """Write `data`, a part of a piece of `whole` bytes, at `offset`.

        Raises:
            OSError: it cannot be written.
        """
        done = self._past_the_cache(data, offset) if whole >= DIRECT_FROM else 0
        if done == len(data):
            return
        write_fully(self.descriptor, data[done:], offset + done)
        self._unwritten += len(data) - done
        if self._unwritten >= _WRITEBACK_EVERY:
            start_writeback(self.descriptor, offset + len(data) - self._unwritten, self._unwritten)
            self._unwritten = 0

    def _past_the_cache(self, data: memoryview, offset: int) -> int:
        """Write what fits; return how much that was."""
        size = len(data) // ALIGN * ALIGN
        if self._direct is None or offset % ALIGN or not size:
            return 0
        view = self._in_aligned_memory(data[:size])
        done = 0
        try:
            while done < size and done % ALIGN == 0:
                done += os.pwrite(self._direct, view[done:], offset + done)
        except OSError as error:
            if error.errno not in _NOT_DIRECT:
                raise
            self.close()
        return done

    def _in_aligned_memory(self, data: memoryview) -> memoryview:
        here = ctypes.addressof(ctypes.c_char.from_buffer(data))
        if here % ALIGN == 0:
            return data
        if self._aligned is None:
            self._aligned = memoryview(mmap.mmap(-1, BUFFER_BYTES))
        ctypes.memmove(ctypes.addressof(ctypes.c_char.from_buffer(self._aligned)), here, len(data))
        return self._aligned[: len(data)]


class _Lane:
    """Work on the buffers of a twin in a thread of its own, in the order in which the twin has them.

    A buffer is used again only when twin and lanes have done with it.
    """

    def __init__(self, name: str, work: Callable[[memoryview, int], object]) -> None:
        self._work = work
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._given: deque[Future[object]] = deque()

    def turn(self) -> None:
        """Wait until the buffer that comes next is free here; raise what went wrong with what was in it."""
        if len(self._given) == RING:
            self._given.popleft().result()

    def give(self, data: memoryview, place: int) -> None:
        """Work on `data`; the caller may go on reading it until its next turn."""
        self._given.append(self._pool.submit(self._work, data, place))

    def finish(self) -> None:
        """Wait until all that was given is done; raise what went wrong."""
        while self._given:
            self._given.popleft().result()

    def close(self) -> None:
        """End the thread, whatever was given."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def copy_range(
    source: Source, offset: int, size: int, *, target: Sink, at_byte: int, path: Path, twin: Twin | None = None, advance: Advance = ignore
) -> Digest:
    """Copy `size` bytes at `offset` of `source` to `at_byte` of `target`; return their digest, taken on the way.

    `twin` gets the same bytes; then reading, writing and both hashes go on at the same time. Errors of reading name
    `path`; errors of writing leave as `OSError` for the caller, who knows the target's name.

    Raises:
        HostError: the source is unreadable or ends before.
        OSError: the target cannot be written.
    """
    state = hashlib.sha256()

    def keep(data: memoryview, done: int) -> None:
        target.write(data, at_byte + done, whole=size)

    if twin is None:
        done = 0
        while done < size:
            data = _read(source, hashing.buffer(), offset, done, size, path)
            state.update(data)
            keep(data, done)
            done += len(data)
            advance(len(data))
    else:
        _copy_along(
            source, offset, size, path, twin, (_Lane("chunk-hash", lambda data, _: state.update(data)), _Lane("write", keep)), advance
        )
    return Digest("sha256:" + state.hexdigest())


def _read(source: Source, into: memoryview, offset: int, done: int, size: int, path: Path) -> memoryview:  # noqa: PLR0917 - private
    """Return what comes next of a piece of `size` bytes at `offset` of which `done` were read."""
    place, want = offset + done, min(BUFFER_BYTES, size - done)
    try:
        data = source.read(into, place, want, whole=size)
    except OSError as error:
        raise host_error(error, f"{path} at byte {place}") from error
    if len(data) != want:
        raise HostError(
            f"{path}: ends at byte {place + len(data)}, expected at least {offset + size}", hint="take a whole copy of this file"
        )
    return data


def _copy_along(  # noqa: PLR0917 - private
    source: Source, offset: int, size: int, path: Path, twin: Twin, lanes: Sequence[_Lane], advance: Advance
) -> None:
    """Read a piece once for the twin and all lanes; end the lanes and raise what went wrong in them."""
    done = 0
    try:
        while done < size:
            for lane in lanes:
                lane.turn()
            into = twin.buffer()
            try:
                data = _read(source, into, offset, done, size, path)
            except HostError:
                twin.give(into, into[:0])
                raise
            twin.give(into, data)
            for lane in lanes:
                lane.give(data, done)
            done += len(data)
            advance(len(data))
        for lane in lanes:
            lane.finish()
    finally:
        for lane in lanes:
            lane.close()


def copy_file(path: Path, target: Path, *, mode: int) -> Digest:
    """Copy the regular file `path` to the new file `target` and return the digest of its bytes. Not synced.

    Raises:
        HostError: unreadable, a symbolic link, no space, or changed while it was read. No `target` is left then.
        FormatError: not a regular file.
    """
    reading = open_regular(path)
    try:
        before = os.fstat(reading)
        with at(target, needed=before.st_size):
            writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
            try:
                digest = copy_range(Source(reading), 0, before.st_size, target=Sink(writing), at_byte=0, path=path)
                hashing.check_unchanged(reading, before, path)
            except (OSError, HostError):
                target.unlink()
                raise
            finally:
                os.close(writing)
    finally:
        os.close(reading)
    return digest
