# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`site init`: what was accepted is written once, privately; anything else is refused and nothing changes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from appliance.adapters import host
from appliance.adapters.disk import locked
from appliance.errors import HostError, ToolError, UsageError, VerificationError
from appliance.install.firsttrust import read_root
from appliance.install.hostkeys import choose, read_known
from appliance.install.initialise import accept, load_accepted, offer
from appliance.install.policy import open_policy
from tests.support.simulator import Line
from tests.support.site import SITE, World, host_key, snapshot


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_the_first_time_everything_is_made_and_private(world: World) -> None:
    done = world.init()
    assert done.serial == 1
    assert [change.partition(" ")[0] for change in done.changed] == ["root", *["key"] * 5, "site", "known_hosts", "site", "site"]
    assert world.places.pinned_root("acme").read_bytes() == world.line.pin
    assert world.places.accepted.read_bytes() == world.file.read_bytes()
    assert read_known(world.places.known_hosts) == {"10.20.0.11": host_key("cp1"), "10.20.0.21": host_key("gpu1")}
    private = [path for path in world.places.site.rglob("*") if b"PRIVATE KEY" in (path.read_bytes() if path.is_file() else b"")]
    assert len(private) == 5
    assert {oct(path.stat().st_mode & 0o777) for path in private} == {"0o600"}
    assert world.places.site.stat().st_mode & 0o777 == 0o700
    assert load_accepted(world.places, written=world.file).name == "harbour"


def test_the_second_time_nothing_changes(world: World) -> None:
    world.init()
    before = snapshot(world.places.state)
    done = world.init()
    assert done.changed == ()
    assert done.serial == 1
    assert {name: what for name, what in snapshot(world.places.state).items() if name != "site.lock"} == {
        name: what for name, what in before.items() if name != "site.lock"
    }


def test_offering_writes_nothing(world: World) -> None:
    before = snapshot(world.folder)
    found = offer(world.file, world.places, world.root, scan=world.scan)
    assert [one.machine.name for one in found.new] == ["cp1", "gpu1"]
    assert not found.pinned
    assert snapshot(world.folder) == before


def test_the_policy_is_signed_by_both_site_keys_for_these_very_bytes(world: World) -> None:
    world.init()
    policy = open_policy(world.places, world.file.read_bytes())
    assert (policy.site, policy.line, policy.serial, policy.epoch) == ("harbour", "acme", 1, 15)
    assert [(n.name, n.network_class) for n in policy.networks] == [("machines", "admin"), ("offices", "users")]
    envelope = json.loads(world.places.policy.read_bytes())
    assert len(envelope["signatures"]) == 2
    world.places.policy.write_text(json.dumps(envelope | {"signatures": envelope["signatures"][:1]}, sort_keys=True, separators=(",", ":")))
    with pytest.raises(VerificationError, match="1 of 2 needed signatures"):
        open_policy(world.places, world.file.read_bytes())


def test_a_changed_site_file_is_refused_until_it_is_accepted_with_the_next_serial(world: World) -> None:
    world.init()
    world.write(SITE + '\n[[machines]]\nname = "gpu2"\naddress = "10.20.0.22"\nroles = ["worker", "gpu"]\n')
    with pytest.raises(UsageError, match="changed since it was accepted"):
        load_accepted(world.places, written=world.file)
    pinned = world.places.pinned_root("acme").stat().st_mtime_ns
    keys = snapshot(world.places.keys)
    done = world.init()
    assert done.serial == 2
    assert done.changed == ("known_hosts", "site policy, serial 2", "site file")
    assert snapshot(world.places.keys) == keys
    assert world.places.pinned_root("acme").stat().st_mtime_ns == pinned
    assert load_accepted(world.places, written=world.file).machine("gpu2") is not None


def test_only_machines_that_are_new_are_asked(world: World) -> None:
    world.init()
    world.silent = {"cp1"}
    world.write(SITE + '\n[[machines]]\nname = "gpu2"\naddress = "10.20.0.22"\nroles = ["worker", "gpu"]\n')
    assert world.init().serial == 2


def test_an_accepted_file_changed_behind_our_back_is_refused(world: World) -> None:
    world.init()
    world.places.accepted.write_bytes(world.places.accepted.read_bytes().replace(b"strict", b"strict") + b"# x\n")
    with pytest.raises(VerificationError, match="the site policy was signed for"):
        load_accepted(world.places)


def test_another_root_never_replaces_the_pinned_one(world: World) -> None:
    world.init()
    before = snapshot(world.places.state)
    other = read_root(Line(people=("mallory",)).pin, what="root.json")
    with pytest.raises(VerificationError, match="another root is pinned"):
        world.init(root=other)
    assert snapshot(world.places.state) == before


def test_a_root_of_another_line_is_refused(world: World) -> None:
    before = snapshot(world.folder)
    other = read_root(Line(name="other").pin, what="root.json")
    with pytest.raises(VerificationError, match="line 'other'"):
        offer(world.file, world.places, other, scan=world.scan)
    assert snapshot(world.folder) == before


def test_a_root_that_does_not_sign_itself_is_refused(world: World) -> None:
    first = json.loads(world.line.pin)["signatures"][0]["sig"]
    with pytest.raises(VerificationError, match="does not verify"):
        read_root(world.line.pin.replace(first.encode(), first[::-1].encode()), what="root.json")


def test_the_state_of_another_site_is_refused(world: World) -> None:
    world.init()
    before = snapshot(world.places.state)
    world.write(SITE.replace('name = "harbour"', 'name = "island"'))
    with pytest.raises(HostError, match="holds the state of site 'harbour'"):
        world.init()
    assert snapshot(world.places.state) == before


def test_ranges_cannot_change_while_the_cluster_stands(world: World) -> None:
    world.init()
    world.places.installed.write_text("{}")
    world.write(SITE + '\n[network]\npod_cidr = "10.200.0.0/16"\n')
    with pytest.raises(UsageError, match="cannot be changed while the cluster stands"):
        world.init()


def test_a_host_key_that_was_not_expected_is_refused_with_both_fingerprints(world: World) -> None:
    found = offer(world.file, world.places, world.root, scan=world.scan)
    expected = {"cp1": frozenset({host_key("cp1").fingerprint}), "gpu1": frozenset({host_key("evil").fingerprint})}
    with pytest.raises(VerificationError) as caught:
        choose(found.new, expected)
    assert "gpu1 (10.20.0.21): wrong ssh host key" in caught.value.message
    assert host_key("evil").fingerprint in caught.value.message
    assert host_key("gpu1").fingerprint in caught.value.message
    assert not world.places.site.exists()


def test_a_machine_without_an_expected_fingerprint_is_refused(world: World) -> None:
    found = offer(world.file, world.places, world.root, scan=world.scan)
    with pytest.raises(UsageError, match="cp1: no fingerprint"):
        choose(found.new, {"gpu1": frozenset({host_key("gpu1").fingerprint})})


def test_two_machines_that_show_one_key_are_refused(world: World) -> None:
    world.keys["gpu1"] = host_key("cp1")
    with pytest.raises(VerificationError, match="gpu1 shows the same host key as cp1"):
        offer(world.file, world.places, world.root, scan=world.scan)


def test_a_machine_that_does_not_answer_stops_init_before_anything_is_written(world: World) -> None:
    world.silent = {"gpu1"}
    with pytest.raises(ToolError, match="gpu1"):
        world.init()
    assert not world.places.state.exists()


def test_a_key_that_was_not_accepted_is_not_written(world: World) -> None:
    found = offer(world.file, world.places, world.root, scan=world.scan)
    with pytest.raises(UsageError, match="cp1: its host key was not accepted"):
        accept(found, {"10.20.0.21": host_key("gpu1")}, world.places, now=world.line.now)
    assert not world.places.site.exists()


def test_while_another_command_holds_the_site_init_says_which_process(world: World) -> None:
    world.init()
    found = offer(world.file, world.places, world.root, scan=world.scan)
    with locked(world.places.lock, what="the site"), pytest.raises(HostError, match=r"the site is in use by process \d+"):
        accept(found, {}, world.places, now=world.line.now)


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone can be somebody else for a moment")
def test_who_forgot_sudo_is_told_and_meets_no_bug(world: World) -> None:
    world.init()
    world.folder.chmod(0o755)
    for parent in world.folder.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o055)
    os.seteuid(65534)
    try:
        for attempt in (lambda: load_accepted(world.places), lambda: offer(world.file, world.places, world.root, scan=world.scan)):
            with pytest.raises(HostError, match="ermission denied") as caught:
                attempt()
            assert "root on a site" in (caught.value.hint or "")
    finally:
        os.seteuid(0)


@pytest.mark.parametrize(
    ("system", "named"),
    [
        (("ubuntu", "24.04", "x86_64"), "ubuntu 24.04 x86_64"),
        (("debian", "13", "x86_64"), "debian 13 x86_64"),
        (("debian", "12", "aarch64"), "debian 12 aarch64"),
        (("", "", ""), "an unknown system"),
    ],
)
def test_a_depot_with_another_system_is_refused_before_anything_is_written(
    world: World, monkeypatch: pytest.MonkeyPatch, system: tuple[str, str, str], named: str
) -> None:
    monkeypatch.setattr(host, "own_system", lambda: system)
    with pytest.raises(HostError, match=f"this machine runs {named}, expected debian 12 x86_64") as caught:
        world.init()
    assert "Debian 12" in (caught.value.hint or "")
    assert not world.places.state.exists()


@pytest.mark.parametrize("name", ["two words", "quo'te", "per%cent", "{{ x }}"])
def test_a_state_folder_that_is_no_plain_word_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    world = World(tmp_path / name)
    with pytest.raises(UsageError, match="not a state folder"):
        world.init()
    assert not world.places.state.exists()


def test_commands_before_init_say_so(world: World) -> None:
    with pytest.raises(HostError, match="no site here yet"):
        load_accepted(world.places)


def test_a_killed_init_is_finished_by_the_next_one(world: World) -> None:
    world.init()
    world.places.accepted.unlink()
    with pytest.raises(HostError, match="no site here yet"):
        load_accepted(world.places)
    done = world.init()
    assert (done.serial, done.changed) == (1, ("site file",))
