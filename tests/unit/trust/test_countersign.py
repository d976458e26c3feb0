# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A class given to another person, and that person's signature."""

from __future__ import annotations

import pytest

from appliance.bundle import formats
from appliance.bundle.contents import ContentClass, Contents
from appliance.bundle.layout import BuiltArtifact, ModelLayer, build_model
from appliance.bundle.weights import WeightsFile, build_statement
from appliance.errors import ApplianceError, FormatError, UsageError, VerificationError
from appliance.trust.countersign import check_signed, countersign, signature_states
from appliance.trust.envelope import seal
from appliance.trust.publication import delegate, new_publication
from appliance.trust.summary import describe
from tests.support.simulator import Files, Line, blob_of, contents_of, person


def model() -> tuple[BuiltArtifact, bytes]:
    data = {"config.json": b"{}", "model.safetensors": b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "}
    blobs = {path: blob_of(each) for path, each in data.items()}
    statement = build_statement("tiny", "1", [WeightsFile(path=path, size=blob.size, digest=blob.digest) for path, blob in blobs.items()])
    layers = [ModelLayer(path=path, media_type=formats.MODEL_WEIGHT_RAW, blob=blob) for path, blob in blobs.items()]
    return build_model("tiny", "1", layers, statement=statement, license_="Apache-2.0"), statement


def with_model(line: Line) -> Files:
    built, statement = model()
    contents: dict[ContentClass, Contents] = {ContentClass.MODELS: contents_of(ContentClass.MODELS, [built.artifact], built.blobs)}
    return line.publish(contents, statements=[statement])


def delegated() -> Line:
    line = Line()
    line.publication = delegate(line.publication, ContentClass.MODELS, [signer.public_key for signer in person("bob")])
    return line


def test_a_class_given_away_needs_the_other_person() -> None:
    line = delegated()
    files = with_model(line)
    with pytest.raises(VerificationError, match=r"models\.json by targets: 0 of 2 needed signatures"):
        line.verify(files)
    lacking = [(state.role, state.lacking) for state in signature_states(files, pinned_root=line.pin) if state.lacking]
    assert lacking == [("models", 2), ("models", 2)]
    changed, states = countersign(files, pinned_root=line.pin, signers=person("bob"))
    assert states[0].says.startswith("class models holds 1 artifacts of ")
    assert states[1].says == "weights manifest of tiny 1"
    bundle = line.verify({**files, **changed})
    assert next(iter(bundle.weights.values())).name == "tiny"


def test_a_bundle_that_lacks_signatures_is_not_finished() -> None:
    line = delegated()
    files = with_model(line)
    with pytest.raises(VerificationError, match=r"one: signatures are still lacking: models \(2\)") as caught:
        check_signed(files, what="one")
    assert "appliance keys sign one --publication DIR" in str(caught.value.hint)
    changed, _ = countersign(files, pinned_root=line.pin, signers=person("bob"))
    check_signed({**files, **changed}, what="one")
    with pytest.raises(VerificationError, match=r"1\.root\.json is missing"):
        check_signed({name: data for name, data in files.items() if name != "1.root.json"}, what="one")


def test_the_publications_own_keys_no_longer_sign_the_class() -> None:
    line = delegated()
    files = with_model(line)
    with pytest.raises(UsageError, match="roles that lack signatures: models"):
        countersign(files, pinned_root=line.pin, signers=line.signers)
    forged = line.edit(
        files, next(path for path in files if path.endswith(".models.json") and "/" not in path), lambda signed: signed.update(x=1)
    )
    with pytest.raises(VerificationError, match="is not a key of role models"):
        line.verify(forged)


def test_two_persons_of_a_class_both_sign_step_by_step() -> None:
    line = delegated()
    line.publication = delegate(line.publication, ContentClass.MODELS, [signer.public_key for signer in person("carol")])
    assert line.publication.delegations[ContentClass.MODELS].threshold == 3
    files = with_model(line)
    first, _ = countersign(files, pinned_root=line.pin, signers=person("bob"))
    with pytest.raises(VerificationError, match="2 of 3 needed signatures"):
        line.verify({**files, **first})
    second, _ = countersign({**files, **first}, pinned_root=line.pin, signers=person("carol"))
    line.verify({**files, **first, **second})


def test_a_whole_release_can_be_signed_in_two_sittings() -> None:
    """Solo keys apart: the classical key signs on one machine, the ML-DSA key on another."""
    line = Line()
    files = line.publish(signers=line.signers[:1])
    with pytest.raises(VerificationError, match="only classical keys signed"):
        line.verify(files)
    changed, states = countersign(files, pinned_root=line.pin, signers=line.signers[1:])
    assert len(states) == 11
    line.verify({**files, **changed})


def test_only_the_roles_asked_for_are_signed() -> None:
    line = Line()
    files = line.publish(signers=line.signers[:1])
    changed, _ = countersign(files, pinned_root=line.pin, signers=line.signers[1:], roles=["snapshot"])
    assert list(changed) == ["1.snapshot.json"]


def test_signing_what_was_changed_on_the_way_is_refused() -> None:
    line = Line()
    files = line.publish(signers=line.signers[:1])
    broken = line.edit(files, "1.files.json", lambda signed: signed.update(version=2), sign=False)
    with pytest.raises(VerificationError, match="does not verify"):
        countersign(broken, pinned_root=line.pin, signers=line.signers[1:])
    other = Line("other")
    with pytest.raises(ApplianceError, match="line 'acme'"):
        countersign(files, pinned_root=other.pin, signers=line.signers[1:])


def test_a_complete_release_has_nothing_to_sign() -> None:
    line = Line()
    with pytest.raises(UsageError, match="roles that lack signatures: none"):
        countersign(line.publish(), pinned_root=line.pin, signers=line.signers)


@pytest.mark.parametrize("count", [1])
def test_a_class_is_not_given_to_one_family(count: int) -> None:
    with pytest.raises(UsageError, match="1 classical and 0 ML-DSA"):
        delegate(new_publication("acme"), ContentClass.MODELS, [signer.public_key for signer in person("bob")[:count]])


def test_a_class_is_not_given_twice_to_one_person() -> None:
    line = delegated()
    with pytest.raises(UsageError, match="signs it already"):
        delegate(line.publication, ContentClass.MODELS, [signer.public_key for signer in person("bob")])


@pytest.mark.parametrize("name", ["", "Acme", "a/b", "..", "-a", "a-", "a" * 65, "a b"])
def test_a_line_with_an_odd_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="not a plain name"):
        new_publication(name)


def test_a_swapped_missing_or_unsigned_weights_manifest_is_refused() -> None:
    line = Line()
    files = with_model(line)
    path = next(name for name in files if name.startswith("weights/"))
    line.verify(files)
    with pytest.raises(VerificationError, match="is missing"):
        line.verify({name: data for name, data in files.items() if name != path})
    other = build_statement("tiny", "2", [WeightsFile(path="x", size=1, digest=blob_of(b"x").digest)])
    with pytest.raises(VerificationError, match="is not the weights manifest that contents pin"):
        line.verify({**files, path: seal(formats.STATEMENT_PAYLOAD, other, line.signers)})
    with pytest.raises(VerificationError, match="1 of 2 needed"):
        line.verify({**files, path: seal(formats.STATEMENT_PAYLOAD, model()[1], line.signers[:1])})
    with pytest.raises(VerificationError, match="payload type"):
        line.verify({**files, path: seal("text/plain", model()[1], line.signers)})


def test_what_does_not_belong_together_is_not_signed() -> None:
    line, other = Line(), Line("other")
    files = with_model(line)
    half = line.signers[:1]

    def refused(changed: Files, match: str) -> None:
        with pytest.raises(VerificationError, match=match):
            signature_states(changed, pinned_root=line.pin)

    refused({**files, "timestamp.json": other.publish()["timestamp.json"]}, "is of another line than 'acme'")
    refused(line.edit(files, "1.snapshot.json", lambda signed: signed["meta"].pop("code.json"), sign=half), "snapshot names other roles")
    weights = next(path for path in files if path.startswith("weights/"))
    refused({path: data for path, data in files.items() if path != weights}, "is missing, which contents of models names")


def test_a_release_is_not_made_with_foreign_keys_or_roots() -> None:
    line = Line()
    with pytest.raises(UsageError, match="none of the keys given is a key of this publication"):
        line.publish(signers=person("mallory"))
    line.roots = Line("other").roots
    with pytest.raises(UsageError, match="root 1 is not of line 'acme'"):
        line.publish()
    line.roots = []
    with pytest.raises(UsageError, match="the publication has no root"):
        line.publish()
    with pytest.raises(FormatError, match="the publication has no root"):
        describe(line.publication, [])
