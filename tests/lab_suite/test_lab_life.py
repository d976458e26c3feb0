# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lab import network
from tests.lab.machines import Lab, LabError, cgroups, plan
from tests.lab.machines.processes import wait_until

BOOT_SECONDS = 10


def _cli(lab: Lab, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.lab", words[0], "--name", lab.name, *words[1:]]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def _read(lab: Lab, machine: str, path: str) -> str:
    return lab.exec(machine, ["cat", path]).stdout


def test_status_names_each_machine_with_its_address(lab: Lab) -> None:
    done = _cli(lab, "status")
    assert done.returncode == 0
    for name, address in (("bastion", "10.77.0.10"), ("cp1", "10.77.0.11"), ("gpu1", "10.77.0.21")):
        assert any(line.split()[0] == name and address in line and " on " in line for line in done.stdout.splitlines())


def test_ssh_logs_in_with_the_known_host_key(lab: Lab) -> None:
    assert _cli(lab, "ssh", "cp1", "hostname").stdout == "cp1\n"


def test_ssh_to_a_machine_with_another_host_key_is_refused(lab: Lab) -> None:
    words = lab.ssh("cp1", ["hostname"])
    known = lab.state / "known_hosts"
    known.write_text(known.read_text().replace(lab.host_key("cp1"), lab.host_key("gpu1")))
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 255
    assert "IDENTIFICATION HAS CHANGED" in done.stderr


def test_a_command_that_fails_in_a_machine_gives_its_exit_status(lab: Lab) -> None:
    assert _cli(lab, "exec", "cp1", "sh", "-c", "exit 7").returncode == 7


def test_a_fresh_machine_has_python_and_openssh_and_little_else(lab: Lab) -> None:
    text = (lab.log / "cp1.packages.before").read_text()
    installed = {line.split()[1].partition(":")[0] for line in text.splitlines() if line.startswith("ii")}
    assert {"python3", "openssh-server", "sudo", "systemd-sysv"} <= installed
    assert not installed & {"ca-certificates", "curl", "wget", "containerd", "nftables", "iptables", "python3-pip", "ansible"}
    files = (lab.log / "cp1.files.before").read_text()
    assert "./usr/sbin/sshd\tf\t755\t0:0\t" in files


def test_machine_ids_and_host_keys_differ_and_outlive_a_restart_while_the_boot_id_does_not(lab: Lab) -> None:
    def identity(name: str) -> tuple[str, str]:
        return _read(lab, name, "/etc/machine-id"), lab.host_key(name)

    names = [m.name for m in lab.machines]
    before = {name: identity(name) for name in names}
    boot = _read(lab, "cp1", "/proc/sys/kernel/random/boot_id")
    assert len({part for parts in before.values() for part in parts}) == 2 * len(names)
    begin = time.monotonic()
    lab.restart("cp1")
    assert time.monotonic() - begin < BOOT_SECONDS
    assert {name: identity(name) for name in names} == before
    assert _read(lab, "cp1", "/proc/sys/kernel/random/boot_id") != boot


def test_after_a_power_cut_of_all_machines_they_come_back_with_their_disks(lab: Lab) -> None:
    lab.exec("gpu1", ["sh", "-c", "echo kept > /var/lib/kept; sync"])
    lab.power_cut()
    assert [lab.leader(m.name) for m in lab.machines] == [None, None, None]
    begin = time.monotonic()
    lab.start()
    assert time.monotonic() - begin < BOOT_SECONDS
    assert _read(lab, "gpu1", "/var/lib/kept") == "kept\n"
    assert lab.exec("cp1", ["systemctl", "is-active", "ssh", "lab-network"]).stdout.split() == ["active", "active"]


def test_a_machine_that_reboots_itself_comes_back_without_its_old_control_groups(lab: Lab) -> None:
    boot = _read(lab, "cp1", "/proc/sys/kernel/random/boot_id")
    groups = [hierarchy.top / lab.name / "cp1" / "left-by-the-last-boot" for hierarchy in cgroups.hierarchies()]
    for group in groups:
        group.mkdir()
    lab.exec("cp1", ["systemctl", "reboot"])

    def back() -> bool:
        with contextlib.suppress(LabError):
            return _read(lab, "cp1", "/proc/sys/kernel/random/boot_id") != boot
        return False

    wait_until(back, seconds=30, what="cp1 to come back", hint="")
    lab.start("cp1")
    assert not any(group.exists() for group in groups)


def test_a_machine_that_is_asked_goes_off_by_itself(lab: Lab) -> None:
    assert lab.stop("gpu1") == {"gpu1": True}
    with pytest.raises(LabError, match="gpu1 is off"):
        lab.exec("gpu1", ["true"])
    lab.start("gpu1")


def test_up_again_changes_nothing(lab: Lab) -> None:
    leaders = [lab.leader(m.name) for m in lab.machines]
    again = Lab.up(lab.name, machines=("bastion", "cp1"))
    assert again == lab
    assert [lab.leader(m.name) for m in lab.machines] == leaders


def test_up_with_another_disk_size_is_refused_and_changes_nothing(lab: Lab) -> None:
    with pytest.raises(LabError, match="another disk size"):
        Lab.up(lab.name, machines=("cp1",), disks={"cp1": 900})
    assert Lab.find(lab.name) == lab


def test_the_operators_key_opens_the_nodes_but_not_the_bastion(lab: Lab) -> None:
    command = ["ssh", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=accept-new", "-o", "UserKnownHostsFile=/run/known"]
    for name in ("cp1", "gpu1"):
        assert lab.exec("bastion", [*command, plan.machine(name).address, "hostname"]).stdout == f"{name}\n"
    assert lab.exec("bastion", ["ls", "-A", ".ssh"]).stdout.split() == ["authorized_keys", "id_ed25519", "id_ed25519.pub"]
    refused = lab.exec("bastion", [*command, plan.machine("bastion").address, "hostname"], check=False)
    assert refused.returncode == 255
    assert "Permission denied" in refused.stderr


def test_a_small_disk_is_full_when_it_is_full(lab: Lab) -> None:
    done = lab.exec("gpu1", ["fallocate", "-l", "700M", "/var/big"], check=False)
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    lab.exec("gpu1", ["rm", "-f", "/var/big"])


def test_the_bastion_reads_its_stick_and_cannot_write_it(lab: Lab, stick: Path) -> None:
    assert lab.exec("bastion", ["sha256sum", "/media/usb0/part-1"]).stdout.split()[0] == _sha256(stick / "part-1")
    assert "Read-only file system" in lab.exec("bastion", ["touch", "/media/usb0/x"], check=False).stderr
    assert not (stick / "x").exists()


def test_a_stick_is_plugged_into_and_pulled_out_of_the_running_bastion(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "late").write_text("late\n")
    mounts = Path("/proc/self/mountinfo").read_text()
    point = lab.attach(tmp_path)
    assert _read(lab, "bastion", f"{point}/late") == "late\n"
    assert "Read-only file system" in lab.exec("bastion", ["touch", f"{point}/x"], check=False).stderr
    lab.detach(point)
    assert lab.exec("bastion", ["ls", point]).stdout == ""
    writable = lab.attach(tmp_path, writable=True)
    lab.exec("bastion", ["sh", "-c", f"echo back > {writable}/receipt"])
    lab.detach(writable)
    assert (tmp_path / "receipt").read_text() == "back\n"
    assert Path("/proc/self/mountinfo").read_text() == mounts


def test_files_arrive_in_a_machine_and_come_back_byte_for_byte(lab: Lab, tmp_path: Path) -> None:
    content = os.urandom(70_000) + b"\r\n\xff\x00"
    (tmp_path / "out/deep").mkdir(parents=True)
    (tmp_path / "out/deep/file").write_bytes(content)
    (tmp_path / "back").mkdir()
    lab.put("cp1", tmp_path / "out", "/opt/sent")
    lab.put("cp1", content, "/opt/sent/from-memory", mode=0o600)
    lab.copy_from("cp1", "/opt/sent", tmp_path / "back")
    assert (tmp_path / "back/sent/deep/file").read_bytes() == content
    assert (tmp_path / "back/sent/from-memory").read_bytes() == content
    assert lab.exec("cp1", ["stat", "-c", "%a", "/opt/sent/from-memory"]).stdout == "600\n"
    lab.exec("cp1", ["rm", "-r", "/opt/sent"])


def test_a_command_that_takes_too_long_is_ended_in_the_machine_too(lab: Lab) -> None:
    with pytest.raises(LabError, match="gave up after 1 s"):
        lab.exec("cp1", ["sh", "-c", "echo $$ > /run/slow; exec sleep 86399"], timeout=1)
    pid = _read(lab, "cp1", "/run/slow").strip()
    gone = ["test", "!", "-e", f"/proc/{pid}"]
    wait_until(lambda: lab.exec("cp1", gone, check=False).returncode == 0, seconds=5, what=f"{pid} to end", hint="")


def test_nodes_see_each_other_and_the_client_sees_them_through_the_router(lab: Lab) -> None:
    for place, address in (("cp1", "10.77.0.21"), ("gpu1", "fd00:77::11"), ("client", "10.77.0.11")):
        with network.connect(lab.netns(place), address, 22) as connection:
            assert connection.recv(4) == b"SSH-"


def test_a_machine_starts_with_forwarding_off_as_a_fresh_debian_does(lab: Lab) -> None:
    assert _read(lab, "cp1", "/proc/sys/net/ipv4/ip_forward") == "0\n"


def test_control_groups_of_a_machine_are_its_own_and_writable(lab: Lab) -> None:
    script = "for d in /sys/fs/cgroup/*/; do test -e $d/cgroup.procs || continue; mkdir $d/probe && rmdir $d/probe || exit 1; done"
    lab.exec("cp1", ["sh", "-c", script])


def _sha256(path: Path) -> str:
    return subprocess.run(["sha256sum", path], capture_output=True, text=True, check=True).stdout.split()[0]
