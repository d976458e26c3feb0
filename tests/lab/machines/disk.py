# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A machine's own root: a real copy on the host's disk, so that hard links and containerd's overlayfs work, or a small ext4 image of its own."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from tests.lab.machines import plan
from tests.lab.machines.errors import LabError
from tests.lab.machines.processes import run

HOST_KEYS = ("ed25519", "ecdsa")


def create(machine: plan.Machine, folder: Path, *, base: Path, authorized: str, private_key: Path | None, lab: str) -> None:
    """Make the machine's root under `folder` if it has none. It appears under its final name only when it is complete.

    `authorized` is the text of root's authorized_keys; `private_key` becomes root's own key (the operator's, on the bastion).
    """
    final = folder / "root"
    if final.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    pending = folder / "root.making"
    if pending.exists():
        shutil.rmtree(pending)
    run(["setpriv", "--pdeathsig", "KILL", "cp", "-a", "--reflink=auto", base, pending], lab=lab)
    _identify(machine, pending, authorized=authorized, private_key=private_key, lab=lab)
    if machine.disk_mib is None:
        pending.rename(final)
        return
    _make_image(folder / "disk.ext4", pending, machine.disk_mib, lab=lab)
    shutil.rmtree(pending)
    final.mkdir()


def mount(machine: plan.Machine, folder: Path, *, lab: str) -> Path:
    """Give the folder systemd-nspawn boots; a small disk is mounted on it first."""
    root = folder / "root"
    if machine.disk_mib is not None and not root.is_mount():
        run(["mount", "-o", "loop", folder / "disk.ext4", root], lab=lab)
    return root


def unmount_all(state: Path, *, lab: str) -> None:
    """Unmount whatever is mounted below a lab's state folder; the loop devices go with their mounts."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in sorted((p for p in points if Path(p).is_relative_to(state)), reverse=True):
        run(["umount", point], lab=lab)


def _make_image(image: Path, content: Path, mib: int, *, lab: str) -> None:
    pending = image.with_suffix(".making")
    pending.unlink(missing_ok=True)
    with pending.open("wb") as handle:
        handle.truncate(mib << 20)
    done = run(["mkfs.ext4", "-q", "-F", "-m", "0", "-d", content, pending], lab=lab, check=False)
    if done.returncode:
        raise LabError(f"a disk of {mib} MiB cannot be made: {done.stderr.strip()}", hint="give the machine at least 600 MiB")
    pending.rename(image)


def _identify(machine: plan.Machine, root: Path, *, authorized: str, private_key: Path | None, lab: str) -> None:
    """What an operator and the Debian installer would have set: name, address, machine id, host keys, who may log in as root."""
    etc = root / "etc"
    (etc / "hostname").write_text(machine.name + "\n")
    (etc / "hosts").write_text(f"127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{machine.name}\n")
    (etc / "machine-id").write_text(uuid.uuid4().hex + "\n")
    (etc / "lab").mkdir()
    (etc / "lab/address").write_text(
        f"ADDRESS={machine.address}/24\nADDRESS6={machine.address6}/64\nGATEWAY={plan.ROUTER}\nGATEWAY6={plan.ROUTER6}\n"
    )
    for kind in HOST_KEYS:
        where = etc / f"ssh/ssh_host_{kind}_key"
        run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", f"root@{machine.name}", "-f", where], lab=lab)
    ssh = root / "root/.ssh"
    ssh.mkdir(exist_ok=True)
    ssh.chmod(0o700)
    (ssh / "authorized_keys").write_text(authorized)
    if private_key is not None:
        shutil.copyfile(private_key, ssh / "id_ed25519")
        (ssh / "id_ed25519").chmod(0o600)
        shutil.copyfile(private_key.with_suffix(".pub"), ssh / "id_ed25519.pub")
