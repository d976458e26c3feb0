# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Prove that nothing of a lab reaches this machine or its uplink.

Looked at: the devices of every namespace in which a process of the lab runs, pods included, and where each veth's other end is; that no
process of the lab is in this machine's own namespace; the bastion's mounts; and what happens when every place really tries to connect to a
listener on each of this machine's addresses, with controls that show that listener and prober work.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab import network
from tests.lab.machines import cgroups, devices, plan
from tests.lab.machines.errors import LabError
from tests.lab.machines.processes import run

if TYPE_CHECKING:
    from tests.lab.machines.lab import Lab

CONNECTED = "connected"
# For each address and port among its arguments one line: "connected", or the kernel's reason.
PROBE = """
import socket, sys
for address, port in zip(sys.argv[1::2], sys.argv[2::2]):
    try:
        socket.create_connection((address, int(port)), 2).close()
        print("connected")
    except OSError as reason:
        print(reason)
"""
# File systems that hold nothing of this machine's disks.
DISKLESS = frozenset(
    {
        *("autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "efivarfs", "fusectl", "hugetlbfs"),
        *("mqueue", "nsfs", "overlay", "proc", "pstore", "ramfs", "securityfs", "sysfs", "tmpfs", "tracefs"),
    }
)
OF_NSPAWN = frozenset({"/run/host/os-release", "/run/host/incoming"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was seen. `findings` is empty if and only if the lab is sealed; `outside` tells which places reach 203.0.113.1."""

    lab: str
    at: str
    findings: tuple[str, ...]
    namespaces: tuple[devices.Namespace, ...]
    attempts: tuple[str, ...]
    outside: dict[str, str]
    media: tuple[str, ...]

    @property
    def sealed(self) -> bool:
        return not self.findings

    def require(self) -> Report:
        """This report, if the lab is sealed; raises LabError with the findings if not."""
        if self.findings:
            raise LabError(
                f"lab '{self.lab}' is not sealed: {'; '.join(self.findings)}", hint="trust nothing this lab has shown; take it down"
            )
        return self

    def text(self) -> str:
        lines = [f"lab {self.lab} at {self.at}: {'sealed' if self.sealed else 'NOT SEALED'}", *(f"  ! {line}" for line in self.findings)]
        for space in self.namespaces:
            lines.append(f"  namespace {space.name}: {'; '.join(space.links)}")
            lines += [f"    {route}" for route in space.routes if "default" in route]
        lines += [f"  {line}" for line in self.attempts]
        lines += [f"  outside from {place}: {result}" for place, result in self.outside.items()]
        lines += [f"  bastion sees {line}" for line in self.media]
        return "\n".join(lines)


def check(lab: Lab) -> Report:
    """Look, try, and write the report into the lab's log folder. Does not raise because of what it finds."""
    with contextlib.ExitStack() as stack:
        spaces, strays = _namespaces(lab, stack)
        looked = devices.inspect(lab.name, spaces)
    findings = [*strays, *(finding for space in looked for finding in space.findings)]
    attempts, wrong, outside = _attempts(lab)
    media, foreign = _bastion_mounts(lab)
    report = Report(
        lab=lab.name,
        at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        findings=(*findings, *wrong, *foreign),
        namespaces=looked,
        attempts=tuple(attempts),
        outside=outside,
        media=tuple(media),
    )
    name = "sealed-" + report.at.replace(":", "").replace("+0000", "Z")
    (lab.log / f"{name}.json").write_text(json.dumps(asdict(report), indent=1))
    (lab.log / f"{name}.txt").write_text(report.text() + "\n")
    return report


def _namespaces(lab: Lab, stack: contextlib.ExitStack) -> tuple[dict[str, Path], list[str]]:
    """Every network namespace of the lab by a name, each once, and a line for each process that is in this machine's own.

    The namespaces are held open until the stack is closed, so that none disappears with its last process.
    """
    host = network.host_namespace().stat().st_ino
    found: dict[str, Path] = {}
    known = set()
    strays = []

    def look(name: str, path: Path) -> None:
        handle = stack.enter_context(path.open()).fileno()
        number = os.fstat(handle).st_ino
        if number == host:
            strays.append(f"{name} is in this machine's own network namespace")
        elif number not in known:
            known.add(number)
            found[name] = Path(f"/proc/{os.getpid()}/fd/{handle}")

    for place in ("switch", *plan.PLACES):
        look(place, network.namespace(lab.name, place))
    for machine in lab.machines:
        leader = lab.leader(machine.name)
        for pid in sorted(cgroups.members(lab.name, machine.name), key=lambda pid: pid != leader):
            # A process may end between being listed and being looked at.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                look(machine.name if pid == leader else f"{machine.name}, process {pid}", Path(f"/proc/{pid}/ns/net"))
    return found, strays


def _places(lab: Lab) -> list[str]:
    return [m.name for m in lab.machines if lab.leader(m.name) is not None] + list(plan.PLACES)


def _attempts(lab: Lab) -> tuple[list[str], list[str], dict[str, str]]:
    """From every place, try a listener of its own, then one on each address of this machine, then `outside`.

    Gives all that happened, what of it should not have, and how each place fared with `outside`.
    """
    seen: list[str] = []
    wrong: list[str] = []
    outside: dict[str, str] = {}
    here = network.host_namespace()
    places = _places(lab)
    with contextlib.ExitStack() as stack:

        def listen(namespace: Path, address: str) -> tuple[str, int]:
            return address, stack.enter_context(network.listener(namespace, address)).getsockname()[1]

        ours = [listen(here, address) for address in _own_addresses(lab)]
        for address, port in ours:
            with network.connect(here, address, port):
                seen.append(f"control: this machine reaches its own listener at {address}")
        beyond = [listen(lab.netns("outside"), address) for address in (plan.OUTSIDE, plan.OUTSIDE6)]
        # A machine's control is its own sshd on loopback, which no firewall of the product would stop.
        controls = {place: listen(lab.netns(place), "127.0.0.1") if place in plan.PLACES else ("127.0.0.1", 22) for place in places}
        with ThreadPoolExecutor(max_workers=len(places)) as pool:
            outcomes = pool.map(lambda place: _probe(lab, place, [controls[place], *ours, *beyond]), places)
            for place, results in zip(places, outcomes, strict=True):
                seen.append(f"control: {place} reaches a listener of its own: {results[0]}")
                if results[0] != CONNECTED:
                    wrong.append(f"the prober in {place} reaches nothing at all: {results[0]}")
                for (address, _), result in zip(ours, results[1:], strict=False):
                    seen.append(f"{place} to this machine's {address}: {result}")
                    if result == CONNECTED:
                        wrong.append(f"{place} reaches this machine's {address}")
                outside.update(
                    {f"{place} ({address})": result for (address, _), result in zip(beyond, results[1 + len(ours) :], strict=False)}
                )
    return seen, wrong, outside


def _probe(lab: Lab, place: str, targets: list[tuple[str, int]]) -> list[str]:
    """One line per target; a prober that does not run to its end says so in all of them."""
    python = sys.executable if place in plan.PLACES else "python3"
    done = lab.exec(place, [python, "-c", PROBE, *(str(word) for target in targets for word in target)], timeout=60, check=False)
    lines = done.stdout.splitlines()
    return lines if len(lines) == len(targets) else [f"the prober failed: {done.stderr.strip()[-200:]}"] * len(targets)


def _own_addresses(lab: Lab) -> list[str]:
    entries = json.loads(run(["ip", "-json", "address", "show", "scope", "global", "up"], lab=lab.name).stdout)
    return [info["local"] for entry in entries for info in entry.get("addr_info", []) if "local" in info]


def _bastion_mounts(lab: Lab) -> tuple[list[str], list[str]]:
    """What the bastion sees of this machine's disks: media, read-only or attached as writable on purpose, and nothing else."""
    if not any(m.name == "bastion" for m in lab.machines) or (leader := lab.leader("bastion")) is None:
        return [], []
    own_root = str(lab.state / "machines/bastion/root")
    media: list[str] = []
    foreign: list[str] = []
    for line in Path(f"/proc/{leader}/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        source, point, options = left.split()[3:6]
        kind = right.split()[0]
        if kind in DISKLESS or point in {"/", *OF_NSPAWN} or source.startswith(own_root):
            continue
        entry = f"{source} at {point} ({options.split(',')[0]})"
        (media if point.startswith("/media/usb") else foreign).append(entry)
    return media, [f"bastion: {entry} is not a medium" for entry in foreign]
