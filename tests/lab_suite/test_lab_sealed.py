# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.machines import Lab, LabError, cgroups, media, plan, sealed


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def _a_cable(lab: Lab) -> Iterator[None]:
    """A veth from this machine into the lab's router, as a careless setup would leave it."""
    router = lab.netns("router").name
    _ip("link", "add", "leak0", "type", "veth", "peer", "name", "uplink0", "netns", router)
    try:
        yield
    finally:
        _ip("link", "delete", "leak0")


def test_no_place_of_the_lab_reaches_this_machine_and_all_reach_outside(lab: Lab) -> None:
    report = sealed.check(lab)
    assert report.findings == ()
    places = [m.name for m in lab.machines] + list(plan.PLACES)
    assert {space.name for space in report.namespaces} == {*places, "switch"}
    assert set(report.outside.values()) == {"connected"}
    assert {f"{place} ({plan.OUTSIDE})" for place in places} <= set(report.outside)
    assert len(list(lab.log.glob("sealed-*.txt"))) >= 2


def test_a_cable_to_this_machine_is_found_before_it_carries_anything(lab: Lab) -> None:
    with _a_cable(lab), pytest.raises(LabError, match=r"router: uplink0 \(veth\) is connected to host"):
        lab.assert_sealed()
    lab.assert_sealed()


def test_a_way_to_this_machine_is_found_by_trying_it(lab: Lab) -> None:
    with _a_cable(lab):
        _ip("address", "add", "192.0.2.201/30", "dev", "leak0")
        _ip("link", "set", "leak0", "up")
        _ip("route", "add", "10.77.0.0/24", "via", "192.0.2.202", "dev", "leak0")
        router = lab.netns("router").name
        _ip("-n", router, "address", "add", "192.0.2.202/30", "dev", "uplink0")
        _ip("-n", router, "link", "set", "uplink0", "up")
        report = sealed.check(lab)
    assert "cp1 reaches this machine's 192.0.2.201" in report.findings
    assert "bastion reaches this machine's 192.0.2.201" in report.findings
    lab.assert_sealed()


def test_a_device_with_a_wire_of_its_own_is_found(lab: Lab) -> None:
    router = lab.netns("router").name
    _ip("-n", router, "link", "add", "link", "lan0", "name", "wire0", "type", "macvlan")
    try:
        with pytest.raises(LabError, match="wire0 is a macvlan device"):
            lab.assert_sealed()
    finally:
        _ip("-n", router, "link", "delete", "wire0")


def test_a_process_of_the_lab_in_this_machines_namespace_is_found(lab: Lab) -> None:
    doors = [h.top / lab.name / "cp1" / "cgroup.procs" for h in cgroups.hierarchies()]
    with subprocess.Popen(["sleep", "3600"]) as stray:
        try:
            for door in doors:
                door.write_text(str(stray.pid))
            with pytest.raises(LabError, match=f"process {stray.pid} is in this machine's own network namespace"):
                lab.assert_sealed()
        finally:
            stray.kill()


def test_a_folder_of_this_machine_in_the_bastion_that_is_no_medium_is_found(lab: Lab, tmp_path: Path) -> None:
    leader = lab.leader("bastion")
    assert leader is not None
    child = os.fork()
    if child == 0:
        with contextlib.suppress(OSError):
            media.attach(leader, tmp_path, Path("/opt/shared"), writable=False)
        os._exit(0)
    os.waitpid(child, 0)
    try:
        with pytest.raises(LabError, match=r"at /opt/shared .* is not a medium"):
            lab.assert_sealed()
    finally:
        lab.exec("bastion", ["umount", "/opt/shared"])


def test_a_prober_that_cannot_run_does_not_count_as_sealed(lab: Lab) -> None:
    lab.exec("cp1", ["chmod", "0", "/usr/bin/python3.11"])
    try:
        with pytest.raises(LabError, match="the prober in cp1 reaches nothing at all"):
            lab.assert_sealed()
    finally:
        lab.exec("cp1", ["chmod", "755", "/usr/bin/python3.11"])
