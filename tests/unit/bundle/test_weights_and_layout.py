# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from appliance.bundle import formats
from appliance.bundle.contents import Artifact, Blob, ContentClass, PackageEntry, check_contents
from appliance.bundle.documents import MAX_DOCUMENT_BYTES
from appliance.bundle.layout import (
    EMPTY,
    OCI_LAYOUT,
    BuiltArtifact,
    Descriptor,
    ModelLayer,
    build_chart,
    build_file,
    build_installer,
    build_model,
    build_packages,
    index_bytes,
    small_blob,
)
from appliance.bundle.weights import WeightsFile, build_statement, check_agreement, parse_statement
from appliance.digests import CHUNK_BYTES, digest_of
from appliance.errors import ApplianceError, FormatError, VerificationError
from tests.support.simulator import contents_of

SMALL = WeightsFile(path="config.json", size=2, digest=digest_of(b"{}"))
LARGE = WeightsFile(path="model.safetensors", size=CHUNK_BYTES + 1, digest=digest_of(b"large"), chunks=(digest_of(b"1"), digest_of(b"2")))
STATEMENT = build_statement("tiny", "1", [LARGE, SMALL])


def test_the_statement_names_every_file_and_survives_its_bytes() -> None:
    found = parse_statement(STATEMENT, what="weights")
    assert [file.path for file in found.files] == ["config.json", "model.safetensors"]
    assert build_statement(found.name, found.version, found.files[::-1]) == STATEMENT
    document = json.loads(STATEMENT)
    assert document["_type"] == formats.STATEMENT
    assert [subject["name"] for subject in document["subject"]] == ["config.json", "model.safetensors"]


def test_a_renamed_file_is_another_model() -> None:
    renamed = msgspec.structs.replace(SMALL, path="config2.json")
    assert digest_of(build_statement("tiny", "1", [renamed, LARGE])) != digest_of(STATEMENT)


def change(mutate: Callable[[dict[str, Any]], object]) -> bytes:
    document = json.loads(STATEMENT)
    mutate(document)
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "not a weights manifest"),
        (b"[" * 100_000, "not a weights manifest"),
        (STATEMENT + b"\n", "not in canonical form|not a weights"),
        (STATEMENT.replace(b'"name":"tiny"', b'"name":"tiny","name":"tiny"'), "not in canonical form"),
        (change(lambda found: found.update(more=1)), "unknown field"),
        (change(lambda found: found.update(predicateType="https://example.com/other")), "is not a weights manifest"),
        (change(lambda found: found.update(_type="https://in-toto.io/Statement/v2")), "is not a weights manifest"),
        (change(lambda found: found["predicate"].update(format="weights/2")), "made by a newer appliance"),
        (change(lambda found: found["subject"].pop()), "subjects and files differ"),
        (change(lambda found: found["subject"][0].update(name="x")), "subjects and files differ"),
        (change(lambda found: found["subject"][0]["digest"].update(sha512="00")), "Expected `str`|subjects and files differ"),
        (change(lambda found: found["subject"].reverse()), "subjects and files differ"),
        (change(lambda found: found["predicate"]["files"].reverse()), "not in order"),
        (change(lambda found: found["predicate"]["files"].append(found["predicate"]["files"][1])), "listed twice"),
        (change(lambda found: found["predicate"].update(files=[])), "it lists no file"),
        (change(lambda found: found["predicate"]["files"][0].update(path="../x")), "not a plain relative path"),
        (change(lambda found: found["predicate"]["files"][1]["chunks"].pop()), "lists 1 chunks"),
        (change(lambda found: found["predicate"]["files"][0].update(chunks=[digest_of(b"")])), "lists 1 chunks"),
        (change(lambda found: found["predicate"]["files"][0].update(size=-1)), "Expected `int` >= 0"),
    ],
)
def test_a_statement_with_a_fault_is_refused(data: bytes, match: str) -> None:
    with pytest.raises(FormatError, match=match) as caught:
        parse_statement(data, what="weights")
    assert caught.value.hint


def test_a_statement_that_is_too_long_is_refused_unread() -> None:
    with pytest.raises(FormatError, match="more than a document may have"):
        parse_statement(b" " * (MAX_DOCUMENT_BYTES + 1), what="weights")


def model(*, statement: bytes = STATEMENT) -> BuiltArtifact:
    blobs = {"config.json": small_blob(b"{}"), "model.safetensors": Blob(digest=LARGE.digest, size=LARGE.size, chunks=LARGE.chunks)}
    layers = [ModelLayer(path=path, media_type=formats.MODEL_WEIGHT_RAW, blob=blob) for path, blob in blobs.items()]
    return build_model("tiny", "1", layers, statement=statement, license_="Apache-2.0")


def test_contents_and_statement_that_agree_pass() -> None:
    built = model()
    check_agreement(parse_statement(STATEMENT, what="x"), built.artifact, {blob.digest: blob for blob in built.blobs})


@pytest.mark.parametrize(
    "changed",
    [
        lambda artifact, blobs: (msgspec.structs.replace(artifact, version="2"), blobs),
        lambda artifact, blobs: (artifact, {**blobs, LARGE.digest: Blob(digest=LARGE.digest, size=LARGE.size, chunks=LARGE.chunks[::-1])}),
        lambda artifact, blobs: (artifact, {**blobs, SMALL.digest: Blob(digest=SMALL.digest, size=3)}),
        lambda artifact, blobs: (artifact, {digest: blob for digest, blob in blobs.items() if digest != SMALL.digest}),
        lambda artifact, blobs: (msgspec.structs.replace(artifact, blobs=(LARGE.digest,)), blobs),
    ],
)
def test_contents_and_statement_that_disagree_are_refused(changed: Callable[..., tuple[Artifact, dict[Any, Blob]]]) -> None:
    built = model()
    artifact, blobs = changed(built.artifact, {blob.digest: blob for blob in built.blobs})
    with pytest.raises(VerificationError):
        check_agreement(parse_statement(STATEMENT, what="x"), artifact, blobs)


def package(name: str) -> PackageEntry:
    data = name.encode()
    return PackageEntry(name=name, version="1", architecture="amd64", path=f"pool/{name}.deb", digest=digest_of(data), size=len(data))


def every() -> dict[ContentClass, BuiltArtifact]:
    payload = small_blob(b"payload")
    packages = [package("b"), package("a")]
    return {
        ContentClass.FILES: build_file("kubeadm", "1", payload, license_="Apache-2.0", source="https://files.example/kubeadm"),
        ContentClass.INSTALLER: build_installer("appliance", "0.1.0", payload, license_="Apache-2.0"),
        ContentClass.CHARTS: build_chart(
            "serve", "1", payload, chart_metadata={"name": "serve", "version": "1", "apiVersion": "v2"}, source=""
        ),
        ContentClass.OS: build_packages(
            "packages", "1", packages, blobs={each.digest: small_blob(each.name.encode()) for each in packages}, source=""
        ),
        ContentClass.MODELS: model(),
    }


@pytest.mark.parametrize("content_class", list(every()))
def test_a_built_artifact_makes_valid_contents_and_a_valid_manifest(content_class: ContentClass) -> None:
    built = every()[content_class]
    check_contents(contents_of(content_class, [built.artifact], built.blobs))
    manifest = json.loads(built.documents[built.artifact.root])
    listed = {blob.digest: blob.size for blob in built.blobs}
    assert manifest["schemaVersion"] == 2
    assert manifest["mediaType"] == formats.OCI_MANIFEST
    assert manifest["layers"]
    for descriptor in (manifest["config"], *manifest["layers"]):
        assert listed[descriptor["digest"]] == descriptor["size"]
    assert all(digest_of(data) == digest for digest, data in built.documents.items())


def test_building_twice_gives_the_same_bytes() -> None:
    assert every() == every()


def test_the_artifact_types_are_those_of_their_specifications() -> None:
    manifests = {each: json.loads(built.documents[built.artifact.root]) for each, built in every().items()}
    assert manifests[ContentClass.MODELS]["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifests[ContentClass.MODELS]["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    assert "artifactType" not in manifests[ContentClass.CHARTS]
    assert manifests[ContentClass.CHARTS]["config"]["mediaType"] == "application/vnd.cncf.helm.config.v1+json"
    config = json.loads(model().documents[manifests[ContentClass.MODELS]["config"]["digest"]])
    assert config["modelfs"] == {"type": "layers", "diffIds": [SMALL.digest, LARGE.digest]}
    assert json.loads(OCI_LAYOUT) == {"imageLayoutVersion": "1.0.0"}
    assert digest_of(EMPTY) == "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


def test_the_index_is_in_order_of_its_references() -> None:
    pairs = [(name, Descriptor(media_type="x/y", digest=digest_of(name.encode()), size=1)) for name in ("b:1", "a:1")]
    assert index_bytes(pairs) == index_bytes(pairs[::-1])
    found = json.loads(index_bytes(pairs))
    assert [each["annotations"][formats.OCI_REF_NAME] for each in found["manifests"]] == ["a:1", "b:1"]


@pytest.mark.parametrize(
    "build",
    [
        lambda: build_packages("p", "1", [package("a"), package("a")], blobs={package("a").digest: small_blob(b"a")}, source=""),
        lambda: build_packages("p", "1", [package("a")], blobs={}, source=""),
        lambda: build_statement("tiny", "1", []),
        lambda: build_statement("tiny", "1", [SMALL, SMALL]),
    ],
)
def test_what_cannot_be_built_is_refused(build: Callable[[], object]) -> None:
    with pytest.raises(ApplianceError):
        build()
