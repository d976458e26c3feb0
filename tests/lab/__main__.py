# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.lab`: the lab from the command line. Exit status 0, 1 with a cause and a hint, or that of the command run in a place."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.lab.machines import Lab, LabError, launcher, places, plan, processes, sealed

Command = Callable[[argparse.Namespace], int]


def up(given: argparse.Namespace) -> int:
    begin = time.monotonic()
    disks = {name: int(size) for name, _, size in (entry.partition("=") for entry in given.disk)}
    names = given.machines.split(",")
    lab = Lab.up(given.name, machines=names, media=given.media, disks=disks, state=given.state, log=given.log, say=_say(begin))
    print(f"logs: {lab.log}")
    return 0


def down(given: argparse.Namespace) -> int:
    names = places.all_registered() if given.all else (given.name,)
    for name in names:
        Lab.down(name, say=_say(time.monotonic()))
    return 0


def status(given: argparse.Namespace) -> int:
    names = places.all_registered()
    if given.name not in names:
        print(f"lab '{given.name}': not up" + (f" (there are: {', '.join(names)})" if names else ""))
        return 1
    lab = Lab.find(given.name)
    print(f"lab {lab.name}   state {lab.state}   logs {lab.log}")
    for machine in lab.machines:
        pid = launcher.leader(lab.name, machine.name)
        disk = "" if machine.disk_mib is None else f"   disk {machine.disk_mib} MiB"
        print(f"  {machine.name:8} {machine.role:14} {machine.address:12} {'on' if pid else 'off':4}{f' pid {pid}' if pid else ''}{disk}")
    for place, address in zip(plan.PLACES, (plan.ROUTER, plan.OUTSIDE, plan.CLIENT), strict=True):
        print(f"  {place:8} {'':14} {address}")
    return 0


def run_in(given: argparse.Namespace) -> int:
    return Lab.find(given.name).shell(given.place, given.command or ["bash", "-l"])


def ssh(given: argparse.Namespace) -> int:
    lab = Lab.find(given.name)
    return processes.foreground(lab.ssh(given.machine, given.command), lab=lab.name)


def power(act: Callable[[Lab, Sequence[str]], object]) -> Command:
    def command(given: argparse.Namespace) -> int:
        begin = time.monotonic()
        act(Lab.find(given.name), given.machine)
        _say(begin)(f"{given.name}: {given.verb} {', '.join(given.machine) or 'all'}: done")
        return 0

    return command


def attach(given: argparse.Namespace) -> int:
    print(Lab.find(given.name).attach(given.folder, writable=given.writable))
    return 0


def detach(given: argparse.Namespace) -> int:
    Lab.find(given.name).detach(given.point)
    return 0


def assert_sealed(given: argparse.Namespace) -> int:
    report = sealed.check(Lab.find(given.name))
    print(report.text())
    return 0 if report.sealed else 1


def logs(given: argparse.Namespace) -> int:
    lab = Lab.find(given.name)
    if not given.machine:
        print(lab.log)
        return 0
    print(lab.console(given.machine).read_text(errors="replace"), end="")
    return lab.shell(given.machine, ["journalctl", "--no-pager", "-b"]) if lab.leader(given.machine) else 0


def _say(begin: float) -> Callable[[str], None]:
    return lambda text: print(f"{time.monotonic() - begin:6.1f} s  {text}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description="An air-gapped lab of systemd-nspawn machines.")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, command: Command, text: str) -> argparse.ArgumentParser:
        one = verbs.add_parser(name, help=text, description=text)
        one.add_argument("--name", default=os.environ.get("LAB_NAME", "lab"), help="which lab (default: $LAB_NAME or 'lab')")
        one.set_defaults(command_of=command)
        return one

    one = verb("up", up, "bring the lab up, add machines to it, or start those that are off")
    one.add_argument("--machines", default=",".join(plan.DEFAULT), help="comma-separated: bastion, cp1..cp9, gpu1..gpu9")
    one.add_argument("--media", type=Path, action="append", default=[], metavar="DIR", help="folder the bastion sees as /media/usbN")
    one.add_argument("--disk", action="append", default=[], metavar="MACHINE=MIB", help="give a machine a small disk of its own")
    one.add_argument("--state", type=Path, help="state folder (default: in the cache, or $LAB_STATE/NAME)")
    one.add_argument("--log", type=Path, help="log folder (default: a new one in the cache, or below $LAB_LOG/NAME)")
    verb("down", down, "remove everything of the lab but its logs").add_argument("--all", action="store_true", help="every lab")
    verb("status", status, "machines, addresses and whether they are on")
    one = verb("exec", run_in, "run a command (default: a shell) in a machine, or in router, outside or client")
    one.add_argument("place")
    one.add_argument("command", nargs=argparse.REMAINDER)
    one = verb("ssh", ssh, "log in to a machine through its sshd")
    one.add_argument("machine")
    one.add_argument("command", nargs=argparse.REMAINDER)
    acts: dict[str, tuple[Callable[[Lab, Sequence[str]], object], str]] = {
        "restart": (lambda lab, names: lab.restart(*names), "orderly off and on again"),
        "power-off": (lambda lab, names: lab.stop(*names), "orderly off"),
        "power-cut": (lambda lab, names: lab.power_cut(*names), "off at once, without a word to the machine"),
        "power-on": (lambda lab, names: lab.start(*names), "on, until sshd answers"),
    }
    for name, (act, text) in acts.items():
        verb(name, power(act), text + " (default: all machines)").add_argument("machine", nargs="*")
    one = verb("attach", attach, "plug a folder into the running bastion; prints where it appears")
    one.add_argument("folder", type=Path)
    one.add_argument("--writable", action="store_true", help="as a stick to carry something back")
    verb("detach", detach, "pull a folder out of the running bastion").add_argument("point", help="for example /media/usb1")
    verb("assert-sealed", assert_sealed, "prove that nothing of the lab reaches this machine or its uplink")
    verb("logs", logs, "the log folder, or one machine's console and journal").add_argument("machine", nargs="?")
    return parser


def main() -> int:
    given = _parser().parse_args()
    command: Command = given.command_of
    try:
        return command(given)
    except LabError as error:
        print(f"lab: {error}\n  to do: {error.hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"lab: interrupted\n  to do: python -m tests.lab down --name {given.name}", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
