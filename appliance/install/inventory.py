# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A site file and a release in the store to what the playbooks read: inventory and variables. Pure.

Groups: `depot`, `control_plane`, `worker`, `gpu`, and `cluster` (every Kubernetes node). The depot is the machine this
runs on, so its connection is local. Host variables: `appliance_address`, `appliance_roles`, `appliance_node_name`.
The variables, which each role's `meta/argument_specs.yml` documents:

| variable | what |
| --- | --- |
| `appliance_site_name`, `appliance_line` | names of the site and of its publication line |
| `appliance_site_id` | 64 hexadecimal digits; `/etc/appliance/site-id` names it on every machine of this site |
| `appliance_state` | state folder on the depot |
| `appliance_release` | 64 hexadecimal digits of the release |
| `appliance_kubernetes_version` | `v1.36.4` |
| `appliance_files` | NAME: {path on the depot, sha256, version, size} of class files |
| `appliance_installer` | the same for the installer of the release; `{}` when it carries none |
| `appliance_images` | [{reference, index, manifest}] of class images |
| `appliance_packages`, `appliance_packages_repo` | [{name, version, path, sha256}] of class os; their folder on the depot |
| `appliance_registry_address` | `ADDRESS:5000` |
| `appliance_registry_tree` | the release's registry tree on the depot (`docker/registry/v2/...` below it) |
| `appliance_registry_certificate`, `appliance_registry_key` | PEM paths on the depot |
| `appliance_site_ca`, `appliance_trust_root` | PEM and root.json paths on the depot |
| `appliance_api_host`, `appliance_api_port` | name and port of the API on every machine, through its own haproxy |
| `appliance_pod_cidr`, `appliance_service_cidr` | ranges inside the cluster |
| `appliance_accelerator` | nvidia, amd, standin or none |
| `appliance_machines` | [{name, address, roles}] of every machine |
| `appliance_models` | [{name, version, root}] of class models |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance.digests import Digest, hex_of
from appliance.install.places import SitePlaces
from appliance.install.sitefile import Machine, Role, SiteFile

KEPT_FREE_GIB = 2
"""What a node's kubelet keeps free of images, logs and writable layers, by evicting pods."""
REGISTRY_PORT = 5000
API_PORT = 8443
GROUPS = {Role.DEPOT: "depot", Role.CONTROL_PLANE: "control_plane", Role.WORKER: "worker", Role.GPU: "gpu"}


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """One file of the release: where its blob lies on the depot, and what it must hash to."""

    name: str
    version: str
    path: Path
    digest: Digest
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseImage:
    """One image: reference with tag, digest of its index and of its manifest for this platform."""

    reference: str
    index: Digest
    manifest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasePackage:
    """One Debian package; `path` is relative to the package repository."""

    name: str
    version: str
    path: str
    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseModel:
    """One model: digest of its manifest."""

    name: str
    version: str
    root: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseInputs:
    """What of a release the playbooks need, all of it in the store and verified."""

    digest: Digest
    kubernetes: str
    files: tuple[StoredFile, ...]
    images: tuple[ReleaseImage, ...]
    packages: tuple[ReleasePackage, ...]
    models: tuple[ReleaseModel, ...]
    installer: StoredFile | None
    registry_tree: Path
    packages_repo: Path


def api_host(site: SiteFile) -> str:
    """Return the name every machine knows its own way to the API by."""
    return f"api.{site.name}.internal"


def inventory(site: SiteFile, places: SitePlaces) -> dict[str, object]:
    """Return the Ansible inventory (the `all` group as YAML would write it)."""
    children: dict[str, object] = {
        group: {"hosts": {machine.name: {} for machine in site.with_role(role)}} for role, group in GROUPS.items()
    }
    children["cluster"] = {"hosts": {machine.name: {} for machine in site.machines if machine.in_cluster}}
    hosts = {machine.name: _host(machine, site, places) for machine in site.machines}
    return {"all": {"hosts": hosts, "children": children}}


def variables(site: SiteFile, places: SitePlaces, site_id: str, release: ReleaseInputs) -> dict[str, object]:
    """Return the variables of the table above."""
    return {
        **site_variables(site, places, site_id),
        "appliance_release": hex_of(release.digest),
        "appliance_kubernetes_version": release.kubernetes,
        "appliance_kept_free": f"{KEPT_FREE_GIB}Gi",
        "appliance_files": {file.name: _file(file) for file in release.files},
        "appliance_installer": _file(release.installer) if release.installer is not None else {},
        "appliance_images": [{"reference": i.reference, "index": i.index, "manifest": i.manifest} for i in release.images],
        "appliance_packages": [
            {"name": p.name, "version": p.version, "path": p.path, "sha256": hex_of(p.digest)} for p in release.packages
        ],
        "appliance_packages_repo": str(release.packages_repo),
        "appliance_registry_tree": str(release.registry_tree),
        "appliance_models": [{"name": m.name, "version": m.version, "root": m.root} for m in release.models],
    }


def site_variables(site: SiteFile, places: SitePlaces, site_id: str) -> dict[str, object]:
    """Return those of the variables that need no release; `reset` has only these."""
    return {
        "appliance_site_name": site.name,
        "appliance_site_id": site_id,
        "appliance_line": site.line,
        "appliance_state": str(places.state),
        "appliance_registry_address": f"{site.depot.address}:{REGISTRY_PORT}",
        "appliance_registry_certificate": str(places.certificate("registry")),
        "appliance_registry_key": str(places.certificate_key("registry")),
        "appliance_site_ca": str(places.authority),
        "appliance_trust_root": str(places.pinned_root(site.line)),
        "appliance_api_host": api_host(site),
        "appliance_api_port": API_PORT,
        "appliance_pod_cidr": site.network.pod_cidr,
        "appliance_service_cidr": site.network.service_cidr,
        "appliance_accelerator": site.accelerator.value,
        "appliance_machines": [{"name": m.name, "address": m.address, "roles": [r.value for r in m.roles]} for m in site.machines],
    }


def ssh_options(site: SiteFile, places: SitePlaces) -> tuple[str, ...]:
    """Return the `-o` values for every ssh of this site: only keys that were accepted, and nothing asks a person."""
    options = (
        f"UserKnownHostsFile={places.known_hosts}",
        "GlobalKnownHostsFile=/dev/null",
        "StrictHostKeyChecking=yes",
        "UpdateHostKeys=no",
        "VerifyHostKeyDNS=no",
        "CheckHostIP=no",
        "KnownHostsCommand=none",
        "ForwardAgent=no",
        "PermitLocalCommand=no",
        "BatchMode=yes",
        "ConnectTimeout=10",
        "ServerAliveInterval=15",
    )
    return (*options, f"IdentityFile={site.ssh_key}", "IdentitiesOnly=yes") if site.ssh_key else options


def _host(machine: Machine, site: SiteFile, places: SitePlaces) -> Mapping[str, object]:
    about: dict[str, object] = {
        "appliance_address": machine.address,
        "appliance_node_name": machine.name,
        "appliance_roles": [role.value for role in machine.roles],
    }
    if Role.DEPOT in machine.roles:
        return {**about, "ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
    return {
        **about,
        "ansible_host": machine.address,
        "ansible_port": machine.ssh_port,
        "ansible_user": machine.ssh_user,
        "ansible_become": machine.ssh_user != "root",
        "ansible_python_interpreter": "/usr/bin/python3",
        "ansible_ssh_common_args": " ".join(f"-o {option}" for option in ssh_options(site, places)),
    }


def _file(file: StoredFile) -> Mapping[str, object]:
    return {"path": str(file.path), "sha256": hex_of(file.digest), "version": file.version, "size": file.size}
