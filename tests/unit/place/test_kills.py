# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`kill -9` at random moments of a placement: in the end the same files, and hardly a byte fetched twice."""

from __future__ import annotations

import random
import sys
from datetime import UTC, datetime
from pathlib import Path

from appliance.digests import hex_of
from tests.support.carried import small_chunks
from tests.support.depot import Placement, Served, json_of, serving
from tests.support.faults import kill_when, new_seed
from tests.support.observe import Entry, differences, snapshot
from tests.support.simulator import Line, bytes_of
from tests.support.small_node import CHUNK

KILLS = 10
WORKERS = 2
MODEL = {f"shard-{number}.safetensors": bytes_of(f"shard {number}", 40 * CHUNK + 17) for number in range(3)} | {"config.json": b"{}"}
TOTAL = sum(len(data) for data in MODEL.values())


def command(world: Placement, served: Served, state: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "tests.support.small_node", "node", "place", "--depot", str(served.address), "-j", str(WORKERS)),
        *("--ca", str(served.certificates.ca), "--release", hex_of(world.release), "--root", str(world.pinned)),
        *("--state", str(state), "-o", "json"),
    ]


def end_state(state: Path) -> dict[str, Entry]:
    """Everything on the node but times: what was placed when is in the record, and the lock has a process id."""
    found = snapshot(state, besides=["*.lock", "*.placement.json"], times=False)
    return {str(Path(path).relative_to(state)): entry for path, entry in found.items()}


def test_ten_kills_at_random_moments_end_as_an_unkilled_run_with_one_chunk_per_worker_and_kill_fetched_twice(tmp_path: Path) -> None:
    with small_chunks(CHUNK):
        world = Placement(tmp_path, line=Line(now=datetime.now(UTC).replace(microsecond=0)), models={"tiny": MODEL})
        folder = world.folder()
    seed = new_seed()
    draw = random.Random(seed)
    with serving(world.tree, tmp_path / "tls") as served:
        whole = kill_when(command(world, served, tmp_path / "unkilled"), lambda: False)
        assert whole.status == 0, whole.output
        served.asked.clear()
        killed = 0
        for number in range(KILLS):
            moment = draw.uniform(number, number + 1) / KILLS * TOTAL
            print(f"kill -9 number {number}: seed {seed}, when {moment:.0f} of {TOTAL} bytes were asked for")
            run = kill_when(command(world, served, world.places.state), lambda at=moment: asked_bytes(served) >= at)  # type: ignore[misc]
            assert run.killed or run.status == 0, run.output
            killed += run.killed
            shown = [path.name for path in world.places.models.glob("*") if not path.name.startswith(".")]
            assert folder.is_dir() or shown in ([], [f"{folder.name}.placement.json"])
        last = kill_when(command(world, served, world.places.state), lambda: False)
        assert last.status == 0, last.output
        assert killed >= KILLS // 2
        assert asked_bytes(served) <= TOTAL + killed * WORKERS * CHUNK
        assert differences(end_state(tmp_path / "unkilled"), end_state(world.places.state)) == []
        again = kill_when(command(world, served, world.places.state), lambda: False)
        assert not json_of(again.output[again.output.index("{") :])["changed"]


def asked_bytes(served: Served) -> int:
    return sum(each.size for each in served.ranges())
