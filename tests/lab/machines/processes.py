# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Start processes that can be found again, also by someone who did not start them, and end them.

Every process the lab starts carries its lab's name in its environment. That mark, the lab's cgroups and the PID namespaces of its machines
are how `down` finds what a killed `up` has left.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from tests.lab.machines.errors import LabError

MARK = "APPLIANCE_LAB_CHILD"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
Done = subprocess.CompletedProcess[str]
T = TypeVar("T")


def run(
    argv: Sequence[str | Path],
    *,
    lab: str,
    data: str | None = None,
    timeout: float = 600,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Done:
    """Run a command to its end in a session of its own; on a timeout all of that session is killed.

    Raises LabError with the end of what it printed if it fails (unless `check` is false) or takes longer than `timeout` seconds.
    """
    words = [os.fspath(word) for word in argv]
    with subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL if data is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="surrogateescape",
        env={"PATH": PATH, "LC_ALL": "C.UTF-8", "HOME": "/root", **(env or {}), MARK: lab},
        cwd=cwd,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(data, timeout)
        except subprocess.TimeoutExpired:
            _end_session(process)
            raise LabError(f"gave up after {timeout:g} s: {' '.join(words)}", hint="see the lab's log folder, or allow more time") from None
        except BaseException:
            _end_session(process)
            raise
    if check and process.returncode:
        tail = (err or out)[-2000:].strip()
        raise LabError(f"exit {process.returncode} from: {' '.join(words)}\n{tail}", hint="run the command above by hand")
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def _end_session(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def start_detached(argv: Sequence[str | Path], *, lab: str, console: Path, env: Mapping[str, str]) -> None:
    """Start a command that outlives this process, its output appended to `console`."""
    with console.open("ab") as out:
        subprocess.run(
            ["setsid", "--fork", *(os.fspath(word) for word in argv)],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            env={"PATH": PATH, **env, MARK: lab},
        )


def foreground(argv: Sequence[str | Path], *, lab: str) -> int:
    """Run a command with this process's own terminal and give its exit status."""
    env = {"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8", "TERM": os.environ.get("TERM", "dumb"), MARK: lab}
    return subprocess.run([os.fspath(word) for word in argv], check=False, env=env).returncode


def pipe(source: Sequence[str | Path], target: Sequence[str | Path], *, lab: str) -> None:
    """Connect two commands; raises LabError if either fails."""
    env = {"PATH": PATH, MARK: lab}
    with (
        subprocess.Popen([os.fspath(w) for w in source], stdout=subprocess.PIPE, env=env) as first,
        subprocess.Popen([os.fspath(w) for w in target], stdin=first.stdout, stdout=subprocess.DEVNULL, env=env) as second,
    ):
        if first.stdout is not None:
            first.stdout.close()
    if first.returncode or second.returncode:
        raise LabError(f"copy failed: {source} | {target}", hint="is the path there, and is the machine running?")


def marked(lab: str) -> set[int]:
    """Every process that carries this lab's mark, except this process and those above it."""
    mine = _ancestors()
    wanted = f"{MARK}={lab}".encode()
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in mine:
            continue
        with contextlib.suppress(OSError):
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.add(int(entry.name))
    return found


def _ancestors() -> set[int]:
    chain = {os.getpid()}
    pid = os.getpid()
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        chain.add(pid)
    return chain


def living(pids: Iterable[int]) -> set[tuple[int, str]]:
    """Those of `pids` that run, each with the moment it started. One that waits only for its parent to take notice holds nothing more."""
    found = set()
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            if fields[0] not in {"Z", "X"}:
                found.add((pid, fields[19]))
    return found


def end(find: Callable[[], set[int]], *, what: str) -> None:
    """SIGKILL to every process that `find` gives, until it gives none and all have ended.

    A process that is ending leaves its control groups and its environment before its mounts and namespaces: it can no longer be found,
    so it is waited for by its number.
    """
    ending: set[tuple[int, str]] = set()

    def none_left() -> bool:
        found = find()
        ending.update(living(found))
        kill(found)
        return not found and not ending & living(pid for pid, _ in ending)

    wait_until(none_left, seconds=30, what=f"processes of {what} to end", hint="a process in state D is waiting for a disk")


def kill(pids: Iterable[int], number: int = signal.SIGKILL) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def wait_until(condition: Callable[[], T | None], *, seconds: float, what: str, hint: str) -> T:
    """Give the first value of `condition` that is neither None nor false; raises LabError once `seconds` have passed."""
    end = time.monotonic() + seconds
    pause = 0.01
    while not (value := condition()):
        if time.monotonic() > end:
            raise LabError(f"waited {seconds:g} s in vain: {what}", hint=hint)
        time.sleep(pause)
        pause = min(pause * 1.5, 0.1)
    return value
