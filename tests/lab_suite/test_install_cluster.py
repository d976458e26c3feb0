# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""From a stick to a cluster, and everything that must hold afterwards. One lab for the module; the tests run in their order.

Times are asserted against the budgets of docs/benchmarks.md only where this machine had its cores for itself; they are
always printed.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.lab import journey as steps
from tests.lab.journey import Journey
from tests.lab.machines import Lab, places
from tests.lab_suite.cluster_watch import MACHINES, NODES, files, items, look, pods, until, works

NAME = "inst"
APPLIANCE = "/usr/local/sbin/appliance"
FIRST_SECONDS, SECOND_SECONDS = 75, 45
BACK_SECONDS = 180
KILLS = 5
OWN = ("/etc", "/usr/local", "/opt")
"""Where installed files are compared; what is made anew each time is named in `CHANGING` (.pyc files hold their source's mtime)."""
CHANGING = re.compile(
    r"/etc/kubernetes/|/etc/(passwd|group|shadow|gshadow)-?$|/etc/ld\.so\.cache|/etc/\.pwd\.lock|/etc/appliance/host-keys|/__pycache__/"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    code: int
    text: str
    seconds: float


@dataclass(slots=True)
class Site:
    """The lab with the operator at its depot. `quiet`: nothing else runs here (`make lab-timed`), so seconds mean something."""

    lab: Lab
    journey: Journey
    quiet: bool

    def appliance(self, *words: str) -> Finished:
        began = time.monotonic()
        done = self.lab.exec("bastion", [APPLIANCE, *words], check=False, timeout=900, env={"HOME": "/root"})
        return Finished(code=done.returncode, text=done.stdout + done.stderr, seconds=time.monotonic() - began)

    def install(self) -> Finished:
        return self.appliance("site", "install")

    def well(self, seconds: float = BACK_SECONDS) -> float:
        return until(lambda: works(self.lab), seconds=seconds, what="every node Ready, every pod running, DNS answering")


def changes(text: str) -> dict[str, int]:
    """The `changed` column by machine."""
    return {machine: int(count) for machine, count in re.findall(r"^(bastion|cp1|gpu1) +(\d+) *$", text, re.MULTILINE)}


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """Bare machines, the release read from the stick, the site initialised, nothing installed."""
    quiet = os.environ.get("APPLIANCE_TIMED") == "1"
    journey = Journey(folder=places.cache() / "journey", name=NAME, shown=False)
    steps.prepare(journey)
    steps.publish(journey)
    Lab.down(NAME)
    lab = steps.machines(journey)
    steps.compare(journey, lab)
    steps.initialise(journey, lab)
    lab.exec("bastion", ["install", "-m", "755", f"{steps.STICK}/install.pyz", APPLIANCE])
    yield Site(lab, journey, quiet)
    Lab.down(NAME)
    shutil.rmtree(journey.folder / "upstream", ignore_errors=True)


def test_the_first_installation_makes_a_working_cluster_in_time(site: Site) -> None:
    assert site.appliance("site", "check").code == 0
    done = site.install()
    print(f"\nfirst installation: {done.seconds:.1f} s\n{done.text}")
    assert done.code == 0, done.text
    assert set(changes(done.text)) == set(MACHINES)
    assert site.well(60) < 60
    status = site.appliance("site", "status")
    assert status.code == 0, status.text
    assert "model tiny 1 on gpu1: as placed" in status.text
    if site.quiet:
        assert done.seconds <= FIRST_SECONDS


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


def test_a_second_installation_changes_nothing_at_all(site: Site) -> None:
    site.install()  # facts that the first one only learns at its end are settled now
    before = look(site.lab)
    done = site.install()
    print(f"\nsecond installation: {done.seconds:.1f} s")
    assert done.code == 0, done.text
    assert changes(done.text) == dict.fromkeys(MACHINES, 0)
    after = look(site.lab)
    assert after.units == before.units
    assert after.pods == before.pods
    assert after.revisions == before.revisions
    for machine in MACHINES:
        assert {path for path, seen in after.etc[machine].items() if before.etc[machine].get(path) != seen} == set(), machine
    if site.quiet:
        assert done.seconds <= SECOND_SECONDS


def test_no_secret_is_in_any_log(site: Site) -> None:
    secrets = site.lab.exec(
        "bastion", ["sh", "-c", "grep -hv -- ----- /var/lib/appliance/site/keys/*.key /var/lib/appliance/site/certificates/*.key"]
    ).stdout
    assert len(secrets.splitlines()) >= 10
    pattern = "\n".join(line for line in secrets.splitlines() if len(line) > 40)
    site.lab.put("bastion", (pattern + "\n").encode(), "/run/secrets")
    for machine in MACHINES:
        log = site.lab.exec(machine, ["journalctl", "--no-pager", "-o", "cat"], timeout=120).stdout
        assert "PRIVATE KEY" not in log
        assert not re.search(r"\b[a-z0-9]{6}\.[a-z0-9]{16}\b", log), "a join token"
        assert not any(line in log for line in pattern.splitlines())
    runs = site.lab.exec("bastion", ["sh", "-c", "cat /var/lib/appliance/site/runs/*/*.log /var/lib/appliance/log/*"]).stdout
    assert "TASK" in runs
    assert "PRIVATE KEY" not in runs
    assert not re.search(r"\b[a-z0-9]{6}\.[a-z0-9]{16}\b", runs)
    assert not any(line in runs for line in pattern.splitlines())
    left = site.lab.exec(
        "bastion", ["sh", "-c", "grep -rlF -f /run/secrets /var/lib/appliance /var/log /tmp /etc 2>/dev/null || true"]
    ).stdout.split()
    assert all(
        path.startswith(("/var/lib/appliance/site/keys/", "/var/lib/appliance/site/certificates/")) or path.endswith("/tls.key")
        for path in left
    ), left
    site.lab.exec("bastion", ["rm", "/run/secrets"])


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


def test_one_node_is_reset_and_installed_again_while_the_cluster_stands(site: Site) -> None:
    control = site.lab.exec("cp1", ["systemctl", "show", "--property=InvocationID", "--value", "kubelet"]).stdout
    done = site.appliance("site", "reset", "gpu1", "--confirm", "harbour")
    print(f"\nreset of gpu1: {done.seconds:.1f} s")
    assert done.code == 0, done.text
    assert [node["metadata"]["name"] for node in items(site.lab, "nodes")] == ["cp1"]
    assert site.lab.exec("gpu1", ["sh", "-c", "ls /etc/kubernetes /var/lib/kubelet /etc/appliance 2>/dev/null || true"]).stdout == ""
    assert site.appliance("site", "check").code == 0
    assert site.appliance("site", "status").code == 6
    again = site.install()
    assert again.code == 0, again.text
    assert changes(again.text)["cp1"] <= 5, "only the join token, made in memory and withdrawn"
    site.well()
    assert site.lab.exec("cp1", ["systemctl", "show", "--property=InvocationID", "--value", "kubelet"]).stdout == control


@pytest.mark.slow  # a campaign: `make drills`
def test_five_kills_of_an_installation_end_as_if_there_had_been_none(site: Site) -> None:
    whole = {machine: settled(files(site.lab, machine, OWN)) for machine in NODES}
    names = {name.rpartition("-")[0] for name in pods(site.lab)}
    reset = site.appliance("site", "reset", "--confirm", "harbour")
    assert reset.code == 0, reset.text
    assert site.appliance("site", "check").code == 0
    one_step_fails(site)
    seed = random.SystemRandom().randrange(2**32)
    print(f"\nseed {seed}")
    chance = random.Random(seed)
    for number in range(KILLS):
        after = chance.uniform(3, 25 if site.quiet else 60)
        print(f"kill {number + 1} after {after:.1f} s: {killed(site, after, everything=chance.random() < 0.5)}")
    done = site.install()
    assert done.code == 0, done.text
    site.well()
    assert changes(site.install().text) == dict.fromkeys(MACHINES, 0)
    assert [line for line in leftover(site) if "[mux]" not in line] == [], "a killed run left a process behind"
    assert {name.rpartition("-")[0] for name in pods(site.lab)} == names
    for machine in NODES:
        now = settled(files(site.lab, machine, OWN))
        assert {path for path in whole[machine].keys() | now.keys() if whole[machine].get(path) != now.get(path)} == set(), machine


def one_step_fails(site: Site) -> None:
    """A file stands where gpu1's programs go: the failure says machine, step, cause, what to do, and where all of it is written."""
    site.lab.exec("gpu1", ["sh", "-c", "rm -rf /usr/local/lib/appliance; touch /usr/local/lib/appliance"])
    try:
        done = site.install()
        assert done.code == 6, done.text
        error = next(line for line in done.text.splitlines() if line.startswith("appliance: error: "))
        hint = next(line for line in done.text.splitlines() if line.startswith("appliance: hint: "))
        print(f"{error}\n{hint}")
        assert error.startswith("appliance: error: gpu1: ")
        log = re.search(r"/var/lib/appliance/site/runs/\S+/run\.log", hint)
        assert log
        assert "gpu1" in site.lab.exec("bastion", ["cat", log[0]]).stdout
    finally:
        site.lab.exec("gpu1", ["rm", "-f", "/usr/local/lib/appliance"])


def settled(found: dict[str, str]) -> dict[str, str]:
    return {path: what for path, what in found.items() if not CHANGING.search(path)}


def killed(site: Site, after: float, *, everything: bool) -> str:
    """Start an installation and SIGKILL it `after` seconds: its main process alone, or all that it started too."""
    unit = f"installing-{time.monotonic_ns()}"
    start = [
        "systemd-run",
        "--quiet",
        "--wait",
        "--collect",
        f"--unit={unit}",
        "--property=KillMode=process",
        "--setenv=HOME=/root",
        APPLIANCE,
        "site",
        "install",
    ]
    runner = threading.Thread(target=lambda: site.lab.exec("bastion", start, check=False, timeout=900))
    runner.start()
    runner.join(after)
    who = "all" if everything else "main"
    site.lab.exec("bastion", ["systemctl", "kill", f"--kill-who={who}", "--signal=KILL", unit], check=False)
    runner.join()
    return f"{who} killed"


def leftover(site: Site) -> list[str]:
    """Processes of an installation that still run on the depot, long after it."""
    lines = site.lab.exec("bastion", ["ps", "-eo", "etimes,args"]).stdout.splitlines()
    return [line for line in lines if "/var/lib/appliance/site/runs/" in line and int(line.split()[0]) > 5]


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
