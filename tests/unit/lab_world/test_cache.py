# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tests.lab.world import cache
from tests.lab.world.images import wanted
from tests.lab.world.recipes import GO, RECIPES
from tests.lab.world.releases import releases

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("APPLIANCE_CACHE", str(tmp_path / "cache"))
    return cache.root()


def fill(folder: Path) -> None:
    (folder / "data").write_text("complete")


def test_an_entry_is_made_once_and_found_again() -> None:
    first = cache.obtain("thing", "k" * 64, fill)
    again = cache.obtain("thing", "k" * 64, lambda _: pytest.fail("made twice"))
    assert first == again
    assert (first / "data").read_text() == "complete"


def test_another_key_is_another_entry() -> None:
    assert cache.obtain("thing", "a" * 64, fill) != cache.obtain("thing", "b" * 64, fill)


def test_parts_of_a_key_do_not_run_together() -> None:
    assert cache.key("ab", "c") != cache.key("a", "bc")
    assert cache.key("a", b"b") == cache.key(b"a", "b")


def test_a_failure_leaves_no_entry_and_nothing_beside_it(own_cache: Path) -> None:
    def fails(folder: Path) -> None:
        fill(folder)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        cache.obtain("thing", "k" * 64, fails)
    assert [path.name for path in own_cache.iterdir()] == ["locks"]
    assert (cache.obtain("thing", "k" * 64, fill) / "data").exists()


def test_a_killed_maker_leaves_no_entry_and_the_next_one_sweeps(own_cache: Path) -> None:
    code = """
import os, sys
from tests.lab.world import cache
def make(folder):
    (folder / "data").write_text("half")
    print("half", flush=True)
    sys.stdin.read()
cache.obtain("thing", "k" * 64, make)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        process.send_signal(signal.SIGKILL)
    assert not cache.place("thing", "k" * 64).exists()
    entry = cache.obtain("thing", "k" * 64, fill)
    assert (entry / "data").read_text() == "complete"
    assert sorted(path.name for path in own_cache.iterdir()) == sorted(["locks", entry.name])


def test_a_file_cut_short_by_a_crash_is_made_again() -> None:
    entry = cache.obtain("thing", "k" * 64, fill)
    (entry / "data").chmod(0o644)
    os.truncate(entry / "data", 0)
    assert (cache.obtain("thing", "k" * 64, fill) / "data").read_text() == "complete"


def test_two_at_once_make_it_once() -> None:
    made: list[int] = []
    inside, go_on = threading.Event(), threading.Event()

    def make(folder: Path) -> None:
        made.append(1)
        inside.set()
        assert go_on.wait(10)
        fill(folder)

    threads = [threading.Thread(target=cache.obtain, args=("thing", "k" * 64, make)) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert inside.wait(10)
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert made == [1]


def test_prune_keeps_what_is_in_use_what_is_being_made_and_what_is_not_its_own(own_cache: Path) -> None:
    kept, old = cache.obtain("kept", "k" * 64, fill), cache.obtain("old", "o" * 64, fill)
    (own_cache / "someone-else").mkdir()

    def make(folder: Path) -> None:
        assert cache.prune({kept}) == (old,)
        assert folder.exists()
        fill(folder)

    new = cache.obtain("new", "n" * 64, make)
    assert {path.name for path in own_cache.iterdir()} == {"locks", "someone-else", kept.name, new.name}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_recipes_version_is_the_one_its_go_mod_requires(recipe: object) -> None:
    found = next(known for known in RECIPES if known is recipe)
    text = (GO / found.name / "go.mod").read_text()
    assert re.search(rf"^\s*(require )?{re.escape(found.module)} v{re.escape(found.version)}\b", text, re.MULTILINE)
    for _, package in found.commands:
        assert re.search(rf"^\s*(tool )?{re.escape(package)}$", text, re.MULTILINE), package
    assert (GO / found.name / "go.sum").stat().st_size > 0


def test_a_recipes_key_follows_flags_and_packages_but_not_the_estimate() -> None:
    recipe = RECIPES[0]
    assert replace(recipe, expected_seconds=1).key() == recipe.key()
    changed = [replace(recipe, tags=()), replace(recipe, variables=()), replace(recipe, commands=recipe.commands[:1])]
    assert len({recipe.key(), *(other.key() for other in changed)}) == 4


def test_a_recipes_key_follows_go_mod_and_go_sum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = RECIPES[0]
    folder = tmp_path / recipe.name
    folder.mkdir()
    (folder / "go.mod").write_bytes((recipe.folder / "go.mod").read_bytes())
    (folder / "go.sum").write_bytes((recipe.folder / "go.sum").read_bytes())
    before = recipe.key()
    monkeypatch.setattr("tests.lab.world.recipes.GO", tmp_path)
    assert recipe.key() == before
    (folder / "go.sum").write_bytes(b"\n" + (folder / "go.sum").read_bytes())
    assert recipe.key() != before


def test_images_and_files_have_keys_of_their_own() -> None:
    keys = [image.key() for image in wanted()] + [release.key() for release in releases()]
    assert len(set(keys)) == len(keys)
