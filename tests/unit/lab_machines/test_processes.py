# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.machines import LabError, processes


def test_a_process_of_a_lab_is_found_by_its_mark_and_no_other_labs() -> None:
    program = "import os,sys; from tests.lab.machines import processes as p; print(os.getpid() in p.marked('x'), len(p.marked('x')), len(p.marked('xy')))"
    # It finds neither itself nor those above it, or `down` run inside a place would end itself.
    assert processes.run([sys.executable, "-c", program], lab="x", env={"PYTHONPATH": str(Path.cwd())}).stdout == "False 0 0\n"


def test_a_failing_command_is_named_with_the_end_of_what_it_said() -> None:
    with pytest.raises(LabError, match=r"exit 3 from: sh -c[\s\S]*not today"):
        processes.run(["sh", "-c", "echo not today >&2; exit 3"], lab="x")


def test_a_command_that_takes_too_long_is_ended_with_its_children() -> None:
    with pytest.raises(LabError, match=r"gave up after 0\.2 s"):
        processes.run(["sh", "-c", "sleep 86398 & sleep 86398"], lab="unit-slow", timeout=0.2)
    processes.wait_until(lambda: not processes.marked("unit-slow"), seconds=5, what="its children to end", hint="")


def test_bytes_that_are_not_text_pass_through_a_command_unchanged() -> None:
    every = bytes(range(256)).replace(b"\r", b"")
    done = processes.run(["cat"], lab="x", data=every.decode("utf-8", "surrogateescape"))
    assert done.stdout.encode("utf-8", "surrogateescape") == every


def test_waiting_in_vain_says_for_what_and_what_to_do() -> None:
    with pytest.raises(LabError, match="waited 0 s in vain: rain") as caught:
        processes.wait_until(lambda: None, seconds=0, what="rain", hint="dance")
    assert caught.value.hint == "dance"


def test_ending_waits_for_a_process_that_can_no_longer_be_found() -> None:
    with subprocess.Popen(["sleep", "86397"]) as process:
        seen = iter([{process.pid}])
        processes.end(lambda: next(seen, set()), what="the test")
        # It is dead, but this process, its parent, has not taken notice: that holds nothing any more.
        assert Path(f"/proc/{process.pid}").exists()
        assert processes.living([process.pid]) == set()


def test_a_running_process_lives_from_the_same_moment_on() -> None:
    assert len(processes.living([os.getpid()])) == 1
    assert processes.living([os.getpid()]) == processes.living([os.getpid()])
