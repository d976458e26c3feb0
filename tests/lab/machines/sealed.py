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
# Prints "connected" or the kernel's reason.
PROBE = (
    "import socket,sys\ntry: socket.create_connection((sys.argv[1],int(sys.argv[2])),3); print('connected')\nexcept OSError as e: print(e)"
)
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
    spaces, strays = _namespaces(lab)
    looked = devices.inspect(lab.name, spaces)
    findings = [*strays, *(finding for space in looked for finding in space.findings)]
    attempts, wrong = _attempts(lab)
    media, foreign = _bastion_mounts(lab)
    report = Report(
        lab=lab.name,
        at=datetime.now(UTC).isoformat(timespec="milliseconds"),
        findings=(*findings, *wrong, *foreign),
        namespaces=looked,
        attempts=tuple(attempts),
        outside=_outside(lab),
        media=tuple(media),
    )
    name = "sealed-" + report.at.replace(":", "").replace("+0000", "Z")
    (lab.log / f"{name}.json").write_text(json.dumps(asdict(report), indent=1))
    (lab.log / f"{name}.txt").write_text(report.text() + "\n")
    return report


def _namespaces(lab: Lab) -> tuple[dict[str, Path], list[str]]:
    """Every network namespace of the lab by a name, each once, and a line for each process that is in this machine's own."""
    host = network.host_namespace().stat().st_ino
    found = {place: network.namespace(lab.name, place) for place in ("switch", *plan.PLACES)}
    known = {path.stat().st_ino for path in found.values()}
    strays = []
    for machine in lab.machines:
        leader = lab.leader(machine.name)
        pids = sorted(cgroups.members(lab.name, machine.name), key=lambda pid: pid != leader)
        for pid in pids:
            path = Path(f"/proc/{pid}/ns/net")
            with contextlib.suppress(OSError):
                number = path.stat().st_ino
                if number == host:
                    strays.append(f"{machine.name}: process {pid} is in this machine's own network namespace")
                elif number not in known:
                    known.add(number)
                    found[machine.name if pid == leader else f"{machine.name}, process {pid}"] = path
    return found, strays


def _places(lab: Lab) -> list[str]:
    return [m.name for m in lab.machines if lab.leader(m.name) is not None] + list(plan.PLACES)


def _probe(lab: Lab, place: str, address: str, port: int) -> str:
    python = sys.executable if place in plan.PLACES else "python3"
    return lab.exec(place, [python, "-c", PROBE, address, str(port)], timeout=30, check=False).stdout.strip() or "the prober failed"


def _attempts(lab: Lab) -> tuple[list[str], list[str]]:
    """Try to reach a listener of this machine from every place; give what happened and what of it should not have."""
    seen, wrong = [], []
    here = network.host_namespace()
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(max_workers=8) as pool:
        for address in _own_addresses(lab):
            port = stack.enter_context(network.listener(here, address)).getsockname()[1]
            with network.connect(here, address, port):
                seen.append(f"control: this machine reaches its own listener {address}")
            for place, result in zip(_places(lab), pool.map(lambda p, a=address, n=port: _probe(lab, p, a, n), _places(lab)), strict=True):
                seen.append(f"{place} to this machine's {address}: {result}")
                if result in {CONNECTED, "the prober failed"}:
                    wrong.append(f"{place} to this machine's {address}: {result}")
        for place in _places(lab):
            result = _control(lab, place)
            seen.append(f"control: {place} reaches a listener of its own: {result}")
            if result != CONNECTED:
                wrong.append(f"control: the prober in {place} reaches nothing at all: {result}")
    return seen, wrong


def _control(lab: Lab, place: str) -> str:
    """That the prober of a place can connect at all, to something no firewall of the product would stop."""
    if place not in plan.PLACES:
        return _probe(lab, place, "127.0.0.1", 22)
    with network.listener(lab.netns(place), "127.0.0.1") as server:
        return _probe(lab, place, "127.0.0.1", server.getsockname()[1])


def _own_addresses(lab: Lab) -> list[str]:
    entries = json.loads(run(["ip", "-json", "address", "show", "scope", "global", "up"], lab=lab.name).stdout)
    return [info["local"] for entry in entries for info in entry.get("addr_info", []) if "local" in info]


def _outside(lab: Lab) -> dict[str, str]:
    """Which places reach `outside` through the router: all of them, as long as no guard stops them."""
    places = [place for place in _places(lab) if place != "outside"]
    results = {}
    with ThreadPoolExecutor(max_workers=8) as pool:
        for address in (plan.OUTSIDE, plan.OUTSIDE6):
            with network.listener(lab.netns("outside"), address) as server:
                port = server.getsockname()[1]
                outcomes = pool.map(lambda place, a=address, p=port: _probe(lab, place, a, p), places)
                results.update({f"{place} ({address})": outcome for place, outcome in zip(places, outcomes, strict=True)})
    return results


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
