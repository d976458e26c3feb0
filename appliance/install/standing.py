# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What stands on the machines, or may stand: written before the first change, so that no later run asks for what it cannot follow.

Kubernetes keeps a node's name, address and role, and the cluster's ranges, for as long as it lives. A site file that says
otherwise, or a release of another Kubernetes, would end in a cluster that is neither the old nor the new one.
"""

from __future__ import annotations

from typing import ClassVar

from msgspec import structs

from appliance.adapters.disk import at, read_small
from appliance.bundle.documents import Document, Record, Sha256, decode, encode
from appliance.digests import Digest
from appliance.errors import UsageError
from appliance.install.places import PRIVATE_FILE, SitePlaces, write_if_changed
from appliance.install.records import read_installed
from appliance.install.sitefile import Machine, Role, SiteFile

_MAX_BYTES = 1024 * 1024


class StandingMachine(Record, frozen=True, kw_only=True):
    """One machine as the cluster knows it."""

    name: str
    address: str
    roles: tuple[str, ...]


class Standing(Document, frozen=True, kw_only=True):
    """`site/standing.json`: from before the first change to a machine until the whole site was reset.

    `release` was the last to be begun; whether it was installed too, `installed.json` says.
    """

    FORMAT: ClassVar[str] = "standing/1"

    kubernetes: str
    release: Sha256 | None
    pod_cidr: str
    service_cidr: str
    machines: tuple[StandingMachine, ...]


def read_standing(places: SitePlaces, accepted: SiteFile) -> Standing | None:
    """Return what stands, None when nothing does; `accepted` answers for a site installed before this was written down.

    Raises:
        FormatError: the file is not what was written.
        HostError: it cannot be read.
    """
    with at(places.standing):
        written, installed = places.standing.is_file(), places.installed.is_file()
    if written:
        return decode(read_small(places.standing, limit=_MAX_BYTES), Standing, what=str(places.standing))
    return _of(accepted, "", None) if installed else None


def begin(site: SiteFile, places: SitePlaces, *, kubernetes: str, release: Digest) -> bool:
    """Write that `site` with this Kubernetes and release may stand from now on; returns whether that is new.

    Raises:
        HostError: it cannot be written.
    """
    return write_if_changed(places.standing, encode(_of(site, plain(kubernetes), release)), mode=PRIVATE_FILE)


def leave(site: SiteFile, places: SitePlaces, name: str) -> None:
    """Write that the machine `name` stands no longer.

    Raises:
        HostError: it cannot be written.
    """
    found = read_standing(places, site)
    if found is None:
        return
    installed = read_installed(places)
    kubernetes = found.kubernetes or plain(installed.kubernetes if installed is not None else "")
    rest = tuple(machine for machine in found.machines if machine.name != name)
    left = structs.replace(found, kubernetes=kubernetes, machines=rest)
    write_if_changed(places.standing, encode(left), mode=PRIVATE_FILE)


def refuse_other_kubernetes(places: SitePlaces, accepted: SiteFile, kubernetes: str) -> None:
    """Refuse a release whose Kubernetes is not the one that stands.

    Raises:
        UsageError: it is another one.
    """
    found, installed = read_standing(places, accepted), read_installed(places)
    there = {plain(installed.kubernetes)} if installed is not None else set()
    there |= {found.kubernetes} if found is not None and found.kubernetes else set()
    if other := sorted(there - {plain(kubernetes)}):
        raise UsageError(
            f"the release has Kubernetes {plain(kubernetes)}, the cluster that stands has {other[0]}; "
            "changing it under a cluster is not done by this version; nothing was changed",
            hint=f"carry a release with Kubernetes {other[0]}, or reset the whole site first: site reset",
        )


def refuse_edits(site: SiteFile, places: SitePlaces, accepted: SiteFile) -> None:
    """Refuse a site file that what stands cannot follow.

    Raises:
        UsageError: ranges, or name, address or role of a machine of the cluster, are others.
    """
    found = read_standing(places, accepted)
    if found is None:
        return
    if (found.pod_cidr, found.service_cidr) != (site.network.pod_cidr, site.network.service_cidr):
        raise UsageError(
            "pod_cidr and service_cidr cannot be changed while the cluster stands",
            hint="keep the ranges, or reset the site first",
        )
    for machine in found.machines:
        if problem := _edit(machine, site):
            raise UsageError(f"machines ({machine.name}): {problem} while the cluster stands; nothing was changed", hint=_way(machine))


def plain(kubernetes: str) -> str:
    """Return a Kubernetes version without its `v`."""
    return kubernetes.removeprefix("v")


def _edit(before: StandingMachine, site: SiteFile) -> str:
    now = site.machine(before.name)
    in_cluster = set(before.roles) != {Role.DEPOT.value}
    if now is None:
        other = next((machine.name for machine in site.machines if machine.address == before.address), "")
        gone = f"it cannot be called {other}" if other else "it cannot be taken out"
        return gone if in_cluster else ""
    if in_cluster and now.address != before.address:
        return f"its address cannot change from {before.address} to {now.address}"
    if _kept(now.roles) != _kept(before.roles):
        return f"its roles cannot change from {', '.join(before.roles)} to {', '.join(now.roles)}"
    return ""


def _kept(roles: tuple[str, ...]) -> set[str]:
    """Return the roles that a machine keeps for the cluster's life; `gpu` only says where models are placed."""
    return {str(role) for role in roles} - {Role.GPU.value}


def _way(machine: StandingMachine) -> str:
    if Role.CONTROL_PLANE.value in machine.roles or Role.DEPOT.value in machine.roles:
        return "restore the site file and reset the whole site first: site reset"
    return f"restore the site file and run site reset {machine.name} first, then change it and run site init"


def _of(site: SiteFile, kubernetes: str, release: Digest | None) -> Standing:
    return Standing(
        format=Standing.FORMAT,
        kubernetes=kubernetes,
        release=release,
        pod_cidr=site.network.pod_cidr,
        service_cidr=site.network.service_cidr,
        machines=tuple(_machine(machine) for machine in site.machines),
    )


def _machine(machine: Machine) -> StandingMachine:
    return StandingMachine(name=machine.name, address=machine.address, roles=tuple(role.value for role in machine.roles))
