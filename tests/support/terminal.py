# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A person at a terminal: a command on a pty, what it shows, and what is typed when it asks."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ENTER, CTRL_D, CTRL_C = "\n", "\x04", "\x03"


def typed(words: Sequence[str], answers: Sequence[tuple[str, str]], *, env: Mapping[str, str] | None = None) -> tuple[int, str]:
    """Run `appliance` with `words` on a terminal of its own; for each (question, keys), wait for the question and type the keys.

    Returns the exit status and all that was shown.

    Raises:
        TimeoutError: a question does not come, or the command does not end.
    """
    master, slave = pty.openpty()
    command = ["setsid", "--ctty", "--wait", sys.executable, "-m", "appliance", *words]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env={**os.environ, **(env or {})})
    os.close(slave)
    shown = ""
    try:
        for question, keys in answers:
            shown += _read_until(master, question)
            if keys == CTRL_C:
                _until_it_reads(process.pid)  # Python keeps a signal between its question and its read until a line comes
            os.write(master, keys.encode())
        shown += _read_until(master, None)
        return process.wait(timeout=60), shown.replace("\r\n", "\n")
    finally:
        process.kill()
        process.wait()
        os.close(master)


def _until_it_reads(process: int) -> None:
    """Wait until that process waits in a read (system call 0) of its terminal, or has ended."""
    deadline = time.monotonic() + 60
    while not _reads_terminal(Path(f"/proc/{process}")):
        if time.monotonic() > deadline:
            raise TimeoutError("the command does not read")
        os.sched_yield()


def _reads_terminal(process: Path) -> bool:
    try:
        call, first = (process / "syscall").read_text().split()[:2]
        return call == "0" and str((process / "fd" / str(int(first, 16))).readlink()).startswith(("/dev/pts/", "/dev/tty"))
    except ValueError:  # it runs
        return False
    except OSError:  # it has ended, or that file was closed meanwhile
        return not process.exists()


def _read_until(master: int, words: str | None) -> str:
    """Read until `words` were shown; with None, until the terminal has no more programs."""
    shown, deadline = "", time.monotonic() + 60
    while words is None or words not in shown:
        if not select.select([master], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError(f"{words!r} was not shown, but {shown!r}")
        try:
            data = os.read(master, 65536)
        except OSError:  # EIO: nobody has the other side any more
            data = b""
        if not data:
            if words is None:
                return shown
            raise TimeoutError(f"{words!r} was not shown before the end, but {shown!r}")
        shown += data.decode(errors="replace")
    return shown
