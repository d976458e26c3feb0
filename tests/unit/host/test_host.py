# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""ssh from our side: what is asked of it, and what its failures mean. Real sshd is in the lab's tests."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from appliance.adapters.host import Login, run_on, scan_host_keys, talk, why_silent
from appliance.errors import ToolError, VerificationError

THERE = Login(name="cp1", address="10.20.0.11", port=2222, user="ops", options=("StrictHostKeyChecking=yes", "BatchMode=yes"))


@pytest.fixture
def fake_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An `ssh` that writes down its arguments and ends as the file `script` says."""
    program = tmp_path / "ssh"
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/arguments\n. {tmp_path}/script\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def test_a_command_runs_here_without_ssh() -> None:
    done = run_on(Login(name="depot"), ["sh", "-c", "cat; echo done >&2; exit 3"], stdin=b"text")
    assert (done.code, done.output, done.errors) == (3, b"text", "done\n")


def test_a_command_there_is_one_quoted_word_after_the_options(fake_ssh: Path) -> None:
    (fake_ssh / "script").write_text("cat; exit 4")
    done = run_on(THERE, ["printf", "%s", "a b; rm -rf /"], stdin=b"in")
    assert (done.code, done.output) == (4, b"in")
    assert (fake_ssh / "arguments").read_text().splitlines() == [
        *("-T", "-x", "-a", "-o", "StrictHostKeyChecking=yes", "-o", "BatchMode=yes", "-p", "2222", "-l", "ops", "--", "10.20.0.11"),
        "printf %s 'a b; rm -rf /'",
    ]


@pytest.mark.parametrize(
    ("says", "kind", "words"),
    [
        ("Host key verification failed.", VerificationError, "the ssh host key is not the one that was accepted"),
        ("ops@10.20.0.11: Permission denied (publickey).", ToolError, "ssh refuses ops"),
        ("ssh: connect to host 10.20.0.11 port 2222: No route to host", ToolError, "No route to host"),
        ("", ToolError, "no reason given"),
    ],
)
def test_what_ssh_says_when_it_fails_becomes_the_right_error(fake_ssh: Path, says: str, kind: type[Exception], words: str) -> None:
    (fake_ssh / "script").write_text(f"echo '{says}' >&2; exit 255")
    with pytest.raises(kind, match=words):
        run_on(THERE, ["true"])
    with talk(THERE, ["true"]) as conversation, pytest.raises(kind, match=words):
        conversation.ask(b"{}", seconds=10)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("exit 0", ""),
        ("echo 'ssh: connect to host 10.20.0.11 port 2222: No route to host' >&2; exit 255", "No route to host"),
        ("echo 'Connection timed out during banner exchange' >&2; exit 255", "timed out"),
    ],
)
def test_a_machine_that_is_not_reached_says_why(fake_ssh: Path, script: str, why: str) -> None:
    (fake_ssh / "script").write_text(script)
    found = why_silent(THERE)
    assert why in found
    assert bool(found) == bool(why)
    assert why_silent(Login(name="depot")) == ""


@pytest.mark.parametrize(
    ("says", "kind"), [("Host key verification failed.", VerificationError), ("ops@x: Permission denied (publickey).", ToolError)]
)
def test_a_machine_that_answers_and_refuses_is_not_a_lost_one(fake_ssh: Path, says: str, kind: type[Exception]) -> None:
    (fake_ssh / "script").write_text(f"echo '{says}' >&2; exit 255")
    with pytest.raises(kind):
        why_silent(THERE)


def test_a_command_that_does_not_end_is_given_up() -> None:
    with pytest.raises(ToolError, match="no end after"):
        run_on(Login(name="depot"), ["sh", "-c", "read forever < /dev/zero; cat /dev/zero > /dev/null"], seconds=0.2)


def test_where_nobody_answers_there_are_no_keys() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with pytest.raises(ToolError, match="gpu1: no ssh server answers"):
            scan_host_keys("gpu1", "127.0.0.1", nobody.getsockname()[1], seconds=1)


def test_a_program_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match="ssh: not on this machine"):
        run_on(THERE, ["true"])
