# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What an installed lab looks like from outside the product: units, pods, revisions, files, and whether the cluster really works."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.lab.machines import Lab, LabError

MACHINES = ("bastion", "cp1", "gpu1")
NODES = ("cp1", "gpu1")
DNS_QUESTION = """
import socket, struct
name = b"".join(bytes([len(p)]) + p for p in b"kubernetes.default.svc.cluster.local".split(b".")) + b"\\0"
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(2)
s.sendto(struct.pack(">HHHHHH", 7, 0x100, 1, 0, 0, 0) + name + struct.pack(">HH", 1, 1), ("10.96.0.10", 53))
answer = s.recv(512)
print(socket.inet_ntoa(answer[-4:]))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Everything a second installation must leave as it was."""

    units: dict[str, dict[str, str]]
    pods: dict[str, tuple[str, int]]
    revisions: dict[str, str]
    etc: dict[str, dict[str, str]]


def items(lab: Lab, kind: str) -> list[dict[str, Any]]:
    """All objects of a kind, by the depot's own kubectl, as its operator types it."""
    words = ["kubectl", "get", kind, "-A", "-o", "json", "--request-timeout=15s"]
    return list(json.loads(lab.exec("bastion", words, env={"HOME": "/root"}).stdout)["items"])


def units(lab: Lab, machine: str) -> dict[str, str]:
    """Running services and the id of this very start of each."""
    names = lab.exec(
        machine, ["systemctl", "list-units", "--type=service", "--state=running", "--plain", "--no-legend"]
    ).stdout.splitlines()
    found = {}
    for name in (line.split()[0] for line in names if line):
        if not name.startswith(("ssh@", "user@", "run-")):
            found[name] = lab.exec(machine, ["systemctl", "show", "--property=InvocationID", "--value", name]).stdout.strip()
    return found


def pods(lab: Lab) -> dict[str, tuple[str, int]]:
    """Pods by name: uid and restarts of all containers."""
    return {
        f"{item['metadata']['namespace']}/{item['metadata']['name']}": (
            item["metadata"]["uid"],
            sum(one["restartCount"] for one in item["status"].get("containerStatuses", [])),
        )
        for item in items(lab, "pods")
    }


def etc(lab: Lab, machine: str) -> dict[str, str]:
    """Times of change of everything below /etc."""
    lines = lab.exec(machine, ["find", "/etc", "-printf", "%p\t%T@ %C@ %m\n"]).stdout.splitlines()
    return dict(line.split("\t", 1) for line in lines)


def look(lab: Lab) -> Seen:
    """The whole picture."""
    releases = json.loads(lab.exec("bastion", ["helm", "list", "-A", "-o", "json"], env={"HOME": "/root"}).stdout)
    return Seen(
        units={machine: units(lab, machine) for machine in MACHINES},
        pods=pods(lab),
        revisions={release["name"]: f"{release['revision']} {release['status']} {release['updated']}" for release in releases},
        etc={machine: etc(lab, machine) for machine in MACHINES},
    )


def until(true: Callable[[], bool], *, seconds: float, what: str) -> float:
    """Wait until `true` says so; the seconds it took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds, f"after {seconds:.0f} s still not: {what}"
    return time.monotonic() - began


def works(lab: Lab) -> bool:
    """Nodes are Ready in their present boot, every pod runs, and the cluster's DNS answers on every node over its Service address."""
    try:
        nodes = items(lab, "nodes")
        for node in nodes:
            name = node["metadata"]["name"]
            boot = lab.exec(name, ["cat", "/proc/sys/kernel/random/boot_id"]).stdout.strip()
            ready = next(one["status"] for one in node["status"]["conditions"] if one["type"] == "Ready")
            if node["status"]["nodeInfo"]["bootID"] != boot or ready != "True":
                return False
        for item in items(lab, "pods"):
            conditions = item["status"].get("conditions", [])
            if not any(one["type"] == "Ready" and one["status"] == "True" for one in conditions):
                return False
        return len(nodes) == len(NODES) and all(
            lab.exec(name, ["python3", "-c", DNS_QUESTION], check=False).stdout.strip() == "10.96.0.1" for name in NODES
        )
    except (LabError, ValueError):  # a machine that is still booting answers in many ways
        return False
