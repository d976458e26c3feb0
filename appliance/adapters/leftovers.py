# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Processes of an earlier run that lost its parent: found by the settings file they were started with, and ended.

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
    """Kill every process of this user that Ansible was started with for a run below `folder`; return their ids.

    Ansible and all it starts have `ANSIBLE_CONFIG=<run>/ansible.cfg` in their environment. Somebody's pager, editor or
    backup that only names a file there is none of them, nor is this process or one of its parents.
    """
    mark = f"\0ANSIBLE_CONFIG={folder}/".encode()
    ended = []
    for entry in proc.glob("[0-9]*"):
        pid = int(entry.name)
        with suppress(OSError):
            if entry.stat().st_uid == os.geteuid() and mark in b"\0" + (entry / "environ").read_bytes() and pid not in _ancestors():
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
