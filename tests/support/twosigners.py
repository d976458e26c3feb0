# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A line of two people: alice signs everything but models, which bob's keys alone sign; an image and a model; and bob's lies.

Every lie is complete otherwise: contents in order, a weights manifest that agrees with them and is signed by bob.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from appliance.bundle import formats
from appliance.bundle.contents import Artifact, Blob, ContentClass, Contents, ImageBinding
from appliance.bundle.layout import BuiltArtifact, ModelLayer, build_model
from appliance.bundle.weights import WeightsFile, build_statement
from appliance.digests import CHUNK_BYTES, Digest, digest_of
from appliance.trust.publication import delegate
from tests.support.simulator import Files, Line, blob_of, bytes_of, contents_of, person, write_bundle

IMAGE = "registry.test/team/app:1.0"


def shared_line(line: Line) -> Line:
    """`line` with the class models given to bob, and bob's keys among those that sign; once."""
    if ContentClass.MODELS in line.publication.delegations:
        return line
    line.publication = delegate(line.publication, ContentClass.MODELS, [signer.public_key for signer in person("bob")])
    line.signers = [*person("alice"), *person("bob")]
    return line


def image_artifact(reference: str, layer: bytes) -> tuple[Artifact, Mapping[Digest, bytes]]:
    """A real image of one layer: index, manifest of linux/amd64, config."""

    def document(value: object) -> bytes:
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()

    def descriptor(media_type: str, data: bytes) -> dict[str, object]:
        return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}

    config = document({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest_of(layer)]}})
    layers = [descriptor("application/vnd.oci.image.layer.v1.tar", layer)]
    config_type = "application/vnd.oci.image.config.v1+json"
    manifest = document(
        {"schemaVersion": 2, "mediaType": formats.OCI_MANIFEST, "config": descriptor(config_type, config), "layers": layers}
    )
    entry = {**descriptor(formats.OCI_MANIFEST, manifest), "platform": {"os": "linux", "architecture": "amd64"}}
    index = document({"schemaVersion": 2, "mediaType": formats.OCI_INDEX, "manifests": [entry]})
    blobs = {digest_of(data): data for data in (index, manifest, config, layer)}
    binding = ImageBinding(
        reference=reference, index=digest_of(index), manifest=digest_of(manifest), config=digest_of(config), platform="linux/amd64"
    )
    artifact = Artifact(
        name=reference,
        version="1.0",
        media_type=formats.OCI_INDEX,
        root=digest_of(index),
        blobs=tuple(sorted(blobs)),
        image=binding,
        source=reference,
    )
    return artifact, blobs


def model_of(weights: Blob) -> tuple[BuiltArtifact, bytes]:
    """A model of the one file `weights`, and its weights manifest, which agrees with it."""
    file = WeightsFile(path="model.safetensors", size=weights.size, digest=weights.digest, chunks=weights.chunks)
    statement = build_statement("tiny", "1", [file])
    layer = ModelLayer(path=file.path, media_type=formats.MODEL_WEIGHT_RAW, blob=weights)
    return build_model("tiny", "1", [layer], statement=statement, license_="Apache-2.0"), statement


@dataclass
class TwoSigners:
    """The line, an image of alice's, a model of bob's, and what each release carries."""

    line: Line
    layer: bytes = field(default_factory=lambda: bytes_of("layer", 2 * CHUNK_BYTES + 1))
    weights: bytes = field(default_factory=lambda: bytes_of("weights", CHUNK_BYTES + 1))

    def __post_init__(self) -> None:
        shared_line(self.line)

    @property
    def honest(self) -> Blob:
        """What alice's images contents list of the layer."""
        return blob_of(self.layer)

    def release(self, weights: Blob, *, image: bool = True) -> tuple[dict[ContentClass, Contents], Files, dict[Digest, bytes]]:
        """Contents, metadata and blobs of a release whose model is `weights`, with the image or without it."""
        artifact, blobs = image_artifact(IMAGE, self.layer)
        model, statement = model_of(weights)
        contents = {ContentClass.MODELS: contents_of(ContentClass.MODELS, [model.artifact], model.blobs)}
        data = {**model.documents, weights.digest: self.weights if weights.digest == digest_of(self.weights) else self.layer}
        if image:
            contents[ContentClass.IMAGES] = contents_of(ContentClass.IMAGES, [artifact], map(blob_of, blobs.values()))
            data |= blobs
        return contents, self.line.publish(contents, statements=[statement]), data

    def bundle(self, folder: Path, weights: Blob, *, image: bool = True) -> Path:
        """The same as a bundle directory."""
        _, files, blobs = self.release(weights, image=image)
        return write_bundle(folder, files, blobs)


Lie = Callable[[Blob], Blob]
"""From what alice lists of the layer to what bob lists of it."""


def _turned(blob: Blob) -> Blob:
    return msgspec.structs.replace(blob, chunks=(blob.chunks[1], blob.chunks[0], *blob.chunks[2:]))


def _foreign(blob: Blob) -> Blob:
    return msgspec.structs.replace(blob, chunks=(digest_of(b"another chunk"), *blob.chunks[1:]))


def _longer(blob: Blob) -> Blob:
    return msgspec.structs.replace(blob, size=blob.size + 1)


def _fewer(blob: Blob) -> Blob:
    return msgspec.structs.replace(blob, size=CHUNK_BYTES + 1, chunks=blob.chunks[:2])


def _single(blob: Blob) -> Blob:
    return msgspec.structs.replace(blob, size=CHUNK_BYTES, chunks=())


LIES: Mapping[str, Lie] = {"turned": _turned, "foreign": _foreign, "longer": _longer, "fewer": _fewer, "single": _single}
