# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Real Ansible on this machine, without a network: what is reported, what is refused, what is left behind."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from pathlib import Path

import pytest

from appliance.adapters import playbook
from appliance.adapters.playbook import PlaybookResult, TaskEvent, TaskStatus, run_playbook
from appliance.errors import HostError, ToolError

SECRET = "plugh-7c1b55e2-xyzzy"
HERE = {"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3"}
NOBODY = {"ansible_host": "127.0.0.1", "ansible_port": 9, "ansible_ssh_common_args": "-o BatchMode=yes -o ConnectTimeout=2"}


def write_playbook(folder: Path, tasks: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "site.yml").write_text(f"- hosts: all\n  gather_facts: false\n  tasks:\n{tasks}")
    return folder


def run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tasks: str,
    *,
    hosts: Mapping[str, object] | None = None,
    check: bool = False,
) -> tuple[PlaybookResult, list[TaskEvent]]:
    folder = write_playbook(tmp_path / "playbooks", tasks)
    monkeypatch.setattr(playbook, "playbooks_folder", lambda: folder)
    events: list[TaskEvent] = []
    result = run_playbook(
        "site",
        inventory={"all": {"hosts": dict(hosts or {"here": HERE | {"ansible_remote_tmp": str(tmp_path / "remote")}})}},
        variables={"target": str(tmp_path / "made"), "secret": SECRET},
        private_data_dir=tmp_path / "run",
        on_event=events.append,
        check=check,
    )
    return result, events


MAKE = """\
    - name: Make it
      ansible.builtin.copy:
        content: "x"
        dest: "{{ target }}"
        mode: "0600"
    - name: Look only
      ansible.builtin.command: "true"
      changed_when: false
    - name: Not for us
      ansible.builtin.command: "false"
      when: false
"""


def test_every_task_is_told_with_its_host_and_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, events = run(tmp_path, monkeypatch, MAKE)
    assert [(event.host, event.task, event.status) for event in events] == [
        ("here", "Make it", TaskStatus.CHANGED),
        ("here", "Look only", TaskStatus.OK),
        ("here", "Not for us", TaskStatus.SKIPPED),
    ]
    assert result.changed == {"here": 1}
    assert [change.task for change in result.changes] == ["Make it"]
    assert events[0].seconds > 0
    assert (tmp_path / "made").read_text() == "x"


def test_check_mode_tells_what_would_change_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = run(tmp_path, monkeypatch, MAKE, check=True)
    assert result.changed == {"here": 1}
    assert not (tmp_path / "made").exists()


FAIL = """\
    - name: Break
      ansible.builtin.command: ls /no/such/folder
"""


def test_a_failed_task_becomes_cause_next_step_and_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ToolError) as caught:
        run(tmp_path, monkeypatch, FAIL)
    assert caught.value.step == "Break"
    assert caught.value.message.startswith("here: Break: ls: cannot access '/no/such/folder'")
    assert caught.value.hint is not None
    assert str(tmp_path / "run" / "run.log") in caught.value.hint


def test_a_machine_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ToolError) as caught:
        run(tmp_path, monkeypatch, MAKE, hosts={"far": NOBODY})
    assert caught.value.message.startswith("far: Make it: ")
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("start far, check its cable")


CENSORED = """\
    - name: Use the secret
      ansible.builtin.command: echo {{ secret }}
      no_log: true
"""


@pytest.mark.parametrize("ending", ["", "      failed_when: true\n"], ids=["well", "failed"])
def test_a_secret_of_a_censored_task_is_in_nothing_that_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    try:
        result, events = run(tmp_path, monkeypatch, CENSORED + ending)
        told = f"{result} {events}"
    except ToolError as error:
        told = f"{error.message} {error.hint}"
    assert SECRET not in told
    left = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert [path.name for path in left] == ["run.log"]
    assert SECRET not in left[0].read_text()
    assert not (tmp_path / "run" / "artifacts").exists()


def test_what_stays_is_readable_by_its_owner_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result, _ = run(tmp_path, monkeypatch, MAKE)
    assert stat.S_IMODE(result.log.stat().st_mode) == 0o600
    assert stat.S_IMODE(result.log.parent.stat().st_mode) == 0o700
    assert "Make it" in result.log.read_text()


def test_nothing_of_the_callers_ansible_settings_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tmp_path / "ansible.cfg"
    settings.write_text("[defaults]\nstdout_callback = no_such_callback\n")
    monkeypatch.setenv("ANSIBLE_CONFIG", str(settings))
    monkeypatch.setenv("ANSIBLE_STRATEGY", "no_such_strategy")
    result, _ = run(tmp_path, monkeypatch, MAKE)
    assert result.changed == {"here": 1}


def test_a_broken_playbook_is_a_failed_step_and_not_a_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ToolError) as caught:
        run(tmp_path, monkeypatch, "    - no.such.module: {}\n")
    assert caught.value.step == "site"


def test_an_installation_without_playbooks_is_unfit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playbook, "_BESIDE", tmp_path)
    monkeypatch.setattr(playbook, "_INSIDE", tmp_path)
    with pytest.raises(HostError, match="no playbooks"):
        playbook.playbooks_folder()
