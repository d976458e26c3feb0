# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The metadata of a release as an OCI artifact, so that a node can fetch it from the depot's registry (docs/bundle-format.md).

One manifest whose layers are the files below `metadata/`, each with its relative path as title. It is made on the depot,
is signed by nobody and proves nothing: a node verifies the files themselves from its own pinned root.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from appliance.bundle import formats
from appliance.bundle.contents import check_relative
from appliance.bundle.documents import JSON_ERRORS, MAX_DOCUMENT_BYTES, Sha256, Size, reason_of
from appliance.bundle.layout import describe, manifest_bytes
from appliance.digests import Digest, digest_of
from appliance.errors import FormatError

METADATA_REPOSITORY: Final = "appliance/metadata"
"""The repository; the tag is the 64 digits of the release."""

CONFIG: Final = b'{"format":"metadata-artifact/1"}'
"""A config of its own, not the empty one: no blob of the store has these bytes, so none is served from two places."""

MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024
"""A manifest of 1,100 files is about 330 kB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataArtifact:
    """The artifact: its `manifest`, its `config`, and each file's path below `metadata/` by digest."""

    manifest: bytes
    config: bytes
    layers: Mapping[Digest, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class MetadataFile:
    """One file that a manifest names: relative path, digest, size in bytes."""

    path: str
    digest: Digest
    size: int


def metadata_artifact(files: Mapping[str, bytes]) -> MetadataArtifact:
    """Return the artifact of `files` (bytes by path below `metadata/`); the same files give the same bytes."""
    layers = [
        describe(data, formats.METADATA_LAYER, {formats.OCI_TITLE: path}) for path, data in sorted(files.items(), key=lambda pair: pair[0])
    ]
    manifest = manifest_bytes(artifact_type=formats.METADATA_ARTIFACT, config=describe(CONFIG, formats.METADATA_CONFIG), layers=layers)
    return MetadataArtifact(manifest=manifest, config=CONFIG, layers={digest_of(data): path for path, data in files.items()})


class _Layer(msgspec.Struct, frozen=True, rename={"media_type": "mediaType"}):
    media_type: str
    digest: Sha256
    size: Size
    annotations: dict[str, str]


class _Manifest(msgspec.Struct, frozen=True, rename={"artifact_type": "artifactType"}):
    artifact_type: str
    layers: list[_Layer]


def parse_metadata_manifest(data: bytes, *, max_files: int, max_bytes: int) -> tuple[MetadataFile, ...]:
    """Return the files that the manifest `data` names, by path.

    Raises:
        FormatError: not such a manifest, a path that is not plain or there twice, too many files or bytes.
    """
    what = "metadata manifest"
    again = "run appliance site install on the depot again; it makes the registry's tree anew"
    try:
        manifest = msgspec.json.decode(data, type=_Manifest)
    except JSON_ERRORS as error:
        raise FormatError(f"{what}: {reason_of(error)}", hint=again) from error
    if manifest.artifact_type != formats.METADATA_ARTIFACT:
        raise FormatError(f"{what}: artifact type {manifest.artifact_type[:80]!r} is not metadata", hint=again)
    found: dict[str, MetadataFile] = {}
    for layer in manifest.layers:
        path = layer.annotations.get(formats.OCI_TITLE, "")
        check_relative(path, what=what)
        if layer.media_type != formats.METADATA_LAYER or path in found or layer.size > MAX_DOCUMENT_BYTES:
            raise FormatError(f"{what}: {path!r} is there twice, of another type, or too long ({layer.size} bytes)", hint=again)
        found[path] = MetadataFile(path=path, digest=layer.digest, size=layer.size)
    total = sum(file.size for file in found.values())
    if len(found) > max_files or total > max_bytes:
        raise FormatError(f"{what}: {len(found)} files of {total} bytes are more than {max_files} or {max_bytes}", hint=again)
    return tuple(found[path] for path in sorted(found))
