# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""From a stick to a cluster by `make demo`, and everything that must hold afterwards. One lab for the module; the tests run in their order.

Times are asserted against the budgets of docs/benchmarks.md only where this machine had its cores for itself (`make lab-timed`).
"""

from __future__ import annotations

import os
import random
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import pytest

from appliance.adapters.parallel import default_workers
from appliance.digests import CHUNK_BYTES
from tests.lab import demo
from tests.lab import journey as steps
from tests.lab.journey import Journey
from tests.lab.machines import Lab
from tests.lab_suite.campaign import counting, gathered, kill_installation, leftover, one_step_fails, token_at_hand
from tests.lab_suite.cluster_watch import MACHINES, items, look, pods, until
from tests.lab_suite.operator import APPLIANCE, Finished, Site
from tests.lab_suite.pictures import differing, installed, revisions, workloads
from tests.lab_suite.site_secrets import found_outside, join_tokens, secrets_of
from tests.support.faults import new_seed

NAME = os.environ.get("LAB_NAME", "inst")
FIRST_SECONDS, SECOND_SECONDS = 75, 45
KILLS = 5
STAGES = (
    *("prepare", "keys", "lock", "create", "write", "machines", "compare", "site init", "media read"),
    *("site check", "site install", "site status", "in all"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demo:
    """What `make demo` ended with and printed, and the page it recorded its times on."""

    code: int
    text: str
    page: str

    @property
    def table(self) -> dict[str, float]:
        """Seconds by stage (the part before the colon), as printed at the end."""
        rows = re.findall(r"^([a-z][^:\n]*?)(?::[^\n]*?)? {2,}([\d.]+) s$", self.text, re.MULTILINE)
        return {stage: float(seconds) for stage, seconds in rows}


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """`make demo`, on a lab of its own."""
    page = tmp_path_factory.mktemp("demo") / "benchmarks.md"
    folder = Journey.of_tests(NAME).folder
    with redirect_stdout(StringIO()) as said:
        code = demo.main(["--name", NAME, "--folder", str(folder), "--record", str(page)])
    print(said.getvalue())
    yield Demo(code=code, text=said.getvalue(), page=page.read_text() if page.exists() else "")
    Lab.down(NAME)
    shutil.rmtree(folder / "upstream", ignore_errors=True)


@pytest.fixture(scope="module")
def site(shown: Demo) -> Site:
    """What the demo leaves up, with the installer in the operator's path."""
    assert shown.code == 0
    lab = Lab.find(NAME)
    lab.exec("bastion", ["install", "-m", "755", f"{steps.STICK}/install.pyz", APPLIANCE])
    return Site(lab, Journey.of_tests(NAME), quiet=os.environ.get("APPLIANCE_TIMED") == "1")


def test_the_demo_ends_well_and_says_how_long_each_stage_took_in_time(shown: Demo, site: Site) -> None:
    assert shown.code == 0
    assert tuple(shown.table) == STAGES
    assert sum(shown.table.values()) - shown.table["in all"] == pytest.approx(shown.table["in all"], rel=0.1, abs=5)
    assert "The lab stays up" in shown.text
    for stage in STAGES:
        assert f"\n| {stage}" in shown.page
    assert re.search(r"## \d{4}-\d\d-\d\d \d\d:\d\d UTC: `make demo`, (cold|built): .*\n\n.* cores, Linux ", shown.page)
    print(f"\nfirst installation: {shown.table['site install']:.1f} s")
    if site.quiet:
        assert shown.table["site install"] <= FIRST_SECONDS


def test_the_first_installation_made_a_working_cluster(site: Site) -> None:
    assert site.well(60) < 60
    status = site.appliance("site", "status")
    assert status.code == 0, status.text
    assert "model tiny 1 on gpu1: as placed" in status.text


def test_a_second_installation_changes_nothing_at_all(site: Site) -> None:
    """The second one since the machines were bare, with nothing in between."""
    before = look(site.lab)
    done = site.install()
    print(f"\nsecond installation: {done.seconds:.1f} s")
    assert done.code == 0, done.text
    assert done.changed == dict.fromkeys(MACHINES, 0)
    after = look(site.lab)
    assert after.units == before.units
    assert after.pods == before.pods
    assert after.revisions == before.revisions
    for machine in MACHINES:
        assert differing(before.etc[machine], after.etc[machine]) == set(), machine
    if site.quiet:
        assert done.seconds <= SECOND_SECONDS


def test_the_machines_have_what_the_site_says_and_nothing_from_outside(site: Site) -> None:
    pinned = site.lab.exec("bastion", ["sha256sum", "/var/lib/appliance/trust/demo/root.json"]).stdout.split()[0]
    authority = site.lab.exec("bastion", ["sha256sum", "/var/lib/appliance/site/ca.crt"]).stdout.split()[0]
    for machine in MACHINES:
        assert site.lab.exec(machine, ["sha256sum", "/etc/appliance/trust/root.json"]).stdout.split()[0] == pinned
        assert site.lab.exec(machine, ["sha256sum", "/etc/appliance/site-ca.crt"]).stdout.split()[0] == authority
    charts = [
        one for item in items(site.lab, "pods") if item["metadata"]["namespace"] == "kube-flannel" for one in item["spec"]["containers"]
    ]
    assert charts
    assert all("@sha256:" in container["image"] for container in charts)
    assert site.lab.exec("bastion", ["stat", "-c", "%a", "/var/lib/appliance/site/kubeconfig"]).stdout.strip() == "600"
    mounts = site.lab.exec("bastion", ["findmnt", "--noheadings", "--list", "--output", "TARGET,OPTIONS"]).stdout.splitlines()
    media = [line.split() for line in mounts if line.startswith("/media/")]
    assert [target for target, _ in media] == [steps.STICK]
    assert all(options.split(",")[0] == "ro" for _, options in media)
    site.lab.assert_sealed()


@pytest.fixture(scope="module")
def tokens() -> set[str]:
    """The join tokens that were seen while they lived."""
    return set()


@pytest.mark.parametrize("machine", ["gpu1", "cp1", "bastion"])
def test_a_machine_that_restarts_comes_back_by_itself(site: Site, machine: str) -> None:
    known = set(pods(site.lab))
    site.lab.restart(machine)
    print(f"\n{machine} back in {site.well():.1f} s")
    assert set(pods(site.lab)) == known
    assert until(lambda: site.appliance("site", "status").code == 0, seconds=60, what="status is well") < 60


def test_after_power_off_and_on_of_everything_the_cluster_is_back(site: Site) -> None:
    site.lab.stop()
    site.lab.start()
    print(f"\neverything back in {site.well():.1f} s")
    assert until(lambda: site.appliance("site", "status").code == 0, seconds=60, what="status is well") < 60


def test_a_damaged_blob_in_the_store_stops_an_installation_before_any_machine(site: Site) -> None:
    before = look(site.lab)
    site.lab.exec(
        "bastion",
        [
            "sh",
            "-c",
            "f=$(ls -S /var/lib/appliance/store/blobs/sha256/* | head -1); cp --preserve $f /root/kept; echo $f > /root/name; printf x | dd of=$f bs=1 seek=70000 conv=notrunc status=none",
        ],
    )
    try:
        done = site.install()
        assert done.code == 3
        assert site.lab.exec("bastion", ["cat", "/root/name"]).stdout.strip() in done.text
        assert "nothing was changed" in done.text
    finally:
        site.lab.exec(
            "bastion", ["sh", "-c", "f=$(cat /root/name); dd if=/root/kept of=$f bs=1M conv=notrunc status=none; rm /root/kept /root/name"]
        )
    after = look(site.lab)
    assert (after.units, after.pods, after.etc) == (before.units, before.pods, before.etc)


def test_one_node_is_reset_and_installed_again_while_the_cluster_stands(site: Site, tokens: set[str]) -> None:
    control = site.lab.exec("cp1", ["systemctl", "show", "--property=InvocationID", "--value", "kubelet"]).stdout
    done = site.appliance("site", "reset", "gpu1", "--confirm", "harbour")
    print(f"\nreset of gpu1: {done.seconds:.1f} s")
    assert done.code == 0, done.text
    assert [node["metadata"]["name"] for node in items(site.lab, "nodes")] == ["cp1"]
    assert site.lab.exec("gpu1", ["sh", "-c", "ls /etc/kubernetes /var/lib/kubelet /etc/appliance 2>/dev/null || true"]).stdout == ""
    assert site.appliance("site", "check").code == 0
    assert site.appliance("site", "status").code == 6
    ended: list[Finished] = []
    tokens |= gathered(site, threading.Thread(target=lambda: ended.append(site.install())), lambda: set(join_tokens(site.lab)))
    (again,) = ended
    assert again.code == 0, again.text
    assert again.changed["cp1"] <= 5, "only the join token, made in memory and withdrawn"
    assert tokens, "no join token was seen while the node joined"
    assert set(join_tokens(site.lab)) == set()
    site.well()
    assert site.lab.exec("cp1", ["systemctl", "show", "--property=InvocationID", "--value", "kubelet"]).stdout == control


def test_a_kubelet_that_was_stopped_runs_again_after_an_installation(site: Site) -> None:
    site.lab.exec("gpu1", ["systemctl", "stop", "kubelet"])
    done = site.install()
    assert done.code == 0, done.text
    assert done.changed == {"bastion": 0, "cp1": 0, "gpu1": 1}
    assert site.lab.exec("gpu1", ["systemctl", "is-active", "kubelet"]).stdout.strip() == "active"
    site.well()


def test_no_secret_stands_anywhere_but_in_its_own_place(site: Site, tokens: set[str], tmp_path: Path) -> None:
    """After installations, refusals, restarts, a reset: logs, journals, /tmp, state, homes and /etc of all machines."""
    sought = secrets_of(site.lab, site.journey) | {f"join token {number}": token.encode() for number, token in enumerate(sorted(tokens))}
    print(f"\n{len(sought)} secrets: {', '.join(sought)}")
    assert len(sought) > 20
    assert found_outside(site.lab, sought, tmp_path / "out") == []


@pytest.mark.slow  # a campaign: `make drills`
def test_five_kills_of_an_installation_end_as_if_there_had_been_none(site: Site, tmp_path: Path) -> None:
    """Moments are drawn over the whole length of a run; one that ends before its moment is no kill, and the next begins with bare machines."""
    bare_again(site)
    one_step_fails(site)
    with counting(site.lab) as served:
        whole = site.install()
        assert whole.code == 0, whole.text
        once = served()
    site.well()
    before = everything_installed(site)
    bare_again(site)
    seed = new_seed()
    print(f"\nseed {seed}")
    chance = random.Random(seed)
    tokens: set[str] = set()
    with counting(site.lab) as served:
        kills, whole_runs = 0, 1
        while kills < KILLS:
            after, all_of_it = chance.uniform(3, whole.seconds), chance.random() < 0.5
            killed = kill_installation(site, after, everything=all_of_it)
            kills += killed
            print(f"{'all' if all_of_it else 'main'} killed after {after:.1f} s" if killed else f"ended before {after:.1f} s")
            tokens |= token_at_hand(site.lab)
            if not killed:
                whole_runs += 1
                bare_again(site)
        done = site.install()
        assert done.code == 0, done.text
        fetched = served()
    site.well()
    bound = whole_runs * once + KILLS * default_workers() * CHUNK_BYTES
    print(f"served: {once:,} bytes by one run, {fetched:,} by {KILLS} killed and {whole_runs} whole ones (at most {bound:,})")
    assert fetched <= bound
    assert site.install().changed == dict.fromkeys(MACHINES, 0)
    assert leftover(site) == [], "a killed run left a process behind"
    after_kills = everything_installed(site)
    for part, was in before.items():
        now = after_kills[part]
        assert {what: (was.get(what), now.get(what)) for what in differing(was, now)} == {}, part
    sought = secrets_of(site.lab, site.journey) | {f"join token {number}": token.encode() for number, token in enumerate(sorted(tokens))}
    print(f"{len(tokens)} join tokens were in memory when it was killed")
    assert found_outside(site.lab, sought, tmp_path / "out") == []


def bare_again(site: Site) -> None:
    done = site.appliance("site", "reset", "--confirm", "harbour")
    assert done.code == 0, done.text
    assert site.appliance("site", "check").code == 0


def everything_installed(site: Site) -> dict[str, dict[str, str]]:
    """All that an installation makes, by machine, and what it makes of the cluster."""
    machines = {machine: installed(site.lab, machine) for machine in MACHINES}
    return {**machines, "helm": revisions(site.lab), "pods": dict.fromkeys(workloads(site.lab), "")}


def test_after_a_reset_the_machines_are_bare(site: Site) -> None:
    done = site.appliance("site", "reset", "--confirm", "harbour")
    print(f"\nreset: {done.seconds:.1f} s")
    assert done.code == 0, done.text
    for machine in MACHINES:
        gone = "/etc/kubernetes /var/lib/kubelet /var/lib/etcd /var/lib/containerd /etc/containerd /etc/cni /etc/appliance/trust /etc/haproxy /usr/local/bin/kubelet"
        assert site.lab.exec(machine, ["sh", "-c", f"ls -d {gone} 2>/dev/null || true"]).stdout == "", machine
        links = site.lab.exec(machine, ["ip", "-o", "link"]).stdout
        assert not re.search(r"cni0|flannel", links)
    check = site.appliance("site", "check")
    assert check.code == 0, check.text
    assert site.appliance("site", "status").code == 6
    assert Path(site.journey.folder).exists()
    site.lab.assert_sealed()
