# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from appliance.errors import HostError
from tests.support.model import cache


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    made = tmp_path / "making"
    (made / "model").mkdir(parents=True)
    (made / "model" / "config.json").write_text("{}\n")
    (made / "golden.json").write_text("[]\n")
    cache.keep(made, tmp_path / "kept")
    return tmp_path / "kept"


def test_a_kept_result_is_whole_until_a_byte_or_a_file_of_it_changes(kept: Path) -> None:
    assert cache.is_whole(kept)
    (kept / "model" / "config.json").write_text("[]\n")
    assert not cache.is_whole(kept)
    (kept / "model" / "config.json").write_text("{}\n")
    assert cache.is_whole(kept)
    (kept / "model" / "more.json").write_text("{}\n")
    assert not cache.is_whole(kept)


def test_a_result_never_kept_is_not_whole(tmp_path: Path) -> None:
    assert not cache.is_whole(tmp_path / "nothing")


def test_a_copy_handed_out_is_the_model_alone_and_can_be_broken_without_harm_to_the_kept_one(kept: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    cache.hand_out(kept, out)
    assert [path.name for path in out.iterdir()] == ["config.json"]
    assert cache.golden_beside(out).read_text() == "[]\n"
    (out / "config.json").write_text("broken")
    assert cache.is_whole(kept)
    cache.hand_out(kept, out)
    assert (out / "config.json").read_text() == "{}\n"
    assert sorted(path.name for path in out.parent.iterdir()) == ["out", "out.golden.json"]


def test_a_folder_with_something_else_in_it_is_refused_and_left_as_it_was(kept: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(HostError, match="something other"):
        cache.hand_out(kept, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_the_key_changes_with_seed_text_and_recipe_and_not_with_the_command_line(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe"
    shutil.copytree(cache.HERE, recipe, ignore=shutil.ignore_patterns("__pycache__"))
    key = cache.key(seed=1, corpus="a", recipe_folder=recipe)
    assert key == cache.key(seed=1, corpus="a", recipe_folder=recipe) == cache.key(seed=1, corpus="a")
    assert key != cache.key(seed=2, corpus="a", recipe_folder=recipe)
    assert key != cache.key(seed=1, corpus="b", recipe_folder=recipe)
    with (recipe / "__main__.py").open("a") as file:
        file.write("# a remark\n")
    assert key == cache.key(seed=1, corpus="a", recipe_folder=recipe)
    with (recipe / "requirements.txt").open("a") as file:
        file.write("# a remark\n")
    assert key != cache.key(seed=1, corpus="a", recipe_folder=recipe)
