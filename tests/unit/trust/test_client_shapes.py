# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Attacks on the client workflow: each breaks one thing of a valid world."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from tuf.api.metadata import Metadata

from appliance.bundle.contents import ContentClass
from appliance.bundle.documents import encode
from appliance.bundle.safetensors import parse_strict_json
from appliance.digests import digest_of, hex_of
from appliance.errors import ApplianceError, FormatError
from appliance.trust.client import verify_metadata
from tests.support.carried import small_chunks
from tests.support.simulator import Files, Line, blob_of, bytes_of, contents_of, file_artifact, path_of
from tests.support.twosigners import LIES, TwoSigners
from tests.unit.trust.refusals import refused


def delegations(change: Any) -> Any:  # noqa: ANN401 - a mutation of parsed JSON
    return lambda signed: change(signed["delegations"])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (delegations(lambda d: d["roles"].pop()), "does not delegate exactly the eight classes"),
        (delegations(lambda d: d["roles"].append({**d["roles"][0], "name": "more"})), "does not delegate exactly the eight classes"),
        (delegations(lambda d: d["roles"][1].update(paths=["contents/images.json"])), "delegates to models other paths"),
        (delegations(lambda d: d["roles"][1].update(paths=["contents/models.json", "*"])), "delegates to models other paths"),
        (delegations(lambda d: d["roles"][0].update(terminating=False)), "delegates to images other paths"),
        (delegations(lambda d: d["roles"][0].update(threshold=1)), "alone could meet the threshold 1"),
        (delegations(lambda d: d["roles"][0].update(x=1)), "delegates to images other paths"),
        (lambda signed: signed.pop("delegations"), "does not delegate exactly the eight classes"),
        (lambda signed: signed["targets"].update({"more": dict(signed["targets"]["release.json"])}), "signs other things"),
    ],
)
def test_delegation_tricks_are_refused(change: Any, match: str) -> None:  # noqa: ANN401 - a mutation of parsed JSON
    line = Line()
    files = line.publish()
    refused(line, line.edit(files, "1.targets.json", change), match)


def test_a_class_that_delegates_further_or_signs_another_class_is_refused() -> None:
    line = Line()
    files = line.publish()
    nested = json.loads(files["1.targets.json"])["signed"]["delegations"]
    refused(line, line.edit(files, "1.models.json", lambda signed: signed.update(delegations=nested)), "models signs other things")
    images = json.loads(files["1.images.json"])["signed"]["targets"]
    refused(line, line.edit(files, "1.models.json", lambda signed: signed.update(targets=images)), "models signs other things")


def test_contents_of_one_class_offered_as_another_are_refused() -> None:
    line = Line()
    images = encode(contents_of(ContentClass.IMAGES, [], []))
    refused(line, line.publish(raw={ContentClass.MODELS: images}), "contents/models.json says it is of class images")


@pytest.mark.parametrize("lie", LIES)
def test_a_models_key_that_lists_another_class_blob_with_other_chunks_is_refused(lie: str) -> None:
    """Bob, who signs models only, lists the layer of alice's image in his model: in all else his model is as it should be."""
    with small_chunks():
        signers = TwoSigners(Line())
        _, honest, _ = signers.release(blob_of(signers.weights))
        seen = signers.line.verify(honest).seen
        _, same, _ = signers.release(signers.honest)
        assert signers.line.verify(same, seen=seen).blobs[signers.honest.digest] == signers.honest
        _, files, _ = signers.release(LIES[lie](signers.honest))
        refused(signers.line, files, f"{signers.honest.digest}: class images and class models disagree", seen=seen)
        _, alone, _ = signers.release(LIES[lie](signers.honest), image=False)
        assert signers.line.verify(alone, seen=seen).blobs[signers.honest.digest] == LIES[lie](signers.honest)


def test_two_classes_of_one_signer_that_disagree_about_chunks_are_refused() -> None:
    line = Line()
    size = 64 * 1024 * 1024 + 1
    data = bytes_of("layer", size)
    artifact, blobs = file_artifact("layer", data)
    honest = contents_of(ContentClass.FILES, [artifact], map(blob_of, blobs.values()))
    lie = [
        msgspec.structs.replace(blob, chunks=(blob.chunks[1], blob.chunks[0])) if blob.chunks else blob
        for blob in map(blob_of, blobs.values())
    ]
    other = contents_of(ContentClass.POLICY, [artifact], lie)
    files = line.publish({ContentClass.FILES: honest, ContentClass.POLICY: other})
    refused(line, files, "class files and class policy disagree about its size or chunks")


def test_snapshot_that_names_fewer_or_more_roles_is_refused() -> None:
    line = Line()
    files = line.publish()
    for change in (lambda signed: signed["meta"].pop("models.json"), lambda signed: signed["meta"].update({"x.json": {"version": 1}})):
        refused(line, line.edit(files, "1.snapshot.json", change), "snapshot names other roles")


@pytest.mark.parametrize("change", [{"hashes": {"sha512": "0" * 128}}, {"custom": {"x": 1}}, {"hashes": {"sha256": "0" * 64, "md5": "0"}}])
def test_a_target_with_other_hashes_or_fields_is_refused(change: dict[str, object]) -> None:
    line = Line()
    files = line.edit(line.publish(), "1.files.json", lambda signed: signed["targets"]["contents/files.json"].update(change))
    refused(line, files, "other hashes or fields", kind=FormatError)


def test_a_wrong_length_in_metadata_is_refused() -> None:
    line = Line()
    files = line.edit(line.publish(), "1.files.json", lambda signed: signed["targets"]["contents/files.json"].update(length=1))
    refused(line, files, "is not the file that was signed")


def test_a_release_that_installs_a_chart_it_does_not_carry_is_refused() -> None:
    line = Line()
    chart = {"name": "serve", "chart": "serve", "namespace": "models", "values": "{}"}
    files = line.publish(release=line.release(charts=(chart,)))
    refused(line, files, "installs chart 'serve', which class charts does not hold")


def test_a_newer_format_is_made_by_a_newer_appliance() -> None:
    line = Line()
    release = encode(line.release()).replace(b"release/1", b"release/2")
    refused(line, line.publish(release=release), "made by a newer appliance", kind=FormatError)
    contents = encode(contents_of(ContentClass.FILES, [], [])).replace(b"contents/1", b"contents/2")
    refused(line, line.publish(raw={ContentClass.FILES: contents}), "made by a newer appliance", kind=FormatError)


@pytest.mark.parametrize(
    ("needs", "has", "newer"), [("0.2.0", "0.1.0", True), ("0.10.0", "0.9.9", True), ("0.1.0", "0.1.0", False), ("0.1", "0.1.1", False)]
)
def test_a_newer_minimum_appliance_is_refused(needs: str, has: str, newer: bool) -> None:  # noqa: FBT001 - a parameter of the table
    line = Line()
    files = line.publish(release=line.release(minimum_appliance=needs))

    def verify() -> None:
        verify_metadata(files, pinned_root=line.pin, seen=None, now=line.now, version=has)

    if not newer:
        verify()
        return
    with pytest.raises(FormatError, match=f"it needs {needs}, this is {has}"):
        verify()


def test_engine_settings_which_nothing_here_applies_are_refused() -> None:
    line = Line()
    files = line.publish(release=line.release(engine='{"tensor_parallel":2}'))
    refused(line, files, "made by a newer appliance: it has engine settings, which this one does not apply", kind=FormatError)
    line.verify(line.publish(release=line.release(engine="")))


def test_a_minimum_that_is_no_version_is_refused() -> None:
    line = Line()
    refused(line, line.publish(release=line.release(minimum_appliance="latest")), "is not a version", kind=FormatError)


def test_an_unknown_tuf_specification_is_refused() -> None:
    line = Line()
    files = line.publish()
    document = json.loads(files["timestamp.json"])
    document["signed"]["spec_version"] = "2.0.0"
    data = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    refused(line, {**files, "timestamp.json": data}, "Unsupported spec_version", kind=FormatError)


# --- shapes of JSON -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"signed":' * 50_000,
        b'{"signed":{"_type":"timestamp","version":' + b"9" * 5000 + b"}}",
        b" " * 70_000,
    ],
    ids=["empty", "null", "list", "object", "not utf-8", "deep", "deep objects", "huge number", "too long"],
)
def test_hostile_json_is_refused(data: bytes) -> None:
    line = Line()
    refused(line, {**line.publish(), "timestamp.json": data}, "timestamp.json", kind=FormatError)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"[" * 60_000, "nested too deep"),
        (b'{"signed":{"_type":"timestamp","version":' + b"9" * 5000 + b"}}", "a number of too many digits"),
        (b'"\xff"', "not UTF-8 at byte 1"),
    ],
    ids=["deep", "huge number", "not utf-8"],
)
def test_a_refusal_speaks_of_the_bytes_and_not_of_the_interpreter(data: bytes, reason: str) -> None:
    line = Line()
    refused(line, {**line.publish(), "timestamp.json": data}, reason, kind=FormatError)
    with pytest.raises(FormatError, match=reason):
        parse_strict_json(data.replace(b"timestamp", b"x"), what="config.json")


def respell(line: Line, files: Files, old: bytes, new: bytes) -> None:
    assert old in files["timestamp.json"]
    refused(line, {**files, "timestamp.json": files["timestamp.json"].replace(old, new, 1)}, "timestamp.json", kind=ApplianceError)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"version":1}', b'"version":1,"version":1}'),
        (b'"version":1}', b'"version":1.0}'),
        (b'"version":1}', b'"version":true}'),
        (b'"version":1}', b'"version":1e0}'),
        (b'"version":1}', b'"version":-1}'),
        (b'"version":1}', b'"version": 1}'),
        (b'"x-line":"acme"', b'"x-line":"\\u0061cme"'),
        (b'{"signatures"', b'{"extra":1,"signatures"'),
        (b'"sig":"', b'"extra":1,"sig":"'),
        (b'"_type":"timestamp"', b'"_type":"root"'),
        (b'"_type":"timestamp"', b'"_type":"targets"'),
    ],
)
def test_another_spelling_of_the_same_metadata_is_refused(old: bytes, new: bytes) -> None:
    line = Line()
    respell(line, line.publish(), old, new)


@pytest.mark.parametrize("version", [True, 2**60, 1.0])
def test_a_version_that_is_no_plain_number_is_refused_even_signed(version: object) -> None:
    line = Line()
    files = line.publish()
    document = json.loads(files["timestamp.json"])
    document["signed"]["version"] = version
    if not isinstance(version, float):
        files = line.edit(files, "timestamp.json", lambda signed: signed.update(version=version))
    else:
        files["timestamp.json"] = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    refused(line, files, "timestamp.json", kind=FormatError)


def test_upper_case_signatures_are_refused() -> None:
    line = Line()
    files = line.publish()
    document = json.loads(files["timestamp.json"])
    for signature in document["signatures"]:
        signature["sig"] = signature["sig"].upper()
    refused(line, {**files, "timestamp.json": Metadata.from_dict(document).to_bytes()}, "not in canonical form", kind=FormatError)


def test_non_canonical_contents_are_refused_even_signed() -> None:
    line = Line()
    plain = encode(contents_of(ContentClass.FILES, [], []))
    for data in (
        plain + b"\n",
        plain.replace(b'"files"', b'"fil\\u0065s"'),
        plain[:-1] + b',"x":1}',
        plain.replace(b'"blobs":[]', b'"blobs":[],"blobs":[]'),
    ):
        refused(line, line.publish(raw={ContentClass.FILES: data}), "contents/files.json", kind=FormatError)


def test_the_hash_in_a_targets_name_is_that_of_its_bytes() -> None:
    line = Line()
    files = line.publish()
    for path, data in files.items():
        if path.startswith("targets/"):
            assert hex_of(digest_of(data)) in path


def test_each_refusal_of_a_shape_says_which_shape() -> None:
    """The limit is looked at before parsing, the type before the line, the line even of a signed file."""
    line = Line()
    files = line.publish()
    refused(line, {**files, "timestamp.json": b" " * 64_001}, "64001 bytes is more than it may have", kind=FormatError)
    refused(line, {**files, "timestamp.json": files["1.snapshot.json"]}, "it says it is snapshot, expected timestamp", kind=FormatError)
    refused(line, {**files, "1.models.json": files["timestamp.json"]}, "it says it is timestamp, expected targets", kind=FormatError)
    for role in ("timestamp", "snapshot", "targets", "models"):
        nameless = line.edit(files, path_of(files, role), lambda signed: signed.pop("x-line"))
        refused(line, nameless, "it names no line", kind=FormatError)


def test_a_model_without_a_weights_manifest_is_refused() -> None:
    line = Line()
    artifact, blobs = file_artifact("tiny", b"weights")
    files = line.publish({ContentClass.MODELS: contents_of(ContentClass.MODELS, [artifact], map(blob_of, blobs.values()))})
    refused(line, files, "model tiny has no weights manifest")
