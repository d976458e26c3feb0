# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What can happen to files and processes, made to happen: damage, full disks, failing reads, kills.

Observing what followed (snapshots, planted secrets, system calls) is ``tests.support.observe``.
"""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

WRITES = ("write", "pwrite", "writev", "pwritev", "sendfile", "copy_file_range")
READS = ("read", "pread", "readv", "preadv")
CHANGES = ("fsync", "rename", "replace", "link", "mkdir", "unlink")


# Damage to one file ---------------------------------------------------------------------------------------------------


@contextmanager
def _forced(path: Path) -> Iterator[None]:
    """Let the block write to a read-only file and keep its mode and times, so that only the bytes tell."""
    before = path.stat()
    path.chmod(before.st_mode | stat.S_IWUSR)
    try:
        yield
    finally:
        path.chmod(before.st_mode)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def flip_byte(path: Path, offset: int, *, mask: int = 0x01) -> None:
    """Change the bits ``mask`` of the byte at ``offset`` (negative: from the end), in place; mode and times stay.

    Raises:
        IndexError: the file has no such byte.
        ValueError: ``mask`` would change nothing.
    """
    if not 0 < mask <= 0xFF:
        raise ValueError(f"mask {mask} changes no byte")
    size = path.stat().st_size
    place = offset if offset >= 0 else size + offset
    if not 0 <= place < size:
        raise IndexError(f"{path} has {size} bytes, none at {offset}")
    with _forced(path), path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ mask]))


@contextmanager
def flipped(path: Path, offset: int, *, mask: int = 0x01) -> Iterator[None]:
    """The byte is flipped within the block and as it was after it: for exhaustive loops without copying the world."""
    flip_byte(path, offset, mask=mask)
    try:
        yield
    finally:
        flip_byte(path, offset, mask=mask)


def overwrite(path: Path, offset: int, data: bytes) -> None:
    """Put ``data`` at ``offset``, in place; mode and times stay."""
    with _forced(path), path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def truncate(path: Path, size: int) -> None:
    """Cut to ``size`` bytes (negative: that many off the end); mode and times stay.

    Raises:
        ValueError: the file is not longer than that.
    """
    there = path.stat().st_size
    wanted = size if size >= 0 else there + size
    if not 0 <= wanted < there:
        raise ValueError(f"{path} has {there} bytes and cannot be cut to {wanted}")
    with _forced(path):
        os.truncate(path, wanted)


def duplicate(path: Path, to: Path) -> Path:
    """A byte-equal copy at ``to`` with the same mode and times."""
    return Path(shutil.copy2(path, to))


def swap(one: Path, other: Path) -> None:
    """Exchange the names of two files."""
    aside = one.with_name(f".{one.name}.aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def replace_by_symlink(path: Path) -> Path:
    """Move the file aside and leave a symbolic link to it; gives where the file now is."""
    moved = path.rename(path.with_name(f"{path.name}.moved"))
    path.symlink_to(moved.name)
    return moved


def replace_by_hard_link(path: Path, of: Path) -> None:
    """Make ``path`` another name of the file ``of``."""
    path.unlink(missing_ok=True)
    path.hardlink_to(of)


# Full disks and failing devices ---------------------------------------------------------------------------------------


@cache
def can_mount() -> bool:
    """Whether this process may mount a file system."""
    with tempfile.TemporaryDirectory() as place:
        command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place]
        mounted = subprocess.run(command, check=False, capture_output=True).returncode == 0
        if mounted:
            subprocess.run(["umount", place], check=True)
        return mounted


@contextmanager
def small_disk(place: Path, size: int, *, kind: str = "tmpfs") -> Iterator[Path]:
    """A file system of ``size`` bytes on the folder ``place`` (root only): tmpfs, or ext4 on a loop device.

    Raises:
        CalledProcessError: it cannot be mounted; ask ``can_mount`` first.
    """
    place.mkdir(parents=True, exist_ok=True)
    with ExitStack() as undo:
        if kind == "ext4":
            image = Path(undo.enter_context(tempfile.TemporaryDirectory())) / "disk.img"
            image.touch()
            os.truncate(image, size)
            subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(image)], check=True, capture_output=True)
            mount = ["mount", "-o", "loop", str(image), str(place)]
        else:
            mount = ["mount", "-t", kind, "-o", f"size={size}", kind, str(place)]
        subprocess.run(mount, check=True, capture_output=True)
        try:
            yield place
        finally:
            subprocess.run(["umount", str(place)], check=True, capture_output=True)


def fill(folder: Path, *, leave: int = 0) -> Path:
    """Fill the file system of ``folder`` until at most ``leave`` bytes are free; gives the file that fills it.

    Raises:
        ValueError: more than a GiB would have to be written: this is no small disk.
    """
    filler = folder / ".filler"
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    if free > 1 << 30:
        raise ValueError(f"{folder} has {free} bytes free: fill only a small disk")
    with filler.open("wb", buffering=0) as file:
        block = bytes(4096)
        try:
            while (status := os.statvfs(folder)).f_bavail * status.f_frsize > leave:
                file.write(block)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
    return filler


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file of this process or a child may grow beyond ``size`` bytes: writing further gives EFBIG (RLIMIT_FSIZE)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


@dataclass(slots=True, kw_only=True)
class Fault:
    """An error to inject, and what it met: calls and bytes that passed, and how often it struck."""

    code: int
    below: Path
    after_bytes: int | None = None
    after_calls: int | None = None
    passed_calls: int = 0
    passed_bytes: int = 0
    struck: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def meddled(self, name: str) -> Callable[..., Any]:
        """A stand-in for ``os.<name>`` that obeys the allowance."""
        real: Callable[..., Any] = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - stands for functions of many signatures
            if not _concerns(self.below, args):
                return real(*args, **kwargs)
            left = self._admit()
            result = real(*(args if left is None else _shortened(name, args, left)), **kwargs)
            with self._lock:
                self.passed_bytes += _moved(result)
            return result

        return call

    def _admit(self) -> int | None:
        """Count one call and give the bytes it may move (None: any number), or strike."""
        with self._lock:
            left = None if self.after_bytes is None else self.after_bytes - self.passed_bytes
            calls = None if self.after_calls is None else self.after_calls - self.passed_calls
            if (left is None and calls is None) or (left is not None and left <= 0) or (calls is not None and calls <= 0):
                self.struck += 1
                raise OSError(self.code, os.strerror(self.code))
            self.passed_calls += 1
            return left


@contextmanager
def failing(
    calls: Sequence[str], code: int, *, below: Path, after_bytes: int | None = None, after_calls: int | None = None
) -> Iterator[Fault]:
    """Within the block, ``os.<call>`` of this process on files in the folder ``below`` fails with errno ``code``.

    ``after_bytes`` lets that many bytes pass (the last call before the end moves fewer, as on a real disk),
    ``after_calls`` that many calls; with neither, the first call fails. Loop over ``after_calls`` from 0 until
    ``struck`` stays 0 to fail once at every call there is.
    """
    fault = Fault(code=code, below=below, after_bytes=after_bytes, after_calls=after_calls)
    with ExitStack() as stack:
        for name in calls:
            stack.enter_context(mock.patch.object(os, name, fault.meddled(name)))
        yield fault


def _moved(result: object) -> int:
    if isinstance(result, int):
        return result
    return len(result) if isinstance(result, bytes) else 0


def _shortened(name: str, args: tuple[Any, ...], left: int) -> tuple[Any, ...]:
    """The arguments of one call that moves at most ``left`` bytes."""
    if name in {"write", "pwrite"}:
        return (args[0], memoryview(args[1]).cast("B")[:left], *args[2:])
    if name in {"read", "pread"}:
        return (args[0], min(args[1], left), *args[2:])
    if name in {"writev", "pwritev", "readv", "preadv"}:
        views, room = [], left
        for buffer in args[1]:
            views.append(memoryview(buffer).cast("B")[:room])
            room -= len(views[-1])
        return (args[0], [view for view in views if view], *args[2:])
    place = {"sendfile": 3, "copy_file_range": 2}.get(name)
    return args if place is None else (*args[:place], min(args[place], left), *args[place + 1 :])


def _concerns(below: Path, args: tuple[Any, ...]) -> bool:
    """Whether an argument is a descriptor or path of something in the folder ``below``."""
    for arg in args[:2]:
        if isinstance(arg, str | os.PathLike) and Path(arg).absolute().is_relative_to(below.absolute()):
            return True
        if type(arg) is int:
            try:
                target = Path(os.readlink(f"/proc/self/fd/{arg}"))  # noqa: PTH115 - Path.readlink is the same call, spelt longer
            except OSError:
                continue
            if target.is_relative_to(below.resolve()):
                return True
    return False


def strace_injecting(command: Sequence[str], *, calls: Sequence[str], code: str, when: str = "1+", path: Path | None = None) -> list[str]:
    """``command`` under strace, with each of ``calls`` failing as ``code`` (``EIO``): in any language, in the kernel's name.

    ``when`` counts calls per process as strace does: ``3`` the third alone, ``3+`` from it on. ``path`` restricts it
    to one file.
    """
    only = ["-P", str(path)] if path else []
    inject = [part for call in calls for part in ("-e", f"inject={call}:error={code}:when={when}")]
    return ["strace", "-f", "-qqq", "-o", os.devnull, *only, "-e", f"trace={','.join(calls)}", *inject, "--", *command]


# Kills ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    """One run: when it was to be killed, whether it lived to be, and what it left. ``status`` is -9 when killed."""

    seed: int
    after: float
    killed: bool
    status: int
    output: str


def new_seed() -> int:
    """A seed for a run of random kills: from FAULT_SEED where that is set, to repeat one."""
    return int(os.environ.get("FAULT_SEED") or random.SystemRandom().randrange(2**32))


def kill_at_random(
    command: Sequence[str], *, between: tuple[float, float], seed: int, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Kill:
    """Start ``command`` and ``kill -9`` it, with all it started, at a moment drawn from ``seed``; prints both.

    A command that ends before its moment is reported as not killed, with its own exit status.
    """
    after = random.Random(seed).uniform(*between)
    deadline = time.monotonic() + after
    ended = _kill_when(command, lambda: time.monotonic() >= deadline, env=env, cwd=cwd)
    kill = Kill(seed=seed, after=after, killed=ended[0], status=ended[1], output=ended[2])
    print(f"kill -9: seed {seed}, after {after:.3f} s, {'killed' if kill.killed else f'ended before with {kill.status}'}")
    return kill


def kill_when(
    command: Sequence[str], condition: Callable[[], bool], *, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Kill:
    """Start ``command`` and ``kill -9`` it, with all it started, as soon as ``condition`` holds."""
    started = time.monotonic()
    killed, status, output = _kill_when(command, condition, env=env, cwd=cwd)
    return Kill(seed=0, after=time.monotonic() - started, killed=killed, status=status, output=output)


def _kill_when(
    command: Sequence[str], condition: Callable[[], bool], *, env: Mapping[str, str] | None, cwd: Path | None
) -> tuple[bool, int, str]:
    with tempfile.TemporaryFile("w+") as heard:
        process = subprocess.Popen(command, stdout=heard, stderr=subprocess.STDOUT, start_new_session=True, env=env, cwd=cwd)
        killed = False
        try:
            while process.poll() is None:
                if condition():
                    killed = True
                    break
                _wait_for_end(process, 0.001)
        finally:
            # The group outlives its leader when a child was left behind: it is killed in every case.
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                killed = False
            status = process.wait()
        heard.seek(0)
        return killed and status == -signal.SIGKILL, status, heard.read()


def _wait_for_end(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return
