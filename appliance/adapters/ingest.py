# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Bring one local file in as a blob: linked, cloned or copied, and hashed whole and by chunk in the same pass.

A blob of several chunks goes on behind its last whole chunk after a kill: the state of its own SHA-256 is handed out
with every chunk (`appliance.adapters.midstate`).
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from appliance.adapters import midstate
from appliance.adapters.copying import Sink, Source, copy_range
from appliance.adapters.disk import at, host_error
from appliance.adapters.hashing import RING, Advance, FileHashes, Twin, hash_range, ignore
from appliance.digests import CHUNK_BYTES, Digest, chunk_count, chunk_size
from appliance.errors import FormatError, HostError, VerificationError

_FICLONE = 0x40049409

ChunkDone = Callable[[Digest, bytes], None]


class ResumableTwin(Twin):
    """A twin hash that begins at a frozen state and can be frozen at any time."""

    def __init__(self, state: bytes = b"") -> None:
        """Begin at `state`, or anew."""
        super().__init__()
        self._resumable = midstate.begin(state)
        self._hash = self._resumable  # type: ignore[assignment]  # a hash in all that Twin asks of it

    def freeze(self) -> bytes:
        """Wait for the bytes given so far and return the state behind them, b"" when it cannot be kept."""
        views = [self._free.get() for _ in range(RING)]
        state = midstate.freeze(self._resumable)
        for view in views:
            self._free.put(view)
        return state


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Where to go on: digests of the chunks done, and the hash state behind them."""

    chunks: tuple[Digest, ...] = ()
    state: bytes = b""

    @property
    def size(self) -> int:
        """The bytes of those chunks, all of them full."""
        return len(self.chunks) * CHUNK_BYTES


def open_beneath(root: Path, relative: str) -> int:
    """Open the regular file `relative` below `root` for reading, following no symbolic link below `root`.

    Raises:
        HostError: missing or unreadable.
        VerificationError: a symbolic link on the way, or a path that leaves `root`.
        FormatError: not a regular file.
    """
    parts = relative.split("/")
    if any(part in {"", ".", ".."} for part in parts):
        raise VerificationError(f"{relative!r} leaves its folder", hint="lock again")
    with at(root):
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for number, part in enumerate(parts, start=1):
        kind = os.O_NONBLOCK if number == len(parts) else os.O_DIRECTORY
        try:
            below = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | kind, dir_fd=descriptor)
        except OSError as error:
            raise _refusal(error, descriptor, part, root / relative) from error
        finally:
            os.close(descriptor)
        descriptor = below
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FormatError(f"{root / relative}: expected a regular file", hint="remove it from the folder")
    return descriptor


def _refusal(error: OSError, folder: int, name: str, path: Path) -> VerificationError | HostError:
    if error.errno in {errno.ELOOP, errno.ENOTDIR} and stat.S_ISLNK(os.lstat(name, dir_fd=folder).st_mode):
        return _symbolic_link(path, name)
    return host_error(error, path)


def ingest(
    source: int,
    target: Path,
    *,
    path: Path,
    link: bool,
    resume: Resume | None = None,
    chunk_done: ChunkDone | None = None,
    advance: Advance = ignore,
) -> FileHashes:
    """Put the bytes of the open file `source` at `target` and return what they are; `path` names the source in errors.

    With `link` the target is a hard link where the file system allows; else a clone, else a copy. With `resume` the
    `target` of a killed run is gone on with. A copy is not synced: `sync_filesystem` once after many.

    Raises:
        HostError: unreadable, no space; what was copied stays for the next run.
    """
    size = os.fstat(source).st_size
    with at(target, needed=size):
        begun = resume if resume is not None and resume.chunks and target.exists() else Resume()
        opened, shared = _go_on(source, target, begun) if begun.chunks else _put(source, target, link=link)
        try:
            if shared:  # what was shared is hashed, not what it was shared from: that may change

                def one(offset: int, length: int, twin: Twin | None) -> Digest:
                    return hash_range(opened, offset, length, path=path, twin=twin, advance=advance)
            else:
                reading, writing = Source(source), Sink(opened)

                def one(offset: int, length: int, twin: Twin | None) -> Digest:
                    return copy_range(reading, offset, length, target=writing, at_byte=offset, path=path, twin=twin, advance=advance)

            hashes = _pass(one, size, begun, chunk_done)
            if not shared:
                os.fchmod(opened, 0o444)
        finally:
            os.close(opened)
        return hashes


def _go_on(source: int, target: Path, begun: Resume) -> tuple[int, bool]:
    """Open the target of a killed run; True when it has all bytes already, being a link, a clone or a finished copy."""
    there, here = target.stat(), os.fstat(source)
    shared = os.path.samestat(there, here) or (there.st_size == here.st_size and there.st_mode & 0o222 == 0)
    opened = os.open(target, (os.O_RDONLY if shared else os.O_WRONLY) | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not shared:
        os.ftruncate(opened, begun.size)
    return opened, shared


def _put(source: int, target: Path, *, link: bool) -> tuple[int, bool]:
    """Make the target: True with all bytes in it as a link or clone, False empty, to be copied into."""
    try:
        if link and _link(source, target):
            return os.dup(source), True
        opened = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        target.unlink()  # of a killed run, with no whole chunk in it
        return _put(source, target, link=link)
    cloned = False
    try:
        cloned = _clone(source, opened)
    except OSError:
        os.close(opened)
        raise
    return opened, cloned


def walk_beneath(root: Path) -> tuple[str, ...]:
    """Return the regular files below `root` by relative POSIX path, sorted; no symbolic link is followed or let pass.

    Raises:
        VerificationError: a symbolic link.
        FormatError: a device, pipe or socket, or nothing at all.
        HostError: unreadable.
    """
    found: list[str] = []
    with at(root):
        _walk(os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), root, "", found)
    if not found:
        raise FormatError(f"{root}: an empty folder", hint="check the path in the profile")
    return tuple(sorted(found))


def _walk(folder: int, root: Path, prefix: str, found: list[str]) -> None:
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                relative = f"{prefix}{entry.name}"
                if entry.is_symlink():
                    raise _symbolic_link(root / relative, entry.name)
                if entry.is_dir(follow_symlinks=False):
                    below = os.open(entry.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
                    _walk(below, root, f"{relative}/", found)
                elif entry.is_file(follow_symlinks=False):
                    found.append(relative)
                else:
                    raise FormatError(f"{root / relative}: expected a regular file", hint="remove it from the folder")
    finally:
        os.close(folder)


def _symbolic_link(path: Path, name: str) -> VerificationError:
    return VerificationError(
        f"{path}: {name!r} is a symbolic link; only the files themselves are taken",
        hint="copy the folder with `cp -rL` and name the copy in the profile",
    )


def _link(source: int, target: Path) -> bool:
    try:
        # a directory descriptor, unused for an absolute path, makes Python call linkat(AT_SYMLINK_FOLLOW): link() would not follow
        os.link(f"/proc/self/fd/{source}", target, src_dir_fd=source, follow_symlinks=True)
    except OSError as error:
        if error.errno not in {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EACCES, errno.ENOENT}:
            raise
        return False
    return True


def _clone(source: int, opened: int) -> bool:
    """Let the empty open file share all blocks of `source`, where the file system can."""
    try:
        fcntl.ioctl(opened, _FICLONE, source)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EIO}:
            raise
        return False
    os.fchmod(opened, 0o444)
    return True


def can_clone(source: int, folder: Path) -> bool:
    """Whether a file in `folder` could share its blocks with `source`."""
    with at(folder), tempfile.TemporaryFile(dir=folder) as probe:
        return _clone(source, probe.fileno())


def _pass(one: Callable[[int, int, Twin | None], Digest], size: int, begun: Resume, chunk_done: ChunkDone | None) -> FileHashes:
    """Take every chunk once, from where `begun` ends."""
    if size <= CHUNK_BYTES:
        return FileHashes(size=size, digest=one(0, size, None))
    chunks = list(begun.chunks)
    twin = ResumableTwin(begun.state)
    try:
        for index in range(len(chunks), chunk_count(size)):
            chunks.append(one(index * CHUNK_BYTES, chunk_size(size, index), twin))
            if chunk_done is not None:
                chunk_done(chunks[-1], twin.freeze())
    finally:
        digest = twin.close()
    return FileHashes(size=size, digest=digest, chunks=tuple(chunks))
