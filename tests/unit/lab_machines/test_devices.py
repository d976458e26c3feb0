# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from tests.lab.machines import devices

NUMBERS = {0: "switch", 1: "host"}


def _link(name: str, kind: str | None, number: int | None = None) -> dict[str, object]:
    link: dict[str, object] = {"ifname": name, "link_type": "ether"}
    if kind:
        link["linkinfo"] = {"info_kind": kind}
    if number is not None:
        link["link_netnsid"] = number
    return link


@pytest.mark.parametrize(
    "link",
    [
        {"ifname": "lo", "link_type": "loopback"},
        _link("host0", "veth", 0),
        _link("cni0", "bridge"),
        _link("flannel.1", "vxlan"),
        _link("sit0", "sit"),
    ],
)
def test_a_device_that_stays_in_the_lab_is_no_finding(link: dict[str, object]) -> None:
    assert devices.judge(link, NUMBERS)[1] is None


@pytest.mark.parametrize(
    ("link", "finding"),
    [
        (_link("eth0", None), "eth0 is a physical device"),
        (_link("eth0", "veth", 1), "eth0 (veth) is connected to host"),
        (_link("eth0", "veth", 7), "eth0 (veth) is connected to unknown namespace 7"),
        (_link("flannel.1", "vxlan", 1), "flannel.1 (vxlan) is connected to host"),
        (_link("up0", "macvlan", 0), "up0 is a macvlan device"),
        (_link("wg0", "wireguard"), "wg0 is a wireguard device"),
        (_link("tap0", "tun"), "tap0 is a tun device"),
    ],
)
def test_a_device_that_may_lead_out_is_a_finding(link: dict[str, object], finding: str) -> None:
    assert devices.judge(link, NUMBERS)[1] == finding
