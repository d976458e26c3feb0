# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`kill -9` at random moments of create, write and read: in the end nothing differs from a run nobody disturbed.

Repeat a run with FAULT_SEED=<the printed seed>. DRILL_KILLS and DRILL_MEGABYTES scale it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.drills.runner import DRILL_CHUNK
from tests.support.faults import new_seed

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("DRILL_KILLS", "20"))
MEGABYTES = int(os.environ.get("DRILL_MEGABYTES", "150"))
WORKERS = 2
SLACK = 1024 * 1024
"""Metadata, journals and directories that every start reads again, per start."""


@dataclass
class Drill:
    """One command that is killed again and again."""

    command: list[str]
    read: int = 0
    kills: int = 0
    moments: list[float] = field(default_factory=list)

    def start(self) -> subprocess.Popen[str]:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.Popen(self.command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def run_once(self) -> tuple[float, int]:
        """Run to the end; return seconds and bytes read."""
        began = time.monotonic()
        process = self.start()
        read = 0
        while process.poll() is None:
            read = max(read, bytes_read(process.pid))
            wait(process, 0.005)
        output, _ = process.communicate()
        assert process.returncode == 0, output
        return time.monotonic() - began, read

    def kill_after(self, seconds: float) -> bool:
        """Kill it then; return whether it still ran. What it had read until then is counted while it stands still."""
        process = self.start()
        wait(process, seconds)
        if process.poll() is not None:
            output, _ = process.communicate()
            assert process.returncode == 0, output
            return False
        os.kill(process.pid, signal.SIGSTOP)
        self.read += bytes_read(process.pid)
        process.kill()
        process.communicate()
        self.kills += 1
        self.moments.append(seconds)
        return True


def wait(process: subprocess.Popen[str], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def bytes_read(process: int) -> int:
    try:
        text = Path(f"/proc/{process}/io").read_text(encoding="ascii")
    except OSError:
        return 0
    return int(text.split("rchar: ")[1].split()[0])


def tree(folder: Path, *, leave_out: tuple[str, ...] = ()) -> dict[str, str]:
    """Digest of every file below `folder`."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part in leave_out for part in path.relative_to(folder).parts)
    }


def appliance(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tests.drills.runner", *map(str, arguments)]


def call(*arguments: object) -> None:
    Drill(appliance(*arguments)).run_once()


def make_model(folder: Path) -> None:
    """Three files of many chunks and two hundred small ones."""
    folder.mkdir()
    sizes = [MEGABYTES * 10**6 // 4] * 3 + [MEGABYTES * 10**6 // 4 // 200] * 200
    for number, size in enumerate(sizes):
        name = f"w{number:04d}"
        header = json.dumps({name: {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        data = random.Random(number).randbytes(size)
        (folder / f"{name}.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)


@dataclass
class Place:
    root: Path

    def create(self, to: str) -> list[str]:
        publication = self.root / "publication"
        return appliance(
            *("bundle", "create", self.root / "drill.lock.json", "--publication", publication, "--keys", publication / "private"),
            *("--to", self.root / to, "-j", WORKERS, "--passphrase-file", self.root / "passphrase"),
        )

    def write(self, to: str) -> list[str]:
        return appliance(
            "media", "write", self.root / "bundle", "--to", self.root / to, "--part-size", "60MB", "-j", WORKERS, "--written-by", "a"
        )

    def read(self, to: str) -> list[str]:
        return appliance("media", "read", self.root / "media", "--state", self.root / to, "-j", WORKERS)

    def pin(self, state: str) -> None:
        folder = self.root / state / "trust" / "drill"
        folder.mkdir(parents=True)
        shutil.copy(self.root / "publication" / "roots" / "1.root.json", folder / "root.json")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("kills")
    make_model(root / "model")
    (root / "passphrase").write_text("drill drill drill\n")
    (root / "drill.toml").write_text(
        'format = "profile/1"\nname = "drill"\nversion = "1"\nplatform = "debian-12-amd64"\nkubernetes = "1.36.4"\ninstaller = false\n'
        '[[models]]\nname = "drill"\nversion = "1"\npath = "model"\nlicense = "CC0-1.0"\n'
    )
    call("keys", "init", root / "publication", "--line", "drill", "--passphrase-file", root / "passphrase")
    call("bundle", "lock", root / "drill.toml")
    here = Place(root)
    Drill(here.create("bundle")).run_once()
    Drill(here.write("media")).run_once()
    return here


@dataclass
class Job:
    """A command, where it puts its result, and what that is compared with."""

    command: list[str]
    target: Path
    whole: Path
    leave_out: tuple[str, ...]
    begin: Callable[[], None]

    def same(self) -> bool:
        return tree(self.target, leave_out=self.leave_out) == tree(self.whole, leave_out=self.leave_out)


def job(place: Place, work: str) -> Job:
    root = place.root
    if work == "write":
        return Job(place.write("media-killed"), root / "media-killed", root / "media", (), lambda: None)
    if work == "read":
        return Job(place.read("state"), root / "state", root / "state-whole", ("store.lock", "log", "boot"), lambda: place.pin("state"))
    return Job(place.create("bundle-killed"), root / "bundle-killed", root / "bundle", ("metadata",), lambda: None)


def kill_until_done(job: Job, seconds: float, seed: int) -> tuple[Drill, int]:
    """Kill the command KILLS times at random moments; whenever it ends, compare and begin anew. Return the rounds."""
    drill = Drill(job.command)
    chance = random.Random(seed)
    rounds = 0
    job.begin()
    while True:
        ended = job.target.is_dir() and job.command[4] == "create"
        if not ended and drill.kills < KILLS:
            ended = not drill.kill_after(chance.uniform(0.3 * seconds, 1.1 * seconds))
        elif not ended:
            drill.read += drill.run_once()[1]
            ended = True
        if ended:
            rounds += 1
            assert job.same()
            shutil.rmtree(job.target)
            if drill.kills >= KILLS:
                break
            job.begin()
    print(f"\nkill -9: seed {seed}, {drill.kills} kills at " + ", ".join(f"{moment:.2f}" for moment in drill.moments) + " s")
    return drill, rounds


@pytest.mark.parametrize("work", ["write", "read", "create"])
def test_killed_at_random_it_ends_as_if_nobody_had_disturbed_it(place: Place, work: str) -> None:
    seed = new_seed()
    if work == "read":
        place.pin("state-whole")
    unkilled = {"write": place.write("again"), "read": place.read("state-whole"), "create": place.create("again")}[work]
    seconds, all_of_it = Drill(unkilled).run_once()
    if work != "read":
        shutil.rmtree(place.root / "again")
    place.pin(f"{work}-empty")
    alone = Drill(appliance("store", "list", "--state", place.root / f"{work}-empty")).run_once()[1]
    drill, rounds = kill_until_done(job(place, work), seconds, seed)
    bound = rounds * all_of_it + drill.kills * (WORKERS * DRILL_CHUNK + alone + SLACK)
    print(
        f"{work}: read {drill.read} bytes, {drill.kills} kills, ended {rounds} times; unkilled {all_of_it}, start alone {alone}, bound {bound}"
    )
    assert drill.read <= bound
