# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""OCI documents of a bundle: manifests, `index.json`, `oci-layout` (docs/bundle-format.md section 6). Bytes in, bytes out.

Sources: OCI image specification 1.1 (manifest.md, image-layout.md, "Guidelines for Artifact Usage"), Helm's OCI support,
CNCF ModelPack specification 0.0.7. Everything is deterministic: keys sorted, no time, no host.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from appliance.bundle import formats
from appliance.bundle.contents import Artifact, Blob, PackageEntry
from appliance.digests import CHUNK_BYTES, Digest, digest_of, hex_of
from appliance.errors import FormatError

OCI_LAYOUT: Final = b'{"imageLayoutVersion":"1.0.0"}'
"""The file `oci-layout`."""

EMPTY: Final = b"{}"
"""The empty config (OCI image specification, manifest.md, "Guidance for an Empty Descriptor")."""

TITLE_VERSION: Final = "org.opencontainers.image.version"


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """A descriptor: media type, digest, size in bytes, annotations."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltArtifact:
    """An artifact's entry in contents, its blobs, and those of them that were made here (by digest)."""

    artifact: Artifact
    blobs: tuple[Blob, ...]
    documents: Mapping[Digest, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLayer:
    """One file of a model: its POSIX path in the folder, its media type, its blob."""

    path: str
    media_type: str
    blob: Blob


def json_bytes(value: object) -> bytes:
    """Return `value` as JSON with sorted keys and no white space."""
    return msgspec.json.encode(value, order="sorted")


def small_blob(data: bytes) -> Blob:
    """Return the contents entry of a document.

    Raises:
        FormatError: more than one chunk; such blobs are hashed where they are read.
    """
    if len(data) > CHUNK_BYTES:
        raise FormatError(f"a document of {len(data)} bytes is more than one chunk", hint="split it")
    return Blob(digest=digest_of(data), size=len(data))


def describe(data: bytes, media_type: str, annotations: Mapping[str, str] | None = None) -> Descriptor:
    """Return the descriptor of `data`."""
    return Descriptor(media_type=media_type, digest=digest_of(data), size=len(data), annotations=annotations or {})


def _as_json(descriptor: Descriptor) -> dict[str, object]:
    value: dict[str, object] = {"mediaType": descriptor.media_type, "digest": descriptor.digest, "size": descriptor.size}
    if descriptor.annotations:
        value["annotations"] = dict(descriptor.annotations)
    return value


def manifest_bytes(
    *, artifact_type: str, config: Descriptor, layers: Sequence[Descriptor], annotations: Mapping[str, str] | None = None
) -> bytes:
    """Return an OCI 1.1 image manifest of an artifact; it has at least one layer, the empty one where there is none."""
    chosen = layers or (describe(EMPTY, formats.OCI_EMPTY),)
    value: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": formats.OCI_MANIFEST,
        "config": _as_json(config),
        "layers": [_as_json(layer) for layer in chosen],
    }
    if artifact_type:
        value["artifactType"] = artifact_type
    if annotations:
        value["annotations"] = dict(annotations)
    return json_bytes(value)


def index_bytes(artifacts: Iterable[tuple[str, Descriptor]]) -> bytes:
    """Return `index.json`: the root descriptor of every artifact under its reference, in the order of references.

    A reference is `<class>/<name>:<version>` for what we made and the upstream reference for an image.
    """
    manifests = [
        _as_json(
            Descriptor(
                media_type=root.media_type,
                digest=root.digest,
                size=root.size,
                annotations={**root.annotations, formats.OCI_REF_NAME: reference},
            )
        )
        for reference, root in sorted(artifacts, key=lambda pair: pair[0])
    ]
    return json_bytes({"schemaVersion": 2, "mediaType": formats.OCI_INDEX, "manifests": manifests})


def _built(
    name: str,
    version: str,
    *,
    manifest: bytes,
    documents: Iterable[bytes],
    blobs: Iterable[Blob],
    payload: Digest | None = None,
    weights: Digest | None = None,
    packages: tuple[PackageEntry, ...] = (),
    license_: str = "",
    source: str = "",
) -> BuiltArtifact:
    made = {digest_of(data): data for data in (manifest, *documents)}
    every = {blob.digest: blob for blob in (*blobs, *(small_blob(data) for data in made.values()))}
    artifact = Artifact(
        name=name,
        version=version,
        media_type=formats.OCI_MANIFEST,
        root=digest_of(manifest),
        blobs=tuple(sorted(every)),
        payload=payload,
        weights=weights,
        packages=packages,
        license=license_,
        source=source,
    )
    return BuiltArtifact(artifact=artifact, blobs=tuple(every[digest] for digest in sorted(every)), documents=made)


def _single(name: str, version: str, payload: Blob, *, artifact_type: str, layer_type: str, license_: str, source: str) -> BuiltArtifact:
    layer = Descriptor(media_type=layer_type, digest=payload.digest, size=payload.size, annotations={formats.OCI_TITLE: name})
    manifest = manifest_bytes(
        artifact_type=artifact_type,
        config=describe(EMPTY, formats.OCI_EMPTY),
        layers=(layer,),
        annotations={formats.OCI_TITLE: name, TITLE_VERSION: version},
    )
    return _built(
        name, version, manifest=manifest, documents=(EMPTY,), blobs=(payload,), payload=payload.digest, license_=license_, source=source
    )


def build_file(name: str, version: str, payload: Blob, *, license_: str, source: str) -> BuiltArtifact:
    """Return a file as an artifact."""
    return _single(
        name, version, payload, artifact_type=formats.FILE_ARTIFACT, layer_type=formats.FILE_LAYER, license_=license_, source=source
    )


def build_installer(name: str, version: str, payload: Blob, *, license_: str) -> BuiltArtifact:
    """Return `install.pyz` as an artifact."""
    return _single(
        name, version, payload, artifact_type=formats.INSTALLER_ARTIFACT, layer_type=formats.INSTALLER_LAYER, license_=license_, source=""
    )


def build_chart(name: str, version: str, payload: Blob, *, chart_metadata: Mapping[str, object], source: str) -> BuiltArtifact:
    """Return a packed chart as Helm pushes it: `chart_metadata` is what its Chart.yaml says, the config of the manifest."""
    config = json_bytes(dict(chart_metadata))
    layer = Descriptor(media_type=formats.HELM_CHART, digest=payload.digest, size=payload.size)
    manifest = manifest_bytes(
        artifact_type="",
        config=describe(config, formats.HELM_CONFIG),
        layers=(layer,),
        annotations={formats.OCI_TITLE: name, TITLE_VERSION: version},
    )
    return _built(name, version, manifest=manifest, documents=(config,), blobs=(payload,), payload=payload.digest, source=source)


def build_packages(
    name: str, version: str, packages: Sequence[PackageEntry], *, blobs: Mapping[Digest, Blob], source: str
) -> BuiltArtifact:
    """Return Debian packages as one artifact: a layer per package, their list as the config. `blobs` has each package's.

    Raises:
        FormatError: two packages have one path, or a package has no blob.
    """
    ordered = tuple(sorted(packages, key=lambda package: package.path))
    if len({package.path for package in ordered}) != len(ordered):
        raise FormatError("two packages have the same path", hint="lock the profile again")
    if absent := [package for package in ordered if package.digest not in blobs]:
        raise FormatError(f"package {absent[0].name} has no blob {absent[0].digest}", hint="lock the profile again")
    config = json_bytes({"format": "packages/1", "packages": [msgspec.to_builtins(package) for package in ordered]})
    layers = tuple(
        Descriptor(
            media_type=formats.PACKAGE_LAYER, digest=package.digest, size=package.size, annotations={formats.OCI_TITLE: package.path}
        )
        for package in ordered
    )
    manifest = manifest_bytes(
        artifact_type=formats.PACKAGES_ARTIFACT,
        config=describe(config, formats.PACKAGES_CONFIG),
        layers=layers,
        annotations={formats.OCI_TITLE: name, TITLE_VERSION: version},
    )
    documents = (config,) if layers else (config, EMPTY)
    own = [blobs[package.digest] for package in ordered]
    return _built(name, version, manifest=manifest, documents=documents, blobs=own, packages=ordered, source=source)


def build_model(
    name: str, version: str, layers: Sequence[ModelLayer], *, statement: bytes, license_: str, source: str = ""
) -> BuiltArtifact:
    """Return a model as a ModelPack artifact: one raw layer a file, `statement` (its weights manifest) beside them.

    The statement is a blob of its own, not a layer: a registry keeps it because contents lists it.
    """
    ordered = sorted(layers, key=lambda layer: layer.path)
    config = json_bytes(
        {
            "descriptor": {"name": name, "version": version, "licenses": [license_]},
            "modelfs": {"type": "layers", "diffIds": [layer.blob.digest for layer in ordered]},
            "config": {},
        }
    )
    manifest = manifest_bytes(
        artifact_type=formats.MODEL_MANIFEST,
        config=describe(config, formats.MODEL_CONFIG),
        layers=[
            Descriptor(
                media_type=layer.media_type,
                digest=layer.blob.digest,
                size=layer.blob.size,
                annotations={formats.MODEL_FILEPATH: layer.path, formats.OCI_TITLE: layer.path},
            )
            for layer in ordered
        ],
        annotations={formats.OCI_TITLE: name, TITLE_VERSION: version},
    )
    return _built(
        name,
        version,
        manifest=manifest,
        documents=(config, statement),
        blobs=[layer.blob for layer in ordered],
        weights=digest_of(statement),
        license_=license_,
        source=source,
    )


def blob_path(digest: Digest) -> str:
    """Return where a blob lies in the bundle, relative to its directory."""
    return f"blobs/sha256/{hex_of(digest)}"
