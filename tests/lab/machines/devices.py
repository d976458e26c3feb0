# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What devices a set of network namespaces has, and whether one of them leads out of the set."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.lab import network
from tests.lab.machines.errors import LabError
from tests.lab.machines.processes import run

# Kinds that have no wire of their own. The tunnels are the idle fallback devices the kernel puts into every namespace.
SAFE_KINDS = frozenset({"bridge", "veth", "vxlan", "sit", "ipip", "ip6tnl", "ip6gre", "gre", "gretap", "erspan", "vti", "vti6"})
HOST = "host"
_RTM_GETNSID, _RTM_NEWNSID, _NLM_F_REQUEST = 90, 88, 1
_NETNSA_NSID, _NETNSA_FD = 1, 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace:
    """One network namespace as found: its devices and routes, and what is wrong with them."""

    name: str
    links: tuple[str, ...]
    routes: tuple[str, ...]
    findings: tuple[str, ...]


def inspect(lab: str, namespaces: Mapping[str, Path]) -> tuple[Namespace, ...]:
    """Look into each of the lab's namespaces; `namespaces` must name all of them."""
    everyone = {**namespaces, HOST: network.host_namespace()}
    return tuple(_inspect_one(lab, name, path, everyone) for name, path in namespaces.items())


def _inspect_one(lab: str, name: str, path: Path, everyone: Mapping[str, Path]) -> Namespace:
    enter = ["nsenter", f"--net={path}"]
    links = json.loads(run([*enter, "ip", "-json", "-details", "link"], lab=lab).stdout)
    routes = [
        f"{family} {line.strip()}"
        for family in ("-4", "-6")
        for line in run([*enter, "ip", family, "route", "show", "table", "all"], lab=lab, check=False).stdout.splitlines()
    ]
    numbers = namespace_numbers(path, everyone)
    described, findings = [], []
    for link in links:
        text, finding = judge(link, numbers)
        described.append(text)
        if finding:
            findings.append(f"{name}: {finding}")
    return Namespace(name=name, links=tuple(described), routes=tuple(routes), findings=tuple(findings))


def judge(link: Mapping[str, object], numbers: Mapping[int, str]) -> tuple[str, str | None]:
    """Describe one entry of `ip -json -details link`, and say what is wrong with it, if anything.

    `numbers`: what each namespace number that this namespace uses stands for.
    """
    device = str(link["ifname"])
    info = link.get("linkinfo")
    kind = str(info.get("info_kind", "")) if isinstance(info, dict) else ""
    if link.get("link_type") == "loopback":
        return f"{device} loopback", None
    number = link.get("link_netnsid")
    peer = numbers.get(number, f"unknown namespace {number}") if isinstance(number, int) else "here"
    text = f"{device} {kind or 'physical'} peer {peer}"
    if kind not in SAFE_KINDS:
        return text, f"{device} is a {kind or 'physical'} device"
    if peer == HOST or peer.startswith("unknown"):
        return text, f"{device} ({kind}) is connected to {peer}"
    return text, None


def namespace_numbers(path: Path, everyone: Mapping[str, Path]) -> dict[int, str]:
    """The numbers by which one namespace knows others, asked of the kernel (RTM_GETNSID); those it does not know are left out."""
    with contextlib.ExitStack() as stack:
        handles = {name: stack.enter_context(other.open()).fileno() for name, other in everyone.items()}
        found = network.inside(path, lambda: {name: _namespace_number(handle) for name, handle in handles.items()})
    return {number: name for name, number in found.items() if number >= 0}


def _namespace_number(handle: int) -> int:
    body = struct.pack("B3x", socket.AF_UNSPEC) + struct.pack("HHI", 8, _NETNSA_FD, handle)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as route:
        route.settimeout(5)
        route.send(struct.pack("IHHII", 16 + len(body), _RTM_GETNSID, _NLM_F_REQUEST, 1, 0) + body)
        answer = route.recv(4096)
    if struct.unpack_from("H", answer, 4)[0] != _RTM_NEWNSID:
        raise LabError("the kernel did not answer which namespace is which", hint="this needs Linux 4.9 or later")
    offset = 20
    while offset + 4 <= len(answer):
        size, kind = struct.unpack_from("HH", answer, offset)
        if kind == _NETNSA_NSID:
            return int(struct.unpack_from("i", answer, offset + 4)[0])
        offset += max(4, (size + 3) & ~3)
    return -1
