# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Run a command and know what it took: wall and CPU seconds, its highest memory, the bytes it wrote."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

_POLL_SECONDS = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """`peak` is VmHWM in bytes, `written` what write calls took, both read from /proc until the process ended."""

    wall: float
    cpu: float
    peak: int
    written: int
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Runs of one thing."""

    runs: tuple[Taken, ...]

    @property
    def median(self) -> float:
        return statistics.median(run.wall for run in self.runs)

    @property
    def spread(self) -> str:
        walls = [run.wall for run in self.runs]
        return f"{self.median:.2f} s ({min(walls):.2f} to {max(walls):.2f})"

    @property
    def peak(self) -> int:
        return max(run.peak for run in self.runs)

    @property
    def written(self) -> int:
        return max(run.written for run in self.runs)

    @property
    def cpu(self) -> float:
        return statistics.median(run.cpu for run in self.runs)


def take(command: Sequence[str], *, env: dict[str, str] | None = None) -> Taken:
    """Run `command` to its end.

    Raises:
        RuntimeError: it fails.
    """
    began = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    peak = written = 0
    while True:
        try:
            process.wait(_POLL_SECONDS)
            break
        except subprocess.TimeoutExpired:
            peak = max(peak, _field(process.pid, "status", "VmHWM:") * 1024)
            written = max(written, _field(process.pid, "io", "wchar:"))
    wall = time.monotonic() - began
    output = process.stdout.read() if process.stdout else ""
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{output[-2000:]}")
    return Taken(wall=wall, cpu=0.0, peak=peak, written=written, output=output)


def taken_with_cpu(command: Sequence[str], *, env: dict[str, str] | None = None) -> Taken:
    """As `take`, with the CPU seconds of the command and all its children."""
    before = os.times()
    taken = take(command, env=env)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Taken(wall=taken.wall, cpu=cpu, peak=taken.peak, written=taken.written, output=taken.output)


def _field(process: int, file: str, name: str) -> int:
    try:
        text = Path(f"/proc/{process}/{file}").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(name)), 0)


def drop_from_cache(paths: Iterable[Path]) -> None:
    """Write the files out and drop their pages, so that the next reader meets the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def files_below(folder: Path) -> list[Path]:
    """Every regular file below `folder`."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
