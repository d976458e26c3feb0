# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""From a reference to everything one platform's image needs: index, manifest, config and layers.

Source: OCI image specification 1.1 (image-index.md, manifest.md, config.md); docker's image manifest version 2,
schema 2, which has the same members. An index is carried as it is, with the one manifest of the platform: its digest,
which charts are pinned to, stays what it is upstream.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec

from appliance.adapters.references import Reference, parse_reference
from appliance.adapters.registry import Fetched, Registry
from appliance.bundle.formats import DOCKER_LIST, DOCKER_MANIFEST, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_LAYER_GZIP, OCI_MANIFEST
from appliance.bundle.lock import LockedBlob, LockedImage
from appliance.digests import Digest, parse_digest
from appliance.errors import FormatError, UsageError

_INDEXES: Final = frozenset({OCI_INDEX, DOCKER_LIST})
_MANIFESTS: Final = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
_CONFIGS: Final = frozenset({OCI_CONFIG, "application/vnd.docker.container.image.v1+json"})
_LAYERS: Final = frozenset(
    {OCI_LAYER, OCI_LAYER_GZIP, "application/vnd.oci.image.layer.v1.tar+zstd", "application/vnd.docker.image.rootfs.diff.tar.gzip"}
)
_REFUSED: Final = {
    "application/vnd.docker.distribution.manifest.v1+json": "docker schema 1 images",
    "application/vnd.docker.distribution.manifest.v1+prettyjws": "docker schema 1 images",
    "application/vnd.oci.artifact.manifest.v1+json": "OCI artifact manifests",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip": "foreign layers",
    "application/vnd.oci.image.layer.nondistributable.v1.tar": "non-distributable layers",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": "non-distributable layers",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd": "non-distributable layers",
}
LICENSES_LABEL: Final = "org.opencontainers.image.licenses"
StructT = TypeVar("StructT", bound=msgspec.Struct)


class _Platform(msgspec.Struct, frozen=True):
    architecture: str = ""
    os: str = ""
    variant: str = ""


class _Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    media_type: str
    digest: str
    size: int
    platform: _Platform | None = None
    urls: tuple[str, ...] = ()


class _Index(msgspec.Struct, frozen=True, rename="camel"):
    manifests: tuple[_Descriptor, ...]
    schema_version: int
    media_type: str = ""


class _Manifest(msgspec.Struct, frozen=True, rename="camel"):
    config: _Descriptor
    layers: tuple[_Descriptor, ...]
    schema_version: int
    media_type: str = ""
    artifact_type: str = ""


class _ConfigDetails(msgspec.Struct, frozen=True):
    Labels: dict[str, str] | None = None


class _Config(msgspec.Struct, frozen=True):
    architecture: str
    os: str
    config: _ConfigDetails | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedImage:
    """A resolved image, its small documents by digest, and the licence it names itself."""

    locked: LockedImage
    documents: dict[Digest, bytes]
    license: str


def resolve_image(registry: Registry, text: str, *, system: str, architecture: str) -> ResolvedImage:
    """Resolve the reference `text` for one OCI platform.

    Raises:
        UsageError: a kind of image this version does not do, by name; no image for this platform.
        FormatError: a malformed document.
        VerificationError, ToolError: as `Registry.manifest`.
    """
    reference = parse_reference(text)
    top = registry.manifest(reference)
    documents = {top.digest: top.data}
    blobs = [LockedBlob(digest=top.digest, size=len(top.data), media_type=_media_type(reference, top))]
    manifest = top
    if blobs[0].media_type in _INDEXES:
        child = _choose(reference, _decode(reference, top.digest, top.data, _Index), system, architecture)
        manifest = registry.manifest(reference, parse_digest(child.digest))
        documents[manifest.digest] = manifest.data
        if len(manifest.data) != child.size or _media_type(reference, manifest) != child.media_type:
            raise FormatError(f"{reference}: its index describes manifest {child.digest} wrongly", hint="ask who published the image")
        blobs.append(LockedBlob(digest=manifest.digest, size=child.size, media_type=child.media_type))
    if blobs[-1].media_type not in _MANIFESTS:
        raise _not_done(reference, blobs[-1].media_type)
    body = _decode(reference, manifest.digest, manifest.data, _Manifest)
    _check_kind(reference, body)
    license_, data = _config(registry, reference, body.config, system, architecture)
    documents[parse_digest(body.config.digest)] = data
    below = (body.config, *body.layers)
    blobs += [LockedBlob(digest=parse_digest(each.digest), size=each.size, media_type=each.media_type) for each in below]
    locked = LockedImage(
        reference=str(reference),
        index=top.digest,
        manifest=manifest.digest,
        config=parse_digest(body.config.digest),
        blobs=tuple({blob.digest: blob for blob in blobs}.values()),
    )
    return ResolvedImage(locked=locked, documents=documents, license=license_)


def _media_type(reference: Reference, document: Fetched) -> str:
    try:
        inside = msgspec.json.decode(document.data, type=dict[str, msgspec.Raw])
        named = msgspec.json.decode(inside["mediaType"], type=str) if "mediaType" in inside else ""
        schema = msgspec.json.decode(inside.get("schemaVersion", msgspec.Raw(b"0")), type=int)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise FormatError(
            f"{reference}: {document.digest} is not a manifest: {error}", hint="check what answers at that address"
        ) from error
    media_type = named or document.media_type
    if media_type in _REFUSED or schema == 1:
        raise _not_done(reference, media_type if media_type in _REFUSED else "application/vnd.docker.distribution.manifest.v1+json")
    if named and document.media_type and named != document.media_type:
        raise FormatError(
            f"{reference}: {document.digest} is served as {document.media_type} and says {named}", hint="check what answers at that address"
        )
    if media_type not in _INDEXES | _MANIFESTS:
        raise _not_done(reference, media_type)
    return media_type


def _decode(reference: Reference, digest: Digest, data: bytes, kind: type[StructT]) -> StructT:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise FormatError(f"{reference}: {digest}: {error}", hint="ask who published the image") from error


def _not_done(reference: Reference, media_type: str) -> UsageError:
    what = _REFUSED.get(media_type, f"documents of type {media_type[:100]!r}")
    return UsageError(f"{reference}: {what} are not done by this version", hint="name an OCI or docker schema 2 image")


def _choose(reference: Reference, index: _Index, system: str, architecture: str) -> _Descriptor:
    """Return the first manifest of the platform, as container runtimes do; variants of amd64 above v1 are another platform."""
    fitting = [
        each
        for each in index.manifests
        if each.platform
        and (each.platform.os, each.platform.architecture) == (system, architecture)
        and each.platform.variant in {"", "v1"}
    ]
    if not fitting:
        there = sorted({f"{each.platform.os}/{each.platform.architecture}" for each in index.manifests if each.platform})
        raise UsageError(
            f"{reference}: no image for {system}/{architecture}, only for {', '.join(there)[:200] or 'no platform it names'}",
            hint="choose another image or tag",
        )
    if fitting[0].media_type not in _MANIFESTS:
        raise UsageError(f"{reference}: an index inside an index is not done by this version", hint="name the inner image")
    return fitting[0]


def _check_kind(reference: Reference, manifest: _Manifest) -> None:
    if manifest.config.media_type not in _CONFIGS:
        kind = manifest.artifact_type or manifest.config.media_type
        raise UsageError(f"{reference}: an artifact of type {kind[:100]!r} is not an image", hint="carry it as another kind")
    for layer in manifest.layers:
        if layer.media_type not in _LAYERS or layer.urls:
            raise _not_done(reference, layer.media_type if not layer.urls else "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip")
    for each in (manifest.config, *manifest.layers):
        if not re.fullmatch("sha256:[0-9a-f]{64}", each.digest):
            raise UsageError(
                f"{reference}: digest {each.digest[:20]!r} of another kind than sha256 is not done by this version",
                hint="choose another image",
            )
        if each.size < 0:
            raise FormatError(f"{reference}: {each.digest} has a negative size", hint="ask who published the image")


def _config(registry: Registry, reference: Reference, descriptor: _Descriptor, system: str, architecture: str) -> tuple[str, bytes]:
    """Return the licence that the config names and the config's bytes."""
    digest = parse_digest(descriptor.digest)
    data = registry.small_blob(reference, digest, size=descriptor.size)
    config = _decode(reference, digest, data, _Config)
    if (config.os, config.architecture) != (system, architecture):
        raise UsageError(
            f"{reference}: it is made for {config.os}/{config.architecture}, not {system}/{architecture}",
            hint="choose another image or tag",
        )
    labels = (config.config.Labels if config.config else None) or {}
    return labels.get(LICENSES_LABEL, "")[:200], data
