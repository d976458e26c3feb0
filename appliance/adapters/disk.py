# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Files on this machine: atomic writes, space, locks, and what an `OSError` means for a person.

Every function that touches a file turns `OSError` into `HostError` naming the path, what was needed and what there is.
Reading and hashing is `appliance.adapters.hashing`.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from appliance.errors import FormatError, HostError

_SYNC_FILE_RANGE_WRITE = 2
_SYNC_EVERY_SECONDS = 0.25
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_FULL = {errno.ENOSPC, errno.EDQUOT}
_CANNOT_RESERVE = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}
_libc = ctypes.CDLL(None, use_errno=True)


def host_error(error: OSError, path: Path | str, *, needed: int | None = None) -> HostError:
    """Return `error`, met at `path`, as a `HostError` that says what to do; `needed` in bytes when it is known."""
    if error.errno in _FULL:
        there = free_bytes(Path(path))
        want = f"needs {needed} bytes, " if needed is not None else ""
        return HostError(
            f"{path}: no space left: {want}{there} bytes are available",
            hint="free space on that file system and run the same command again; what was finished is kept",
        )
    reason = error.strerror or str(error)
    hints = {
        errno.EIO: "the medium or disk returned an error: try another copy of this file, then another device",
        errno.EROFS: "choose a place that can be written to",
        errno.EACCES: "run as the user who may read and write there (root on a site)",
        errno.EPERM: "run as the user who may read and write there (root on a site)",
        errno.ENOENT: "check the path",
        errno.ENOTDIR: "check the path: a file is where a folder is expected",
        errno.EISDIR: "check the path: a folder is where a file is expected",
        errno.EFBIG: "that file system cannot hold files of this size: use --part-size fat32",
        errno.ELOOP: "replace the symbolic link by the file itself",
        errno.ENODEV: "the device is gone: plug it in, mount it and run the same command again",
        errno.ENXIO: "the device is gone: plug it in, mount it and run the same command again",
    }
    hint = hints.get(error.errno or 0, "mend that and run the same command again")
    return HostError(f"{path}: {reason[:1].lower()}{reason[1:]}", hint=hint)


@contextmanager
def at(path: Path | str, *, needed: int | None = None) -> Iterator[None]:
    """Run the block; an `OSError` in it leaves as a `HostError` that names `path`."""
    try:
        yield
    except OSError as error:
        raise host_error(error, path, needed=needed) from error


def free_bytes(path: Path) -> int:
    """Return how many bytes an unprivileged writer may still use where `path` is or would be."""
    for place in (path, *path.parents):
        try:
            status = os.statvfs(place)
        except OSError:
            continue
        return status.f_bavail * status.f_frsize
    return 0


def require_space(path: Path, needed: int, *, what: str) -> None:
    """Refuse before the first byte when `needed` bytes for `what` do not fit at `path`.

    Raises:
        HostError: fewer bytes are available.
    """
    there = free_bytes(path)
    if there < needed:
        raise HostError(
            f"{path}: {what} needs {needed} bytes, {there} bytes are available",
            hint=f"free {needed - there} bytes there or choose another place",
        )


def boot_id() -> str:
    """Return the identity of this boot: what was written but not synced survives a killed process, not another boot."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return "unknown"


def make_directory(path: Path, *, mode: int = 0o755) -> None:
    """Make `path` with `mode`, and its parents with 0755, where they are missing, whatever the umask."""
    missing = [each for each in (path, *path.parents) if not os.path.lexists(each)]
    with at(path):
        for each in reversed(missing):
            with suppress(FileExistsError):
                each.mkdir(mode=0o700)
                each.chmod(mode if each == path else 0o755)
        if not path.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))


def sync_directory(path: Path) -> None:
    """Make the names in `path` durable. File systems that cannot (some FUSE) are left alone."""
    with at(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in {errno.EINVAL, errno.EOPNOTSUPP}:
                raise
        finally:
            os.close(descriptor)


def sync_filesystem(path: Path) -> None:
    """Make everything written so far to the file system of `path` durable (syncfs)."""
    with at(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if _libc.syncfs(descriptor) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))
        finally:
            os.close(descriptor)


@contextmanager
def syncing(path: Path) -> Iterator[None]:
    """While the block runs, keep writing the file system of `path` out in the background, so that its last sync is short.

    Says nothing about what is durable: `sync_filesystem` does, and raises what went wrong.
    """
    over = threading.Event()

    def keep_syncing() -> None:
        while not over.wait(_SYNC_EVERY_SECONDS):
            with suppress(HostError):
                sync_filesystem(path)

    thread = threading.Thread(target=keep_syncing, name="syncing", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def start_writeback(descriptor: int, offset: int, size: int) -> None:
    """Ask the kernel to begin writing that range out now; advice only, so that the final sync has little left."""
    _libc.sync_file_range(descriptor, ctypes.c_int64(offset), ctypes.c_int64(size), _SYNC_FILE_RANGE_WRITE)


def reserve(descriptor: int, size: int, path: Path) -> bool:
    """Give the open file its full `size` with blocks behind it; return whether this file system can.

    FAT and exFAT cannot: there nothing is done, since extending a file on them writes zeros first.

    Raises:
        HostError: they do not fit.
    """
    if size == 0:
        return True
    if _libc.fallocate(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(size)) == 0:
        return True
    number = ctypes.get_errno()
    if number in _CANNOT_RESERVE:
        return False
    raise host_error(OSError(number, os.strerror(number)), path, needed=size)


def write_fully(descriptor: int, data: memoryview | bytes, offset: int) -> None:
    """Write all of `data` at `offset`."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def append(descriptor: int, line: bytes) -> None:
    """Append one short line; readers must ignore a torn last line."""
    if os.write(descriptor, line) != len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def append_line(path: Path, line: bytes) -> None:
    """Append `line` and a line feed to the file `path` and sync it; a torn last line is ended first.

    Raises:
        HostError: it cannot be written; the file is then as it was.
    """
    make_directory(path.parent)
    new = not path.exists()
    with at(path, needed=len(line)):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            try:
                torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
                append(descriptor, (b"\n" if torn else b"") + line + b"\n")
                os.fsync(descriptor)
                if new:
                    sync_directory(path.parent)
            except (OSError, HostError):
                with suppress(OSError):
                    path.unlink() if new else os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)


def exchange(one: Path, other: Path) -> None:
    """Exchange two names in one step (renameat2, RENAME_EXCHANGE).

    Raises:
        OSError: the file system cannot, or a name is missing.
    """
    if _libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Put `data` at `path` so that, after any crash, either the old file or the whole new one is there.

    Raises:
        HostError: it cannot be written; the old file is untouched and nothing is left beside it.
    """
    temporary = path.with_name(f".{path.name}.new")
    with at(path, needed=len(data)):
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            os.fchmod(descriptor, mode)
            write_fully(descriptor, data, 0)
            os.fsync(descriptor)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
            raise
        finally:
            os.close(descriptor)
        temporary.replace(path)
    sync_directory(path.parent)


def open_regular(path: Path, *, directory: int | None = None) -> int:
    """Open a regular file for reading, never through a symbolic link in its last component.

    Raises:
        HostError: missing, unreadable, or a link.
        FormatError: a folder, device, pipe or socket.
    """
    with at(path):
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(path if directory is None else path.name, flags, dir_fd=directory)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FormatError(f"{path}: expected a regular file", hint="remove it or replace it by the file itself")
    return descriptor


def read_small(path: Path, *, limit: int) -> bytes:
    """Return the bytes of the regular file `path`.

    Raises:
        FormatError: more than `limit` bytes.
        HostError: missing or unreadable.
    """
    descriptor = open_regular(path)
    with at(path), os.fdopen(descriptor, "rb") as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise FormatError(f"{path}: more than the {limit} bytes such a file may have", hint="check which file was given")
    return data


@contextmanager
def locked(path: Path, *, what: str) -> Iterator[None]:
    """Hold the lock file `path` while the block runs; the kernel frees it when the process ends, however it ends.

    Raises:
        HostError: another process holds it (its process id is in the message), or `path` is no regular file.
    """
    make_directory(path.parent)
    with at(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise HostError(f"{path}: expected a regular file to lock", hint="remove it and run the same command again")
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise HostError(
                f"{what} is in use by process {holder}", hint="wait until that command has ended, then run this one again"
            ) from error
        with at(path):
            os.ftruncate(descriptor, 0)
            write_fully(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def locked_folder(path: Path) -> Iterator[None]:
    """Hold the folder `path` itself while the block runs: nothing is written there for it.

    Raises:
        HostError: another process holds it.
    """
    with at(path):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise HostError(
                f"{path} is in use by another process", hint="wait until that command has ended, then run this one again"
            ) from error
        yield
    finally:
        os.close(descriptor)
