# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Preflight's decisions: a fit site passes every check; each planted defect fails exactly the check that is about it."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.errors import HostError
from appliance.install.checks import MIB, Check, State, check, judge, ports_of, targets_of
from appliance.install.explanations import EXPLANATIONS
from appliance.install.facts import Filesystem, Listening, Route
from appliance.install.preflight import refuse_failed
from tests.support.site import GIB, SITE, SITE_ID, seen, site

SITE_FILE = site()
FULL = tuple(Filesystem(path=p, size=9 * GIB, free=9 * GIB, inodes=10_000_000, options=()) for p in ("/", "/var", "/var/lib/appliance"))
NOEXEC = tuple(
    Filesystem(path=p, size=500 * GIB, free=400 * GIB, inodes=10_000_000, options=("noexec",) if p == "/var" else ())
    for p in ("/", "/var", "/var/lib/appliance")
)
MODULES = dict.fromkeys(("overlay", "br_netfilter", "nf_tables", "nf_conntrack", "bridge", "veth"), True) | {"vxlan": False}


def run(of: dict[str, dict[str, Any]] | None = None, *, strict: bool = False) -> tuple[Check, ...]:
    """Judge a fit site in which each machine of `of` has its changes."""
    text = SITE.replace("accelerator", 'strict_egress = true\noutside = ["203.0.113.1:80"]\naccelerator', 1) if strict else SITE
    return judge(site(text), [seen(machine, **(of or {}).get(machine.name, {})) for machine in SITE_FILE.machines], site_id=SITE_ID)


def wrong(checks: tuple[Check, ...]) -> list[tuple[str, str, State]]:
    return [(found.machine, found.name, found.state) for found in checks if found.state is not State.PASS]


def test_a_fit_site_passes_every_check() -> None:
    checks = run()
    assert wrong(checks) == []
    assert len(checks) > 70
    refuse_failed(checks)


@pytest.mark.parametrize(
    ("machine", "changes", "name", "state"),
    [
        ("cp1", {"root": False}, "root", State.FAIL),
        ("cp1", {"os_id": "ubuntu", "os_name": "Ubuntu 24.04"}, "os", State.FAIL),
        ("depot", {"os_version": "11", "os_name": "Debian GNU/Linux 11"}, "os", State.FAIL),
        ("gpu1", {"architecture": "aarch64"}, "architecture", State.FAIL),
        ("gpu1", {"kernel": "5.10.0-30-amd64"}, "kernel", State.FAIL),
        ("gpu1", {"systemd": False}, "systemd", State.FAIL),
        ("gpu1", {"cpus": 1}, "cpu", State.FAIL),
        ("depot", {"cpus": 1}, "cpu", State.WARN),
        ("cp1", {"memory": 1600 * 1000 * 1000}, "memory", State.FAIL),
        ("cp1", {"swap": GIB}, "swap", State.FAIL),
        ("gpu1", {"controllers": ("cpu", "cpuset", "pids")}, "cgroups", State.FAIL),
        ("gpu1", {"modules": MODULES}, "kernel-features", State.FAIL),
        ("gpu1", {"filesystems": FULL}, "disk", State.FAIL),
        ("depot", {"filesystems": FULL}, "state-disk", State.FAIL),
        ("gpu1", {"filesystems": NOEXEC}, "mount-options", State.FAIL),
        ("gpu1", {"clock_ahead": 42.0}, "clock", State.FAIL),
        ("gpu1", {"clock_ahead": -7.0}, "clock", State.FAIL),
        ("gpu1", {"clock_ahead": 1.5}, "clock", State.WARN),
        ("gpu1", {"packages": ("haproxy: half-configured",)}, "packages", State.FAIL),
        ("gpu1", {"hosts": (("127.0.1.1", "gpu1"),)}, "hosts", State.FAIL),
        ("gpu1", {"hosts": (("127.0.0.1", "localhost"), ("10.9.9.9", "api.harbour.internal"))}, "api-name", State.FAIL),
        ("gpu1", {"has_address": False}, "address", State.FAIL),
        ("gpu1", {"routes": ()}, "default-route", State.FAIL),
        (
            "gpu1",
            {"routes": (Route(destination="0.0.0.0/0", interface="eth0"), Route(destination="10.244.8.0/24", interface="tun0"))},
            "pod-cidr",
            State.FAIL,
        ),
        (
            "cp1",
            {"routes": (Route(destination="0.0.0.0/0", interface="eth0"), Route(destination="10.0.0.0/8", interface="eth1"))},
            "pod-cidr",
            State.FAIL,
        ),
        ("cp1", {"listening": (Listening(protocol="tcp", port=6443, process="nginx"),)}, "ports", State.FAIL),
        ("depot", {"listening": (Listening(protocol="tcp", port=5000, process="registry"),)}, "ports", State.FAIL),
        ("gpu1", {"listening": (Listening(protocol="udp", port=8472, process=""),)}, "ports", State.FAIL),
        ("gpu1", {"leftovers": ("/etc/kubernetes",)}, "leftovers", State.FAIL),
        ("gpu1", {"site_id": "6" * 64}, "other-cluster", State.FAIL),
        ("gpu1", {"reached": {"tcp/10.20.0.11:6443": "timed out"}}, "reach", State.FAIL),
        ("gpu1", {"outside": {"tcp/203.0.113.1:80": ""}}, "outside", State.WARN),
        ("gpu1", {"outside": {"tcp/203.0.113.1:80": "Connection refused"}}, "outside", State.WARN),
        ("gpu1", {"inotify_instances": 64}, "inotify", State.WARN),
        ("gpu1", {"open_files": 1024}, "open-files", State.WARN),
        ("gpu1", {"machine_id": ""}, "machine-id", State.FAIL),
        ("gpu1", {"mtu": 1400}, "mtu", State.WARN),
    ],
)
def test_a_planted_defect_is_found_by_its_check_on_its_machine(machine: str, changes: dict[str, Any], name: str, state: State) -> None:
    found = wrong(run({machine: changes}))
    assert (machine, name, state) in found
    assert {found_name for _, found_name, _ in found} <= {name, "service-cidr"}
    assert {found_machine for found_machine, _, _ in found} == {machine}


def test_two_machines_with_one_identity_are_both_named() -> None:
    found = wrong(run({name: {"machine_id": "a" * 32, "hostname": "debian"} for name in ("cp1", "gpu1")}))
    assert found == [(machine, name, State.FAIL) for name in ("machine-id", "hostname") for machine in ("cp1", "gpu1")]


def test_a_way_out_is_a_failure_where_the_site_is_strict() -> None:
    assert wrong(run({"gpu1": {"outside": {"tcp/203.0.113.1:80": ""}}}, strict=True)) == [("gpu1", "outside", State.FAIL)]
    assert wrong(run({"gpu1": {"outside": {"tcp/203.0.113.1:80": "timed out"}}}, strict=True)) == []


def test_a_node_of_this_very_site_may_have_what_the_site_put_there() -> None:
    ours = {
        "site_id": SITE_ID,
        "leftovers": ("/etc/kubernetes", "/var/lib/kubelet"),
        "listening": (Listening(protocol="tcp", port=6443, process="kube-apiserver"), Listening(protocol="udp", port=8472, process="")),
        "routes": (Route(destination="0.0.0.0/0", interface="eth0"), Route(destination="10.244.1.0/24", interface="flannel.1")),
        "filesystems": FULL,
    }
    assert wrong(run({"cp1": ours})) == []


def test_a_node_of_this_site_must_have_room_for_what_a_newer_release_adds() -> None:
    ours = {"site_id": SITE_ID, "filesystems": FULL}
    assert wrong(run({"gpu1": ours | {"disk_grows": 8 * GIB}})) == []
    assert wrong(run({"gpu1": ours | {"disk_grows": 140 * GIB}})) == [("gpu1", "disk", State.FAIL)]


def test_the_refusal_names_machine_check_measured_expected_and_what_to_do() -> None:
    with pytest.raises(HostError) as caught:
        refuse_failed(run({"gpu1": {"os_id": "ubuntu", "os_name": "Ubuntu 24.04", "swap": 5 * MIB}}))
    assert caught.value.message == "gpu1: os: expected Debian GNU/Linux 12, got Ubuntu 24.04 and 1 more; nothing was changed"
    assert caught.value.hint == "install Debian 12 on it; site check shows every check"


def test_every_explanation_is_used_and_says_why_and_what_to_do() -> None:
    made = {found.name for found in run({"cp1": {"product_uuid": "4c4c4544"}})} | {"login", "clock-floor"}
    assert made == set(EXPLANATIONS)
    for name in EXPLANATIONS:
        assert check("x", name, ok=True, measured="", expected="").why


def test_each_machine_must_reach_what_its_role_needs() -> None:
    depot, cp1, gpu1 = SITE_FILE.machines
    assert set(ports_of(depot)) == {"tcp/5000"}
    assert {"tcp/6443", "tcp/10250", "udp/8472"} <= set(ports_of(cp1))
    assert "tcp/6443" not in ports_of(gpu1)
    assert targets_of(depot, SITE_FILE) == ("tcp/10.20.0.11:22", "tcp/10.20.0.11:6443", "tcp/10.20.0.21:22")
    assert set(targets_of(gpu1, SITE_FILE)) == {
        "tcp/10.20.0.10:5000",
        "tcp/10.20.0.11:22",
        "tcp/10.20.0.11:6443",
        "tcp/10.20.0.11:10250",
        "udp/10.20.0.11:8472",
    }
