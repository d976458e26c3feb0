# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.machines import LabError, host, noderoot, places


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "REGISTRATIONS", tmp_path / "run")
    monkeypatch.setenv("APPLIANCE_CACHE", str(tmp_path / "cache"))
    for name in ("LAB_STATE", "LAB_LOG"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", ["", "A", "1a", "a_b", "a/b", "..", "a" * 16, "a\n"])
def test_a_lab_name_that_cannot_be_a_file_name_everywhere_is_refused(name: str) -> None:
    with pytest.raises(LabError, match="cannot name a lab"):
        places.checked_name(name)


def test_a_registered_lab_is_found_until_it_is_unregistered(tmp_path: Path) -> None:
    places.register("a", tmp_path / "state-a")
    places.register("a", tmp_path / "state-a")
    assert places.registered("a") == tmp_path / "state-a"
    assert places.all_registered() == ("a",)
    places.unregister("a")
    assert places.registered("a") is None
    assert places.state_of("a") is None


def test_one_name_cannot_have_two_state_folders(tmp_path: Path) -> None:
    places.register("a", tmp_path / "one")
    with pytest.raises(LabError, match="another state folder"):
        places.register("a", tmp_path / "two")
    assert places.registered("a") == tmp_path / "one"


def test_after_a_reboot_a_lab_is_found_where_it_is_by_default() -> None:
    places.default_state("a").mkdir(parents=True)
    assert places.state_of("a") == places.default_state("a").resolve()


def test_the_lock_of_a_killed_process_is_free_again(tmp_path: Path) -> None:
    program = "import os,sys\nfrom pathlib import Path\nfrom tests.lab.machines import places\nwith places.locked(Path(sys.argv[1])): os.kill(os.getpid(),9)"
    assert subprocess.run([sys.executable, "-c", program, str(tmp_path / "lock")], check=False, timeout=60).returncode == -9
    with places.locked(tmp_path / "lock"):
        pass


def test_an_error_under_a_lock_is_raised_and_frees_the_lock(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(FileNotFoundError), places.locked(tmp_path / "lock"):
            raise FileNotFoundError(tmp_path / "lock")


def test_the_latest_log_folder_can_be_found_by_name() -> None:
    first, second = places.new_log("a"), places.new_log("a")
    assert first != second
    assert (second.parent / "latest").resolve() == second.resolve()


def test_the_node_root_has_another_name_when_one_of_its_files_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noderoot, "OVERLAY", tmp_path)
    (tmp_path / "unit").write_text("a")
    keys = [noderoot.key()]
    (tmp_path / "unit").write_text("b")
    keys.append(noderoot.key())
    (tmp_path / "unit").chmod(0o755)
    keys.append(noderoot.key())
    (tmp_path / "unit").rename(tmp_path / "other")
    keys.append(noderoot.key())
    assert len(set(keys)) == 4


def test_settings_of_this_machine_are_given_back_with_the_last_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "SYSCTL", tmp_path / "sys")
    monkeypatch.setattr(host, "MODULES", ())
    monkeypatch.setattr("shutil.which", lambda _: None)
    before = dict.fromkeys(host.WRITTEN_BY_KUBELET, "0\n") | dict.fromkeys(host.AT_LEAST, "128\n")
    for name, value in before.items():
        (tmp_path / "sys" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "sys" / name).write_text(value)

    def now() -> dict[str, str]:
        return {name: (tmp_path / "sys" / name).read_text() for name in before}

    for name in ("a", "b"):
        places.register(name, tmp_path / name)
        host.prepare(lab=name)
    (tmp_path / "sys/kernel/panic").write_text("10\n")
    raised = now()
    assert all(int(raised[name]) == least for name, least in host.AT_LEAST.items())
    places.unregister("a")
    host.give_back_settings(lab="a")
    assert now() == raised
    places.unregister("b")
    host.give_back_settings(lab="b")
    assert now() == before
    assert not places.REGISTRATIONS.exists()
