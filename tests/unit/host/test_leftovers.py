# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What a killed run leaves behind is ended by the next one, and nothing else is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from appliance.adapters.leftovers import end_leftovers

SLEEPER = ["sh", "-c", "read forever; true"]


def test_processes_that_name_the_folder_are_ended_and_others_live(tmp_path: Path) -> None:
    runs = tmp_path / "site" / "runs"
    ours = [subprocess.Popen([*SLEEPER, f"{runs}/{name}/inventory"], stdin=subprocess.PIPE, start_new_session=True) for name in ("a", "b")]
    other = subprocess.Popen([*SLEEPER, f"{tmp_path}/site/runs-of-another/x"], stdin=subprocess.PIPE)
    try:
        assert end_leftovers(runs) == tuple(sorted(process.pid for process in ours))
        assert [process.wait(timeout=10) for process in ours] == [-9, -9]
        assert other.poll() is None
        assert end_leftovers(runs) == ()
    finally:
        for process in (*ours, other):
            process.kill()
            process.communicate()


def test_the_process_itself_and_its_parents_are_never_ended(tmp_path: Path) -> None:
    script = (
        f"from pathlib import Path; from appliance.adapters.leftovers import end_leftovers; print(end_leftovers(Path({str(tmp_path)!r})))"
    )
    done = subprocess.run(
        ["sh", "-c", '"$@"; echo parent lives', "sh", sys.executable, "-c", script, f"{tmp_path}/run"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stdout == "()\nparent lives\n"
