# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Preflight's decisions: facts of all machines to named checks. Pure; `preflight` gathers the facts.

A machine that carries this site's own id (`/etc/appliance/site-id`) is a node of this cluster: its ports and files are
ours and pass. Each function judges one machine and yields its checks; `judge_site` compares machines with each other.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Network

from appliance.install.explanations import EXPLANATIONS
from appliance.install.facts import Facts
from appliance.install.inventory import REGISTRY_PORT, api_host
from appliance.install.sitefile import Machine, Role, SiteFile

MIB = 1024 * 1024
VAR, ROOT = "/var", "/"
NODE_PORTS = ("tcp/10250", "tcp/10248", "tcp/10249", "tcp/10256", "tcp/8443", "udp/8472")
CONTROL_PORTS = ("tcp/6443", "tcp/2379", "tcp/2380", "tcp/2381", "tcp/10257", "tcp/10259")
DEPOT_PORTS = (f"tcp/{REGISTRY_PORT}",)
OS = ("debian", "12")
_KERNEL = (5, 13)
_CPUS = 2
_NODE_MEMORY = 1700 * 1000 * 1000
_DEPOT_MEMORY = 900 * MIB
_CONTROLLERS = ("cpu", "cpuset", "memory", "pids")
_CLOCK_FAIL, _CLOCK_WARN = 5.0, 0.5
_INODES, _INOTIFY, _OPEN_FILES = 100_000, 128, 16_384


class State(StrEnum):
    """How a check ended. Only `fail` stops an installation."""

    PASS = "pass"  # noqa: S105 - not a password
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One named check of one machine: what was measured, what was expected, why it matters and what to do."""

    machine: str
    name: str
    state: State
    measured: str
    expected: str
    why: str
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What is known of one machine: its facts, its clock against the depot's (seconds ahead), what it reached."""

    machine: Machine
    facts: Facts
    clock_ahead: float
    reached: Mapping[str, str]
    """`tcp/ADDRESS:PORT` of peers: empty, or why not."""
    outside: Mapping[str, str]
    """The same for the addresses beyond the site."""
    disk_needed: int
    """Bytes that the installation will put below /var (the state folder on the depot) of a bare machine."""
    disk_grows: int = 0
    """The same for a machine that is a node of this site already: what the release has and the installed one has not."""


def check(machine: str, name: str, ok: bool, measured: str, expected: str, *, otherwise: State = State.FAIL) -> Check:  # noqa: FBT001 - the verdict is the point
    """Return the check `name`, explained."""
    explanation = EXPLANATIONS[name]
    state = State.PASS if ok else otherwise
    return Check(machine=machine, name=name, state=state, measured=measured, expected=expected, why=explanation.why, fix=explanation.fix)


def ports_of(machine: Machine) -> tuple[str, ...]:
    """Return the ports that the installation will listen on there."""
    ports: tuple[str, ...] = NODE_PORTS if machine.in_cluster else ()
    ports += CONTROL_PORTS if Role.CONTROL_PLANE in machine.roles else ()
    return ports + (DEPOT_PORTS if Role.DEPOT in machine.roles else ())


def targets_of(machine: Machine, site: SiteFile) -> tuple[str, ...]:
    """Return what the machine must be able to reach on the others, as `tcp/ADDRESS:PORT`."""
    targets = []
    for peer in site.machines:
        if peer.name == machine.name:
            continue
        if Role.DEPOT in peer.roles and machine.in_cluster:
            targets.append(f"tcp/{peer.address}:{REGISTRY_PORT}")
        if Role.DEPOT not in peer.roles:
            targets.append(f"tcp/{peer.address}:{peer.ssh_port}")
        if Role.CONTROL_PLANE in peer.roles:
            targets.append(f"tcp/{peer.address}:6443")
        if Role.CONTROL_PLANE in peer.roles and Role.CONTROL_PLANE in machine.roles:
            targets += [f"tcp/{peer.address}:2379", f"tcp/{peer.address}:2380"]
        if peer.in_cluster and machine.in_cluster:
            targets += [f"tcp/{peer.address}:10250", f"udp/{peer.address}:8472"]
    return tuple(targets)


def judge(site: SiteFile, seen: Sequence[Seen], *, site_id: str) -> tuple[Check, ...]:
    """Return every check of every machine, in the order of the site file."""
    found: list[Check] = []
    for one in seen:
        for group in (_system, _hardware, _disks, _network, _belonging):
            found += group(site, one, site_id)
    return (*found, *_between(seen))


def size(value: float) -> str:
    """Return bytes as people read them."""
    return f"{value / MIB / 1024:.1f} GiB" if value >= MIB * 1024 else f"{value / MIB:.0f} MiB"


def _system(site: SiteFile, seen: Seen, site_id: str) -> Iterator[Check]:
    facts, name = seen.facts, seen.machine.name
    # On a machine of this site the installation itself finishes what it was cut off in, and refuses what is not its own.
    half = State.WARN if facts.site_id == site_id else State.FAIL
    yield check(name, "root", facts.root, "root" if facts.root else "not root", "root")
    yield check(name, "python", True, facts.python, "3.7 or newer")
    yield check(name, "os", (facts.os_id, facts.os_version) == OS, facts.os_name or "unknown", "Debian GNU/Linux 12")
    yield check(name, "architecture", facts.architecture == "x86_64", facts.architecture, "x86_64")
    yield check(name, "kernel", _version(facts.kernel) >= _KERNEL, facts.kernel, "5.13 or newer")
    yield check(name, "systemd", facts.systemd, "running" if facts.systemd else "not running", "running")
    half_installed = ", ".join(facts.packages) or "none half installed"
    yield check(name, "packages", not facts.packages, half_installed, "none half installed", otherwise=half)
    local = any(words[0] in {"127.0.0.1", "::1"} and "localhost" in words[1:] for words in facts.hosts)
    yield check(name, "hosts", local, "localhost is there" if local else "localhost is missing", "localhost in /etc/hosts")
    strangers = [words[0] for words in facts.hosts if api_host(site) in words[1:] and words[0] != "127.0.0.1"]
    yield check(name, "api-name", not strangers, ", ".join(strangers) or "free", f"{api_host(site)} is free or 127.0.0.1")
    ahead = abs(seen.clock_ahead)
    otherwise = State.FAIL if ahead > _CLOCK_FAIL else State.WARN
    yield check(
        name, "clock", ahead <= _CLOCK_WARN, f"{seen.clock_ahead:+.2f} s", f"within {_CLOCK_WARN} s of the depot", otherwise=otherwise
    )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:2])


def _hardware(_site: SiteFile, seen: Seen, _site_id: str) -> Iterator[Check]:
    facts, name = seen.facts, seen.machine.name
    node = seen.machine.in_cluster
    least = _NODE_MEMORY if node else _DEPOT_MEMORY
    yield check(name, "memory", facts.memory >= least, size(facts.memory), f"{size(least)} or more")
    yield check(name, "cpu", facts.cpus >= _CPUS, str(facts.cpus), f"{_CPUS} or more", otherwise=State.FAIL if node else State.WARN)
    yield check(name, "open-files", facts.open_files >= _OPEN_FILES, str(facts.open_files), f"{_OPEN_FILES} or more", otherwise=State.WARN)
    if not node:
        return
    yield check(name, "swap", facts.swap == 0, size(facts.swap) if facts.swap else "off", "off")
    missing = [controller for controller in _CONTROLLERS if controller not in facts.controllers]
    yield check(name, "cgroups", not missing, f"v{facts.cgroup}, missing: {', '.join(missing) or 'none'}", ", ".join(_CONTROLLERS))
    absent = sorted(feature for feature, there in facts.modules.items() if not there)
    yield check(name, "kernel-features", not absent, f"missing: {', '.join(absent) or 'none'}", ", ".join(sorted(facts.modules)))
    few = facts.inotify_instances
    yield check(name, "inotify", few >= _INOTIFY, str(few), f"{_INOTIFY} or more", otherwise=State.WARN)


def _disks(_site: SiteFile, seen: Seen, site_id: str) -> Iterator[Check]:
    facts, name = seen.facts, seen.machine.name
    ours = facts.site_id == site_id
    if Role.DEPOT in seen.machine.roles:
        there = facts.filesystems[-1]
        yield check(name, "state-disk", there.free >= seen.disk_needed, f"{size(there.free)} free", f"{size(seen.disk_needed)} free")
    if seen.machine.in_cluster:
        var = facts.filesystem(VAR)
        needed = seen.disk_grows if ours else seen.disk_needed
        yield check(name, "disk", var.free >= needed, f"{size(var.free)} free on {VAR}", f"{size(needed)} free")
        yield check(name, "inodes", var.inodes >= _INODES or var.inodes == 0, str(var.inodes), f"{_INODES} free", otherwise=State.WARN)
    bad = sorted({f"{found.path} {option}" for found in facts.filesystems for option in found.options})
    yield check(name, "mount-options", not bad, ", ".join(bad) or "as expected", "no noexec, read-write")


def _network(site: SiteFile, seen: Seen, _site_id: str) -> Iterator[Check]:
    facts, machine = seen.facts, seen.machine
    yield check(
        machine.name, "address", facts.has_address, "present" if facts.has_address else "absent", f"{machine.address} on this machine"
    )
    if machine.in_cluster:
        default = any(route.destination == "0.0.0.0/0" for route in facts.routes)
        yield check(machine.name, "default-route", default, "present" if default else "absent", "present")
        for name, cidr in (("pod-cidr", site.network.pod_cidr), ("service-cidr", site.network.service_cidr)):
            hit = _overlapping(facts, IPv4Network(cidr))
            yield check(machine.name, name, not hit, ", ".join(hit) or "no route overlaps", f"no route overlaps {cidr}")
    unreached = [f"{target} ({why})" for target, why in seen.reached.items() if why]
    measured = f"not reached: {', '.join(unreached)}" if unreached else f"{len(seen.reached)} of {len(seen.reached)} reached"
    yield check(machine.name, "reach", not unreached, measured, "every port that the cluster uses")
    out = sorted(target.partition("/")[2] for target, why in seen.outside.items() if why in _ANSWERED)
    measured = (
        f"reached {', '.join(out)}" if out else f"none of {len(seen.outside)} reached" if seen.outside else "not tried: `outside` is empty"
    )
    otherwise = State.FAIL if site.strict_egress else State.WARN
    yield check(machine.name, "outside", not out, measured, "nothing beyond the site answers", otherwise=otherwise)


_ANSWERED = ("", "Connection refused")
"""Who refuses a connection has received the question: that is a way out."""
_OWN_INTERFACES = ("cni", "flannel", "veth", "kube")


def _overlapping(facts: Facts, cidr: IPv4Network) -> list[str]:
    return [
        f"{route.destination} by {route.interface}"
        for route in facts.routes
        if route.destination != "0.0.0.0/0"
        and not route.interface.startswith(_OWN_INTERFACES)
        and IPv4Network(route.destination).overlaps(cidr)
    ]


def _belonging(_site: SiteFile, seen: Seen, site_id: str) -> Iterator[Check]:
    facts, machine = seen.facts, seen.machine
    ours = facts.site_id == site_id
    foreign = bool(facts.site_id) and not ours
    measured = "this site" if ours else f"another site ({facts.site_id[:16]})" if foreign else "none"
    yield check(machine.name, "other-cluster", not foreign, measured, "no cluster, or this one")
    if ours:
        return
    if machine.in_cluster:
        yield check(machine.name, "leftovers", not facts.leftovers, ", ".join(facts.leftovers) or "none", "none")
    used = {f"{found.protocol}/{found.port}": found.process for found in facts.listening}
    taken = [f"{port} by {used[port] or 'a process'}" for port in ports_of(machine) if port in used]
    yield check(machine.name, "ports", not taken, ", ".join(taken) or f"{len(ports_of(machine))} free", "free")


def _between(seen: Sequence[Seen]) -> Iterator[Check]:
    for name, of, otherwise in (
        ("machine-id", {one.machine.name: one.facts.machine_id for one in seen}, State.FAIL),
        ("hostname", {one.machine.name: one.facts.hostname for one in seen}, State.FAIL),
        ("product-uuid", {one.machine.name: one.facts.product_uuid for one in seen}, State.WARN),
    ):
        times = Counter(value for value in of.values() if value)
        for machine, value in of.items():
            if name == "machine-id" or value:
                others = [other for other, its in of.items() if its == value and other != machine]
                measured = f"{value or 'empty'}, also of {', '.join(others)}" if others else value or "empty"
                yield check(machine, name, bool(value) and times[value] == 1, measured, "its own", otherwise=otherwise)
    nodes = [one for one in seen if one.machine.in_cluster and one.facts.mtu]
    most = max((one.facts.mtu for one in nodes), default=0)
    for one in nodes:
        yield check(one.machine.name, "mtu", one.facts.mtu == most, str(one.facts.mtu), str(most), otherwise=State.WARN)
