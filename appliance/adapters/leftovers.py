# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Processes of an earlier run that lost its parent: found by the run's folder in their command line, and ended.

Ansible's workers are sessions of their own, so the death of the run that began them does not reach them; one that hangs
would stay for ever, one that works would meet the next run. Call this only while no other run can be there (under the
site's lock).
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path


def end_leftovers(folder: Path, *, proc: Path = Path("/proc")) -> tuple[int, ...]:
    """Kill every process of this user whose command line names a path below `folder`; return their ids.

    This process and its parents are never among them.
    """
    mark = f"{folder}/".encode()
    ended = []
    for entry in proc.glob("[0-9]*"):
        pid = int(entry.name)
        with suppress(OSError):
            if entry.stat().st_uid == os.geteuid() and mark in (entry / "cmdline").read_bytes() and pid not in _ancestors():
                os.kill(pid, signal.SIGKILL)
                ended.append(pid)
    return tuple(sorted(ended))


def _ancestors() -> set[int]:
    """Return this process and its parents."""
    found, pid = set(), os.getpid()
    while pid > 0 and pid not in found:
        found.add(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):
            break
    return found
