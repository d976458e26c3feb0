# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Start and end one systemd-nspawn machine. A machine's state is never written down: it is what its control groups hold."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Sequence
from pathlib import Path

from tests.lab import network
from tests.lab.machines import cgroups, places
from tests.lab.machines.errors import LabError
from tests.lab.machines.processes import end, kill, start_detached, wait_until

# Every word up to "--" is a cgroup.procs file that a subshell enters ("0" is the writer itself) before it becomes the command after it.
# 133 is how nspawn says that the machine wants to start again: that is a start like any other, without the previous one's control groups.
SUPERVISE = """
while :; do
  (
    while [ "$1" != -- ]; do echo 0 > "$1" || { echo "cannot enter $1"; exit 97; }; shift; done
    shift; exec "$@"
  )
  status=$?
  [ $status -eq 133 ] || exit $status
  for door; do
    [ "$door" != -- ] || break
    find "${door%/*}" -mindepth 1 -depth -type d -exec rmdir {} \\; 2> /dev/null
  done
done
"""
ENVIRONMENT = {
    # kubelet and CNI plugins write below /proc/sys; kind and kube-spawn open it likewise.
    "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "1",
    # runc needs keyring, bpf and mount calls that nspawn's filter denies.
    "SYSTEMD_SECCOMP": "0",
}
POWER_OFF = signal.SIGRTMIN + 4  # what systemd as a container's first process takes for "power off"
RUNTIME = Path("/run/systemd/nspawn")


def launch(lab: str, machine: str, root: Path, *, binds: Sequence[str], console: Path) -> None:
    """Start the machine; returns at once."""
    cgroups.remove(lab, machine)
    doors = cgroups.prepare(lab, machine)
    nspawn = [
        "systemd-nspawn",
        f"--machine={nspawn_name(lab, machine)}",
        f"--directory={root}",
        "--boot",
        # There may be no machined and no systemd here; the groups entered above stand in for a unit.
        "--register=no",
        "--keep-unit",
        f"--network-bridge={network.BRIDGE}",
        "--capability=all",
        "--resolv-conf=off",
        "--timezone=off",
        "--link-journal=no",
        "--console=pipe",
        *binds,
    ]
    # nsenter, not `ip netns exec`: the latter remounts /sys, and nspawn then finds no control groups.
    switch = network.namespace(lab, "switch")
    argv: list[str | Path] = ["sh", "-c", SUPERVISE, f"lab-{lab}-{machine}", *doors, "--", "nsenter", f"--net={switch}", *nspawn]
    start_detached(argv, lab=lab, console=console, env=ENVIRONMENT)


def nspawn_name(lab: str, machine: str) -> str:
    return f"{lab}-{machine}"


def leader(lab: str, machine: str) -> int | None:
    """The machine's first process as this host numbers it, or None while the machine is off."""
    for pid in sorted(cgroups.members(lab, machine)):
        with contextlib.suppress(OSError, IndexError):
            numbers = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("NSpid:")).split()[1:]
            # Two levels: the host's and the machine's. A pod's first process has three.
            if len(numbers) == 2 and numbers[1] == "1":
                return pid
    return None


def running(lab: str, machine: str) -> bool:
    return bool(cgroups.members(lab, machine))


def wait_for_ssh(lab: str, machine: str, *, console: Path, seconds: float = 60) -> int:
    """Wait until the machine's sshd says its name on the machine's own loopback; gives the machine's first process."""
    wait_until(lambda: running(lab, machine), seconds=10, what=f"{machine} to start", hint=f"read {console}")

    def answered() -> int | None:
        pid = leader(lab, machine)
        if pid is None and not running(lab, machine):
            tail = console.read_text(errors="replace")[-1500:]
            raise LabError(f"{machine} went off while it started:\n{tail}", hint=f"read {console}")
        return pid if pid is not None and _greets(pid) else None

    return wait_until(answered, seconds=seconds, what=f"sshd of {machine} to answer", hint=f"read {console}")


def _greets(pid: int) -> bool:
    with contextlib.suppress(OSError), network.connect(Path(f"/proc/{pid}/ns/net"), "127.0.0.1", 22, seconds=2) as connection:
        return connection.recv(4) == b"SSH-"
    return False


def power_off(lab: str, machine: str, *, seconds: float = 60) -> bool:
    """Ask the machine to go off in order; after `seconds` it is cut off. Gives whether it went by itself."""
    pid = leader(lab, machine)
    if pid is not None:
        kill([pid], POWER_OFF)
        with contextlib.suppress(LabError):
            wait_until(lambda: not running(lab, machine), seconds=seconds, what=f"{machine} to go off", hint="")
    orderly = not running(lab, machine)
    power_cut(lab, machine)
    return orderly


def power_cut(lab: str, machine: str) -> None:
    """SIGKILL to everything of the machine at once, its supervisor included; returns when all of it is gone."""
    end(lambda: cgroups.members(lab, machine), what=machine)
    cgroups.remove(lab, machine)
    for folder in ("propagate", "unix-export"):
        path = RUNTIME / folder / nspawn_name(lab, machine)
        with contextlib.suppress(OSError):
            places.remove_tree(path)
