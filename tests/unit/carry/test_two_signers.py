# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A signer of models who lies about an image's bytes reaches no store: neither beside the image nor after it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.errors import VerificationError
from appliance.verify import load_trust
from appliance.verify.metadata import verify_bundle_metadata
from tests.support.carried import ONE, World, rewrite, small_chunks
from tests.support.observe import unchanged
from tests.support.simulator import Line, blob_of, write_bundle
from tests.support.twosigners import LIES, TwoSigners, shared_line


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with small_chunks():
        yield World(tmp_path, line=shared_line(Line()))


@pytest.fixture
def signers(world: World) -> TwoSigners:
    return TwoSigners(world.line)


def publish(world: World, signers: TwoSigners, lie: str | None = None, *, image: bool = True) -> None:
    """A further release as the world's newest: with an honest model, or with one that lists the image's layer as `lie` says."""
    model = blob_of(signers.weights) if lie is None else LIES[lie](signers.honest)
    world.number += 1
    world.contents, world.files, world.blobs = signers.release(model, image=image)
    write_bundle(world.bundle, world.files, world.blobs)


@pytest.mark.parametrize("lie", LIES)
def test_a_models_key_that_lists_an_image_blob_with_other_chunks_is_refused_at_read(world: World, signers: TwoSigners, lie: str) -> None:
    publish(world, signers)
    world.write(room=ONE)
    publish(world, signers, lie)
    rewrite(world.parts()[0], world.files)
    with unchanged(world.state, besides=["store.lock"], times=False), pytest.raises(VerificationError) as caught:
        world.read()
    assert f"{signers.honest.digest}: class images and class models disagree" in caught.value.message
    assert "which key signed it" in str(caught.value.hint)
    assert not list(world.store.blobs.glob("*"))
    assert not list(world.store.staging.glob("*"))


@pytest.mark.parametrize("lie", LIES)
def test_the_same_lie_is_refused_by_whoever_verifies_or_carries_the_bundle(world: World, signers: TwoSigners, lie: str) -> None:
    publish(world, signers, lie)
    trust = load_trust(world.state / "trust" / "acme")
    with unchanged(world.state, world.bundle), pytest.raises(VerificationError, match="class images and class models disagree") as caught:
        verify_bundle_metadata(world.bundle, trust, now=world.line.now)
    assert caught.value.hint
    with unchanged(world.bundle), pytest.raises(VerificationError, match="class models and class images disagree"):
        world.write(room=ONE)
    assert not world.root.joinpath("media").exists()


@pytest.mark.parametrize("lie", LIES)
def test_a_models_key_that_lies_about_an_image_of_an_earlier_release_is_refused_at_read(
    world: World, signers: TwoSigners, lie: str
) -> None:
    publish(world, signers)
    world.write(room=ONE)
    assert world.read().complete
    publish(world, signers, lie, image=False)
    first = world.root / "media"
    first.rename(world.root / "first")
    world.carry("media", *world.parts("first"))
    rewrite(world.parts()[0], world.files)
    with unchanged(world.state, besides=["store.lock"]), pytest.raises(VerificationError) as caught:
        world.read()
    said = re.escape(f"{signers.honest.digest}: an earlier release and this one disagree")
    assert re.search(said, caught.value.message)
    assert caught.value.hint
    layer = world.store.blob_path(signers.honest.digest)
    assert layer.read_bytes() == signers.layer


def test_a_models_key_may_list_the_image_blob_as_it_is(world: World, signers: TwoSigners) -> None:
    publish(world, signers)
    world.write(room=ONE)
    assert world.read().complete
    world.number += 1
    world.contents, world.files, world.blobs = signers.release(signers.honest)
    write_bundle(world.bundle, world.files, world.blobs)
    world.write("second", room=ONE)
    assert world.read("second").complete
    assert world.holds_all()
