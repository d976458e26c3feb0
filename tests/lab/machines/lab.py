# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The lab: bring it up, use its machines, take it down. `python -m tests.lab` is a thin layer over this."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tests.lab import network
from tests.lab.machines import cgroups, disk, host, launcher, logbook, noderoot, places, plan, sealed
from tests.lab.machines.errors import LabError
from tests.lab.machines.plan import Machine
from tests.lab.machines.processes import Done, end, foreground, marked, pipe, run

ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lab:
    """One lab, by name. Holds no resource: everything it says is read from the system when asked.

    `place` arguments take a machine's name, or `router`, `outside` or `client`: those are network namespaces in which this machine's
    own programs run.
    """

    name: str
    state: Path
    log: Path
    machines: tuple[Machine, ...]
    media: tuple[Path, ...] = ()

    # -- life ---------------------------------------------------------------------------------------------------------------------

    @staticmethod
    def up(
        name: str = "lab",
        *,
        machines: Sequence[str] = plan.DEFAULT,
        media: Sequence[Path] = (),
        disks: Mapping[str, int] | None = None,
        state: Path | None = None,
        log: Path | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> Lab:
        """Bring a lab up, or bring an existing one to this form: machines it lacks are added, machines that are off are started.

        `media`: folders of media parts, seen read-only by the bastion as /media/usb0, /media/usb1 ... `disks`: size in MiB of the whole
        disk of machines that shall have a small one. Raises LabError; what was begun is then left for a look, `down` removes it.
        """
        _require_root()
        network.require_tools()
        folder = (state or places.state_of(places.checked_name(name)) or places.default_state(name)).resolve()
        with places.locked(_lock(folder)):
            places.register(name, folder)
            wanted = plan.machines(machines, disks=dict(disks or {}))
            lab = _merged(name, folder, wanted, tuple(path.resolve(strict=True) for path in media), log)
            lab._save()
            lab._build(say)
            lab._boot(lab.machines, say)
            lab.assert_sealed()
        return lab

    @staticmethod
    def find(name: str = "lab") -> Lab:
        """The lab of this name, up or down; raises LabError if there is none."""
        state = places.state_of(places.checked_name(name))
        lab = _load(state) if state else None
        if lab is None:
            raise LabError(f"there is no lab called '{name}'", hint=f"python -m tests.lab up --name {name}")
        return lab

    @staticmethod
    def down(name: str = "lab", *, say: Callable[[str], None] = lambda _: None) -> None:
        """Remove everything of a lab but its logs, however it was left: processes, mounts, namespaces, control groups, disks."""
        _require_root()
        state = places.state_of(places.checked_name(name))
        if state is None:
            return
        with places.locked(_lock(state)):
            lab = _load(state)
            report = None
            if lab is not None:
                logbook.after(lab)
                report = sealed.check(lab) if network.exists(name) else None
            _end_processes(name)
            cgroups.remove(name)
            for leftover in (launcher.RUNTIME / "propagate").glob(f"{name}-*"):
                places.remove_tree(leftover)
            disk.unmount_all(state, lab=name)
            network.destroy(name)
            if state.exists():
                shutil.rmtree(state)
            places.unregister(name)
            host.give_back_settings(lab=name)
            say(f"{name}: gone" + (f"; its logs are in {lab.log}" if lab else ""))
        _lock(state).unlink(missing_ok=True)
        if report is not None:
            report.require()

    def _build(self, say: Callable[[str], None]) -> None:
        base = noderoot.ensure(lab=self.name, log=self.log)
        host.prepare(lab=self.name)
        if not network.exists(self.name):
            if any(launcher.running(self.name, m.name) for m in self.machines):
                raise LabError("machines run but their network is incomplete", hint=f"python -m tests.lab down --name {self.name}")
            network.create(self.name)
        self._make_keys()
        with ThreadPoolExecutor(max_workers=4) as pool:
            for _ in pool.map(lambda m: self._make_disk(m, base), self.machines):
                pass
        say(f"{self.name}: {len(self.machines)} machines made from {base.name}")

    def _make_keys(self) -> None:
        for who in ("host", "operator"):
            if not (self.state / f"{who}.pub").exists():
                (self.state / who).unlink(missing_ok=True)
                run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"{who}@{self.name}", "-f", self.state / who], lab=self.name)

    def _make_disk(self, machine: Machine, base: Path) -> None:
        depot = machine.role == "depot"
        authorized = (self.state / "host.pub").read_text() + ("" if depot else (self.state / "operator.pub").read_text())
        key = self.state / "operator" if depot else None
        disk.create(machine, self._folder(machine.name), base=base, authorized=authorized, private_key=key, lab=self.name)

    def _boot(self, machines: Iterable[Machine], say: Callable[[str], None]) -> None:
        off = [m for m in machines if not launcher.running(self.name, m.name)]
        for machine in off:
            root = disk.mount(machine, self._folder(machine.name), lab=self.name)
            logbook.before(self, machine)
            launcher.launch(self.name, machine.name, root, binds=self._binds(machine), console=self.console(machine.name))
        for machine in machines:
            launcher.wait_for_ssh(self.name, machine.name, console=self.console(machine.name))
        say(f"{self.name}: {', '.join(m.name for m in off) or 'nothing to start'} up")

    def _binds(self, machine: Machine) -> tuple[str, ...]:
        if machine.role == "depot":
            return tuple(f"--bind-ro={path}:/media/usb{number}" for number, path in enumerate(self.media))
        # kubelet's out-of-memory watcher ends the kubelet when it cannot open /dev/kmsg.
        return ("--bind=/dev/kmsg",)

    def _save(self) -> None:
        pending = self.state / ".lab.json"
        document = asdict(self) | {"state": str(self.state), "log": str(self.log), "media": [str(path) for path in self.media]}
        pending.write_text(json.dumps(document, indent=2))
        pending.replace(self.state / "lab.json")

    # -- power --------------------------------------------------------------------------------------------------------------------

    def stop(self, *names: str) -> dict[str, bool]:
        """Power machines (default: all) off in order, all at once. Per machine: whether it went by itself within 60 s."""
        chosen = self._chosen(names)
        with places.locked(_lock(self.state)), ThreadPoolExecutor(max_workers=len(chosen)) as pool:
            results = pool.map(lambda m: launcher.power_off(self.name, m.name), chosen)
            return dict(zip((m.name for m in chosen), results, strict=True))

    def start(self, *names: str) -> None:
        """Power machines (default: all) on and wait until their sshd answers."""
        with places.locked(_lock(self.state)):
            if not network.exists(self.name):
                raise LabError("the lab's network is gone", hint=f"python -m tests.lab up --name {self.name}")
            self._boot(self._chosen(names), lambda _: None)

    def restart(self, *names: str) -> None:
        """Power machines off in order and on again."""
        self.stop(*names)
        self.start(*names)

    def power_cut(self, *names: str) -> None:
        """End machines (default: all) at once, without a word to them. (The host's page cache survives, unlike a real machine's.)"""
        chosen = self._chosen(names)
        with places.locked(_lock(self.state)), ThreadPoolExecutor(max_workers=len(chosen)) as pool:
            list(pool.map(lambda m: launcher.power_cut(self.name, m.name), chosen))

    def leader(self, name: str) -> int | None:
        """Number of a machine's first process, None while it is off."""
        return launcher.leader(self.name, self.machine(name).name)

    # -- use ----------------------------------------------------------------------------------------------------------------------

    def machine(self, name: str) -> Machine:
        for machine in self.machines:
            if machine.name == name:
                return machine
        raise LabError(f"lab '{self.name}' has no machine '{name}'", hint=f"it has {', '.join(m.name for m in self.machines)}")

    def exec(
        self,
        place: str,
        command: Sequence[str],
        *,
        input: str | None = None,  # noqa: A002 - the name subprocess.run has for it
        timeout: float = 600,
        check: bool = True,
        env: Mapping[str, str] | None = None,
    ) -> Done:
        """Run a command as root in a place; text in, text out (bytes that are not UTF-8 as surrogate escapes).

        It enters the machine's namespaces and needs neither its network nor its sshd. Raises LabError on failure if `check`.
        """
        return run(self._entering(place, command, env), lab=self.name, data=input, timeout=timeout, check=check)

    def shell(self, place: str, command: Sequence[str] = ("bash", "-l")) -> int:
        """Run a command in a place on this terminal; gives its exit status."""
        return foreground(self._entering(place, command, {"TERM": os.environ.get("TERM", "dumb")}), lab=self.name)

    def ssh(self, name: str, command: Sequence[str] = ()) -> list[str]:
        """The words of an ssh command that logs in as root on a machine, through its own loopback, with host key checking."""
        known = self.state / "known_hosts"
        known.write_text("".join(f"{m.name} {self.host_key(m.name)}\n" for m in self.machines))
        options = {"UserKnownHostsFile": known, "HostKeyAlias": name, "IdentityFile": self.state / "host", "IdentitiesOnly": "yes"}
        words = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        return ["nsenter", f"--net={self.netns(name)}", "ssh", "-F", "none", *words, "root@127.0.0.1", *command]

    def host_key(self, name: str) -> str:
        """A machine's ed25519 ssh host key as known_hosts writes it, without a host name."""
        text = (self._folder(self.machine(name).name) / "root/etc/ssh/ssh_host_ed25519_key.pub").read_text()
        return " ".join(text.split()[:2])

    def netns(self, place: str) -> Path:
        """The network namespace of a place, as a path that can be opened. A machine gets a new one each time it starts."""
        if place in {"switch", *plan.PLACES}:
            return network.namespace(self.name, place)
        return Path(f"/proc/{self._leader(place)}/ns/net")

    def put(self, place: str, source: Path | bytes, target: str, *, mode: int = 0o644) -> None:
        """Copy a file, a folder (its owners and modes are kept) or bytes to the path `target` on a running machine."""
        receive = f'mkdir -p "$1" && cat > "$2.putting" && chmod {mode:o} "$2.putting" && mv -T "$2.putting" "$2"'
        command = ["sh", "-c", receive, "put", str(Path(target).parent), target]
        if isinstance(source, bytes):
            self.exec(place, command, input=source.decode("utf-8", "surrogateescape"))
        elif source.is_dir():
            unpack = ["sh", "-c", 'mkdir -p "$1" && tar -C "$1" -xf -', "put", target]
            pipe(["tar", "-C", source, "-cf", "-", "."], self._entering(place, unpack), lab=self.name)
        else:
            pipe(["cat", source], self._entering(place, command), lab=self.name)

    def copy_from(self, place: str, source: str, target: Path) -> None:
        """Copy a file or folder from a running machine into the existing folder `target`."""
        path = Path(source)
        pipe(
            self._entering(place, ["tar", "-C", str(path.parent), "-cf", "-", path.name]),
            ["tar", "-C", target, "--no-same-owner", "-xf", "-"],
            lab=self.name,
        )

    def attach(self, folder: Path, *, writable: bool = False) -> str:
        """Plug a folder into the running bastion, read-only unless `writable`; gives where it appears. A restart pulls it out again."""
        taken = self.exec("bastion", ["findmnt", "--noheadings", "--list", "--output", "TARGET"]).stdout.split()
        point = next(p for p in (f"/media/usb{number}" for number in range(100)) if p not in taken)
        words = [self._leader("bastion"), folder.resolve(strict=True), point, "writable" if writable else "read-only"]
        program = [sys.executable, "-m", "tests.lab.machines.media", *map(str, words)]
        run(program, lab=self.name, cwd=Path(__file__).parents[3], env={"PYTHONDONTWRITEBYTECODE": "1"})
        return point

    def detach(self, point: str) -> None:
        """Pull out what `attach` plugged in."""
        self.exec("bastion", ["umount", point])

    def assert_sealed(self) -> sealed.Report:
        """Prove that no place of the lab reaches this machine or its uplink; the report is also in the log folder. Raises LabError."""
        return sealed.check(self).require()

    def console(self, name: str) -> Path:
        """The log of a machine's console, over all its starts."""
        return self.log / f"{name}.console"

    # -- inside -------------------------------------------------------------------------------------------------------------------

    def _folder(self, name: str) -> Path:
        return self.state / "machines" / name

    def _chosen(self, names: Sequence[str]) -> tuple[Machine, ...]:
        return tuple(self.machine(name) for name in names) or self.machines

    def _leader(self, name: str) -> int:
        pid = self.leader(name)
        if pid is None:
            raise LabError(f"{name} is off", hint=f"python -m tests.lab power-on {name} --name {self.name}")
        return pid

    def _entering(self, place: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> list[str]:
        if place in plan.PLACES:
            return [
                "nsenter",
                f"--net={network.namespace(self.name, place)}",
                "env",
                *(f"{k}={v}" for k, v in (env or {}).items()),
                *command,
            ]
        words = [f"{key}={value}" for key, value in {**ENVIRONMENT, **(env or {})}.items()]
        return ["nsenter", f"--target={self._leader(place)}", "--all", "--wdns=/root", "env", "-i", *words, *command]


def _require_root() -> None:
    if os.geteuid():
        raise LabError("the lab makes namespaces and mounts and must run as root", hint="run it with sudo")


def _lock(state: Path) -> Path:
    """Beside the state folder, so that it can be held while the folder goes."""
    return state.with_name(f".{state.name}.lock")


def _load(state: Path) -> Lab | None:
    try:
        document = json.loads((state / "lab.json").read_text())
    except FileNotFoundError:
        return None
    return Lab(
        name=document["name"],
        state=Path(document["state"]),
        log=Path(document["log"]),
        machines=tuple(Machine(**entry) for entry in document["machines"]),
        media=tuple(Path(entry) for entry in document["media"]),
    )


def _merged(name: str, state: Path, wanted: tuple[Machine, ...], media: tuple[Path, ...], log: Path | None) -> Lab:
    """The lab that results when what is asked for is added to what is there."""
    state.mkdir(parents=True, mode=0o700, exist_ok=True)
    known = _load(state)
    if known is None:
        if log is not None:
            log.mkdir(parents=True, exist_ok=True)
        return Lab(name=name, state=state, log=(log or places.new_log(name)).resolve(), machines=wanted, media=media)
    have = {m.name: m for m in known.machines}
    for machine in wanted:
        if have.get(machine.name, machine) != machine:
            raise LabError(f"{machine.name} is there with another disk size", hint=f"python -m tests.lab down --name {name}")
    added = tuple(m for m in wanted if m.name not in have)
    if media and media != known.media and launcher.running(name, "bastion"):
        raise LabError("the bastion runs with other media", hint="attach them while it runs: python -m tests.lab attach DIR")
    return replace(known, machines=known.machines + added, media=media or known.media)


def _end_processes(name: str) -> None:
    """Kill all that belongs to the lab, twice: a process may be on its way from a fork to its mark."""
    for _ in range(2):
        end(lambda: cgroups.members(name) | marked(name), what=f"lab {name}")
