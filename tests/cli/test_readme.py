# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What the README says about the command line is true; tests/lab_suite/test_readme.py runs its commands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from appliance.cli import app
from appliance.errors import ApplianceError
from tests.support.readme import README, blocks

MAKEFILE = README.with_name("Makefile")
APPLIANCE = [words[1:] for block in blocks() for words in block if words[0] == "appliance"]
TOP = README.parent
DOCUMENTS = [*sorted(TOP.glob("*.md")), *sorted((TOP / "docs").rglob("*.md")), TOP / "tests" / "lab" / "README.md"]
PATHS = re.compile(r"(appliance|benchmarks|bundles|charts|docs|images|playbooks|requirements|tests)/(.*\.\w+|.*/)?$")
INSTALLER = [words[2:] for block in blocks() for words in block if words[0] == "python3"]


def test_every_make_target_the_readme_names_is_there() -> None:
    named = set(re.findall(r"make ([a-z][a-z-]*)", README.read_text())) | {
        word for block in blocks() for words in block if words[0] == "make" for word in words[1:]
    }
    targets = set(re.findall(r"^([a-z-]+):", MAKEFILE.read_text(), flags=re.MULTILINE))
    assert {"demo", "test"} <= named <= targets


@pytest.mark.parametrize("words", APPLIANCE + INSTALLER, ids=" ".join)
def test_every_command_of_the_readme_exists_with_its_options(words: tuple[str, ...]) -> None:
    group, verb, *rest = words
    result = CliRunner().invoke(app, [group, verb, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for word in rest:
        assert not word.startswith("--") or word in result.stdout


def test_the_exit_codes_of_the_readme_are_those_of_the_errors() -> None:
    listed = {int(code) for code in re.findall(r"^\| (\d) \|", README.read_text(), flags=re.MULTILINE)}
    assert listed == {0, 1, *(leaf.exit_code for leaf in ApplianceError.__subclasses__())}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(TOP)))
def test_everything_a_document_points_to_is_there(document: Path) -> None:
    assert dead(document.read_text(encoding="utf-8"), document.parent) == []


def test_a_dead_link_a_dead_path_and_a_heading_that_is_not_there_are_found() -> None:
    text = "[a](README.md) [b](gone.md) [c](README.md#exit-codes) [d](README.md#gone) `docs/operate.md` `docs/gone.md` `[x](code.md)`"
    assert dead(text, TOP) == ["gone.md", "README.md#gone", "docs/gone.md"]


def dead(text: str, folder: Path) -> list[str]:
    """What `text`, a document in `folder`, links to or names as a path of this project and what is not there."""
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", prose) if "://" not in link]
    paths = [path for path in re.findall(r"`([\w./-]+)`", text) if PATHS.match(path)]
    return [link for link in links if not leads(link, folder)] + [path for path in paths if not (TOP / path).exists()]


def leads(link: str, folder: Path) -> bool:
    """Whether a relative link leads to a file and, with `#`, to one of its headings."""
    path, _, heading = link.partition("#")
    target = folder / path if path else None
    if target is None or not target.exists():
        return False
    titles = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), flags=re.MULTILINE) if heading else []
    return not heading or heading in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
