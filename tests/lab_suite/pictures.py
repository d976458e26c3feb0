# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures of machines that can be compared: of their files, and of all that an installation makes of them."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from tests.lab.machines import Lab
from tests.lab_suite.cluster_watch import MACHINES, NODES, items

BUSY = ("/proc", "/sys", "/dev", "/run", "/tmp", "/var/tmp", "/var/log", "/root" + "/.shiv")
"""Places that every machine writes to by itself while it runs (and where a one-file installer unpacks itself)."""
INSTALLED = ("/etc", "/usr/local", "/opt", "/var/lib/appliance")
MADE_ANEW = re.compile(
    r"/etc/kubernetes/.*\.(crt|key|pub|conf)$|/etc/kubernetes/manifests/|/etc/(passwd|group|shadow|gshadow|subuid|subgid)-?$|/etc/ld\.so\.cache$"
    r"|/__pycache__/|/var/lib/appliance/(site|log|store\.lock|site\.lock|node\.lock)|\.placement\.json$"
)
"""Files whose bytes are others each time (keys, passwords, times): their names, types and modes are compared all the same."""
PASSING = re.compile(r"/etc/\.pwd\.lock|/var/lib/appliance/(site/runs|log|releases)/")

Listing = dict[str, str]


def listing(lab: Lab, machine: str) -> Listing:
    """Every file of a machine but those of `BUSY`: type, mode, owner, size, times of change of bytes and of the rest, a link's target."""
    return _found(lab, machine, ["/"], "%y %m %U %G %s %T@ %C@ %l")


def everything(lab: Lab) -> dict[str, Listing]:
    """That of all machines: what must be equal after a refusal."""
    return {machine: listing(lab, machine) for machine in MACHINES}


def differing(before: Mapping[str, object], after: Mapping[str, object]) -> set[str]:
    return {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}


def _found(lab: Lab, machine: str, places: list[str], form: str) -> Listing:
    prune = " -o ".join(f"-path {path}" for path in BUSY)
    command = f"find \"$@\" -xdev \\( {prune} \\) -prune -o -printf '%p\\t{form}\\n'"
    # a place may not be there, and a file may go while the rest is listed
    lines = lab.exec(machine, ["sh", "-c", command, "find", *places], timeout=120, check=False).stdout.splitlines()
    assert lines, machine
    return dict(line.split("\t", 1) for line in lines)


def _text(lab: Lab, machine: str, command: str) -> str:
    return lab.exec(machine, ["sh", "-c", command], timeout=120).stdout


def _lines(lab: Lab, machine: str, command: str) -> set[str]:
    """Its lines, without how wide a column happens to be."""
    return {" ".join(line.split()) for line in _text(lab, machine, command).splitlines()}


def rules(lab: Lab, machine: str) -> set[str]:
    """The tables of the packet filter, asked by this machine's own nft, since a bare machine has none."""
    words = ["nsenter", f"--net={lab.netns(machine)}", "nft", "list", "tables"]
    return set(subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines())


@dataclass(frozen=True, slots=True, kw_only=True)
class Bare:
    """A machine before anything was installed, and after all of it was taken back."""

    files: Listing
    packages: set[str]
    users: set[str]
    hosts: set[str]
    units: set[str]
    tables: set[str]
    links: set[str]

    def files_against(self, after: Bare) -> list[str]:
        """Files that appeared, vanished or changed."""
        return sorted(differing(self.files, after.files))

    def against(self, after: Bare) -> dict[str, list[str]]:
        """All else that is not as before, by part: lines that are there only before (-) or only after (+)."""
        found = {}
        for part in ("packages", "users", "hosts", "units", "tables", "links"):
            was, now = getattr(self, part), getattr(after, part)
            found[part] = [f"- {line}" for line in sorted(was - now)] + [f"+ {line}" for line in sorted(now - was)]
        return {part: lines for part, lines in found.items() if lines}


def bare(lab: Lab, machine: str) -> Bare:
    return Bare(
        files=_with_bytes(lab, machine, _found(lab, machine, ["/"], "%y %m %U:%G %l"), ["/etc", "/usr", "/opt", "/root"]),
        packages=_lines(lab, machine, "dpkg -l"),
        users=_lines(lab, machine, "getent passwd; getent group"),
        hosts=_lines(lab, machine, "cat /etc/hosts"),
        units=_lines(lab, machine, "systemctl list-unit-files --no-legend --no-pager"),
        tables=rules(lab, machine),
        links=_lines(lab, machine, "ls /sys/class/net"),
    )


def _with_bytes(lab: Lab, machine: str, files: Listing, places: list[str]) -> Listing:
    command = 'find "$@" -xdev -type f -exec sha256sum {} + 2>/dev/null || true'
    lines = lab.exec(machine, ["sh", "-c", command, "find", *places], timeout=180).stdout.splitlines()
    hashes = {path: digest for digest, _, path in (line.partition("  ") for line in lines)}
    return {path: f"{what}{hashes.get(path, '')}" for path, what in files.items()}


def installed(lab: Lab, machine: str) -> dict[str, str]:
    """All that an installation makes of a machine, a line for each: files, links, packages, images, units."""
    files = _found(lab, machine, list(INSTALLED), "%y %m %U:%G %l")
    whole = _with_bytes(lab, machine, files, list(INSTALLED))
    found = {path: files[path] if MADE_ANEW.search(path) else what for path, what in whole.items() if not PASSING.search(path)}
    found |= {f"package {line.split()[1]}": line for line in _lines(lab, machine, "dpkg -l") if re.match(r"\w\w ", line)}
    units = _lines(lab, machine, "systemctl list-unit-files --no-legend --no-pager --state=enabled")
    found |= {f"unit {line.split()[0]}": line for line in units}
    found |= {f"user {line.partition(':')[0]}": line for line in _text(lab, machine, "getent passwd").splitlines()}
    if machine in NODES:
        found |= {f"table {line}": "" for line in rules(lab, machine)}
        images = json.loads(_text(lab, machine, "crictl images --output json"))["images"]
        found |= {
            f"image {image['id']}": f"{sorted(image['repoTags'])} {sorted(image['repoDigests'])} {image['pinned']}" for image in images
        }
    return found


def revisions(lab: Lab) -> dict[str, str]:
    """Helm's releases: chart, revision and state."""
    listed = json.loads(lab.exec("bastion", ["helm", "list", "-A", "-o", "json"], env={"HOME": "/root"}).stdout)
    return {one["name"]: f"{one['chart']} {one['revision']} {one['status']}" for one in listed}


def workloads(lab: Lab) -> set[str]:
    """Pods by namespace and name without what is drawn for each."""
    named = (item["metadata"] for item in items(lab, "pods"))
    return {f"{one['namespace']}/{one['name'].rpartition('-')[0] if one.get('generateName') else one['name']}" for one in named}
