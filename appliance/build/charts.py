# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Charts from folders: packed to the same bytes everywhere, and checked to name no image that is not carried."""

from __future__ import annotations

import gzip
import io
import math
import os
import re
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from appliance.adapters.disk import at
from appliance.adapters.ingest import open_beneath, walk_beneath
from appliance.adapters.references import parse_reference
from appliance.adapters.rendering import rendered_images
from appliance.bundle.lock import LockedImage
from appliance.digests import Digest, digest_of
from appliance.errors import ApplianceError, FormatError, UsageError

_MAX_CHART = 32 * 1024 * 1024
_CHART_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,251}[a-z0-9])?")
_VERSION = re.compile(r"v?[0-9]+\.[0-9]+\.[0-9]+(?:[-+][0-9A-Za-z.+-]+)?")
_LITERAL = re.compile(
    r"""(?:^[ \t]*(?:-[ \t]+)*|[{,][ \t]*)["']?image["']?:[ \t]*["']?([a-z0-9][^\s"'{},]*/[^\s"'{},]+)["']?(?=[\s,}]|$)""", re.MULTILINE
)
_COMMENT = re.compile(r"(?:^|[ \t])#.*$", re.MULTILINE)
_ALIAS = re.compile(rb"[&*]")
_MAX_DEPTH = 100
_MAX_NODES = 100_000
"""More values than any chart writes: an alias that holds itself, or aliases that multiply."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedChart:
    """A chart as `.tgz`: `metadata` is its Chart.yaml, `literals` the image references written out in it."""

    name: str
    version: str
    metadata: Mapping[str, object]
    data: bytes
    literals: tuple[str, ...]

    @property
    def digest(self) -> Digest:
        """The digest of the packed bytes."""
        return digest_of(self.data)


def pack_chart(folder: Path) -> PackedChart:
    """Pack the chart in `folder`: files sorted, no time, no owner, mode 0644.

    Raises:
        FormatError: no valid Chart.yaml, too large, or something that is no plain file.
        UsageError: a dependency that is not in its `charts/` folder.
        VerificationError: a symbolic link.
        HostError: unreadable.
    """
    files: dict[str, bytes] = {}
    for relative in walk_beneath(folder):
        descriptor = open_beneath(folder, relative)
        with at(folder / relative), os.fdopen(descriptor, "rb") as stream:
            files[relative] = stream.read(_MAX_CHART + 1)
        if sum(len(data) for data in files.values()) > _MAX_CHART:
            raise FormatError(f"{folder}: a chart of more than {_MAX_CHART} bytes", hint="keep only the chart's own files in the folder")
    metadata = _metadata(folder, files.get("Chart.yaml"))
    _check_values(folder / "values.yaml", files.get("values.yaml", b""))
    name, version = str(metadata["name"]), str(metadata["version"])
    _check_dependencies(folder, metadata, files)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for relative, data in sorted(files.items()):
            entry = tarfile.TarInfo(f"{name}/{relative}")
            entry.size, entry.mode, entry.mtime = len(data), 0o644, 0
            tar.addfile(entry, io.BytesIO(data))
    texts = [data.decode("utf-8", "replace") for relative, data in files.items() if relative.endswith((".yaml", ".yml", ".tpl"))]
    literals = sorted({match for text in texts for match in _LITERAL.findall(_COMMENT.sub("", text))})
    return PackedChart(
        name=name, version=version, metadata=metadata, data=gzip.compress(packed.getvalue(), 9, mtime=0), literals=tuple(literals)
    )


def _metadata(folder: Path, data: bytes | None) -> Mapping[str, object]:
    where = folder / "Chart.yaml"
    if data is None:
        raise FormatError(f"{where}: missing", hint="name the folder that holds Chart.yaml")
    metadata = _read_yaml(where, data)
    if _ALIAS.search(data) and any(getattr(event, "anchor", None) for event in yaml.parse(data, Loader=yaml.CSafeLoader)):
        raise FormatError(f"{where}: it has anchors or aliases", hint="write every value out")
    if not isinstance(metadata, dict) or metadata.get("apiVersion") != "v2":
        raise FormatError(f"{where}: apiVersion is not v2", hint="charts of Helm 3 say apiVersion: v2")
    name, version = metadata.get("name"), metadata.get("version")
    if not isinstance(name, str) or not _CHART_NAME.fullmatch(name) or not isinstance(version, str) or not _VERSION.fullmatch(version):
        raise FormatError(
            f"{where}: name or version is missing or malformed", hint="write a name in lower case and a version such as 1.2.3"
        )
    return {str(key): value for key, value in metadata.items()}


def _check_values(where: Path, data: bytes) -> None:
    values = _read_yaml(where, data)
    if values is not None and not isinstance(values, dict):
        raise FormatError(f"{where}: not a mapping", hint="write names and values, such as replicas: 1")


def _read_yaml(where: Path, data: bytes) -> object:
    """Return the value that `data` writes: finite, not too deep, and no larger than it looks."""
    try:
        value: object = yaml.load(data, Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise FormatError(f"{where}: not YAML: {str(error)[:500]}", hint="correct it; `helm lint` shows more") from error
    waiting, count = [(value, 0)], 0
    while waiting:
        each, depth = waiting.pop()
        count += 1
        if count > _MAX_NODES or depth > _MAX_DEPTH:
            raise FormatError(f"{where}: its aliases never end, or it is too large or too deep", hint="write every value out")
        if isinstance(each, float) and not math.isfinite(each):
            raise FormatError(f"{where}: {each} is not a number that JSON has", hint="write a finite number")
        if isinstance(each, dict):
            waiting += [(below, depth + 1) for below in each.values()]
        elif isinstance(each, (list, set, tuple)):
            waiting += [(below, depth + 1) for below in each]
    return value


def _check_dependencies(folder: Path, metadata: Mapping[str, object], files: Iterable[str]) -> None:
    dependencies = metadata.get("dependencies") or []
    names = [each.get("name") for each in dependencies if isinstance(each, dict)] if isinstance(dependencies, list) else []
    there = {relative.split("/")[1] for relative in files if relative.startswith("charts/")}
    for name in names:
        if not any(entry == name or entry.startswith(f"{name}-") for entry in there):
            raise UsageError(
                f"{folder}: dependency {name!r} is not in its charts folder; fetching it is not done by this version",
                hint=f"run `helm dependency build {folder}` and lock again",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """How a chart will be installed: Helm release, namespace, values as JSON, version of Kubernetes."""

    release: str
    namespace: str
    values: str
    kubernetes: str


def check_images(chart: PackedChart, how: Installation, *, helm: Path | None, images: Iterable[LockedImage]) -> bool:
    """Check that the chart names only `images`; return whether it was rendered for that, False without `helm`.

    Raises:
        UsageError: it names another image.
        ToolError: helm cannot render it.
    """
    found = chart.literals
    if helm is not None:
        with tempfile.NamedTemporaryFile(prefix="appliance-", suffix=".tgz") as packed:
            packed.write(chart.data)
            packed.flush()
            found = rendered_images(
                helm, Path(packed.name), release=how.release, namespace=how.namespace, values=how.values, kubernetes=how.kubernetes
            )
    carried = {image.reference: image for image in images}
    for text in found:
        _check_image(how.release, text, carried)
    return helm is not None


def _check_image(release: str, text: str, carried: Mapping[str, LockedImage]) -> None:
    try:
        reference = parse_reference(text)
    except ApplianceError as error:
        raise UsageError(
            f"chart {release}: image {text[:200]!r} is not written out in full: {error.message}", hint="set it through the chart's values"
        ) from error
    image = carried.get(str(reference))
    if image is None:
        raise UsageError(f"chart {release}: image {text[:200]} is not in the profile", hint=f'add [[images]] reference = "{reference}"')
    if reference.digest is not None and reference.digest not in {image.index, image.manifest}:
        raise UsageError(
            f"chart {release}: image {text[:200]} is pinned to another digest than the profile's, {image.index}",
            hint="pin both to the same digest",
        )
