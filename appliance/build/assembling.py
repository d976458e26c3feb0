# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""From gathered blobs to OCI artifacts and contents. Pure: what it makes is bytes, and the same for the same lock."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import appliance
from appliance.adapters.hashing import FileHashes
from appliance.build.profiles import PLATFORMS
from appliance.build.sources import Sources
from appliance.bundle.contents import Artifact, Blob, ContentClass, Contents, ImageBinding, PackageEntry, check_contents
from appliance.bundle.formats import OCI_INDEX, OCI_MANIFEST
from appliance.bundle.layout import (
    BuiltArtifact,
    Descriptor,
    ModelLayer,
    build_chart,
    build_file,
    build_installer,
    build_model,
    build_packages,
    index_bytes,
    json_bytes,
    small_blob,
)
from appliance.bundle.lock import Lock, LockedImage, LockedModel, LockedPackages
from appliance.bundle.weights import WeightsFile, build_statement
from appliance.digests import Digest, digest_of

INSTALLER_NAME = "install.pyz"
PACKAGES_NAME = "packages"
_LICENSE = "Apache-2.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembled:
    """All that surrounds the blobs: contents by class, documents by digest, `index.json`, weights manifests to sign."""

    contents: Mapping[ContentClass, Contents]
    documents: Mapping[Digest, bytes]
    index: bytes
    statements: tuple[bytes, ...]


def assemble(lock: Lock, sources: Sources, found: Mapping[Digest, FileHashes], *, installer: FileHashes | None) -> Assembled:
    """Return contents and documents of `lock`, whose blobs are `found`.

    Raises:
        FormatError: the lock gives names or paths that contents may not have.
    """
    blobs = {digest: Blob(digest=digest, size=hashes.size, chunks=hashes.chunks) for digest, hashes in found.items()}
    built: dict[ContentClass, list[BuiltArtifact]] = {each: [] for each in ContentClass}
    statements = {model.name: _statement(model, blobs) for model in lock.models}
    built[ContentClass.IMAGES] = [_image(image, blobs, lock.platform) for image in lock.images]
    built[ContentClass.CHARTS] = list(_charts(lock, sources))
    built[ContentClass.MODELS] = [_model(model, sources, blobs, statements[model.name]) for model in lock.models]
    built[ContentClass.FILES] = [
        build_file(file.name, file.version, blobs[file.digest], license_=file.license, source=_source(file.url)) for file in lock.files
    ]
    if lock.packages is not None:
        built[ContentClass.OS] = [_packages(lock.packages, lock.version, blobs)]
    if installer is not None:
        blob = Blob(digest=installer.digest, size=installer.size, chunks=installer.chunks)
        built[ContentClass.INSTALLER] = [build_installer(INSTALLER_NAME, appliance.__version__, blob, license_=_LICENSE)]
    contents = {each: _contents(each, artifacts) for each, artifacts in built.items() if artifacts}
    for each in contents.values():
        check_contents(each)
    return Assembled(
        contents=contents,
        documents={digest: data for artifacts in built.values() for one in artifacts for digest, data in one.documents.items()},
        index=index_bytes(_references(built)),
        statements=tuple(statements.values()),
    )


def _source(url: str) -> str:
    """Return the upstream's URL; a path of this machine is nobody else's business."""
    return "" if url.startswith("file:") else url


def _contents(each: ContentClass, artifacts: Iterable[BuiltArtifact]) -> Contents:
    ordered = sorted(artifacts, key=lambda one: one.artifact.name)
    blobs = {blob.digest: blob for one in ordered for blob in one.blobs}
    return Contents(
        format=Contents.FORMAT,
        content_class=each,
        artifacts=tuple(one.artifact for one in ordered),
        blobs=tuple(blobs[digest] for digest in sorted(blobs)),
    )


def _references(built: Mapping[ContentClass, list[BuiltArtifact]]) -> Iterator[tuple[str, Descriptor]]:
    """Give every artifact's root with its name in `index.json`: an image's own, `<class>/<name>:<version>` of others.

    Tools find names only on OCI documents. An image in docker's dialect has its name on the OCI index made for it, and
    its real root stands there as `<name>@<digest>`.
    """
    for each, artifacts in built.items():
        for one in artifacts:
            artifact = one.artifact
            sizes = {blob.digest: blob.size for blob in one.blobs}
            root = Descriptor(media_type=artifact.media_type, digest=artifact.root, size=sizes[artifact.root])
            if each is not ContentClass.IMAGES:
                yield f"{each}/{artifact.name}:{artifact.version}", root
                continue
            yield f"{artifact.name}@{artifact.root}" if one.documents else artifact.name, root
            for digest in one.documents:
                yield artifact.name, Descriptor(media_type=OCI_INDEX, digest=digest, size=sizes[digest])


def _image(image: LockedImage, blobs: Mapping[Digest, Blob], platform: str) -> BuiltArtifact:
    own = {blob.digest: blobs[blob.digest] for blob in image.blobs}
    types = {blob.digest: blob.media_type for blob in image.blobs}
    documents = {}
    if types[image.index] not in {OCI_INDEX, OCI_MANIFEST}:
        data = _oci_index(types[image.manifest], own[image.manifest], platform)
        documents = {digest_of(data): data}
        own |= {digest: small_blob(data) for digest in documents}
    artifact = Artifact(
        name=image.reference,
        version=image.reference.rpartition(":")[2],
        media_type=types[image.index],
        root=image.index,
        blobs=tuple(sorted(own)),
        image=ImageBinding(reference=image.reference, index=image.index, manifest=image.manifest, config=image.config, platform=platform),
        source=image.reference,
    )
    return BuiltArtifact(artifact=artifact, blobs=tuple(own[digest] for digest in sorted(own)), documents=documents)


def _oci_index(media_type: str, manifest: Blob, platform: str) -> bytes:
    """Return an OCI index of the one manifest of this platform."""
    system, architecture, _ = PLATFORMS[platform]
    described = {
        "mediaType": media_type,
        "digest": manifest.digest,
        "size": manifest.size,
        "platform": {"architecture": architecture, "os": system},
    }
    return json_bytes({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [described]})


def _charts(lock: Lock, sources: Sources) -> Iterator[BuiltArtifact]:
    for chart in lock.charts:
        packed = sources.charts[chart.name]
        payload = Blob(digest=packed.digest, size=len(packed.data))
        made = build_chart(chart.name, chart.version, payload, chart_metadata=packed.metadata, source="")
        yield BuiltArtifact(artifact=made.artifact, blobs=made.blobs, documents={**made.documents, digest_of(packed.data): packed.data})


def _statement(model: LockedModel, blobs: Mapping[Digest, Blob]) -> bytes:
    files = [WeightsFile(path=file.path, size=file.size, digest=file.digest, chunks=blobs[file.digest].chunks) for file in model.files]
    return build_statement(model.name, model.version, files)


def _model(model: LockedModel, sources: Sources, blobs: Mapping[Digest, Blob], statement: bytes) -> BuiltArtifact:
    kinds = {file.path: file.media_type for file in sources.models[model.name]}
    layers = [ModelLayer(path=file.path, media_type=kinds[file.path], blob=blobs[file.digest]) for file in model.files]
    return build_model(model.name, model.version, layers, statement=statement, license_=model.license)


def _packages(locked: LockedPackages, version: str, blobs: Mapping[Digest, Blob]) -> BuiltArtifact:
    entries = [
        PackageEntry(
            name=each.name,
            version=each.version,
            architecture=each.architecture,
            path=f"pool/{each.name}_{each.version.replace(':', '%3a')}_{each.architecture}.deb",
            digest=each.digest,
            size=each.size,
        )
        for each in locked.packages
    ]
    return build_packages(PACKAGES_NAME, version, entries, blobs=blobs, source=locked.suite)
