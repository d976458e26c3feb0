# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Helm, through pyhelm3 and the bundled `helm`: a chart from the store becomes a release of the cluster, once.

What decides whether anything is done is written into the release itself: its description names the digests of the chart
and of the values it was made from. Equal description and status `deployed` means that nothing is done and no revision is
made. A release that a killed run left half done is cleared first. Images are used by the digest in the signed contents only.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path, PurePosixPath

import yaml
from pyhelm3.command import Command
from pyhelm3.errors import Error as HelmError
from pyhelm3.errors import ReleaseNotFoundError

from appliance.adapters.cluster import plain_environment
from appliance.digests import Digest
from appliance.errors import FormatError, ToolError, VerificationError

logging.getLogger("pyhelm3").setLevel(logging.CRITICAL)  # it logs every failed command; what matters is raised here

_DNS_NUMBER = 10
"""Kubernetes' convention: the tenth address of the Services' range is the cluster's DNS."""
_TIMEOUT = "5m"
_IMAGE_KEYS = frozenset({"repository", "tag", "digest"})
_UNFINISHED_INSTALL = frozenset({"pending-install", "uninstalling"})
_UNFINISHED_UPGRADE = frozenset({"pending-upgrade", "pending-rollback"})


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartWanted:
    """A Helm release the cluster should have: `chart` is a packed chart (.tgz, under any name)."""

    name: str
    namespace: str
    chart: Path
    values: Mapping[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class HelmPlace:
    """Which `helm` works on which cluster."""

    helm: Path
    kubeconfig: Path


def site_values(chart: str, *, pod_cidr: str, service_cidr: str) -> dict[str, object]:
    """Return what the site file decides of one of our own charts; empty for every other chart."""
    match chart:
        case "flannel":
            return {"podCidr": pod_cidr}
        case "coredns":
            return {"clusterIP": str(IPv4Network(service_cidr)[_DNS_NUMBER])}
        case _:
            return {}


def pin_images(chart: Path, values: Mapping[str, object], *, images: Mapping[str, Digest]) -> dict[str, object]:
    """Return `values` with the digest of every image the chart names as `{repository, tag, digest}`.

    `images` maps `repository:tag` to the digest of the index, from the signed contents.

    Raises:
        VerificationError: an image that the release does not carry, or carries with another digest.
        FormatError: not a packed chart.
    """
    return _pinned(_merged(default_values(chart), values), values, images)


def default_values(chart: Path) -> dict[str, object]:
    """Return the chart's own values.

    Raises:
        FormatError: not a packed chart, or its values are not a mapping.
    """
    hint = "run store verify; if it finds nothing, the bundle was made with a broken chart"
    try:
        with tarfile.open(chart, "r:gz") as archive:
            for member in archive:
                if len(PurePosixPath(member.name).parts) == 2 and PurePosixPath(member.name).name == "values.yaml":  # noqa: PLR2004
                    stream = archive.extractfile(member)
                    found = yaml.safe_load(stream.read()) if stream else None
                    if found is None:
                        return {}
                    if isinstance(found, dict):
                        return found
                    raise FormatError(f"{chart}: values.yaml is not a mapping", hint=hint)
    except (OSError, tarfile.TarError, yaml.YAMLError) as error:
        raise FormatError(f"{chart}: not a packed chart: {error}", hint=hint) from error
    return {}


def ensure_charts(wanted: Sequence[ChartWanted], place: HelmPlace) -> dict[str, bool]:
    """Make all releases as they are wanted, at the same time; return by name whether that changed anything.

    Raises:
        ToolError: helm failed for one of them; the others were finished first.
    """

    async def all_of_them() -> list[bool | BaseException]:
        return await asyncio.gather(*(_ensure(one, place) for one in wanted), return_exceptions=True)

    results = asyncio.run(all_of_them())
    changed = {}
    for one, result in zip(wanted, results, strict=True):
        if isinstance(result, BaseException):
            raise result
        changed[one.name] = result
    return changed


class _PlainHelm(Command):  # type: ignore[misc] # pyhelm3 has no types
    """pyhelm3's commands, with nothing of this process's environment that helm would take for a setting or a proxy."""

    def __init__(self, place: HelmPlace) -> None:
        """Speak to the cluster of `place` through its helm."""
        super().__init__(executable="/usr/bin/env", kubeconfig=place.kubeconfig, default_timeout=_TIMEOUT)
        self._start = ["-i", *(f"{name}={value}" for name, value in plain_environment().items()), str(place.helm)]

    async def run(self, command: list[str], input: bytes | None = None) -> bytes:  # noqa: A002 - pyhelm3's name
        """Run helm with the words `command`."""
        output: bytes = await super().run([*self._start, *command], input)
        return output


async def _ensure(wanted: ChartWanted, place: HelmPlace) -> bool:
    command = _PlainHelm(place)
    description = _description(wanted)
    try:
        if await _is_there(command, wanted, description):
            return False
        await command.install_or_upgrade(
            wanted.name,
            wanted.chart,
            dict(wanted.values),
            namespace=wanted.namespace,
            create_namespace=True,
            description=description,
            reset_values=True,
        )
    except HelmError as error:
        raise ToolError(
            f"helm could not install {wanted.name}: {_reason(error)}",
            step=f"chart {wanted.name}",
            hint="run site status; when the cluster answers, run site install again",
        ) from error
    return True


async def _is_there(command: Command, wanted: ChartWanted, description: str) -> bool:
    try:
        info = (await command.status(wanted.name, namespace=wanted.namespace))["info"]
    except ReleaseNotFoundError:
        return False
    status = info["status"]
    if status in _UNFINISHED_INSTALL:
        await command.uninstall(wanted.name, namespace=wanted.namespace, wait=True)
        return False
    if status in _UNFINISHED_UPGRADE:
        await command.rollback(wanted.name, None, namespace=wanted.namespace, cleanup_on_fail=True)
        return False
    return bool(status == "deployed" and info.get("description") == description)


def _description(wanted: ChartWanted) -> str:
    with wanted.chart.open("rb") as stream:
        chart = hashlib.file_digest(stream, "sha256").hexdigest()
    values = hashlib.sha256(json.dumps(wanted.values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    return f"chart sha256:{chart} values sha256:{values}"


def _reason(error: HelmError) -> str:
    lines = [line.strip() for line in error.stderr.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else f"exit status {error.returncode}"


def _merged(below: Mapping[str, object], above: Mapping[str, object]) -> dict[str, object]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        merged[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def _pinned(effective: Mapping[str, object], values: Mapping[str, object], images: Mapping[str, Digest]) -> dict[str, object]:
    pinned = dict(values)
    if effective.keys() >= _IMAGE_KEYS:
        reference = f"{effective['repository']}:{effective['tag']}"
        digest = images.get(reference)
        if digest is None or effective["digest"] not in {"", digest}:
            carried = "does not carry it" if digest is None else f"carries {digest}"
            raise VerificationError(
                f"a chart wants the image {reference} {effective['digest']}; the release {carried}".replace("  ", " "),
                hint="name the image in the profile and carry a new bundle",
            )
        pinned["digest"] = digest
    for key, value in effective.items():
        if isinstance(value, Mapping):
            given = values.get(key)
            below = _pinned(value, given if isinstance(given, Mapping) else {}, images)
            if below:
                pinned[key] = below
    return pinned
