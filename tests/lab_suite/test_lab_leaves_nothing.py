# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.lab import network
from tests.lab.machines import Lab, LabError, host
from tests.lab.machines.processes import living
from tests.lab_suite.traces import traces

NAME = "suite-kill"
SEED = int(os.environ.get("SEED", "20261123"))


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "state"
    Lab.down(NAME)


def _start_up(state: Path, *machines: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tests.lab", "up", "--name", NAME, "--state", str(state), "--machines", ",".join(machines)]
    return subprocess.Popen([*command, "--disk", "gpu1=700"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _settings() -> dict[str, str]:
    return {name: (host.SYSCTL / name).read_text() for name in (*host.WRITTEN_BY_KUBELET, *host.AT_LEAST)}


def test_down_leaves_no_trace_and_keeps_the_logs(state: Path) -> None:
    lab = Lab.up(NAME, machines=("bastion", "gpu1"), disks={"gpu1": 700}, state=state)
    assert traces(NAME, state)
    Lab.down(NAME)
    assert traces(NAME, state) == set()
    for name in ("bastion.journal", "gpu1.packages.after", "gpu1.files.after", "gpu1.console"):
        assert (lab.log / name).stat().st_size > 0
    with pytest.raises(LabError, match="there is no lab called"):
        Lab.find(NAME)
    Lab.down(NAME)


@pytest.mark.parametrize("moment", range(8))
def test_down_after_a_killed_up_leaves_no_trace(state: Path, moment: int) -> None:
    delay = random.Random(f"{SEED}-{moment}").uniform(0.05, 6.0)
    print(f"SEED={SEED} moment {moment}: killed after {delay:.2f} s")
    with _start_up(state, "cp1", "gpu1") as up:
        # The passing of time is the condition here: the kill shall fall on any instruction.
        try:
            up.wait(delay)
        except subprocess.TimeoutExpired:
            up.send_signal(signal.SIGKILL)
    Lab.down(NAME)
    assert traces(NAME, state) == set()


def test_up_after_a_killed_up_finishes_the_lab(state: Path) -> None:
    with _start_up(state, "cp1", "gpu1") as up:
        end = time.monotonic() + 60
        while not (state / "machines").exists() and time.monotonic() < end:
            os.sched_yield()
        up.send_signal(signal.SIGKILL)
    lab = Lab.up(NAME, machines=("cp1", "gpu1"), disks={"gpu1": 700}, state=state)
    assert [lab.exec(m.name, ["hostname"]).stdout.strip() for m in lab.machines] == ["cp1", "gpu1"]
    assert not list(state.rglob("*.making"))


def test_machines_outlive_the_process_that_started_them_and_take_in_another(state: Path) -> None:
    command = [sys.executable, "-m", "tests.lab", "up", "--name", NAME, "--state", str(state), "--machines", "cp1"]
    subprocess.run(command, check=True, timeout=300)
    leader = Lab.find(NAME).leader("cp1")
    assert leader is not None
    assert Path(f"/proc/{leader}/comm").read_text() == "systemd\n"
    more = Lab.up(NAME, machines=("cp1", "cp2"))
    assert [m.name for m in more.machines] == ["cp1", "cp2"]
    assert more.leader("cp1") == leader
    Lab.down(NAME)
    assert not living([leader])
    assert traces(NAME, state) == set()


def test_two_labs_at_once_have_the_same_addresses_and_do_not_meet(tmp_path: Path) -> None:
    names = ("suite-a", "suite-b")
    states = {name: tmp_path / name for name in names}
    before = _settings()
    try:
        with ThreadPoolExecutor(2) as pool:
            labs = list(pool.map(lambda name: Lab.up(name, machines=("cp1", "cp2"), state=states[name]), names))
        for lab in labs:
            lab.put("cp1", lab.name.encode(), "/etc/which")
            with network.connect(lab.netns("cp2"), "10.77.0.11", 22) as connection:
                assert connection.recv(4) == b"SSH-"
        assert [lab.exec("cp1", ["cat", "/etc/which"]).stdout for lab in labs] == list(names)
        assert labs[0].host_key("cp1") != labs[1].host_key("cp1")
        other = labs[1].leader("cp1")
        labs[0].power_cut("cp1")
        assert labs[1].leader("cp1") == other
        Lab.down("suite-a")
        assert labs[1].exec("cp1", ["hostname"]).stdout == "cp1\n"
        labs[1].assert_sealed()
        with pytest.raises(LabError, match="another state folder"):
            Lab.up("suite-b", machines=("cp1",), state=tmp_path / "elsewhere")
    finally:
        for name in names:
            Lab.down(name)
    assert {line for name in names for line in traces(name, states[name])} == set()
    assert _settings() == before
