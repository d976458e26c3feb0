# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Real Ansible on this machine, without a network: what is reported, what is refused, what is left behind."""

from __future__ import annotations

import gc
import os
import signal
import stat
from collections.abc import Mapping
from pathlib import Path

import pytest

from appliance.adapters import playbook
from appliance.adapters.playbook import PlaybookResult, TaskEvent, TaskStatus, run_playbook
from appliance.errors import FormatError, HostError, ToolError, VerificationError
from tests.support.faults import can_mount, fill, small_disk

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
    variables: Mapping[str, object] | None = None,
    playbooks: Path | None = None,
) -> tuple[PlaybookResult, list[TaskEvent]]:
    folder = write_playbook(playbooks or tmp_path / "playbooks", tasks)
    monkeypatch.setattr(playbook, "playbooks_folder", lambda: folder)
    events: list[TaskEvent] = []
    result = run_playbook(
        "site",
        inventory={"all": {"hosts": dict(hosts or {"here": HERE | {"ansible_remote_tmp": str(tmp_path / "remote")}})}},
        variables={"target": str(tmp_path / "made"), "secret": SECRET, **(variables or {})},
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_stops_a_run_is_not_told_of_a_failed_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    tasks = (
        '    - name: Look\n      ansible.builtin.command: "true"\n    - name: Long\n      ansible.builtin.wait_for:\n        timeout: 60\n'
    )
    monkeypatch.setattr(playbook._Listener, "_take", lambda *_: os.kill(os.getpid(), number))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, monkeypatch, tasks)


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


@pytest.mark.parametrize(
    "planted",
    [
        {"appliance_images": [{"reference": "reg.io/{{ lookup('ansible.builtin.pipe', 'touch MADE') }}:1"}]},
        {"appliance_files": {"{{ 1 }}": {"version": "1"}}},
        {"appliance_state": "/var/{% set x = 1 %}"},
        {"deep": ["plain", ("{# a comment", 1)]},
    ],
)
def test_a_signed_word_that_ansible_would_evaluate_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, planted: dict[str, object]
) -> None:
    with pytest.raises(FormatError, match=r"variables: .* is a template, expected plain words; nothing was changed") as caught:
        run(tmp_path, monkeypatch, MAKE, variables=planted)
    assert caught.value.hint
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "made").exists()


def test_a_word_of_the_inventory_that_ansible_would_evaluate_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FormatError, match="inventory: all: hosts: here: appliance_address"):
        run(tmp_path, monkeypatch, MAKE, hosts={"here": HERE | {"appliance_address": "{{ target }}"}})


def test_the_sockets_of_ssh_have_a_short_private_folder_however_long_the_state_is_and_it_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    say = """\
    - name: Say where
      ansible.builtin.shell: stat -c '%n %a' "$ANSIBLE_SSH_CONTROL_PATH_DIR" > {{ target }}
"""
    deep = tmp_path / ("long" * 20)
    deep.mkdir()
    run(deep, monkeypatch, say)
    folder, mode = (deep / "made").read_text().split()
    assert len(folder) + len("/0123456789.0123456789abcdef") < 107
    assert mode == "700"
    assert not Path(folder).exists()


@pytest.mark.skipif(not can_mount(), reason="needs to mount a small disk")
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)  # ansible-runner leaves files open
@pytest.mark.parametrize("left", [0, 4096, 12288, 24576])
def test_a_full_disk_while_a_run_is_set_up_is_an_unfit_machine_and_not_a_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int
) -> None:
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        fill(disk, leave=left)
        with pytest.raises(HostError, match="no space left") as caught:
            run(disk, monkeypatch, MAKE, playbooks=tmp_path / "playbooks")
        assert "free space" in (caught.value.hint or "")
        del caught
        gc.collect()  # those files hang on the traceback, and would keep the disk mounted


def test_a_refusal_of_our_own_program_ends_the_run_with_its_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse = """\
    - name: Place
      ansible.builtin.shell: echo 'appliance:' 'error:' 1 byte differs >&2; echo 'appliance:' 'hint:' find out who >&2; exit {{ item }}
      loop: [0, 3]
"""
    with pytest.raises(VerificationError, match="here: Place: 1 byte differs"):
        run(tmp_path, monkeypatch, refuse)
