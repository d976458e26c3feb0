# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`appliance site` as a person types it: what is printed where, and the exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from appliance.adapters import host
from appliance.adapters.host import HostKey
from appliance.cli import app
from appliance.errors import ToolError
from tests.support.site import SITE, World, host_key, snapshot


class Terminal:
    """A world and a way to type commands into it."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        self.root = folder / "root.json"
        self.root.write_bytes(self.world.line.pin)
        self.expected = folder / "expected"
        self.expect(cp1="cp1", gpu1="gpu1")

    def expect(self, **keys: str) -> None:
        self.expected.write_text("".join(f"{name} {host_key(key).fingerprint}\n" for name, key in keys.items()))

    def type(self, *words: str) -> Result:
        return CliRunner().invoke(app, ["site", *words, "--state", str(self.world.places.state)])

    def init(self, *words: str) -> Result:
        return self.type("init", str(self.world.file), "--root", str(self.root), "--accept-host-keys", str(self.expected), *words)

    def check(self, *words: str) -> Result:
        return self.type("check", "--site", str(self.world.file), *words)


@pytest.fixture
def terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    def scan(name: str, *_: object) -> tuple[HostKey, ...]:
        return (host_key(name),)

    monkeypatch.setattr(host, "scan_host_keys", scan)
    return Terminal(tmp_path)


def test_init_shows_root_and_host_keys_and_says_what_it_made(terminal: Terminal) -> None:
    done = terminal.init()
    assert done.exit_code == 0, done.output
    fingerprint = terminal.world.root.fingerprint
    assert f"root of line acme, version 1, to be pinned:\n  {fingerprint}\n" in done.stderr
    assert len(fingerprint.replace(" ", "")) == 64
    assert f"cp1 (10.20.0.11) ssh-ed25519 {host_key('cp1').fingerprint}" in done.stderr
    assert done.stdout.split()[0] == "changed"
    assert "key site-ml-dsa-65" in done.stdout
    assert "site policy, serial 1" in done.stdout


def test_init_a_second_time_changes_nothing(terminal: Terminal) -> None:
    terminal.init()
    done = terminal.init("-o", "json")
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"site": "harbour", "serial": 1, "changed": []})
    assert "pinned already" in done.stderr


def test_init_without_a_terminal_and_without_fingerprints_is_refused(terminal: Terminal) -> None:
    done = terminal.type("init", str(terminal.world.file), "--root", str(terminal.root))
    assert done.exit_code == 2
    assert "appliance: error: nobody is here to compare the fingerprints" in done.stderr
    assert "--accept-host-keys FILE" in done.stderr
    assert not terminal.world.places.state.exists()


def test_init_with_another_host_key_than_expected_is_exit_3_and_nothing_is_written(terminal: Terminal) -> None:
    terminal.expect(cp1="cp1", gpu1="evil")
    done = terminal.init()
    assert done.exit_code == 3
    assert "gpu1 (10.20.0.21): wrong ssh host key" in done.stderr
    assert host_key("evil").fingerprint in done.stderr
    assert not terminal.world.places.state.exists()


def test_init_without_a_root_says_where_it_comes_from(terminal: Terminal) -> None:
    done = terminal.type("init", str(terminal.world.file), "--accept-host-keys", str(terminal.expected))
    assert done.exit_code == 2
    assert "--root root.json" in done.stderr


@pytest.mark.parametrize(
    ("old", "new", "code"),
    [('"none"', '"nvidia"', 2), ('"none"', '"tpu"', 4), ("10.20.0.21", "10.20.0.11", 4), ('line = "acme"', 'line = "other"', 3)],
)
def test_init_refuses_a_site_file_with_the_exit_code_of_who_must_act(terminal: Terminal, old: str, new: str, code: int) -> None:
    terminal.world.write(SITE.replace(old, new))
    done = terminal.init()
    assert done.exit_code == code
    assert "appliance: hint: " in done.stderr
    assert not terminal.world.places.state.exists()


@pytest.mark.parametrize("command", [["check"], ["install"], ["install", "--plan"], ["status"], ["reset", "--confirm", "harbour"]])
def test_every_command_before_init_says_so(terminal: Terminal, command: list[str]) -> None:
    done = terminal.type(*command)
    assert done.exit_code == 5
    assert "no site here yet" in done.stderr


def test_a_site_file_that_changed_must_be_accepted_first(terminal: Terminal) -> None:
    terminal.init()
    terminal.world.write(SITE + "# a comment\n")
    done = terminal.check()
    assert done.exit_code == 2
    assert f"run site init {terminal.world.file} to accept it" in done.stderr


@pytest.mark.parametrize("command", [["check"], ["install"], ["install", "--plan"], ["status"], ["reset", "--confirm", "harbour"]])
@pytest.mark.parametrize("by", ["option", "environment"])
def test_a_site_file_that_is_named_and_not_there_is_a_usage_error(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: list[str], by: str
) -> None:
    terminal.init()
    missing = str(tmp_path / "site.tmol")
    if by == "environment":
        monkeypatch.setenv("APPLIANCE_SITE", missing)
    done = terminal.type(*command, *(["--site", missing] if by == "option" else []))
    assert done.exit_code == 2
    assert f"--site {missing}: no file there" in done.stderr
    assert "appliance: hint: name the site file" in done.stderr


def test_a_fingerprint_that_differs_from_the_pinned_key_is_refused_though_the_machine_is_known(terminal: Terminal) -> None:
    terminal.init()
    before = snapshot(terminal.world.places.state)
    terminal.expect(cp1="cp1", gpu1="rebuilt")
    done = terminal.init()
    assert done.exit_code == 3
    assert f"expected {host_key('rebuilt').fingerprint}, got {host_key('gpu1').fingerprint} (ssh-ed25519)" in done.stderr
    assert "appliance: hint: compare at the machine's own console" in done.stderr
    assert snapshot(terminal.world.places.state) == before


def test_a_fingerprint_of_a_machine_that_the_site_does_not_have_is_a_usage_error(terminal: Terminal) -> None:
    terminal.expect(cp1="cp1", gpu1="gpu1", gpu7="gpu7")
    done = terminal.init()
    assert done.exit_code == 2
    assert "gpu7: no machine of the site file" in done.stderr
    assert not terminal.world.places.state.exists()


def test_a_line_for_the_depot_itself_is_no_error(terminal: Terminal) -> None:
    terminal.expect(depot="depot", cp1="cp1", gpu1="gpu1")
    assert terminal.init().exit_code == 0


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        ("bash: line 1: /usr/bin/python3: No such file or directory; exit 127", ("python", "install Debian's python3")),
        ("sudo: a password is required; exit 1", ("root", "let that user sudo without a password")),
        ("root@x: Permission denied (publickey).; exit 255", ("login", "ssh-copy-id")),
        ("ssh: connect to host: No route to host; exit 255", ("login", "start the machine, check its cable")),
    ],
)
def test_a_machine_that_cannot_be_asked_fails_the_check_that_is_about_the_reason(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, says: str, expected: tuple[str, str]
) -> None:
    terminal.init()
    words, _, ending = says.rpartition("; ")
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho '{words}' >&2; {ending}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    done = terminal.check("-o", "json")
    assert done.exit_code == 5
    found = next(one for one in json.loads(done.stdout)["checks"] if one["machine"] == "gpu1" and one["state"] == "fail")
    assert found["name"] == expected[0]
    assert expected[1] in found["fix"]


def test_a_chatty_login_shell_is_named_as_what_it_is(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    terminal.init()
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'Welcome to gpu1!'; cat > /dev/null\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    found = next(one for one in json.loads(terminal.check("-o", "json").stdout)["checks"] if one["machine"] == "gpu1")
    assert (found["name"], found["state"]) == ("login", "fail")
    assert "login shell prints nothing of its own" in found["fix"]


def test_check_names_machines_that_cannot_be_logged_in_to(terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    terminal.init()
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'root@x: Permission denied (publickey).' >&2; exit 255\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    done = terminal.check("-o", "json")
    assert done.exit_code == 5
    found = json.loads(done.stdout)
    assert found["failures"][:2] == ["cp1: login", "gpu1: login"]
    login = next(one for one in found["checks"] if one["name"] == "login")
    assert "ssh refuses root" in login["measured"]
    assert login["state"] == "fail"


@pytest.mark.parametrize(
    "command", [["check"], ["install"], ["status"], ["reset", "--confirm", "harbour"], ["reset", "gpu1", "--confirm", "harbour"]]
)
def test_a_machine_with_another_host_key_is_refused_by_name_and_fingerprints_whatever_the_command(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: list[str]
) -> None:
    terminal.init()
    terminal.world.import_release()
    program = tmp_path / "bin" / "ssh"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'Host key verification failed.' >&2; exit 255\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    monkeypatch.setattr(host, "scan_host_keys", lambda name, *_: (host_key(f"evil-{name}"),))
    before = snapshot(terminal.world.places.site)
    done = terminal.type(*command)
    assert done.exit_code == 3
    name, address = ("gpu1", "10.20.0.21") if "gpu1" in command else ("cp1", "10.20.0.11")
    assert (
        f"{name} ({address}): wrong ssh host key: expected {host_key(name).fingerprint}, got {host_key(f'evil-{name}').fingerprint}"
        in done.stderr
    )
    assert "appliance: hint: find out who changed it before anything else" in done.stderr
    assert snapshot(terminal.world.places.site) == before


def test_a_machine_that_does_not_answer_is_exit_6_and_nothing_is_written(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    def scan(name: str, *_: object) -> tuple[HostKey, ...]:
        raise ToolError(f"{name}: no ssh server answers", step="ssh-keyscan", hint="start the machine")

    monkeypatch.setattr(host, "scan_host_keys", scan)
    done = terminal.init()
    assert done.exit_code == 6
    assert "no ssh server answers" in done.stderr
    assert not terminal.world.places.state.exists()


def test_the_plan_is_shown_from_the_store_alone(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.init()
    terminal.world.import_release()
    monkeypatch.setattr(host, "talk", None)
    done = terminal.type("install", "--plan", "--site", str(terminal.world.file))
    assert done.exit_code == 0, done.output
    assert "release tiny 1.0.0" in done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("cp1"))
    for word in ("control-plane", "kubeadm 1", "containerd", "kubectl 1", "11.7 KiB"):
        assert word in row
    as_json = json.loads(terminal.type("install", "--plan", "-o", "json").stdout)
    assert [machine["machine"] for machine in as_json["machines"]] == ["depot", "cp1", "gpu1"]


def test_install_with_an_empty_store_is_exit_5(terminal: Terminal) -> None:
    terminal.init()
    done = terminal.type("install")
    assert done.exit_code == 5
    assert "media read" in done.stderr


def test_reset_without_the_name_is_exit_2(terminal: Terminal) -> None:
    terminal.init()
    assert terminal.type("reset").exit_code == 2
    done = terminal.type("reset", "gpu1", "--confirm", "harbor")
    assert done.exit_code == 2
    assert "expected the site's name 'harbour', got 'harbor'" in done.stderr


def test_no_private_key_is_ever_printed(terminal: Terminal) -> None:
    printed = "".join(
        done.stdout + done.stderr for done in (terminal.init(), terminal.init("-o", "json"), terminal.check(), terminal.type("status"))
    )
    keys = list(terminal.world.places.keys.glob("*.key"))
    assert len(keys) == 5
    for key in keys:
        assert key.read_text().splitlines()[1][:32] not in printed
