# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Whether a unit is restarted is decided from what the machine says, whatever this run did."""

from __future__ import annotations

import os
import runpy
from datetime import datetime
from pathlib import Path

import pytest

from appliance.adapters.playbook import playbooks_folder

JUDGE = runpy.run_path(str(playbooks_folder() / "roles/service/files/look_at_unit.py"))["judge"]
STARTED = "Wed 2026-11-25 13:42:00.500000 UTC"
SECONDS = datetime.fromisoformat("2026-11-25T13:42:00.500000+00:00").timestamp()


def shown(**properties: str) -> str:
    """What systemctl prints of a unit that runs as it should."""
    usual = {"LoadState": "loaded", "ActiveState": "active", "NeedDaemonReload": "no", "ExecMainStartTimestamp": STARTED}
    return "".join(f"{name}={value}\n" for name, value in (usual | properties).items())


@pytest.mark.parametrize(
    ("properties", "after", "words"),
    [
        ({}, -0.01, []),
        ({}, 0.01, ["restart"]),
        ({"NeedDaemonReload": "yes"}, -0.01, ["reload"]),
        ({"NeedDaemonReload": "yes"}, 0.01, ["reload", "restart"]),
        ({"ActiveState": "inactive"}, 0.01, []),
        ({"ActiveState": "failed"}, 0.01, []),
        ({"ActiveState": "inactive", "ExecMainStartTimestamp": ""}, 0.01, []),
        ({"LoadState": "not-found", "ActiveState": "inactive"}, 0.01, ["absent"]),
    ],
)
def test_a_process_older_than_a_file_it_read_is_restarted(
    tmp_path: Path, properties: dict[str, str], after: float, words: list[str]
) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    for path, when in ((old, SECONDS - 100), (new, SECONDS + after)):
        path.touch()
        os.utime(path, (when, when))
    assert JUDGE(shown(**properties), [old, new], SECONDS + 3600) == words


def test_a_file_that_is_not_there_is_no_silent_yes(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        JUDGE(shown(), [tmp_path / "gone"], SECONDS + 3600)


def test_a_process_that_started_in_what_is_the_future_by_now_is_restarted_once(tmp_path: Path) -> None:
    old = tmp_path / "old"
    old.touch()
    os.utime(old, (SECONDS - 100, SECONDS - 100))
    assert JUDGE(shown(), [old], SECONDS - 60) == ["restart"]
    assert JUDGE(shown(), [old], SECONDS + 1) == []
