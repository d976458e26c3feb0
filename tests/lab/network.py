# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The lab's network: four namespaces, no device of the host in any of them.

::

    outside 203.0.113.1 ---- router ---- lan0 (switch 10.77.0.0/24): bastion, cp1, gpu1 ...
                               `-------- users0 (switch 10.78.0.0/24): client 10.78.0.50

The machines' default route ends at the router, which does forward to `outside`: nothing but the product's own guard stops them.
"""

from __future__ import annotations

import ctypes
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from tests.lab.machines import plan
from tests.lab.machines.errors import LabError
from tests.lab.machines.processes import run

T = TypeVar("T")
BRIDGE = "lan0"
FOLDER = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)


def namespace(lab: str, place: str) -> Path:
    """Path of a namespace: `switch` (only bridges, no address), `router`, `outside` or `client`."""
    return FOLDER / f"lab-{lab}-{place}"


def namespaces(lab: str) -> tuple[Path, ...]:
    return tuple(namespace(lab, place) for place in ("switch", *plan.PLACES))


def exists(lab: str) -> bool:
    """Whether the network is there whole: its last piece is the client's default route."""
    mounted = {line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()}
    if not all(str(path) in mounted for path in namespaces(lab)):
        return False
    return "default via" in run(["ip", "-n", namespace(lab, "client").name, "route"], lab=lab).stdout


def create(lab: str) -> None:
    """Make the network anew. Whatever an unfinished attempt has left is removed first."""
    destroy(lab)
    names = {place: namespace(lab, place).name for place in ("switch", *plan.PLACES)}
    for name in names.values():
        run(["ip", "netns", "add", name], lab=lab)
        _set(name, lab, {"net/ipv4/ip_forward": 0, "net/ipv6/conf/all/forwarding": 0, "net/ipv6/conf/all/accept_ra": 0})
    # The switch is a switch: it must not have an address of its own on either network.
    _set(names["switch"], lab, {"net/ipv6/conf/all/disable_ipv6": 1, "net/ipv6/conf/default/disable_ipv6": 1})
    _batch(
        names["switch"],
        lab,
        f"""
        link add {BRIDGE} type bridge
        link add users0 type bridge
        link add lan-router type veth peer name lan0 netns {names["router"]}
        link add users-router type veth peer name users0 netns {names["router"]}
        link add users-client type veth peer name eth0 netns {names["client"]}
        link set lan-router master {BRIDGE} up
        link set users-router master users0 up
        link set users-client master users0 up
        link set {BRIDGE} up
        link set users0 up
        """,
    )
    _batch(names["outside"], lab, f"link add eth0 type veth peer name outside0 netns {names['router']}\nlink set lo up\nlink set eth0 up")
    _batch(
        names["router"],
        lab,
        f"""
        link set lo up
        address add {plan.ROUTER}/24 dev lan0
        address add {plan.ROUTER6}/64 dev lan0 nodad
        address add {plan.USERS_ROUTER}/24 dev users0
        address add {plan.USERS_ROUTER6}/64 dev users0 nodad
        address add {plan.OUTSIDE_ROUTER}/24 dev outside0
        address add {plan.OUTSIDE_ROUTER6}/64 dev outside0 nodad
        link set lan0 up
        link set users0 up
        link set outside0 up
        """,
    )
    _set(names["router"], lab, {"net/ipv4/ip_forward": 1, "net/ipv6/conf/all/forwarding": 1})
    _leaf(names["outside"], lab, (plan.OUTSIDE, plan.OUTSIDE6), (plan.OUTSIDE_ROUTER, plan.OUTSIDE_ROUTER6))
    _leaf(names["client"], lab, (plan.CLIENT, plan.CLIENT6), (plan.USERS_ROUTER, plan.USERS_ROUTER6))


def destroy(lab: str) -> None:
    """Remove the namespaces and with them all their devices."""
    for path in namespaces(lab):
        if path.exists():
            run(["ip", "netns", "delete", path.name], lab=lab)


def _batch(name: str, lab: str, commands: str) -> None:
    run(["ip", "-n", name, "-batch", "-"], lab=lab, data="\n".join(line.strip() for line in commands.splitlines() if line.strip()) + "\n")


def _leaf(name: str, lab: str, addresses: tuple[str, str], gateways: tuple[str, str]) -> None:
    _batch(
        name,
        lab,
        f"""
        link set lo up
        link set eth0 up
        address add {addresses[0]}/24 dev eth0
        address add {addresses[1]}/64 dev eth0 nodad
        route add ::/0 via {gateways[1]}
        route add default via {gateways[0]}
        """,
    )


def _set(name: str, lab: str, values: dict[str, int]) -> None:
    script = "".join(f"echo {value} > /proc/sys/{key}\n" for key, value in values.items())
    run(["nsenter", f"--net={FOLDER / name}", "sh", "-eu"], lab=lab, data=script)


def _enter(path: Path) -> None:
    """Move the calling thread, and no other, into a network namespace."""
    with path.open() as handle:
        if _LIBC.setns(handle.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))


def inside(namespace_path: Path, work: Callable[[], T]) -> T:
    """Call `work` in a thread that has entered the network namespace; sockets it makes stay in that namespace.

    Only the thread enters it, so nothing has to be undone and no process is left behind.
    """
    results: list[T] = []
    failures: list[BaseException] = []

    def body() -> None:
        try:
            _enter(namespace_path)
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread below
            failures.append(error)

    thread = threading.Thread(target=body, name=f"in {namespace_path.name}")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def connect(namespace_path: Path, address: str, port: int, *, seconds: float = 5) -> socket.socket:
    """A TCP connection made from inside a namespace; raises OSError as the kernel gives it."""
    return inside(namespace_path, lambda: socket.create_connection((address, port), timeout=seconds))


@contextmanager
def listener(namespace_path: Path, address: str, port: int = 0) -> Iterator[socket.socket]:
    """A listening TCP socket inside a namespace, owned by this process."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with inside(namespace_path, lambda: socket.create_server((address, port), family=family)) as server:
        yield server


def host_namespace() -> Path:
    return Path("/proc/self/ns/net")


def require_tools() -> None:
    missing = [
        tool for tool in ("ip", "nsenter", "systemd-nspawn", "debootstrap", "setpriv", "ssh-keygen", "mkfs.ext4") if not _on_path(tool)
    ]
    if missing:
        raise LabError(f"not on this machine: {', '.join(missing)}", hint="install the packages that tests/lab/packages.txt names")


def _on_path(tool: str) -> bool:
    return any((Path(folder) / tool).exists() for folder in ("/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/bin"))
