# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Writes an image as an OCI layout (image-spec 1.1): index -> manifest -> config and layers, the same bytes every time.

Each image is an index of one platform, as upstreams publish them, so that the digest a tag gives and the digest of
the platform's manifest differ.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab.world import cache
from tests.lab.world.archive import Compression, Item, write_archive

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """The media types an image is written in."""

    index: str
    manifest: str
    config: str
    plain: str
    gzip: str

    def layer(self, compression: Compression) -> str:
        """The media type of a layer."""
        return self.gzip if compression == "gzip" else self.plain


OCI = Dialect(
    index=INDEX,
    manifest=MANIFEST,
    config=CONFIG,
    plain="application/vnd.oci.image.layer.v1.tar",
    gzip="application/vnd.oci.image.layer.v1.tar+gzip",
)
DOCKER = Dialect(
    index="application/vnd.docker.distribution.manifest.list.v2+json",
    manifest="application/vnd.docker.distribution.manifest.v2+json",
    config="application/vnd.docker.container.image.v1+json",
    plain="application/vnd.docker.image.rootfs.diff.tar",
    gzip="application/vnd.docker.image.rootfs.diff.tar.gzip",
)
"""What many an upstream still publishes (distribution's manifest-v2-2)."""

EPOCH = "1970-01-01T00:00:00Z"
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer, made of `items`; `made_by` becomes its line of the image's history."""

    items: tuple[Item, ...]
    made_by: str
    compression: Compression = "gzip"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyLayer:
    """A layer that lies on disk already, written by `write_layer`."""

    path: Path
    digest: str
    diff_id: str
    size: int
    made_by: str
    compression: Compression


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What an image holds and how it starts. `reference` is the upstream's `host/name:tag`."""

    reference: str
    layers: tuple[Layer | ReadyLayer, ...]
    entrypoint: tuple[str, ...] = ()
    user: str = ""
    workdir: str = "/"
    labels: dict[str, str] = field(default_factory=dict)
    dialect: Dialect = OCI

    @property
    def repository(self) -> str:
        """The reference without its tag, with its host."""
        return self.reference.rpartition(":")[0]

    @property
    def tag(self) -> str:
        """The tag."""
        return self.reference.rpartition(":")[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltImage:
    """An image in the layout `layout`; digests are `sha256:<hex>`."""

    reference: str
    layout: Path
    index: str
    manifest: str
    config: str
    layers: tuple[str, ...]

    @property
    def blobs(self) -> tuple[str, ...]:
        """Every digest of the image, from the index down."""
        return (self.index, self.manifest, self.config, *self.layers)

    def blob(self, digest: str) -> Path:
        """Where a blob of this image lies."""
        return self.layout / "blobs" / "sha256" / digest.removeprefix("sha256:")


def write_layer(layer: Layer, blobs: Path) -> ReadyLayer:
    """Write `layer` into the folder `blobs`, named by its digest."""
    blobs.mkdir(parents=True, exist_ok=True)
    making = blobs / ".layer"
    written = write_archive(making, layer.items, layer.compression)
    path = making.rename(blobs / written.sha256)
    return ReadyLayer(
        path=path,
        digest=f"sha256:{written.sha256}",
        diff_id=f"sha256:{written.tar_sha256}",
        size=written.size,
        made_by=layer.made_by,
        compression=layer.compression,
    )


def write_image(image: Image, layout: Path) -> BuiltImage:
    """Write `image` as an OCI layout of its own at `layout`."""
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    layers = [write_layer(layer, blobs) if isinstance(layer, Layer) else layer for layer in image.layers]
    for layer in layers:
        if not (blobs / layer.digest.removeprefix("sha256:")).exists():
            cache.link(layer.path, blobs / layer.digest.removeprefix("sha256:"))
    types = image.dialect
    config = _put(blobs, _config(image, layers), types.config)
    listed = [{"mediaType": types.layer(layer.compression), "digest": layer.digest, "size": layer.size} for layer in layers]
    manifest = _put(blobs, {"schemaVersion": 2, "mediaType": types.manifest, "config": config, "layers": listed}, types.manifest)
    platform = {"platform": {"architecture": "amd64", "os": "linux"}}
    index = _put(blobs, {"schemaVersion": 2, "mediaType": types.index, "manifests": [manifest | platform]}, types.index)
    named = {"annotations": {"org.opencontainers.image.ref.name": image.reference}}
    (layout / "index.json").write_bytes(_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": [index | named]}))
    (layout / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))
    return read_image(layout)


def read_image(layout: Path) -> BuiltImage:
    """The image of a layout that `write_image` wrote."""
    top = json.loads((layout / "index.json").read_bytes())["manifests"][0]
    blobs = layout / "blobs"
    child = json.loads(_blob(blobs, top["digest"]))["manifests"][0]["digest"]
    manifest = json.loads(_blob(blobs, child))
    return BuiltImage(
        reference=top["annotations"]["org.opencontainers.image.ref.name"],
        layout=layout,
        index=top["digest"],
        manifest=child,
        config=manifest["config"]["digest"],
        layers=tuple(layer["digest"] for layer in manifest["layers"]),
    )


def _blob(blobs: Path, digest: str) -> bytes:
    return (blobs / digest.replace(":", "/")).read_bytes()


def _config(image: Image, layers: list[ReadyLayer]) -> dict[str, object]:
    settings: dict[str, object] = {"Env": [PATH], "WorkingDir": image.workdir}
    if image.entrypoint:
        settings["Entrypoint"] = list(image.entrypoint)
    if image.user:
        settings["User"] = image.user
    if image.labels:
        settings["Labels"] = dict(sorted(image.labels.items()))
    return {
        "created": EPOCH,
        "architecture": "amd64",
        "os": "linux",
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        "history": [{"created": EPOCH, "created_by": layer.made_by} for layer in layers],
    }


def _put(blobs: Path, document: dict[str, object], media_type: str) -> dict[str, object]:
    """Write `document` as a blob; gives its descriptor."""
    data = _json(document)
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}


def _json(document: dict[str, object]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
