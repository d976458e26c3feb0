# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`site reset` when a machine is lost, or is another one: who is made bare, whom the cluster forgets, what is written down."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from appliance.adapters import host
from appliance.adapters.host import Login
from appliance.adapters.playbook import PlaybookResult
from appliance.digests import digest_of
from appliance.errors import ToolError, VerificationError
from appliance.install import reset, standing
from appliance.install.initialise import load_accepted
from tests.support.site import World, host_key, snapshot


class Site:
    """An installed site; machines in `away` do not answer, those in `other` show another key. `ran` is what the playbook got."""

    def __init__(self, folder: Path) -> None:
        self.world = World(folder)
        self.world.init()
        self.places = self.world.places
        standing.begin(load_accepted(self.places), self.places, kubernetes="v1.36.4", release=digest_of(b"release"))
        self.places.kubeconfig.write_text("x")
        self.away: set[str] = set()
        self.other: set[str] = set()
        self.ran: list[Mapping[str, object]] = []

    def why_silent(self, login: Login, **_: object) -> str:
        if login.name in self.other:
            raise VerificationError(f"{login.name}: the ssh host key is not the one that was accepted")
        return "No route to host" if login.name in self.away else ""

    def run_playbook(self, name: str, *, variables: Mapping[str, object], **_: object) -> PlaybookResult:
        self.ran.append({key: variables[key] for key in ("reset_machines", "reset_lost")})
        return PlaybookResult(name=name, changed={"gpu1": 7}, changes=(), seconds=1.0, log=Path("run.log"))

    def reset(self, node: str | None = None) -> reset.ResetResult:
        return reset.reset(load_accepted(self.places), self.places, node=node, confirmed="harbour")

    def stands(self) -> list[str]:
        found = standing.read_standing(self.places, load_accepted(self.places))
        return [machine.name for machine in found.machines] if found is not None else []


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    found = Site(tmp_path)
    monkeypatch.setattr(host, "why_silent", found.why_silent)
    monkeypatch.setattr(host, "scan_host_keys", lambda name, *_: (host_key(f"evil-{name}" if name in found.other else name),))
    monkeypatch.setattr(reset, "run_playbook", found.run_playbook)
    return found


def test_a_node_that_answers_leaves_the_cluster_and_is_made_bare(site: Site) -> None:
    done = site.reset("gpu1")
    assert (done.machines, done.unreached) == (("gpu1",), {})
    assert site.ran == [{"reset_machines": ["gpu1"], "reset_lost": []}]
    assert site.stands() == ["depot", "cp1"]
    assert site.places.kubeconfig.exists()


def test_a_lost_node_leaves_the_cluster_and_is_named_as_not_reached(site: Site) -> None:
    site.away = {"gpu1"}
    done = site.reset("gpu1")
    assert (done.machines, done.unreached) == ((), {"gpu1": "No route to host"})
    assert site.ran == [{"reset_machines": [], "reset_lost": ["gpu1"]}]
    assert site.stands() == ["depot", "cp1"]


@pytest.mark.parametrize("away", ["gpu1", "cp1"])
def test_a_whole_reset_with_a_lost_machine_is_complete_and_names_it(site: Site, away: str) -> None:
    site.away = {away}
    done = site.reset()
    rest = [name for name in ("depot", "cp1", "gpu1") if name != away]
    assert (list(done.machines), done.unreached) == (rest, {away: "No route to host"})
    assert site.ran == [{"reset_machines": rest, "reset_lost": [away]}]
    assert site.stands() == []
    assert not site.places.kubeconfig.exists()


def test_a_machine_that_was_away_is_made_bare_later_though_no_cluster_is_there(site: Site) -> None:
    site.away = {"gpu1"}
    site.reset()
    site.away = set()
    assert site.reset("gpu1").machines == ("gpu1",)
    assert site.ran[1] == {"reset_machines": ["gpu1"], "reset_lost": ["cp1"]}


def test_a_whole_reset_after_a_first_run_that_made_no_cluster_is_of_every_machine(site: Site) -> None:
    site.places.kubeconfig.unlink()
    assert site.reset().machines == ("depot", "cp1", "gpu1")
    assert site.ran == [{"reset_machines": ["depot", "cp1", "gpu1"], "reset_lost": []}]


@pytest.mark.parametrize("node", [None, "gpu1"])
def test_a_machine_with_another_host_key_is_refused_with_both_and_nothing_changes(site: Site, node: str | None) -> None:
    site.other = {"gpu1"}
    before = snapshot(site.places.site)
    with pytest.raises(VerificationError, match=r"gpu1 .*wrong ssh host key: expected") as caught:
        site.reset(node)
    assert host_key("evil-gpu1").fingerprint in caught.value.message
    assert "find out who changed it" in (caught.value.hint or "")
    assert site.ran == []
    assert snapshot(site.places.site) == before


def test_what_stands_is_kept_when_a_step_fails(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> PlaybookResult:
        raise ToolError("gpu1: Machine: it failed", step="Machine")

    monkeypatch.setattr(reset, "run_playbook", fail)
    with pytest.raises(ToolError):
        site.reset("gpu1")
    assert site.stands() == ["depot", "cp1", "gpu1"]
    with pytest.raises(ToolError):
        site.reset()
    assert site.places.kubeconfig.exists()
