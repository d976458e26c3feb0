# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What an installation will do, per machine, and everything it needs, proven to be in the store before anything changes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from appliance.adapters.nodearchives import DEPOT_PROGRAMS, NODE_PROGRAMS
from appliance.bundle.contents import Artifact, ContentClass
from appliance.digests import Digest, hex_of
from appliance.errors import FormatError, UsageError, VerificationError
from appliance.install.inventory import ReleaseImage, ReleaseInputs, ReleaseModel, ReleasePackage, StoredFile
from appliance.install.sitefile import Machine, Role, SiteFile
from appliance.store import Store, StoredRelease

FILES_NEEDED = ("kubeadm", "kubelet", "kubectl", "containerd", "cni-plugins", "crictl", "registry", "helm")
"""Files of class `files` without which no cluster can be made; `etcd` comes as an image."""
_PLATFORM = "debian-12-amd64"
_NODE_UNITS = ("haproxy.service", "containerd.service", "kubelet.service")
_DEPOT_UNITS = ("haproxy.service", "appliance-registry.service")
_KUBERNETES = re.compile(r"v?[0-9]{1,3}(\.[0-9]{1,3}){2}(-[0-9A-Za-z.-]{1,32})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class MachinePlan:
    """What one machine will get: files with versions, Debian packages by number, images by number, bytes, units."""

    machine: str
    roles: tuple[str, ...]
    files: tuple[str, ...]
    packages: int
    images: int
    models: tuple[str, ...]
    bytes: int
    units: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallPlan:
    """What an installation of one release will do."""

    release: Digest
    name: str
    version: str
    kubernetes: str
    machines: tuple[MachinePlan, ...]
    charts: tuple[str, ...]


def release_inputs(store: Store, stored: StoredRelease, *, registry_tree: Path, packages_repo: Path) -> ReleaseInputs:
    """Return what the playbooks need of `stored`.

    Raises:
        FormatError: an artifact lacks what its class has (payload, image binding).
    """
    contents = stored.bundle.contents
    return ReleaseInputs(
        digest=stored.digest,
        kubernetes=f"v{stored.bundle.release.kubernetes.removeprefix('v')}",
        files=tuple(_file(store, stored, artifact) for artifact in contents[ContentClass.FILES].artifacts),
        images=tuple(_image(artifact) for artifact in contents[ContentClass.IMAGES].artifacts),
        packages=tuple(
            ReleasePackage(name=package.name, version=package.version, path=package.path, digest=package.digest)
            for artifact in contents[ContentClass.OS].artifacts
            for package in artifact.packages
        ),
        models=tuple(ReleaseModel(name=a.name, version=a.version, root=a.root) for a in contents[ContentClass.MODELS].artifacts),
        installer=next((_file(store, stored, artifact) for artifact in contents[ContentClass.INSTALLER].artifacts), None),
        registry_tree=registry_tree,
        packages_repo=packages_repo,
    )


def check_release(stored: StoredRelease) -> None:
    """Check that the release can make a cluster of this version at all, and that all of it is in the store.

    Raises:
        VerificationError: blobs are missing.
        FormatError: the release lacks a file that every cluster needs, or is made for another platform.
        UsageError: it carries what this version does not do.
    """
    _refuse_undone(stored)
    if not stored.complete:
        first = hex_of(stored.missing[0])[:16] if stored.missing else "unknown"
        raise VerificationError(
            f"release {hex_of(stored.digest)[:16]} is not complete: {len(stored.missing)} blobs are missing, the first is {first}",
            hint="read the missing parts (media status names them), then run it again",
        )
    release = stored.bundle.release
    if release.platform != _PLATFORM:
        raise FormatError(
            f"the release is made for {release.platform}, this version installs {_PLATFORM}", hint="carry a release made for this platform"
        )
    if _KUBERNETES.fullmatch(release.kubernetes) is None:
        raise FormatError(
            f"release.json: expected a version of Kubernetes, got {release.kubernetes[:200]!r}", hint="make and carry a new bundle"
        )
    there = {artifact.name for artifact in stored.bundle.contents[ContentClass.FILES].artifacts}
    if lacking := [name for name in FILES_NEEDED if name not in there]:
        raise FormatError(
            f"the release has no file {lacking[0]!r}, which every cluster needs (in all: {', '.join(lacking)})",
            hint="add it to the profile, make and carry a new bundle",
        )
    contents = stored.bundle.contents
    if contents[ContentClass.MODELS].artifacts and not contents[ContentClass.INSTALLER].artifacts:
        raise FormatError(
            "the release has models but no installer, which nodes verify and place them with",
            hint="write installer = true in the profile, make and carry a new bundle",
        )


def _refuse_undone(stored: StoredRelease) -> None:
    """Refuse by name what a release may carry and this version would leave aside in silence."""
    for undone in (ContentClass.POLICY, ContentClass.CODE):
        if artifacts := stored.bundle.contents[undone].artifacts:
            raise UsageError(
                f"class {undone}: {artifacts[0].name}: contents of this class are not done by this version",
                hint="carry a release without them, or use the appliance that the release names",
            )


def plan(site: SiteFile, stored: StoredRelease) -> InstallPlan:
    """Return what an installation of `stored` will do on each machine of `site`."""
    bundle = stored.bundle
    return InstallPlan(
        release=stored.digest,
        name=bundle.release.name,
        version=bundle.release.version,
        kubernetes=bundle.release.kubernetes,
        machines=tuple(_machine(machine, stored) for machine in site.machines),
        charts=tuple(f"{chart.name} ({chart.chart}) in {chart.namespace}" for chart in bundle.release.charts),
    )


def _machine(machine: Machine, stored: StoredRelease) -> MachinePlan:
    contents = stored.bundle.contents
    names = (NODE_PROGRAMS if machine.in_cluster else ()) + (DEPOT_PROGRAMS if Role.DEPOT in machine.roles else ())
    files = [artifact for artifact in contents[ContentClass.FILES].artifacts if artifact.name in names]
    images = contents[ContentClass.IMAGES] if machine.in_cluster else None
    models = contents[ContentClass.MODELS] if Role.GPU in machine.roles else None
    packages = sum(len(artifact.packages) for artifact in contents[ContentClass.OS].artifacts)
    sizes = [_payload_size(stored, artifact) for artifact in files]
    sizes += [blob.size for part in (images, models, contents[ContentClass.OS]) if part is not None for blob in part.blobs]
    units = (_NODE_UNITS if machine.in_cluster else ()) + (_DEPOT_UNITS if Role.DEPOT in machine.roles else ())
    return MachinePlan(
        machine=machine.name,
        roles=tuple(role.value for role in machine.roles),
        files=tuple(f"{artifact.name} {artifact.version}" for artifact in files),
        packages=packages,
        images=len(images.artifacts) if images is not None else 0,
        models=tuple(f"{a.name} {a.version}" for a in models.artifacts) if models is not None else (),
        bytes=sum(sizes),
        units=tuple(dict.fromkeys(units)),
    )


def _payload_size(stored: StoredRelease, artifact: Artifact) -> int:
    return stored.bundle.blobs[artifact.payload].size if artifact.payload is not None else 0


def _file(store: Store, stored: StoredRelease, artifact: Artifact) -> StoredFile:
    if artifact.payload is None:
        raise _lacks(artifact, "payload")
    blob = stored.bundle.blobs[artifact.payload]
    return StoredFile(name=artifact.name, version=artifact.version, path=store.blob_path(blob.digest), digest=blob.digest, size=blob.size)


def _image(artifact: Artifact) -> ReleaseImage:
    if artifact.image is None:
        raise _lacks(artifact, "image")
    return ReleaseImage(reference=artifact.image.reference, index=artifact.image.index, manifest=artifact.image.manifest)


def _lacks(artifact: Artifact, what: str) -> FormatError:
    return FormatError(f"contents: {artifact.name} has no {what}", hint="carry the bundle again; if it stays so, do not use it")
