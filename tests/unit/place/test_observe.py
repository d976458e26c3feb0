# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""An observation is made of bytes read now: it covers what it says, names the first difference, and asks no record."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from appliance.bundle.weights import Weights
from appliance.errors import HostError
from appliance.place.observe import Observation, Wrong, chunk_names, observe
from tests.support.depot import CHUNK, TINY, Placement, Served
from tests.support.faults import flipped, replace_by_hard_link, replace_by_symlink, truncate
from tests.support.observe import unchanged

BIG, EVEN = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
SIZE = sum(len(data) for data in TINY.values())
CHUNKS = 6 + 3 + 1 + 1 + 1


@pytest.fixture
def folder(world: Placement, served: Served) -> Path:
    world.place(served)
    world.places.record(world.weights()).unlink()
    return world.folder()


@pytest.fixture
def weights(world: Placement) -> Weights:
    return world.line.verify(world.files).weights[world.weights()]


def first(seen: Observation) -> tuple[str, Wrong, int | None]:
    assert seen.first is not None
    assert not seen.whole
    return seen.first.path, seen.first.wrong, seen.first.chunk


def test_a_right_model_is_covered_whole_and_nothing_is_written(folder: Path, weights: Weights) -> None:
    with unchanged(folder):
        seen = observe(folder, weights, workers=2)
    assert seen == Observation(files=5, chunks=CHUNKS, size=SIZE, chunks_read=CHUNKS, bytes_read=SIZE, differences=0, first=None)
    assert (seen.whole, seen.coverage) == (True, 1.0)


def test_first_middle_and_last_byte_of_every_chunk_are_seen(folder: Path, weights: Weights) -> None:
    for path, data in TINY.items():
        for start in range(0, len(data), CHUNK):
            size = min(CHUNK, len(data) - start)
            for at in {0, size // 2, size - 1}:
                with flipped(folder / path, start + at):
                    seen = observe(folder, weights, workers=1)
                    assert first(seen) == (path, Wrong.BYTES, start // CHUNK)
                    assert (seen.differences, seen.bytes_read) == (1, SIZE)
    assert observe(folder, weights, workers=1).whole


def test_the_first_of_several_differences_is_by_path_and_chunk(folder: Path, weights: Weights) -> None:
    with flipped(folder / EVEN, 0), flipped(folder / BIG, 5 * CHUNK), flipped(folder / BIG, CHUNK):
        seen = observe(folder, weights, workers=2)
    assert (first(seen), seen.differences) == ((BIG, Wrong.BYTES, 1), 3)
    assert f"{BIG}, chunk 1 at byte {CHUNK}: bytes: expected sha256:" in str(seen.first)


def test_missing_extra_shorter_and_strange_entries_are_told_apart(folder: Path, weights: Weights) -> None:
    (folder / "config.json").rename(folder / "a.json")
    assert first(observe(folder, weights, workers=1)) == ("a.json", Wrong.EXTRA, None)
    (folder / "a.json").unlink()
    assert first(observe(folder, weights, workers=1)) == ("config.json", Wrong.MISSING, None)
    (folder / "config.json").mkdir()
    assert first(observe(folder, weights, workers=1)) == ("config.json", Wrong.KIND, None)
    (folder / "config.json").rmdir()
    (folder / "config.json").write_bytes(b"{}")
    (folder / "nothing").mkdir()
    assert first(observe(folder, weights, workers=1)) == ("nothing", Wrong.EXTRA, None)
    (folder / "nothing").rmdir()
    os.mkfifo(folder / "z")
    assert first(observe(folder, weights, workers=1)) == ("z", Wrong.EXTRA, None)
    (folder / "z").unlink()
    truncate(folder / BIG, -1)
    seen = observe(folder, weights, workers=1)
    assert first(seen) == (BIG, Wrong.SIZE, None)
    assert seen.bytes_read == SIZE - len(TINY[BIG])


def test_no_link_is_followed_wherever_it_lies(folder: Path, weights: Weights) -> None:
    replace_by_symlink(folder / "config.json").rename(folder.parent / "config.json")
    assert first(observe(folder, weights, workers=1)) == ("config.json", Wrong.KIND, None)
    (folder / "config.json").unlink()
    replace_by_hard_link(folder / "config.json", folder.parent / "config.json")
    assert observe(folder, weights, workers=1).whole
    replace_by_symlink(folder / "nested").rename(folder.parent / "nested.moved")
    seen = observe(folder, weights, workers=1)
    assert first(seen) == ("nested", Wrong.EXTRA, None)
    assert seen.differences == 2
    replace_by_symlink(folder)
    with pytest.raises(HostError):
        observe(folder, weights, workers=1)


def test_a_part_of_the_chunks_is_covered_as_said_and_a_flip_elsewhere_is_not_seen(folder: Path, weights: Weights) -> None:
    with flipped(folder / BIG, 0):
        seen = observe(folder, weights, workers=1, only=[(BIG, 1), (EVEN, 0)])
        assert (seen.chunks_read, seen.bytes_read, seen.differences, seen.whole) == (2, 2 * CHUNK, 0, False)
        assert seen.coverage == 2 * CHUNK / SIZE
        assert first(observe(folder, weights, workers=1, only=[(BIG, 0)])) == (BIG, Wrong.BYTES, 0)
    every = chunk_names(weights)
    assert len(every) == CHUNKS
    assert observe(folder, weights, workers=1, only=every).whole
    assert observe(folder, weights, workers=1, only=[]).coverage == 0.0


def test_a_file_that_cannot_be_read_is_a_difference_and_not_covered(folder: Path, weights: Weights) -> None:
    from tests.support.faults import failing  # noqa: PLC0415

    with failing(["preadv"], 5, below=folder, after_bytes=0):
        seen = observe(folder, weights, workers=1)
    assert seen.first is not None
    assert (seen.first.wrong, seen.bytes_read) == (Wrong.UNREADABLE, 0)
