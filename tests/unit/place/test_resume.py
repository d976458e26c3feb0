# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A placement that was cut short goes on with what was verified; what a power cut may have lost is read again first."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from appliance.digests import digest_of, hex_of
from appliance.errors import HostError, ToolError
from appliance.place.placing import State
from tests.support.depot import CHUNK, TINY, Fault, Placement, Served
from tests.support.faults import flip_byte, truncate

BIG = "model-00001-of-00002.safetensors"
DIGITS = hex_of(digest_of(TINY[BIG]))


@pytest.fixture
def cut(world: Placement, served: Served) -> Placement:
    """All of the big file's chunks but the last are here, and all of the other files."""
    served.faults.append(Fault("404", DIGITS, skip=5))
    with pytest.raises(ToolError):
        world.place(served, workers=1)
    served.faults.clear()
    served.faults.append(Fault("404", DIGITS))
    with pytest.raises(ToolError):
        world.place(served, workers=2)
    served.faults.clear()
    served.asked.clear()
    return world


def partial(world: Placement) -> Path:
    return world.places.partial(world.weights())


def journal(world: Placement) -> Path:
    return world.places.journal(world.weights())


def asked_chunks(world: Placement, served: Served) -> list[int]:
    """Run to the end; which chunks of the big file were asked for."""
    (model,) = world.place(served).models
    assert model.state is State.PLACED
    assert world.holds()
    return [each.first // CHUNK for each in served.ranges() if DIGITS in each.path]


def reboot(world: Placement) -> None:
    path = journal(world)
    path.write_text(re.sub(r"\Aboot .*", "boot another", path.read_text()))


def test_only_what_is_missing_is_fetched(cut: Placement, served: Served) -> None:
    assert partial(cut).stat().st_mode & 0o777 == 0o700
    assert asked_chunks(cut, served) == [5]


def test_after_another_boot_right_chunks_are_kept_though_no_hash_state_is(cut: Placement, served: Served) -> None:
    reboot(cut)
    assert asked_chunks(cut, served) == [5]


@pytest.mark.parametrize("lost", [0, 2, 4])
def test_after_another_boot_a_chunk_that_was_lost_is_fetched_again(cut: Placement, served: Served, lost: int) -> None:
    reboot(cut)
    flip_byte(partial(cut) / BIG, lost * CHUNK + 1)
    assert asked_chunks(cut, served) == [lost, 5]


def test_a_torn_last_line_of_the_journal_is_not_believed(cut: Placement, served: Served) -> None:
    text = journal(cut).read_text()
    line = next(each for each in text.splitlines() if re.match(r"\d+ 4 ..", each))
    journal(cut).write_text(text.replace(line + "\n", "") + line[:20])
    assert asked_chunks(cut, served) == [4, 5]


@pytest.mark.parametrize("state", ["ab", 112 * "00", 200 * "ff"])
def test_a_damaged_hash_state_in_the_journal_costs_reading_and_no_fetching(cut: Placement, served: Served, state: str) -> None:
    text, count = re.subn(r"(?m)^(\d+ 4 )[0-9a-f]{9,}$", rf"\g<1>{state}", journal(cut).read_text())
    assert count == 1
    journal(cut).write_text(text)
    assert asked_chunks(cut, served) == [5]


@pytest.mark.parametrize("text", ["", "boot\n", "nonsense\n", "\x00\xff\n", "boot {boot}\n9 0 \n2 99 \n-1 0 \nx y z\n2\n"])
def test_a_journal_of_nonsense_is_not_believed(cut: Placement, served: Served, text: str) -> None:
    boot = journal(cut).read_text().splitlines()[0].removeprefix("boot ")
    journal(cut).write_text(text.replace("{boot}", boot))
    assert asked_chunks(cut, served) == list(range(6))


def test_a_partial_file_of_another_size_is_fetched_anew(cut: Placement, served: Served) -> None:
    truncate(partial(cut) / BIG, -1)
    assert asked_chunks(cut, served) == list(range(6))


def test_a_partial_folder_that_went_away_is_fetched_anew(cut: Placement, served: Served) -> None:
    partial(cut).rename(cut.root / "away")
    assert asked_chunks(cut, served) == list(range(6))


def test_a_strange_file_in_the_partial_folder_is_not_carried_along(cut: Placement, served: Served) -> None:
    (partial(cut) / "modeling.py").write_text("print()")
    with pytest.raises(HostError, match=r"modeling\.py does not belong there"):
        cut.place(served)
    assert cut.nothing_is_visible()
    (partial(cut) / "modeling.py").unlink()
    assert asked_chunks(cut, served) == [5]


def test_a_plan_with_a_partial_model_says_it_would_be_placed(cut: Placement, served: Served) -> None:
    assert [model.state for model in cut.place(served, plan=True).models] == [State.PLACED]
