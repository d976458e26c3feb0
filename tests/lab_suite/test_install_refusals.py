# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`site install` with a complete release where it must refuse, where a disk fills under it, by another user over another port; and the way back.

One lab for the module, its tests run in their order: refusals on bare machines, one installation that is stopped by a full disk and
goes on, and a reset after which every machine is what it was before the first of them.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.lab import journey as steps
from tests.lab.journey import SITE_FILE, Journey, fingerprints
from tests.lab.machines import Lab
from tests.lab_suite.cluster_watch import MACHINES, NODES, until
from tests.lab_suite.operator import APPLIANCE, Finished, Site
from tests.lab_suite.pictures import Bare, bare, differing, everything

NAME = os.environ.get("LAB_NAME", "instref")
SMALL_DISK = 5000
"""MiB of gpu1: enough for an installation and for what the kubelet keeps free, small enough to be filled in a moment."""
FILLER = "/var/filler"
CONTAINERD_ANSWERS = "/usr/local/lib/appliance/containerd-*/ctr --namespace k8s.io images list"
FILL = f"fallocate -l $(($(df --output=avail -B1 /var | tail -n 1) - %d)) {FILLER}"
KEY = "/etc/appliance/operator-key"
PORT = 2222
LOCK = "/var/lib/appliance/site.lock"
OTHER_SSH = SITE_FILE.replace("strict_egress = false", f'strict_egress = false\nssh_key = "{KEY}"')
for _address in ("10.77.0.11", "10.77.0.21"):
    OTHER_SSH = OTHER_SSH.replace(f'address = "{_address}"', f'address = "{_address}"\nssh_user = "ops"\nssh_port = {PORT}')

OPERATOR = f"""
useradd --create-home --shell /bin/bash ops
install -d -m 700 -o ops /home/ops/.ssh
install -m 600 -o ops ~root/.ssh/authorized_keys /home/ops/.ssh/authorized_keys
rm ~root/.ssh/authorized_keys
echo 'ops ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/ops
printf 'ListenAddress 0.0.0.0:{PORT}\\nListenAddress 127.0.0.1:22\\nPermitRootLogin no\\n' > /etc/ssh/sshd_config.d/10-operator.conf
systemctl restart ssh
"""

STAYS = {
    r"/etc/(passwd|group|shadow|gshadow)-$": "the copies that Debian's useradd and userdel keep of the files before their last change",
    r"(/root|/home/ops)/\.ansible(/tmp)?$": "Ansible's folder for its modules, empty, in the home of who logs in",
    r"/var/lib/dpkg/(status|status-old|available|lock.*|triggers/.*|info/format.*)$": "dpkg's database, written anew; `dpkg -l` is compared",
    r"/var/(lib|cache)/apt/": "apt's lists, locks and marks; no package of them is left",
    r"/var/lib/systemd/": "what systemd notes by itself (timers, random seed)",
    r"/etc/appliance(/(site\.toml|host-keys|operator-key))?$": "written by the operator, on the depot",
    r"/var/lib/appliance(/(store|releases|trust|site|log)(/.*)?|/site\.lock|/store\.lock)?$": "store, pinned root and site keys: docs/operate.md, section 5",
    r"/root/\.kube(/cache(/.*)?)?$": "kubectl's own cache at the depot",
}
"""Files that a reset may leave, and why."""
SLICES = re.compile(r"\+ kubepods\S*\.slice transient -$")
"""Units that it leaves: the kubelet's slices, which are empty and which systemd forgets at the next boot."""
ONLY_DEPOT = ("/etc/appliance", "/var/lib/appliance", "/root/\\.kube")


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """Bare machines whose sshd knows only `ops`, on port 2222; the release read from the stick, the site initialised."""
    journey = Journey.of_tests(NAME)
    steps.prepare(journey)
    steps.publish(journey)
    Lab.down(NAME)
    lab = Lab.up(NAME, media=[journey.stick], disks={"gpu1": SMALL_DISK})
    for machine in NODES:
        lab.exec(machine, ["sh", "-ec", OPERATOR])
    lab.exec("bastion", ["sh", "-ec", f"mkdir -p /etc/appliance; mv ~/.ssh/id_ed25519 {KEY}; rm -f ~/.ssh/id_ed25519.pub"])
    lab.put("bastion", OTHER_SSH.encode(), "/etc/appliance/site.toml")
    lab.put("bastion", fingerprints(lab).encode(), "/etc/appliance/host-keys")
    lab.exec("bastion", ["install", "-m", "755", f"{steps.STICK}/install.pyz", APPLIANCE])
    operator = Site(lab, journey, quiet=False)
    for words in (
        ("site", "init", "/etc/appliance/site.toml", "--accept-host-keys", "/etc/appliance/host-keys"),
        ("media", "read", steps.STICK),
        ("site", "check"),
    ):
        done = operator.appliance(*words)
        assert done.code == 0, done.text
    yield operator
    Lab.down(NAME)
    shutil.rmtree(journey.folder / "upstream", ignore_errors=True)


@pytest.fixture(scope="module")
def before(site: Site) -> dict[str, Bare]:
    """The machines before the first installation of this module."""
    for machine in MACHINES:
        site.lab.exec(machine, ["systemctl", "is-system-running", "--wait"], check=False)
    return {machine: bare(site.lab, machine) for machine in MACHINES}


@contextmanager
def planted(site: Site, machine: str, do: str, undo: str) -> Iterator[None]:
    site.lab.exec(machine, ["sh", "-ec", do])
    try:
        yield
    finally:
        site.lab.exec(machine, ["sh", "-ec", undo])


def refused(site: Site, code: int) -> Finished:
    """A `site install` that is refused with `code` and a hint, and has changed no file of any machine but its own lock."""
    pictures = everything(site.lab)
    done = site.install()
    assert done.code == code, done.text
    for machine, files in everything(site.lab).items():
        assert differing(pictures[machine], files) <= {LOCK}, machine
    assert done.said("hint")
    return done


def test_a_node_without_room_is_refused_with_what_it_has_and_needs(site: Site, before: dict[str, Bare]) -> None:
    assert before["gpu1"].packages
    with planted(site, "gpu1", FILL % (700 << 20), f"rm {FILLER}"):
        done = refused(site, 5)
        assert re.search(r"gpu1: disk: expected [\d.]+ GiB free, (got|measured) \S+ [MG]iB free on /var", done.said("error")), done.text


HOST_KEY = (
    "mkdir /etc/ssh/kept; mv /etc/ssh/ssh_host_* /etc/ssh/kept/; ssh-keygen -A >/dev/null; systemctl restart ssh",
    "rm /etc/ssh/ssh_host_*; mv /etc/ssh/kept/* /etc/ssh/; rmdir /etc/ssh/kept; systemctl restart ssh",
)
RELEASE = "/usr/lib/os-release"
ELEVEN = 's/^VERSION_ID=.*/VERSION_ID="11"/; s/^PRETTY_NAME=.*/PRETTY_NAME="Debian GNU\\/Linux 11"/'
OTHER_OS = (f"cp -p {RELEASE} {RELEASE}.kept; sed -i '{ELEVEN}' {RELEASE}", f"mv {RELEASE}.kept {RELEASE}")


@pytest.mark.parametrize("machine", NODES)
def test_a_wrong_host_key_is_refused_with_both_fingerprints(site: Site, machine: str) -> None:
    accepted = dict(line.split() for line in fingerprints(site.lab).splitlines())[machine]
    with planted(site, machine, *HOST_KEY):
        new = dict(line.split() for line in fingerprints(site.lab).splitlines())[machine]
        done = refused(site, 3)
        assert f"{machine} (" in done.said("error")
        assert f"wrong ssh host key: expected {accepted}, got {new}" in done.said("error")


@pytest.mark.parametrize("machine", MACHINES)
def test_an_unsupported_system_is_refused_by_name_also_on_the_depot(site: Site, machine: str) -> None:
    with planted(site, machine, *OTHER_OS):
        done = refused(site, 5)
        assert f"{machine}: os: expected Debian GNU/Linux 12" in done.text
        assert "Debian GNU/Linux 11" in done.said("error")


@pytest.mark.parametrize(
    ("do", "undo", "check"),
    [
        ("mkdir -p /etc/kubernetes/manifests; echo x > /etc/kubernetes/kubelet.conf", "rm -r /etc/kubernetes", "leftovers"),
        (f"mkdir -p /etc/appliance; echo {'6' * 64} > /etc/appliance/site-id", "rm -r /etc/appliance", "other-cluster"),
    ],
    ids=["by its files", "by its mark"],
)
def test_a_node_of_another_cluster_is_refused(site: Site, do: str, undo: str, check: str) -> None:
    with planted(site, "cp1", do, undo):
        done = refused(site, 5)
        assert f"cp1: {check}: expected" in done.said("error")


def test_a_disk_that_fills_while_it_installs_is_the_cause_that_is_named_and_running_again_ends_well(site: Site) -> None:
    """gpu1's disk is filled as soon as containerd answers there, before any image is pulled."""
    ended: list[Finished] = []
    runner = threading.Thread(target=lambda: ended.append(site.install()))
    runner.start()
    try:
        until(
            lambda: not runner.is_alive() or not site.lab.exec("gpu1", ["sh", "-c", CONTAINERD_ANSWERS], check=False).returncode,
            seconds=300,
            what="containerd answers on gpu1",
        )
        # the second word takes what is left, the blocks reserved for root among it
        site.lab.exec("gpu1", ["sh", "-c", f"{FILL % 0}; cat /dev/zero >> {FILLER}"], check=False)
        runner.join()
        (done,) = ended
        assert done.code == 6, done.text
        assert done.said("error").startswith("gpu1: "), done.text
        assert "no space left on device" in done.said("error").lower()
        assert "make room on gpu1" in done.said("hint")
    finally:
        runner.join()
        site.lab.exec("gpu1", ["rm", "-f", FILLER])
    again = site.install()
    assert again.code == 0, again.text
    site.well()
    status = site.appliance("site", "status")
    assert status.code == 0, status.text
    assert "model tiny 1 on gpu1: as placed" in status.text


def test_it_was_installed_by_another_user_over_another_port_with_the_key_that_the_site_names(site: Site) -> None:
    """Root cannot log in there and port 22 is open to the machine itself only (the lab's own probe): there was no other way."""
    for machine in NODES:
        journal = site.lab.exec(machine, ["journalctl", "--no-pager", "-o", "cat", "_COMM=sshd"]).stdout
        assert "Accepted publickey for ops from 10.77.0.10" in journal
        assert "Accepted publickey for root from 10.77.0.10" not in journal
        listening = site.lab.exec(machine, ["cat", "/proc/net/tcp", "/proc/net/tcp6"]).stdout
        assert re.findall(r"(\w+):0016 \S+ 0A ", listening) == ["0100007F"]
    assert site.install().changed == dict.fromkeys(MACHINES, 0)


def test_after_a_reset_the_machines_are_what_they_were_before_the_first_installation(site: Site, before: dict[str, Bare]) -> None:
    done = site.appliance("site", "reset", "--confirm", "harbour")
    assert done.code == 0, done.text
    for machine in MACHINES:
        after = bare(site.lab, machine)
        allowed = [pattern for pattern in STAYS if machine == "bastion" or not pattern.startswith(ONLY_DEPOT)]
        files = [path for path in before[machine].files_against(after) if not any(re.match(pattern, path) for pattern in allowed)]
        others = {part: [line for line in lines if not SLICES.match(line)] for part, lines in before[machine].against(after).items()}
        print(f"{machine}: {files} {others}")
        assert (files, [line for lines in others.values() for line in lines]) == ([], []), machine
        alive = "find /sys/fs/cgroup -path '*kubepods*' -name cgroup.procs -exec cat {} +"
        assert site.lab.exec(machine, ["sh", "-c", alive]).stdout == "", machine
    check = site.appliance("site", "check")
    assert check.code == 0, check.text
    site.lab.assert_sealed()
