# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""One control group per machine in every hierarchy of the host.

Without one of its own, systemd-nspawn stays in its caller's group and all machines would share one `/kubepods`. On cgroup v1 and hybrid
hosts that is one directory per controller, `name=systemd` and `unified` included (nspawn derives its payload's path from the latter). On
cgroup v2 it is one directory whose ancestors pass their controllers down.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.lab.machines.processes import wait_until

TOP = "appliance-lab"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchy:
    """A mounted cgroup hierarchy: its mount point and whether it is cgroup v2."""

    mount: Path
    unified: bool

    @property
    def top(self) -> Path:
        return self.mount / TOP


def hierarchies(mountinfo: str | None = None) -> tuple[Hierarchy, ...]:
    """The hierarchies mounted below /sys/fs/cgroup, as /proc/self/mountinfo tells."""
    text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    found = {}
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        point, kind = left.split()[4], right.split()[0]
        if kind in {"cgroup", "cgroup2"} and point.startswith("/sys/fs/cgroup"):
            found[point] = Hierarchy(mount=Path(point), unified=kind == "cgroup2")
    return tuple(found[point] for point in sorted(found))


def prepare(lab: str, machine: str) -> tuple[Path, ...]:
    """Make the machine's groups; give the files into which its first process writes its own number."""
    doors = []
    all_of_them = hierarchies()
    only_unified = len(all_of_them) == 1 and all_of_them[0].unified
    for hierarchy in all_of_them:
        group = hierarchy.mount
        for part in (TOP, lab, machine):
            if only_unified:
                _pass_controllers_down(group)
            group /= part
            group.mkdir(exist_ok=True)
            _copy_cpuset(group)
        doors.append(group / "cgroup.procs")
    return tuple(doors)


def _pass_controllers_down(group: Path) -> None:
    offered = (group / "cgroup.controllers").read_text().split()
    for controller in offered:
        # A controller that cannot be passed down (a thread-mode or busy ancestor) is one the machine does without.
        with contextlib.suppress(OSError):
            (group / "cgroup.subtree_control").write_text(f"+{controller}")


def _copy_cpuset(group: Path) -> None:
    """A v1 cpuset starts empty and takes no process until it names CPUs and memory nodes."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        mine = group / name
        if mine.exists() and (group / "cgroup.clone_children").exists() and not mine.read_text().strip():
            mine.write_text((group.parent / name).read_text())


def _groups(path: Path) -> Iterator[Path]:
    """All directories from the deepest up to `path` itself."""
    for folder, _, _ in os.walk(path, topdown=False):
        yield Path(folder)


def members(lab: str, machine: str | None = None) -> set[int]:
    """Numbers of all processes in the groups of a machine, or of the whole lab."""
    found: set[int] = set()
    for hierarchy in hierarchies():
        for group in _groups(hierarchy.top / lab / machine if machine else hierarchy.top / lab):
            with contextlib.suppress(OSError):
                found.update(int(word) for word in (group / "cgroup.procs").read_text().split())
    return found


def remove(lab: str, machine: str | None = None) -> None:
    """Remove the (empty) groups of a machine, or of the whole lab and, with the last lab, their common top.

    Stale groups of a machine's previous boot make cAdvisor retry 3 s for each dead container, so this also belongs before each start.
    """
    for hierarchy in hierarchies():
        path = hierarchy.top / lab / machine if machine else hierarchy.top / lab
        wait_until(lambda path=path: _removed(path), seconds=10, what=f"{path} to become empty", hint=f"see {path}/**/cgroup.procs")  # type: ignore[misc]
        if not machine:
            with contextlib.suppress(OSError):
                hierarchy.top.rmdir()


def _removed(path: Path) -> bool:
    for group in _groups(path):
        with contextlib.suppress(OSError):
            group.rmdir()
    return not path.exists()
