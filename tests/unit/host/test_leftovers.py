# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What a killed run leaves behind is ended by the next one, and nothing else is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from appliance.adapters.leftovers import end_leftovers

SLEEPER = ["sh", "-c", "read forever; true"]


def started(place: Path, *words: str) -> subprocess.Popen[bytes]:
    """A process as Ansible starts one for the run in `place`."""
    settings = {**os.environ, "ANSIBLE_CONFIG": f"{place}/ansible.cfg"}
    return subprocess.Popen([*SLEEPER, *words], stdin=subprocess.PIPE, start_new_session=True, env=settings)


def test_processes_of_a_run_are_ended_and_others_live(tmp_path: Path) -> None:
    runs = tmp_path / "site" / "runs"
    ours = [started(runs / name) for name in ("a", "b")]
    others = [
        started(tmp_path / "site" / "runs-of-another" / "x"),
        subprocess.Popen([*SLEEPER, f"{runs}/a/run.log"], stdin=subprocess.PIPE),  # somebody's pager
        started(Path("/etc/ansible"), f"ANSIBLE_CONFIG={runs}/a/ansible.cfg"),
    ]
    try:
        assert end_leftovers(runs) == tuple(sorted(process.pid for process in ours))
        assert [process.wait(timeout=10) for process in ours] == [-9, -9]
        assert [process.poll() for process in others] == [None] * 3
        assert end_leftovers(runs) == ()
    finally:
        for process in (*ours, *others):
            process.kill()
            process.communicate()


def test_the_process_itself_and_its_parents_are_never_ended(tmp_path: Path) -> None:
    script = (
        f"from pathlib import Path; from appliance.adapters.leftovers import end_leftovers; print(end_leftovers(Path({str(tmp_path)!r})))"
    )
    done = subprocess.run(
        ["sh", "-c", '"$@"; echo parent lives', "sh", sys.executable, "-c", script],
        env={**os.environ, "ANSIBLE_CONFIG": f"{tmp_path}/run/ansible.cfg"},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == "()\nparent lives\n"
