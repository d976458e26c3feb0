# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`site init` and `site check` on real machines: what they find, what they refuse, and that they change nothing at all.

Bare machines, the real installer, real ssh. gpu1 has a small disk, which a test fills.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from appliance.adapters.installer import build_installer
from appliance.bundle.contents import ContentClass
from appliance.bundle.documents import encode
from appliance.digests import digest_of
from appliance.trust.clock import format_instant
from appliance.trust.state import SeenVersions
from tests.lab import network
from tests.lab.journey import SITE_FILE, fingerprints
from tests.lab.machines import Lab, places, plan
from tests.lab_suite.pictures import differing, listing
from tests.support.simulator import Line

NAME = "refuse"
INSTALLER = "/opt/install.pyz"
SMALL_DISK = 4800


@dataclass(frozen=True, slots=True)
class Done:
    code: int
    out: str
    err: str

    @property
    def failures(self) -> list[str]:
        return list(json.loads(self.out)["failures"])

    def check(self, machine: str, name: str) -> dict[str, str]:
        return next(one for one in json.loads(self.out)["checks"] if (one["machine"], one["name"]) == (machine, name))


class Depot:
    """The lab, and the operator at its depot."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab

    def site(self, *words: str) -> Done:
        done = self.lab.exec("bastion", ["python3", INSTALLER, "site", *words], check=False, timeout=180)
        return Done(done.returncode, done.stdout, done.stderr)

    def check(self) -> Done:
        return self.site("check", "-o", "json")

    def write_site(self, text: str) -> None:
        self.lab.put("bastion", text.encode(), "/etc/appliance/site.toml")

    def init(self, keys: str | None = None) -> Done:
        self.lab.put("bastion", (keys or fingerprints(self.lab)).encode(), "/etc/appliance/host-keys")
        return self.site("init", "/etc/appliance/site.toml", "--accept-host-keys", "/etc/appliance/host-keys")

    def files(self, machine: str) -> dict[str, str]:
        return listing(self.lab, machine)

    @contextmanager
    def changed(self, machine: str, do: str, undo: str) -> Iterator[None]:
        """Plant a defect with one shell command and take it away with another."""
        self.lab.exec(machine, ["sh", "-ec", do])
        try:
            yield
        finally:
            self.lab.exec(machine, ["sh", "-ec", undo])


@pytest.fixture(scope="module")
def line() -> Line:
    return Line(name="demo", now=datetime.now(UTC).replace(microsecond=0))


@pytest.fixture(scope="module")
def installer(line: Line, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("installer") / "install.pyz"
    build_installer(line.pin, target=path, cache=places.cache().parent)
    return path


@pytest.fixture(scope="module")
def bare(installer: Path) -> Iterator[Depot]:
    """Bare machines and a depot that has nothing but the installer and a site file."""
    Lab.down(NAME)
    lab = Lab.up(NAME, machines=("bastion", "cp1", "gpu1"), disks={"gpu1": SMALL_DISK})
    depot = Depot(lab)
    lab.put("bastion", installer, INSTALLER, mode=0o755)
    depot.write_site(SITE_FILE)
    lab.exec("bastion", ["python3", INSTALLER, "--version"])  # it unpacks itself once
    yield depot
    Lab.down(NAME)


@pytest.fixture(scope="module")
def depot(bare: Depot) -> Depot:
    """The same after `site init`."""
    done = bare.init()
    assert done.code == 0, done.err
    return bare


def only(done: Done, *expected: str) -> None:
    """The check failed for exactly these reasons; for none, it passed."""
    assert set(done.failures) == set(expected)
    assert done.code == (5 if expected else 0), done.err


def test_init_with_another_key_than_the_machine_shows_is_refused_and_writes_nothing(bare: Depot) -> None:
    before = bare.files("bastion")
    stranger = "SHA256:" + "A" * 43
    wrong = "".join(
        line.split()[0] + f" {stranger}\n" if line.startswith("gpu1") else line + "\n" for line in fingerprints(bare.lab).splitlines()
    )
    done = bare.init(wrong)
    assert done.code == 3
    shown = next(line.split()[1] for line in fingerprints(bare.lab).splitlines() if line.startswith("gpu1"))
    assert f"gpu1 (10.77.0.21): wrong ssh host key: expected {stranger}, got" in done.err
    assert shown in done.err
    assert differing(before, bare.files("bastion")) <= {"/etc/appliance", "/etc/appliance/host-keys"}


def test_the_second_init_changes_nothing(depot: Depot) -> None:
    before = depot.files("bastion")
    done = depot.init()
    assert (done.code, done.out.split()) == (0, ["changed", "nothing"])
    assert differing(before, depot.files("bastion")) <= {"/etc/appliance", "/etc/appliance/host-keys", "/var/lib/appliance/site.lock"}


def test_looking_at_the_machines_changes_no_file_on_any_of_them(depot: Depot) -> None:
    before = {machine: depot.files(machine) for machine in ("bastion", "cp1", "gpu1")}
    done = depot.check()
    only(done)
    assert len(json.loads(done.out)["checks"]) > 80
    for machine, files in before.items():
        assert differing(files, depot.files(machine)) == set(), machine


def test_a_node_that_is_out_of_disk_is_named_with_what_it_has_and_needs(depot: Depot) -> None:
    depot.lab.exec("gpu1", ["sh", "-c", "fallocate -l 2500M /var/filler || dd if=/dev/zero of=/var/filler bs=1M count=2500 status=none"])
    try:
        done = depot.check()
        found = done.check("gpu1", "disk")
        assert done.code == 5
        assert "gpu1: disk: expected" in done.err
        assert "free on /var" in found["measured"]
        assert found["expected"] == "3.0 GiB free"
        assert found["fix"]
    finally:
        depot.lab.exec("gpu1", ["rm", "-f", "/var/filler"])


DEFECTS = {
    "unsupported OS": (
        "cp1",
        'cp /usr/lib/os-release /usr/lib/os-release.kept; sed -i \'s/^VERSION_ID=.*/VERSION_ID="11"/; s/^PRETTY_NAME=.*/PRETTY_NAME="Debian GNU\\/Linux 11"/\' /usr/lib/os-release',
        "mv /usr/lib/os-release.kept /usr/lib/os-release",
        "os",
    ),
    "a node of another cluster by its files": (
        "cp1",
        "mkdir -p /etc/kubernetes/manifests; echo x > /etc/kubernetes/kubelet.conf",
        "rm -r /etc/kubernetes",
        "leftovers",
    ),
    "a node of another site by its mark": (
        "cp1",
        f"mkdir -p /etc/appliance; echo {'6' * 64} > /etc/appliance/site-id",
        "rm -r /etc/appliance",
        "other-cluster",
    ),
    "a port that is taken": (
        "cp1",
        "systemd-run --quiet --unit=taken python3 -m http.server 6443",
        "systemctl stop taken",
        "ports",
    ),
    "no default route": ("cp1", "ip route del default", "ip route add default via 10.77.0.1", "default-route"),
    "a route through the pods' range": ("cp1", "ip route add 10.244.7.0/24 via 10.77.0.1", "ip route del 10.244.7.0/24", "pod-cidr"),
    "no way to another machine": ("cp1", "ip route add blackhole 10.77.0.21/32", "ip route del blackhole 10.77.0.21/32", "reach"),
    "two machines with one id": (
        "cp1",
        "cp -p /etc/machine-id /etc/machine-id.kept; : > /etc/machine-id",
        "mv /etc/machine-id.kept /etc/machine-id",
        "machine-id",
    ),
    "no localhost": ("cp1", "cp -p /etc/hosts /etc/hosts.kept; sed -i /localhost/d /etc/hosts", "mv /etc/hosts.kept /etc/hosts", "hosts"),
    "a package half installed": (
        "cp1",
        "cp -p /var/lib/dpkg/status /root/status.kept; sed -i '0,/install ok installed/s//install ok half-configured/' /var/lib/dpkg/status",
        "mv /root/status.kept /var/lib/dpkg/status",
        "packages",
    ),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_found_by_the_check_that_is_about_it(depot: Depot, defect: str) -> None:
    machine, do, undo, name = DEFECTS[defect]
    with depot.changed(machine, do, undo):
        if name == "ports":
            _until(lambda: "0A" in depot.lab.exec(machine, ["sh", "-c", "grep :192B /proc/net/tcp /proc/net/tcp6 || true"]).stdout)
        done = depot.check()
        also = ["gpu1: reach"] if name == "reach" else []
        only(done, f"{machine}: {name}", *also)
        found = done.check(machine, name)
        assert found["state"] == "fail"
        assert found["why"]
        assert found["fix"]
    only(depot.check())


def _until(true: Callable[[], bool], *, tries: int = 200) -> None:
    assert any(true() for _ in range(tries)), "it never happened"


def test_a_way_out_is_a_warning_and_where_the_site_is_strict_a_refusal(depot: Depot) -> None:
    open_site = SITE_FILE.replace("strict_egress = false", f'strict_egress = false\noutside = ["{plan.OUTSIDE}:8080"]')
    strict = open_site.replace("strict_egress = false", "strict_egress = true")
    try:
        with network.listener(depot.lab.netns("outside"), plan.OUTSIDE, 8080):
            for text, expected in ((open_site, set()), (strict, {f"{m}: outside" for m in ("bastion", "cp1", "gpu1")})):
                depot.write_site(text)
                assert depot.init().code == 0
                done = depot.check()
                only(done, *expected)
                assert f"reached {plan.OUTSIDE}:8080" in done.check("cp1", "outside")["measured"]
    finally:
        depot.write_site(SITE_FILE)
        assert depot.init().code == 0


def test_a_user_who_may_sudo_without_a_password_is_as_good_as_root(depot: Depot) -> None:
    make = (
        "useradd --create-home --shell /bin/bash ops; install -d -m 700 -o ops /home/ops/.ssh; "
        "install -m 600 -o ops ~root/.ssh/authorized_keys /home/ops/.ssh/authorized_keys; "
        "echo 'ops ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/ops"
    )
    with depot.changed("cp1", make, "rm /etc/sudoers.d/ops; userdel --remove ops 2>/dev/null"):
        depot.write_site(SITE_FILE.replace('address = "10.77.0.11"', 'address = "10.77.0.11"\nssh_user = "ops"'))
        try:
            assert depot.init().code == 0
            only(depot.check())
            depot.lab.exec("cp1", ["rm", "/etc/sudoers.d/ops"])
            done = depot.check()
            only(done, "cp1: root")
            assert "sudo" in done.check("cp1", "root")["measured"]
            depot.lab.exec("cp1", ["touch", "/etc/sudoers.d/ops"])
        finally:
            depot.write_site(SITE_FILE)
            assert depot.init().code == 0


def test_a_clock_behind_what_was_signed_is_refused(depot: Depot, line: Line) -> None:
    ahead = datetime.now(UTC) + timedelta(days=2)
    digest = digest_of(b"")
    seen = SeenVersions(
        format=SeenVersions.FORMAT,
        line=line.name,
        root=1,
        timestamp=1,
        snapshot=1,
        targets=1,
        classes=dict.fromkeys(ContentClass, 1),
        contents=dict.fromkeys(ContentClass, digest),
        release=digest,
        issued=format_instant(ahead),
    )
    path = "/var/lib/appliance/trust/demo/seen.json"
    depot.lab.put("bastion", encode(seen), path)
    try:
        done = depot.check()
        only(done, "bastion: clock-floor")
        assert format_instant(ahead) in done.check("bastion", "clock-floor")["expected"]
    finally:
        depot.lab.exec("bastion", ["rm", path])


def test_a_machine_that_is_off_fails_its_login_and_the_others_are_still_looked_at(depot: Depot) -> None:
    depot.lab.stop("gpu1")
    try:
        done = depot.check()
        assert done.code == 5
        assert done.failures == ["gpu1: login"]
        assert "No route to host" in done.check("gpu1", "login")["measured"] or "timed out" in done.check("gpu1", "login")["measured"]
    finally:
        depot.lab.start("gpu1")


def test_a_machine_with_another_host_key_is_refused_by_name_with_both_fingerprints(depot: Depot) -> None:
    accepted = {line.split()[0]: line.split()[1] for line in fingerprints(depot.lab).splitlines()}
    known = depot.lab.exec("bastion", ["cat", "/var/lib/appliance/site/known_hosts"]).stdout
    with depot.changed(
        "gpu1",
        "mkdir /etc/ssh/kept; mv /etc/ssh/ssh_host_* /etc/ssh/kept/; ssh-keygen -A >/dev/null; systemctl restart ssh",
        "rm /etc/ssh/ssh_host_*; mv /etc/ssh/kept/* /etc/ssh/; rmdir /etc/ssh/kept; systemctl restart ssh",
    ):
        printed = depot.lab.exec("gpu1", ["cat", "/etc/ssh/ssh_host_ed25519_key.pub"]).stdout
        new = subprocess.run(["ssh-keygen", "-lf", "-"], input=printed, capture_output=True, text=True, check=True).stdout.split()[1]
        for command in (["check"], ["init", "/etc/appliance/site.toml", "--accept-host-keys", "/etc/appliance/host-keys"]):
            done = depot.site(*command)
            if command[0] == "init":  # a known machine is not asked again, so nothing new can slip in
                assert (done.code, done.out.split()) == (0, ["changed", "nothing"])
                continue
            assert done.code == 3, done.err
            assert f"gpu1 (10.77.0.21): wrong ssh host key: expected {accepted['gpu1']}, got" in done.err
            assert new in done.err
        assert depot.lab.exec("bastion", ["cat", "/var/lib/appliance/site/known_hosts"]).stdout == known
    only(depot.check())


def test_installing_with_an_empty_store_touches_no_machine(depot: Depot) -> None:
    before = {machine: hashlib.sha256(repr(depot.files(machine)).encode()).hexdigest() for machine in ("cp1", "gpu1")}
    done = depot.site("install")
    assert done.code == 5
    assert "the store has no release" in done.err
    assert {machine: hashlib.sha256(repr(depot.files(machine)).encode()).hexdigest() for machine in before} == before


def test_while_one_command_holds_the_site_another_is_refused_with_its_process(depot: Depot) -> None:
    lock = "/var/lib/appliance/site.lock"
    hold = f"exec 9<>{lock}; flock 9; echo $$$$ > {lock}; exec sleep infinity"
    depot.lab.exec("bastion", ["sh", "-c", f": > {lock}; systemd-run --quiet --unit=hold sh -c '{hold}'"])
    try:
        _until(lambda: bool(depot.lab.exec("bastion", ["cat", lock]).stdout))
        pid = depot.lab.exec("bastion", ["systemctl", "show", "--property=MainPID", "--value", "hold"]).stdout.strip()
        for command in (
            ["install"],
            ["reset", "--confirm", "harbour"],
            ["init", "/etc/appliance/site.toml", "--accept-host-keys", "/etc/appliance/host-keys"],
        ):
            done = depot.site(*command)
            assert done.code == 5
            assert f"the site is in use by process {pid}" in done.err
    finally:
        depot.lab.exec("bastion", ["systemctl", "stop", "hold"])


def test_the_lab_was_sealed_all_along(depot: Depot) -> None:
    depot.lab.assert_sealed()
