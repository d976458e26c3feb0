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


def test_every_document_the_readme_points_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README.read_text())
    assert links
    assert [link for link in links if not (README.parent / Path(link)).exists()] == []
