# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ipaddress

import pytest

from tests.lab.machines import LabError, plan


@pytest.mark.parametrize(
    ("name", "role", "address", "address6"),
    [
        ("bastion", "depot", "10.77.0.10", "fd00:77::10"),
        ("cp1", "control-plane", "10.77.0.11", "fd00:77::11"),
        ("cp9", "control-plane", "10.77.0.19", "fd00:77::19"),
        ("gpu1", "worker", "10.77.0.21", "fd00:77::21"),
        ("gpu9", "worker", "10.77.0.29", "fd00:77::29"),
    ],
)
def test_a_name_decides_role_and_addresses(name: str, role: str, address: str, address6: str) -> None:
    machine = plan.machine(name)
    assert (machine.role, machine.address, machine.address6, machine.disk_mib) == (role, address, address6, None)


def test_no_two_names_share_an_address_and_none_has_the_routers() -> None:
    names = ["bastion", *(f"{kind}{number}" for kind in ("cp", "gpu") for number in range(1, 10))]
    machines = plan.machines(names)
    addresses = [ipaddress.ip_address(text) for m in machines for text in (m.address, m.address6)]
    assert len(set(addresses)) == 2 * len(names)
    assert not {ipaddress.ip_address(plan.ROUTER), ipaddress.ip_address(plan.ROUTER6)} & set(addresses)


@pytest.mark.parametrize("name", ["", "cp", "cp0", "cp10", "bastion1", "GPU1", "gpu1 ", "../cp1"])
def test_a_name_without_a_role_is_refused(name: str) -> None:
    with pytest.raises(LabError, match="no machine can be called"):
        plan.machine(name)


def test_a_machine_named_twice_is_there_once_in_the_order_of_first_mention() -> None:
    assert [m.name for m in plan.machines(["gpu1", "cp1", "gpu1"])] == ["gpu1", "cp1"]


def test_a_disk_size_belongs_to_its_machine() -> None:
    assert [m.disk_mib for m in plan.machines(["cp1", "gpu1"], disks={"gpu1": 900})] == [None, 900]


def test_a_disk_size_for_a_machine_that_is_not_there_is_refused() -> None:
    with pytest.raises(LabError, match="gpu2"):
        plan.machines(["cp1"], disks={"gpu2": 900})
