# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Models come onto a node whole, by chunk, verified from its own root; a second run leaves everything as it is."""

from __future__ import annotations

import os
from datetime import timedelta

import pytest

from appliance.digests import hex_of
from appliance.errors import ApplianceError, HostError, UsageError, VerificationError
from appliance.place.listing import Looks, list_models
from appliance.place.placing import State
from appliance.place.record import load_record
from tests.support.depot import CHUNK, TINY, Placement, Served
from tests.support.faults import flip_byte, replace_by_symlink
from tests.support.observe import unchanged
from tests.support.simulator import bytes_of


def test_a_model_is_placed_whole_read_only_under_its_digest_and_name(world: Placement, served: Served) -> None:
    report = world.place(served)
    (model,) = report.models
    assert (model.state, model.changed, report.changed, report.remembered) == (State.PLACED, True, True, True)
    assert world.holds()
    assert model.fetched == model.size == sum(len(data) for data in TINY.values())
    assert model.folder == world.places.models / hex_of(world.weights())
    assert sorted(path.name for path in world.places.models.iterdir()) == sorted(
        [hex_of(world.weights()), f"{hex_of(world.weights())}.placement.json", "by-name"]
    )
    record = load_record(world.places.record(world.weights()))
    assert record is not None
    assert (record.name, record.version, record.release, record.when) == ("tiny", "1.0", world.release, "2026-11-23T06:31:00Z")


def test_every_byte_comes_once_by_chunk_over_few_connections(world: Placement, served: Served) -> None:
    world.place(served, workers=2)
    assert sum(each.size for each in served.ranges()) == sum(len(data) for data in TINY.values())
    assert all(each.size <= CHUNK and each.first % CHUNK == 0 for each in served.ranges())
    assert len(served.ranges()) == len({(each.path, each.first) for each in served.ranges()}) == 6 + 3 + 1 + 1
    assert len(served.connections) <= 3


def test_a_second_run_says_in_place_asks_for_no_model_byte_and_writes_nothing(world: Placement, served: Served) -> None:
    world.place(served)
    served.asked.clear()
    with unchanged(world.root / "node", besides=["node.lock"]):
        report = world.place(served)
    assert [(model.state, model.changed, model.fetched) for model in report.models] == [(State.IN_PLACE, False, 0)]
    assert not report.changed
    assert served.ranges() == []


def test_verify_reads_every_byte_and_writes_nothing(world: Placement, served: Served) -> None:
    world.place(served)
    with unchanged(world.root / "node", besides=["node.lock"]):
        report = world.place(served, verify=True)
    assert [model.state for model in report.models] == [State.VERIFIED]
    assert not report.changed


def test_a_plan_says_what_would_be_done_and_writes_nothing_at_all(world: Placement, served: Served) -> None:
    with unchanged(world.root):
        report = world.place(served, plan=True)
    assert [model.state for model in report.models] == [State.PLACED]
    assert report.changed
    world.place(served)
    with unchanged(world.root):
        assert not world.place(served, plan=True).changed


def test_a_changed_byte_whose_time_was_put_back_is_seen_without_being_asked_for(world: Placement, served: Served) -> None:
    """The time of the last change of the inode cannot be put back, so the bytes are read again."""
    world.place(served)
    path = world.folder() / "model-00001-of-00002.safetensors"
    flip_byte(path, 2 * CHUNK + 7)
    with unchanged(world.root / "node", besides=["node.lock"]), pytest.raises(VerificationError) as caught:
        world.place(served)
    assert "model-00001-of-00002.safetensors, chunk 2 at byte 8192: bytes: expected sha256:" in caught.value.message
    assert "1 differences" in caught.value.message
    assert "move that folder away" in str(caught.value.hint)


@pytest.mark.parametrize("change", ["extra", "missing", "link", "folder-link", "longer"])
def test_a_model_folder_that_was_changed_is_refused_and_not_mended(world: Placement, served: Served, change: str) -> None:
    world.place(served)
    path = world.folder() / "config.json"
    if change == "extra":
        (world.folder() / "modeling.py").write_text("print()")
    elif change == "missing":
        path.unlink()
    elif change == "link":
        replace_by_symlink(path)
    elif change == "folder-link":
        replace_by_symlink(world.folder())
    else:
        path.chmod(0o644)
        path.write_bytes(b"{}\n")
    with unchanged(world.root / "node", besides=["node.lock"]), pytest.raises(VerificationError):
        world.place(served)


def test_a_touched_but_right_model_is_read_again_and_noted_anew(world: Placement, served: Served) -> None:
    world.place(served)
    path = world.folder() / "config.json"
    path.chmod(0o644)
    os.utime(path)
    report = world.place(served)
    assert [(model.state, model.changed) for model in report.models] == [(State.RECORDED, True)]
    assert world.holds()
    assert not world.place(served).changed


def test_a_lost_note_or_name_is_made_again_without_fetching(world: Placement, served: Served) -> None:
    world.place(served)
    served.asked.clear()
    world.places.record(world.weights()).unlink()
    assert [model.state for model in world.place(served).models] == [State.RECORDED]
    world.places.by_name("tiny").unlink()
    report = world.place(served)
    assert [(model.state, model.changed) for model in report.models] == [(State.IN_PLACE, True)]
    assert world.holds()
    assert served.ranges() == []


def test_a_name_moves_to_the_newer_model_and_the_older_stays(world: Placement, served: Served) -> None:
    world.place(served)
    older = world.folder()
    world.publish({"tiny": {**TINY, "config.json": b'{"newer":1}'}}, version="2.0.0")
    served.tree = world.tree
    world.place(served)
    assert world.holds()
    assert older.is_dir()
    assert older != world.folder()
    assert [each.names for each in list_models(world.places) if each.folder == older] == [()]


def test_only_the_named_models_are_placed(world: Placement, served: Served) -> None:
    world.publish({"one": {"a.json": b"1"}, "org/two": {"b.json": b"2"}}, version="2.0.0")
    served.tree = world.tree
    assert [model.name for model in world.place(served, models=("org/two",)).models] == ["org/two"]
    assert world.holds("org/two")
    assert world.places.by_name("org/two").name == "org%2ftwo"
    with pytest.raises(UsageError, match="no model 'three'; it has one, org/two"):
        world.place(served, models=("three",))
    assert [model.name for model in world.place(served).models] == ["one", "org/two"]


def test_the_list_tells_what_was_placed_and_how_it_looks(world: Placement, served: Served) -> None:
    assert list_models(world.places) == ()
    world.place(served)
    (listed,) = list_models(world.places)
    assert (listed.looks, listed.names, listed.weights) == (Looks.AS_PLACED, ("tiny",), world.weights())
    os.utime(world.folder() / "config.json")
    assert list_models(world.places)[0].looks is Looks.CHANGED
    world.places.record(world.weights()).write_text("{}")
    assert list_models(world.places)[0].looks is Looks.NO_RECORD


def test_a_link_in_the_place_of_a_model_folder_does_not_look_as_placed(world: Placement, served: Served) -> None:
    world.place(served)
    replace_by_symlink(world.folder())
    assert [listed.looks for listed in list_models(world.places)] == [Looks.CHANGED]
    assert world.place(served, plan=True).changed


def test_what_another_release_left_unfinished_is_cleared_away(world: Placement, served: Served) -> None:
    other = world.places.models / f".partial-{64 * 'a'}"
    other.mkdir(parents=True)
    (other / "half").write_bytes(b"half")
    (world.places.models / f"{other.name}.journal").write_text("boot x\n")
    world.place(served)
    assert [path for path in world.places.models.iterdir() if path.name.startswith(".")] == []


def test_a_second_run_at_the_same_time_is_refused_by_the_first_ones_process_id(world: Placement, served: Served) -> None:
    from appliance.adapters.disk import locked  # noqa: PLC0415

    with locked(world.places.lock, what="test"), pytest.raises(HostError, match=f"in use by process {os.getpid()}"):
        world.place(served)
    assert world.nothing_is_visible()


def test_without_space_nothing_is_fetched_and_the_need_is_named(world: Placement, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    from appliance.adapters import disk  # noqa: PLC0415

    monkeypatch.setattr(disk, "free_bytes", lambda path: 4096 if path else 0)
    with pytest.raises(HostError, match=r"model tiny needs \d+ bytes, 4096 bytes are available"):
        world.place(served)
    assert served.ranges() == []
    assert world.nothing_is_visible()


def test_a_release_that_expired_after_it_was_accepted_stays_in_place(world: Placement, served: Served) -> None:
    world.place(served)
    late = world.line.now + timedelta(days=400)
    with unchanged(world.root / "node", besides=["node.lock"]):
        assert not world.place(served, now=late).changed


def test_a_release_that_expired_before_the_node_saw_it_is_refused(world: Placement, served: Served) -> None:
    with pytest.raises(VerificationError, match="timestamp expired"):
        world.place(served, now=world.line.now + timedelta(days=100))
    assert world.nothing_is_visible()


def test_a_release_of_the_same_second_that_the_node_did_not_see_in_time_is_refused(world: Placement, served: Served) -> None:
    """What was accepted before is told by all its versions, not by its time."""
    world.place(served)
    world.publish(version="2.0.0")
    served.tree = world.tree
    with unchanged(world.root / "node", besides=["node.lock"]), pytest.raises(VerificationError, match="timestamp expired"):
        world.place(served, now=world.line.now + timedelta(days=100))


def test_a_clock_behind_what_was_signed_is_refused(world: Placement, served: Served) -> None:
    with pytest.raises(HostError, match="clock"):
        world.place(served, now=world.line.now - timedelta(days=1))
    world.place(served)
    with pytest.raises(HostError, match="clock"):
        world.place(served, now=world.line.now - timedelta(days=1))


def test_an_older_release_after_a_newer_one_is_refused(world: Placement, served: Served) -> None:
    older, tree = world.release, world.tree
    world.publish({"tiny": {"config.json": b"{}", "other.json": bytes_of("x", 10)}}, version="2.0.0")
    newer, newer_tree = world.release, world.tree
    served.tree = newer_tree
    world.place(served)
    served.tree = tree
    with unchanged(world.root / "node", besides=["node.lock"]), pytest.raises(VerificationError, match="went back"):
        world.place(served, release=older)
    served.tree = newer_tree
    assert not world.place(served, release=newer).changed


def test_a_depot_that_gives_another_release_for_the_name_is_refused(world: Placement, served: Served) -> None:
    asked = world.release
    old = world.tree
    world.publish(version="2.0.0")
    tags = "docker/registry/v2/repositories/appliance/metadata/_manifests/tags"
    (world.tree / tags / hex_of(world.release)).rename(world.tree / tags / hex_of(asked))
    served.tree = world.tree
    with pytest.raises(VerificationError, match="gave release"):
        world.place(served, release=asked)
    assert world.nothing_is_visible()
    served.tree = old
    assert world.place(served, release=asked).changed


def test_a_release_the_depot_has_not_is_said_so(world: Placement, served: Served) -> None:
    with pytest.raises(ApplianceError, match="does not offer it") as caught:
        world.place(served, release=world.weights())
    assert caught.value.exit_code == 6
    assert world.nothing_is_visible()
