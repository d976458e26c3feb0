# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`index.json` as the signed contents demand it (docs/bundle-format.md section 6). Pure: nothing is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from appliance.bundle.contents import Artifact, Blob, ContentClass, Contents
from appliance.bundle.formats import OCI_INDEX, OCI_MANIFEST
from appliance.bundle.layout import Descriptor, index_bytes, json_bytes, small_blob
from appliance.digests import Digest
from appliance.errors import FormatError

_MANIFESTS: Final = ("application/vnd.docker.distribution.manifest.v2+json", OCI_MANIFEST)


def expected_index(contents: Mapping[ContentClass, Contents], blobs: Mapping[Digest, Blob]) -> bytes:
    """Return the bytes that `index.json` of a bundle with these verified contents has.

    Raises:
        FormatError: an image in docker's dialect has no OCI index of its platform's manifest among its blobs.
    """
    return index_bytes(_references(contents, blobs))


def _references(contents: Mapping[ContentClass, Contents], blobs: Mapping[Digest, Blob]) -> Iterator[tuple[str, Descriptor]]:
    for each, listed in contents.items():
        for artifact in listed.artifacts:
            root = Descriptor(media_type=artifact.media_type, digest=artifact.root, size=blobs[artifact.root].size)
            if each is not ContentClass.IMAGES:
                yield f"{each}/{artifact.name}:{artifact.version}", root
            elif artifact.media_type in {OCI_INDEX, OCI_MANIFEST}:
                yield artifact.name, root
            else:
                yield f"{artifact.name}@{artifact.root}", root
                yield artifact.name, _made_index(artifact, blobs)


def _made_index(artifact: Artifact, blobs: Mapping[Digest, Blob]) -> Descriptor:
    """Return the OCI index that was made for an image in docker's dialect; contents do not say its manifest's dialect."""
    if artifact.image is not None:
        manifest = blobs[artifact.image.manifest]
        architecture = artifact.image.platform.rpartition("-")[2]
        for media_type in _MANIFESTS:
            described = {
                "mediaType": media_type,
                "digest": manifest.digest,
                "size": manifest.size,
                "platform": {"architecture": architecture, "os": "linux"},
            }
            made = small_blob(json_bytes({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [described]}))
            if made.digest in artifact.blobs:
                return Descriptor(media_type=OCI_INDEX, digest=made.digest, size=made.size)
    raise FormatError(f"image {artifact.name}: no OCI index of its manifest among its blobs", hint="create the bundle again")
