# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Questions on a real terminal: what counts as yes, what everything else does, and that nothing was changed by it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.site import World, host_key, snapshot
from tests.support.terminal import CTRL_C, CTRL_D, ENTER, typed

ACCEPT, NAME = "Type yes to accept all of them: ", "Type the site's name to go on: "


class Desk:
    """A site, and the programs of OpenSSH replaced by ones that answer for its machines."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        (folder / "root.json").write_bytes(self.world.line.pin)
        self.programs = folder / "bin"
        self.programs.mkdir()
        keys = {machine: host_key(machine) for machine in ("cp1", "gpu1")}
        lines = "".join(
            f'*{address}) echo "{address} {keys[name].kind} {keys[name].blob}";;\n'
            for name, address in (("cp1", "10.20.0.11"), ("gpu1", "10.20.0.21"))
        )
        self.program("ssh-keyscan", f'case "$*" in\n{lines}esac\n')
        self.program("ssh", "echo 'root@there: Permission denied (publickey).' >&2; exit 255\n")

    def program(self, name: str, text: str) -> None:
        path = self.programs / name
        path.write_text(f"#!/bin/sh\n{text}")
        path.chmod(0o755)

    def type(self, *words: str, asked: str, keys: str) -> tuple[int, str]:
        env = {"PATH": f"{self.programs}:{os.environ['PATH']}", "TERM": "dumb"}
        return typed(["site", *words, "--state", str(self.world.places.state)], [(asked, keys)], env=env)

    def init(self, keys: str) -> tuple[int, str]:
        root = self.world.folder / "root.json"
        return self.type("init", str(self.world.file), "--root", str(root), asked=ACCEPT, keys=keys)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_yes_accepts_the_keys_that_were_shown(desk: Desk) -> None:
    code, shown = desk.init("yes" + ENTER)
    assert code == 0, shown
    assert f"gpu1 (10.20.0.21) ssh-ed25519 {host_key('gpu1').fingerprint}" in shown
    assert shown.index(host_key("gpu1").fingerprint) < shown.index(ACCEPT)
    assert host_key("gpu1").blob in desk.world.places.known_hosts.read_text()


@pytest.mark.parametrize("keys", ["no" + ENTER, "y" + ENTER, "YES" + ENTER, ENTER, CTRL_D])
def test_anything_but_yes_accepts_nothing(desk: Desk, keys: str) -> None:
    code, shown = desk.init(keys)
    assert code == 2, shown
    assert "appliance: error: not accepted; nothing was changed" in shown
    assert "appliance: hint: run site init again" in shown
    assert "Traceback" not in shown
    assert not desk.world.places.state.exists()


def test_who_interrupts_the_question_changes_nothing(desk: Desk) -> None:
    code, shown = desk.init(CTRL_C)
    assert code == 130, shown
    assert "Traceback" not in shown
    assert not desk.world.places.state.exists()


@pytest.mark.parametrize("keys", ["yes" + ENTER, "gpu1" + ENTER, "harbor" + ENTER, "HARBOUR" + ENTER, ENTER, CTRL_D])
@pytest.mark.parametrize("node", [(), ("gpu1",)], ids=["site", "node"])
def test_a_reset_goes_on_by_the_sites_own_name_alone(desk: Desk, node: tuple[str, ...], keys: str) -> None:
    desk.world.init()
    before = snapshot(desk.world.places.state)
    code, shown = desk.type("reset", *node, asked=NAME, keys=keys)
    assert code == 2, shown
    assert "expected the site's name 'harbour'" in shown
    assert "appliance: hint: type harbour to confirm" in shown
    assert "Traceback" not in shown
    assert snapshot(desk.world.places.state) == before


def test_with_its_name_typed_a_reset_goes_to_the_machines(desk: Desk) -> None:
    desk.world.init()
    code, shown = desk.type("reset", "gpu1", asked=NAME, keys="harbour" + ENTER)
    assert code == 6, shown
    assert "gpu1 (10.20.0.21): ssh refuses root" in shown


@pytest.mark.parametrize(
    ("answers", "code", "says"),
    [
        ([("Passphrase: ", "long enough words\n"), ("The same again: ", "long enough words\n")], 0, "publication"),
        ([("Passphrase: ", "long enough words\n"), ("The same again: ", "other words, also long\n")], 2, "the two passphrases differ"),
        ([("Passphrase: ", CTRL_D)], 2, "no passphrase was typed"),
        ([("Passphrase: ", "long enough words\n"), ("The same again: ", CTRL_D)], 2, "no passphrase was typed"),
        ([("Passphrase: ", CTRL_C)], 130, "stopped"),
    ],
    ids=["the same twice", "two others", "none", "none the second time", "interrupted"],
)
def test_a_passphrase_is_asked_for_twice_never_shown_and_without_one_nothing_is_made(
    tmp_path: Path, answers: list[tuple[str, str]], code: int, says: str
) -> None:
    folder = tmp_path / "publication"
    env = {"HOME": str(tmp_path / "home"), "TERM": "dumb"}
    status, shown = typed(["keys", "init", str(folder), "--line", "acme"], answers, env=env)
    assert (status, "Traceback" in shown) == (code, False), shown
    assert says in shown
    assert "long enough words" not in shown
    assert folder.exists() == (code == 0)
