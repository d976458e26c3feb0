# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The depot's registry tree carries the release's metadata, follows it when it is exchanged, and is judged with the store."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from appliance.bundle.metadata_artifact import metadata_artifact
from appliance.digests import digest_of, hex_of
from appliance.errors import HostError
from appliance.store import Store
from appliance.store.checking import verify_store
from appliance.store.registry import registry_tree
from tests.support.depot import Placement, Served
from tests.support.faults import flip_byte
from tests.support.observe import unchanged


def served_at(world: Placement, data: bytes) -> Path:
    digits = hex_of(digest_of(data))
    return world.tree / "docker" / "registry" / "v2" / "blobs" / "sha256" / digits[:2] / digits / "data"


def tag(world: Placement) -> str:
    place = world.tree / "docker" / "registry" / "v2" / "repositories" / "appliance" / "metadata"
    return (place / "_manifests" / "tags" / hex_of(world.release) / "current" / "link").read_text()


def test_every_metadata_file_is_served_as_a_link_to_the_releases_own(world: Placement) -> None:
    for path, data in world.files.items():
        assert served_at(world, data).samefile(world.tree.parent / "metadata" / path)
    assert tag(world) == digest_of(metadata_artifact(world.files).manifest)
    with unchanged(world.depot):
        registry_tree(Store(world.depot), Store(world.depot).release())


def test_newer_signatures_of_the_same_release_move_the_tag_and_reach_the_node(world: Placement, served: Served) -> None:
    world.place(served)
    before = world.release, tag(world)
    world.line.now += timedelta(days=30)
    world.publish(version="1.0.0")
    assert world.release == before[0]
    assert tag(world) == digest_of(metadata_artifact(world.files).manifest) != before[1]
    report = world.place(served)
    assert (report.remembered, [model.changed for model in report.models]) == (True, [False])
    assert verify_store(Store(world.depot), workers=1).findings == ()


def test_the_same_files_give_the_same_manifest_in_any_order(world: Placement) -> None:
    backwards = dict(reversed(world.files.items()))
    assert metadata_artifact(backwards).manifest == metadata_artifact(world.files).manifest


def test_damaged_metadata_in_the_tree_is_found_by_store_verify(world: Placement) -> None:
    manifest = served_at(world, metadata_artifact(world.files).manifest)
    flip_byte(manifest, 10)
    (finding,) = verify_store(Store(world.depot), workers=1).findings
    assert finding.path == manifest


def test_a_tree_with_other_bytes_under_a_metadata_digest_is_refused(world: Placement) -> None:
    path = served_at(world, world.files["timestamp.json"])
    path.unlink()
    path.write_bytes(b"other")
    (world.tree / "made-from").unlink()
    with pytest.raises(HostError, match="is not sha256:"):
        registry_tree(Store(world.depot), Store(world.depot).release())
