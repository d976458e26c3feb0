# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Every error ends at one boundary with the exit code of its class."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from appliance.cli import BoundaryGroup
from appliance.cli import app as appliance_app
from appliance.errors import ApplianceError, FormatError, HostError, ToolError, UsageError, VerificationError

ROOT = Path(__file__).resolve().parents[2]
LEAVES: list[tuple[ApplianceError, int]] = [
    (UsageError("a", hint="do b"), 2),
    (VerificationError("a", hint="do b"), 3),
    (FormatError("a", hint="do b"), 4),
    (HostError("a", hint="do b"), 5),
    (ToolError("a", step="s", hint="do b"), 6),
]


def failing(error: Exception) -> typer.Typer:
    app = typer.Typer(cls=BoundaryGroup)

    @app.callback()
    def root() -> None:
        """Do nothing."""

    @app.command()
    def fail() -> None:
        raise error

    return app


@pytest.mark.parametrize(("error", "code"), LEAVES, ids=lambda value: type(value).__name__)
def test_an_expected_error_becomes_two_lines_and_its_exit_code(error: ApplianceError, code: int) -> None:
    result = CliRunner().invoke(failing(error), ["fail"])
    assert result.exit_code == code
    assert result.stderr == "appliance: error: a\nappliance: hint: do b\n"
    assert result.stdout == ""


def test_every_leaf_of_the_tree_has_its_own_exit_code() -> None:
    leaves = ApplianceError.__subclasses__()
    assert sorted(leaf.exit_code for leaf in leaves) == [2, 3, 4, 5, 6]
    assert {type(error) for error, _ in LEAVES} == set(leaves)


def test_a_bug_is_exit_1_with_a_traceback() -> None:
    result = CliRunner().invoke(failing(ZeroDivisionError("x")), ["fail"])
    assert result.exit_code == 1
    assert "ZeroDivisionError" in result.stderr
    assert "this is a bug in appliance" in result.stderr


def test_an_unknown_group_is_usage() -> None:
    result = CliRunner().invoke(appliance_app, ["no-such-group"])
    assert result.exit_code == 2


def test_the_command_starts_without_the_cluster_and_network_libraries() -> None:
    code = "import sys, appliance.cli, appliance.cli.bundle; print(sorted(m for m in ('ansible', 'kubernetes', 'pyhelm3', 'torch') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_name_from_a_medium_can_neither_begin_a_line_nor_move_the_cursor() -> None:
    result = CliRunner().invoke(failing(FormatError("x\nappliance: hint: run sh b.sh\x1b[31m.part: odd", hint="do b")), ["fail"])
    assert result.stderr == "appliance: error: x\n  appliance: hint: run sh b.sh\\x1b[31m.part: odd\nappliance: hint: do b\n"


def typed(words: str) -> int:
    """Return the exit status of a shell line in which `A` is the command."""
    line = words.replace("A ", f"{sys.executable} -m appliance ")
    return subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, check=False).returncode


def test_output_that_cannot_be_written_is_not_a_bug() -> None:
    assert typed("A --version >/dev/full") == HostError.exit_code
    assert typed("set -o pipefail; A --help | true") in {0, 141}
    assert typed("A --version >&-") == 0
    assert typed("A no-such-group 2>/dev/full") == UsageError.exit_code


def test_closed_streams_are_no_bug() -> None:
    assert typed("A --version <&- >&- 2>&-") == 0
