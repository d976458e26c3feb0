# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Real small disks that somebody else fills while media are written or read: a refusal, and then it goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.adapters import disk
from appliance.carry.read import read_media
from appliance.carry.write import write_media
from appliance.errors import HostError
from appliance.store import Store
from tests.support.carried import ONE, THREE, World, small_chunks
from tests.support.faults import can_mount, fill, small_disk

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not can_mount(), reason="needs root to mount small disks")]
DISK = 4 * 1024 * 1024
STEP = 8192


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
@pytest.mark.parametrize("work", ["write", "read"])
def test_a_disk_that_fills_up_at_any_moment_is_refused_and_room_made_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, work: str
) -> None:
    with small_chunks():
        world = World(tmp_path / "world")
        world.write("whole", room=THREE)
        expected = {path.name: path.read_bytes() for path in world.parts("whole")}
        world.write(room=ONE)
        pin = (world.state / "trust" / "acme" / "root.json").read_bytes()
        monkeypatch.setattr(disk, "require_space", lambda *_args, **_kwargs: None)
        struck = 0
        for leave in range(0, 400_000, STEP):
            place = tmp_path / f"{leave}" / "small"
            with small_disk(place, DISK, kind=kind):
                (place / "state" / "trust" / "acme").mkdir(parents=True)
                (place / "state" / "trust" / "acme" / "root.json").write_bytes(pin)
                filler = fill(place, leave=leave)
                refusal = attempt(world, place, work)
                done = refusal is None
                struck += not done
                assert refusal is None or (refusal.hint and not (place / "state" / "releases" / "current").exists())
                filler.unlink()
                assert attempt(world, place, work) is None
                if work == "write":
                    assert {path.name: path.read_bytes() for path in (place / "media").glob("*.part")} == expected
            if done:
                break
        assert struck > 3
        assert done


def attempt(world: World, place: Path, work: str) -> HostError | None:
    """Write media to the small disk, or read them into a store on it; return the refusal if it did not fit."""
    try:
        if work == "write":
            part_size = sum(len(data) + 200 for data in world.files.values()) + 1000 + THREE
            write_media(world.bundle, place / "media", part_size=part_size, workers=2, written_by="ann")
        else:
            result = read_media([world.root / "media"], Store(place / "state"), workers=2, who="ann", clock=world.line.now)
            assert result.complete
    except HostError as error:
        return error
    return None
