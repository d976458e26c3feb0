# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What the Makefile and .ci/run promise: packages are installed, seeds are printed, time is limited."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAGES = ["setup", "check", "test", "test-sealed", "lab"]


def recipe(target: str) -> str:
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert found
    return found[1]


def test_drills_print_what_passing_tests_have_printed_so_that_their_seeds_are_seen() -> None:
    runs = re.findall(r"-m pytest [^&\n]*", recipe("drills"))
    assert len(runs) >= 3
    assert [run for run in runs if " -rP" not in run] == []


@pytest.mark.parametrize("target", ["test", "demo"])
def test_what_the_readme_tells_to_run_first_installs_its_debian_packages_first(target: str) -> None:
    assert re.match(r"\t@\$\(MAKE\) -s packages .*\bvenv\n", recipe(target))


def ci(folder: Path, *, began: int) -> subprocess.CompletedProcess[str]:
    """Run .ci/run with a `make` that only says what it was asked, as if it had begun that many seconds ago."""
    make = folder / "make"
    make.write_text('#!/bin/sh\necho "asked: $*"\n')
    make.chmod(0o755)
    script = (ROOT / ".ci/run").read_text(encoding="utf-8").replace('cd "$(dirname "$0")/.."\n', f"SECONDS={began}\n")
    env = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, env=env)


def test_ci_runs_every_stage_and_says_how_long_all_of_it_took(tmp_path: Path) -> None:
    done = ci(tmp_path, began=3000)
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^asked: (.*)", done.stdout, flags=re.MULTILINE) == STAGES
    assert re.search(r"^== in all 30\d\d s \(limit 3600\)$", done.stdout, flags=re.MULTILINE)


def test_ci_that_took_more_than_an_hour_says_so_and_does_not_fail_for_a_busy_machine(tmp_path: Path) -> None:
    done = ci(tmp_path, began=3601)
    assert done.returncode == 0
    assert "more than the 3600 s" in done.stderr
