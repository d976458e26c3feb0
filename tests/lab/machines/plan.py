# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Names, roles and addresses. Labs live in network namespaces of their own, so every lab uses the same addresses."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from tests.lab.machines.errors import LabError

Role = Literal["depot", "control-plane", "worker"]

ROUTER = "10.77.0.1"
ROUTER6 = "fd00:77::1"
CLIENT = "10.78.0.50"
CLIENT6 = "fd00:78::50"
USERS_ROUTER = "10.78.0.1"
USERS_ROUTER6 = "fd00:78::1"
OUTSIDE = "203.0.113.1"
OUTSIDE6 = "2001:db8:113::1"
OUTSIDE_ROUTER = "203.0.113.2"
OUTSIDE_ROUTER6 = "2001:db8:113::2"

PLACES = ("router", "outside", "client")
DEFAULT = ("bastion", "cp1", "gpu1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One machine of the lab; `disk_mib` limits its whole disk, None means all of the host's."""

    name: str
    role: Role
    address: str
    address6: str
    disk_mib: int | None = None


def machine(name: str, *, disk_mib: int | None = None) -> Machine:
    """`bastion` is .10, `cpN` .10+N, `gpuN` .20+N: an address never depends on which other machines there are."""
    match = re.fullmatch(r"bastion|(cp|gpu)([1-9])", name)
    if not match:
        raise LabError(f"no machine can be called '{name}'", hint="use bastion, cp1 to cp9 and gpu1 to gpu9")
    kind, number = match[1], int(match[2] or 0)
    role: Role = {None: "depot", "cp": "control-plane", "gpu": "worker"}[kind]  # type: ignore[assignment]
    last = (20 if kind == "gpu" else 10) + number
    return Machine(name=name, role=role, address=f"10.77.0.{last}", address6=f"fd00:77::{last}", disk_mib=disk_mib)


def machines(names: Iterable[str], *, disks: dict[str, int] | None = None) -> tuple[Machine, ...]:
    """Machines by name, in order, each once. `disks`: MiB of those with a small disk."""
    wanted = tuple(dict.fromkeys(names))
    sizes = disks or {}
    for name in sizes:
        if name not in wanted:
            raise LabError(f"a disk size is given for '{name}', which is not in this lab", hint=f"machines: {', '.join(wanted)}")
    return tuple(machine(name, disk_mib=sizes.get(name)) for name in wanted)
