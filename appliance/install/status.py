# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`site status`: what is true now, in one screen, and the first thing that is not as it should be."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime

from cryptography import x509

from appliance.adapters import host
from appliance.adapters.cluster import Cluster, Node, Pod
from appliance.adapters.host import Login
from appliance.errors import ToolError
from appliance.install import authority, hostkeys
from appliance.install.cluster import SYSTEM, cluster_of, own_namespaces
from appliance.install.placements import ModelPlacement, ask_placements
from appliance.install.places import SitePlaces
from appliance.install.records import Installed, read_installed
from appliance.install.releases import installed_release
from appliance.install.sitefile import Machine, Role, SiteFile
from appliance.trust.client import VerifiedBundle

DEPOT_UNITS = ("appliance-registry.service", "haproxy.service")
NODE_UNITS = ("containerd.service", "kubelet.service", "haproxy.service")
_KUBERNETES_CERTIFICATES = ("apiserver.crt", "apiserver-kubelet-client.crt", "etcd/server.crt", "front-proxy-client.crt")
_WARN_DAYS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineStatus:
    """One machine: `ready` is None for one that is no Kubernetes node; `units` by name: active, failed, inactive, ..."""

    name: str
    address: str
    roles: tuple[str, ...]
    ready: bool | None
    version: str
    units: Mapping[str, str]
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteStatus:
    """The whole site; `problems` is empty when it is healthy.

    `newest` is the release imported last; `models` the placements; `certificates` and `metadata` are days left by name.
    """

    site: str
    installed: Installed | None
    newest: str
    machines: tuple[MachineStatus, ...]
    pods: int
    not_running: tuple[Pod, ...]
    models: tuple[ModelPlacement, ...]
    certificates: Mapping[str, int]
    metadata: Mapping[str, int]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]


def status(site: SiteFile, places: SitePlaces, *, bundle: VerifiedBundle | None, now: datetime) -> SiteStatus:
    """Return what is true now; a machine or API that does not answer is a problem in it, not an error.

    Raises:
        VerificationError: a machine shows another host key than the accepted one.
        HostError: the site was not initialised.
    """
    installed = read_installed(places)
    logins = hostkeys.logins(site, places)
    with ThreadPoolExecutor(max_workers=len(site.machines) + 1) as pool:
        asked = pool.submit(_ask_cluster, cluster_of(places)) if installed is not None else None
        units = list(pool.map(lambda machine: _ask_units(machine, logins[machine.name], places), site.machines))
        plane = next(machine for machine in site.machines if Role.CONTROL_PLANE in machine.roles)
        certificates = _ask_certificates(plane, logins[plane.name], now) if installed is not None else {}
        stands = installed_release(places, installed, bundle)
        models, lacking = _ask_models(site, logins, stands)
    nodes, pods, api_problem = asked.result() if asked is not None else ((), (), "")
    machines = tuple(
        _machine(m, u, problem or lacking.get(m.name, ""), nodes) for m, (u, problem) in zip(site.machines, units, strict=True)
    )
    own = {f"site: {name}": (end - now).days for name, end in authority.expiries(places).items()}
    found = SiteStatus(
        site=site.name,
        installed=installed,
        newest=bundle.digest if bundle is not None else "",
        machines=machines,
        pods=len(pods),
        not_running=tuple(pod for pod in pods if not pod.running),
        models=models,
        certificates=dict(sorted((own | certificates).items())),
        metadata={name: (end - now).days for name, end in sorted(bundle.expires.items())} if bundle is not None else {},
        problems=(),
        warnings=(),
    )
    ours = own_namespaces(stands.release.charts) if stands is not None else frozenset({SYSTEM})
    strangers = tuple(node.name for node in nodes if site.machine(node.name) is None)
    return _judged(found, api_problem, ours, strangers, authority.not_begun(places, now=now))


def refuse_unhealthy(found: SiteStatus) -> None:
    """Name the first thing that is not as it should be.

    Raises:
        ToolError: there is one.
    """
    if found.problems:
        more = f" and {len(found.problems) - 1} more" if len(found.problems) > 1 else ""
        hint = "run site install" if found.installed is None else "look there first; site install mends what it installed"
        raise ToolError(f"{found.problems[0]}{more}", step="status", hint=hint)


def _judged(
    found: SiteStatus, api_problem: str, ours: Collection[str], strangers: Collection[str], not_begun: Collection[str]
) -> SiteStatus:
    """Return `found` with what is wrong: `ours` are the site's own namespaces, `strangers` nodes that the site file does not have."""
    problems = [] if found.installed is not None else [f"{found.site}: nothing is installed yet"]
    problems += [api_problem] if api_problem else []
    problems += [f"{machine.name}: {machine.problem}" for machine in found.machines if machine.problem and found.installed is not None]
    problems += [f"{name}: in the cluster and not in the site file" for name in strangers]
    own = [pod for pod in found.not_running if pod.namespace in ours and not pod.over]
    problems += [f"pod {pod.namespace}/{pod.name}: {pod.reason}" for pod in own]
    problems += [f"certificate site: {name} is not valid yet" for name in not_begun]
    expiring = {**{f"certificate {n}": d for n, d in found.certificates.items()}, **{f"metadata {n}": d for n, d in found.metadata.items()}}
    problems += [f"{name} has ended" for name, days in expiring.items() if days < 0]
    warnings = [f"pod {pod.namespace}/{pod.name}: {pod.reason}" for pod in found.not_running if pod not in own]
    warnings += [f"{name} ends in {days} days" for name, days in expiring.items() if 0 <= days < _WARN_DAYS]
    if found.installed is not None and found.newest and found.newest != found.installed.release:
        warnings.append("the store has a newer release than the one that is installed")
    return replace(found, problems=tuple(problems), warnings=tuple(warnings))


def _ask_cluster(cluster: Cluster) -> tuple[tuple[Node, ...], tuple[Pod, ...], str]:
    try:
        return cluster.nodes(), cluster.pods(), ""
    except ToolError as error:
        return (), (), f"the cluster's API: {error.message}"


def _ask_units(machine: Machine, login: Login, places: SitePlaces) -> tuple[Mapping[str, str], str]:
    units = DEPOT_UNITS if Role.DEPOT in machine.roles else NODE_UNITS
    try:
        with hostkeys.naming_both(machine, places):
            done = host.run_on(login, ["systemctl", "is-active", *units], seconds=20)
    except ToolError as error:
        return {}, error.message.removeprefix(f"{machine.name}: ")
    words = done.output.decode(errors="replace").split()
    if len(words) != len(units):
        return {}, f"systemctl told {len(words)} of {len(units)} units: {done.errors.strip()[-200:] or 'no reason given'}"
    return dict(zip(units, words, strict=True)), ""


def _ask_models(
    site: SiteFile, logins: Mapping[str, Login], bundle: VerifiedBundle | None
) -> tuple[tuple[ModelPlacement, ...], dict[str, str]]:
    found: tuple[ModelPlacement, ...] = ()
    lacking: dict[str, str] = {}
    if bundle is None:
        return (), {}
    for machine in site.with_role(Role.GPU):
        models, lacking[machine.name] = ask_placements(machine, logins[machine.name], bundle)
        found += models
    return found, lacking


def _ask_certificates(machine: Machine, login: Login, now: datetime) -> dict[str, int]:
    """Return days left of the control plane's own certificates, which kubeadm makes for one year."""
    found: dict[str, int] = {}
    for name in _KUBERNETES_CERTIFICATES:
        try:
            command = ["cat", f"/etc/kubernetes/pki/{name}"]
            done = host.run_on(login, command if login.user == "root" else ["sudo", "-n", *command], seconds=20)
            certificate = x509.load_pem_x509_certificate(done.output)
        except (ToolError, ValueError):
            continue
        found[f"{machine.name}: {name}"] = (certificate.not_valid_after_utc - now).days
    return found


def _machine(machine: Machine, units: Mapping[str, str], problem: str, nodes: tuple[Node, ...]) -> MachineStatus:
    node = next((found for found in nodes if found.name == machine.name), None)
    down = [f"{unit} is {state}" for unit, state in units.items() if state != "active"]
    if not problem and machine.in_cluster and node is None and nodes:
        problem = "it is not in the cluster"
    if not problem and down:
        problem = down[0]
    if not problem and node is not None and not node.ready:
        problem = f"not ready: {node.reason}"
    if not problem and node is not None and not node.schedulable:
        problem = "takes no new pods (cordoned)"
    return MachineStatus(
        name=machine.name,
        address=machine.address,
        roles=tuple(role.value for role in machine.roles),
        ready=node.ready if node is not None else False if machine.in_cluster else None,
        version=node.version if node is not None else "",
        units=units,
        problem=problem,
    )
