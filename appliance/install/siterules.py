# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Rules of a site file that span its fields, and what this version does not do, refused by name. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network
from itertools import combinations

from appliance.errors import FormatError, UsageError
from appliance.install.sitefile import Accelerator, Machine, NetworkClass, Role, SiteFile
from appliance.trust.publication import check_line

_LABEL = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
_USER = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
_RESERVED = frozenset(
    {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "all", "ungrouped", "localhost", "cluster", "worker", "gpu"}
)
"""What YAML reads as no text, and what Ansible calls its groups or this machine."""
PLAIN_PATH = re.compile(r"/[A-Za-z0-9._+@=,/-]*")
"""An absolute path that is one word everywhere, and that ssh expands nothing in (ssh_config(5), TOKENS)."""
_CONTROL_PLANES = (1, 3, 5)
_POD_BITS = 24
"""Each node gets a /24 of the pod range, so the range itself must be wider."""
_SERVICE_BITS = 26
_MAX_PORT = 65535


def check_site(site: SiteFile) -> None:
    """Check every rule that does not depend on what this version can do.

    Raises:
        FormatError: the first rule that is broken, with the field and what to write.
        UsageError: `line` is not the name of a line.
    """
    check_line(site.line)
    _check_names(site)
    _check_roles(site)
    _check_addresses(site)
    for target in site.outside:
        split_target(target)
    if site.strict_egress and not site.outside:
        raise _wrong(
            "strict_egress: true without any address in `outside` to try", 'write outside = ["203.0.113.1:443"], addresses beyond the site'
        )


def check_done(site: SiteFile) -> None:
    """Refuse by name what a site file may say and this version does not install.

    Raises:
        UsageError: more than one control plane, a machine that is depot and node at once, an accelerator with a driver.
    """
    planes = len(site.with_role(Role.CONTROL_PLANE))
    if planes > 1:
        raise UsageError(f"machines: {planes} control planes are not done by this version", hint="name one machine control-plane")
    if site.depot.in_cluster:
        raise UsageError(
            f"machines ({site.depot.name}): a depot that is also a node of the cluster is not done by this version",
            hint="give the depot a machine of its own",
        )
    if site.accelerator is not Accelerator.NONE:
        raise UsageError(
            f"accelerator: {site.accelerator.value!r} is not done by this version",
            hint='write accelerator = "none"; the cluster then schedules no GPU',
        )


def split_target(target: str) -> tuple[IPv4Address, int]:
    """Return address and port of an `ADDRESS:PORT`.

    Raises:
        FormatError: not an IPv4 address and a port.
    """
    address, colon, port = target.rpartition(":")
    if not colon or not (port.isascii() and port.isdecimal()) or not 0 < int(port) <= _MAX_PORT:
        raise _wrong(f"outside: expected ADDRESS:PORT, got {target!r}", 'write it as "203.0.113.1:443"')
    return _address(address, "outside"), int(port)


def _wrong(message: str, hint: str) -> FormatError:
    return FormatError(f"site file: {message}", hint=hint)


def _check_names(site: SiteFile) -> None:
    for field, name in _names(site):
        if _LABEL.fullmatch(name) is None:
            raise _wrong(f"{field}: {name!r} is not a name", "use up to 40 lower-case letters, digits and dashes, a letter first")
    if site.ssh_key and PLAIN_PATH.fullmatch(site.ssh_key) is None:
        raise _wrong(f"ssh_key: {site.ssh_key!r} is not an absolute path of one word", 'write ssh_key = "/etc/appliance/ssh_key"')
    for machine in site.machines:
        if machine.name in _RESERVED:
            raise _wrong(f"machines: name: {machine.name!r} means something else to YAML or Ansible", "call the machine otherwise")
        if _USER.fullmatch(machine.ssh_user) is None:
            raise _wrong(f"ssh_user of {machine.name}: {machine.ssh_user!r} is not a user name", 'write ssh_user = "root"')
        if not 0 < machine.ssh_port <= _MAX_PORT:
            raise _wrong(f"ssh_port of {machine.name}: {machine.ssh_port} is not a port", "write ssh_port = 22")
    _unique("machines: name", (machine.name for machine in site.machines))
    _unique("machines: address", (machine.address for machine in site.machines))
    _unique("networks: name", (network.name for network in site.networks))


def _names(site: SiteFile) -> Iterator[tuple[str, str]]:
    yield "name", site.name
    yield from ((f"machines {number}: name", machine.name) for number, machine in enumerate(site.machines, start=1))
    yield from ((f"networks {number}: name", network.name) for number, network in enumerate(site.networks, start=1))


def _unique(field: str, values: Iterable[str]) -> None:
    for value, times in Counter(values).items():
        if times > 1:
            raise _wrong(f"{field}: {value!r} is given {times} times", "give every one its own")


def _check_roles(site: SiteFile) -> None:
    for machine in site.machines:
        if not machine.roles or len(set(machine.roles)) != len(machine.roles):
            raise _wrong(
                f"roles of {machine.name}: expected each role once, got {[r.value for r in machine.roles]}", 'write roles = ["worker"]'
            )
        if Role.GPU in machine.roles and Role.WORKER not in machine.roles:
            raise _wrong(f"roles of {machine.name}: gpu without worker", 'write roles = ["worker", "gpu"]')
    depots = site.with_role(Role.DEPOT)
    if len(depots) != 1:
        found = ", ".join(m.name for m in depots) or "none"
        raise _wrong(f"machines: expected exactly one depot, got {found}", 'give exactly one machine the role "depot"')
    if (called := site.machine("depot")) is not None and called not in depots:
        raise _wrong("machines: name: 'depot' without the role depot means another machine to Ansible", "call the machine otherwise")
    planes = len(site.with_role(Role.CONTROL_PLANE))
    if planes not in _CONTROL_PLANES:
        raise _wrong(
            f"machines: expected 1, 3 or 5 control planes, got {planes}", 'give an odd number of machines the role "control-plane"'
        )
    if not site.with_role(Role.WORKER):
        raise _wrong("machines: no worker", 'give at least one machine the role "worker"')


def _check_addresses(site: SiteFile) -> None:
    ranges = list(_ranges(site))
    for (first, one), (second, other) in combinations(ranges, 2):
        if one.overlaps(other):
            raise _wrong(f"{first} {one} and {second} {other} overlap", "choose ranges that do not overlap")
    if ranges[0][1].prefixlen >= _POD_BITS:
        raise _wrong(f"pod_cidr: {ranges[0][1]} has no room for a /{_POD_BITS} for each node", 'write pod_cidr = "10.244.0.0/16"')
    if ranges[1][1].prefixlen > _SERVICE_BITS:
        raise _wrong(f"service_cidr: {ranges[1][1]} is too small", 'write service_cidr = "10.96.0.0/16"')
    admin = [_network(n.cidr, f"cidr of {n.name}") for n in site.networks if n.network_class is NetworkClass.ADMIN]
    for machine in site.machines:
        _check_machine_address(machine, admin)


def _check_machine_address(machine: Machine, admin: list[IPv4Network]) -> None:
    address = _address(machine.address, f"address of {machine.name}")
    inside = [network for network in admin if address in network]
    if not inside:
        found = ", ".join(str(network) for network in admin) or "none is given"
        raise _wrong(f"address of {machine.name}: {address} is in no admin network ({found})", 'add its network with class = "admin"')
    if address in {inside[0].network_address, inside[0].broadcast_address}:
        raise _wrong(f"address of {machine.name}: {address} is the first or last of {inside[0]}", "give it an address of its own")


def _ranges(site: SiteFile) -> Iterator[tuple[str, IPv4Network]]:
    yield "pod_cidr", _network(site.network.pod_cidr, "pod_cidr")
    yield "service_cidr", _network(site.network.service_cidr, "service_cidr")
    for network in site.networks:
        yield f"network {network.name}", _network(network.cidr, f"cidr of {network.name}")


def _network(text: str, field: str) -> IPv4Network:
    try:
        return IPv4Network(text)
    except ValueError as error:
        raise _wrong(f"{field}: {text!r} is not an IPv4 range ({error})", 'write it as "10.20.0.0/24"') from error


def _address(text: str, field: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except ValueError as error:
        raise _wrong(f"{field}: {text!r} is not an IPv4 address", 'write it as "10.20.0.10"; IPv6 is not done by this version') from error
