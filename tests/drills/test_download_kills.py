# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`bundle create` killed twenty times while it downloads: in the end the bundle of a run that was not, and little fetched twice.

The chunk of a megabyte stands for the real one, so that a run of seconds has hundreds of them.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.build.collecting import FETCHING
from tests.support.building import Bench, safetensors, tree
from tests.support.carried import small_chunks
from tests.support.faults import kill_at_random, new_seed
from tests.support.registry import serving
from tests.support.simulator import bytes_of

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
CHUNK = 1 << 20
KILLS = 20
SIZE = (60 + 4 * 30) * CHUNK
IN_FLIGHT = 8 * CHUNK
"""What the kernel's buffers of one loopback connection take, which the server counts as sent."""
_CREATE = f"""
import sys
from pathlib import Path
import appliance.build.creating, appliance.adapters.ingest
from appliance.build.collecting import FETCHING
from tests.support.building import Bench
from tests.support.carried import small_chunks
from tests.support.registry import Upstream
bench = Bench(folder=Path(sys.argv[1]), upstream=Upstream(address=sys.argv[2], ca=Path(sys.argv[3])))
with small_chunks({CHUNK}):
    bench.create("one.bundle")
"""


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    with serving(tmp_path / "tls") as upstream:
        upstream.put_image("team/app", "1.0", tuple(bytes_of(f"layer{number}", 30 * CHUNK + number) for number in range(4)))
        upstream.files["/files/tool"] = bytes_of("tool", 60 * CHUNK)
        made = Bench(folder=tmp_path / "bench", upstream=upstream)
        made.folder.mkdir()
        made.model(files={"model.safetensors": safetensors(2 * CHUNK)})
        made.profile(
            '[[images]]\nreference = "registry.test/team/app:1.0"\n'
            '[[files]]\nname = "tool"\nversion = "1"\nurl = "https://files.test/tool"\n'
            '[[models]]\nname = "tiny"\nversion = "1"\npath = "tiny"\nlicense = "MIT"\n'
        )
        yield made


def _empty(bench: Bench) -> None:
    for path in [each for each in (bench.folder / "cache" / "downloads").rglob("*") if each.is_file()]:
        path.unlink()


def _unkilled(bench: Bench, command: list[str], environment: dict[str, str]) -> float:
    """Seconds of a run that nobody disturbs; its traces are removed."""
    began = time.monotonic()
    subprocess.run(command, check=True, env=environment, capture_output=True)
    seconds = time.monotonic() - began
    (bench.folder / "one.bundle").rename(bench.folder / "undisturbed.bundle")
    _empty(bench)
    return seconds


def test_twenty_kills_of_create_end_in_the_bundle_of_a_run_that_was_not_killed(bench: Bench) -> None:
    seed = new_seed()
    print(f"FAULT_SEED={seed}")
    draw = random.Random(seed)
    with small_chunks(CHUNK):
        bench.lock()
        bench.create("whole.bundle")
    _empty(bench)
    command = [sys.executable, "-c", _CREATE, str(bench.folder), bench.upstream.address, str(bench.upstream.ca)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    seconds = _unkilled(bench, command, environment)
    bench.upstream.sent = 0
    bench.upstream.requests.clear()
    kills = rounds = 0
    while kills < KILLS or (bench.folder / "one.bundle.partial").exists():
        moment = (0.4 * seconds, seconds) if kills < KILLS else (60.0, 61.0)
        kill = kill_at_random(command, between=moment, seed=draw.randrange(2**32), env=environment)
        kills += kill.killed
        assert kill.killed or kill.status == 0, kill.output
        if (bench.folder / "one.bundle").exists():
            rounds += 1
            with small_chunks(CHUNK):
                assert bench.verify("one.bundle")[1] == ()
            assert tree(bench.folder / "one.bundle", without="metadata") == tree(bench.folder / "whole.bundle", without="metadata")
            shutil.rmtree(bench.folder / "one.bundle")
            _empty(bench)
    again = bench.upstream.sent - rounds * SIZE
    ranges = [int(found[1]) for request in bench.upstream.requests if (found := re.fullmatch(r"bytes=(\d+)-", request.range))]
    print(f"{kills} kills, {rounds} whole; {again / CHUNK:.2f} chunks came twice; {len(ranges)} downloads went on in the middle")
    assert all(start % CHUNK == 0 for start in ranges)
    assert again <= kills * FETCHING * (CHUNK + IN_FLIGHT)
