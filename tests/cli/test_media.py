# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`appliance media` and `appliance store` as a person meets them: what is printed, and every exit code."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from appliance.carry.parts import read_part
from appliance.cli import app
from tests.support.carried import World, small_chunks
from tests.support.faults import flip_byte
from tests.support.observe import unchanged
from tests.support.simulator import Line

PART_SIZE = "150KB"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with small_chunks():
        yield World(tmp_path, line=Line(now=datetime.now(UTC).replace(microsecond=0)))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def media(world: World) -> Path:
    assert run("media", "write", world.bundle, "--to", world.root / "media", "--part-size", PART_SIZE, "--written-by", "ann").exit_code == 0
    return world.root / "media"


def shown(text: str, world: World) -> str:
    """The text with what differs from run to run by name."""
    text = text.replace(str(world.root), "ROOT")
    text = re.sub(r"\(\d+\.\d s\)", "(S s)", text)
    text = re.sub(r"[0-9a-f]{64}", "DIGEST", text)
    return re.sub(r"[0-9a-f]{12}\b", "DIGITS", text)


def test_write_read_list_and_verify_say_what_was_done(world: World) -> None:
    write = run("media", "write", world.bundle, "--to", world.root / "media", "--part-size", PART_SIZE, "--written-by", "ann")
    assert write.exit_code == 0
    lines = write.stdout.splitlines()
    assert lines[0].split() == ["part", "size"]
    assert lines[1].split() == ["tiny-1.0.0-debian-12-amd64.0001.part", *lines[1].split()[1:]]
    assert "print the paper sheet and carry it apart: ROOT/media/tiny-1.0.0-debian-12-amd64.sheet.txt" in shown(write.stderr, world)
    read = run("media", "read", world.root / "media", "--state", world.state)
    assert read.exit_code == 0
    assert re.fullmatch(r"tiny\s+1\.0\.0\s+complete\s+\S+ KiB", read.stdout.splitlines()[1].strip())
    again = run("media", "read", world.root / "media", "--state", world.state)
    assert "complete, was imported before" in again.stdout
    listed = run("store", "list", "--state", world.state)
    assert re.match(
        r"\*\s+tiny\s+1\.0\.0\s+acme\s+DIGITS\s+complete\s+\S+ KiB\s+timestamp: 8\d days left", shown(listed.stdout, world).splitlines()[1]
    )
    verified = run("store", "verify", "--state", world.state)
    assert verified.exit_code == 0
    assert verified.stdout.splitlines()[0].split() == ["releases", "blobs", "read", "unneeded", "wrong"]
    assert verified.stdout.splitlines()[1].split()[-1] == "0"


def test_every_result_is_one_json_document_on_stdout(world: World) -> None:
    folder = world.root / "media"
    write = run("media", "write", world.bundle, "--to", folder, "--part-size", PART_SIZE, "-o", "json")
    assert {part["name"] for part in json.loads(write.stdout)["parts"]} == {path.name for path in world.parts()}
    status = json.loads(run("media", "status", folder, "--state", world.state, "-o", "json").stdout)
    assert (status["sets"][0]["missing"], status["unusable"]) == ([], [])
    read = json.loads(run("media", "read", folder, "--state", world.state, "-o", "json").stdout)
    assert (read["complete"], read["new"], read["missing_parts"]) == (True, True, [])
    listed = json.loads(run("store", "list", "--state", world.state, "-o", "json").stdout)
    assert listed["releases"][0]["release"] == read["release"]
    assert json.loads(run("store", "verify", "--state", world.state, "-o", "json").stdout)["findings"] == []


def test_a_visit_with_one_stick_says_which_parts_are_missing(world: World) -> None:
    media(world)
    count = len(world.parts())
    assert count > 1
    world.carry("stick", world.parts()[0])
    status = run("media", "status", world.root / "stick", "--state", world.state)
    assert f"1 of {count}" in status.stdout
    read = run("media", "read", world.root / "stick", "--state", world.state)
    assert read.exit_code == 0
    assert "parts still missing: 2" in read.stdout
    after = json.loads(run("media", "status", world.root / "stick", "--state", world.state, "-o", "json").stdout)
    assert after["sets"][0]["read_before"] == [1]


@pytest.mark.parametrize(
    ("what", "code", "said"),
    [
        ("chunk", 3, r"offset \d+: the chunk of \d+ bytes there is not sha256:DIGEST: damaged"),
        ("trailer", 4, r"offset \d+: "),
        ("nothing here", 2, "no part in ROOT/media"),
        ("no trust", 5, "no publication is pinned on this machine"),
        ("no folder", 5, "ROOT/nowhere: no such file or directory"),
    ],
)
def test_each_refusal_has_its_exit_code_one_error_and_one_hint(world: World, what: str, code: int, said: str) -> None:
    folder = media(world)
    part = world.parts()[0]
    if what == "chunk":
        flip_byte(part, read_part(part).table.chunks[0].offset)
    elif what == "trailer":
        flip_byte(part, -1)
    elif what == "nothing here":
        for path in world.parts():
            path.unlink()
    elif what == "no trust":
        (world.state / "trust" / "acme" / "root.json").unlink()
    elif what == "no folder":
        folder = world.root / "nowhere"
    with unchanged(*world.trusted()):
        done = run("media", "read", folder, "--state", world.state)
    assert done.exit_code == code
    text = shown(done.stderr, world)
    assert re.search(rf"appliance: error: .*{said}", text)
    assert len(re.findall("^appliance: hint: ", text, re.MULTILINE)) == 1
    assert done.stdout == ""


def test_what_this_version_does_not_do_is_refused_by_name(world: World) -> None:
    two = run("media", "write", world.bundle, "--to", world.root / "a", "--to", world.root / "b")
    assert two.exit_code == 2
    assert "writing to several targets at once is not done by this version" in two.stderr
    assert run("media", "write", world.bundle, "--to", world.root / "a", "--parity", "2").exit_code == 2
    assert run("media", "write", world.bundle, "--to", world.root / "a", "--part-size", "4G").exit_code == 2
    assert not (world.root / "a").exists()


def test_store_verify_names_the_damage_and_ends_with_3(world: World) -> None:
    media(world)
    run("media", "read", world.root / "media", "--state", world.state)
    path = max(world.store.blobs.iterdir(), key=lambda each: each.stat().st_size)
    path.chmod(0o644)
    flip_byte(path, 5000)
    with unchanged(world.state):
        done = run("store", "verify", "--state", world.state)
    assert done.exit_code == 3
    assert f"{path}: damaged at byte 4096" in done.stderr


def test_a_site_that_has_read_nothing_lists_nothing(world: World) -> None:
    done = run("store", "list", "--state", world.state, "-o", "json")
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"releases": [], "damaged": []})


@pytest.mark.parametrize("command", ["list", "verify"])
def test_a_folder_without_a_store_is_refused(tmp_path: Path, command: str) -> None:
    done = run("store", command, "--state", tmp_path / "typo")
    assert (done.exit_code, "no store there" in done.stderr) == (5, True)
    assert list(tmp_path.iterdir()) == []


def test_status_after_a_complete_read_says_that_every_part_was_read(world: World) -> None:
    folder = media(world)
    assert run("media", "read", folder, "--state", world.state).exit_code == 0
    (each,) = json.loads(run("media", "status", folder, "--state", world.state, "-o", "json").stdout)["sets"]
    assert each["read_before"] == list(range(1, each["count"] + 1))
    assert each["count"] > 1


def test_reading_into_a_mistyped_state_makes_nothing(world: World) -> None:
    done = run("media", "read", media(world), "--state", world.root / "typo")
    assert (done.exit_code, "no publication is pinned" in done.stderr) == (5, True)
    assert not (world.root / "typo").exists()


def test_reading_again_says_that_no_byte_was_read_again(world: World) -> None:
    folder = media(world)
    run("media", "read", folder, "--state", world.state)
    assert "appliance store verify reads their bytes again" in run("media", "read", folder, "--state", world.state).stderr


@pytest.mark.parametrize("mask", [0, 0o777])
def test_what_is_made_is_read_by_its_owner_and_written_by_nobody_else(world: World, mask: int) -> None:
    before = os.umask(mask)
    try:
        run("media", "read", media(world), "--state", world.state)
    finally:
        os.umask(before)
    made = [path for folder in (world.root / "media", world.state) for path in folder.rglob("*") if not path.is_symlink()]
    assert world.state / "store.lock" in made
    assert [path for path in made if path.stat().st_mode & 0o422 != 0o400] == []
