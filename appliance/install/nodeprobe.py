# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What preflight sends to every machine and runs there from a pipe: it reads, listens and connects, and writes nothing.

Standard library only, nothing of the package: on the machine there is only Debian's python3. A line of JSON comes in,
a line of JSON goes out; the end of the input ends it and with it every listener. Records: `appliance.install.facts`.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

LEFTOVERS = (
    "/etc/kubernetes",
    "/var/lib/etcd",
    "/var/lib/kubelet",
    "/var/lib/containerd",
    "/etc/containerd/config.toml",
    "/etc/cni/net.d",
    "/var/lib/cni",
    "/var/lib/docker",
    "/var/lib/rancher",
    "/etc/rancher",
    "/var/lib/k0s",
    "/var/lib/microk8s",
)
MODULES = {
    "overlay": ("ovl_fill_super",),
    "br_netfilter": ("br_nf_pre_routing",),
    "nf_tables": ("nft_do_chain",),
    "nf_conntrack": ("nf_conntrack_in",),
    "vxlan": ("vxlan_xmit", "vxlan_rcv"),
    "bridge": ("br_handle_frame",),
    "veth": ("veth_xmit",),
}
TRIES = 3
SIOCGIFADDR = 0x8915  # linux/sockios.h


def text_of(path: str, default: str = "") -> str:
    """Return the file's text, or `default` when it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return default


def os_release() -> dict[str, str]:
    """Return the fields of os-release."""
    pairs = (line.partition("=") for line in text_of("/etc/os-release").splitlines() if "=" in line)
    return {key: value.strip("\"'") for key, _, value in pairs}


def memory() -> dict[str, int]:
    """Return total memory and swap in bytes."""
    found = dict(re.findall(r"^(\w+):\s+(\d+) kB$", text_of("/proc/meminfo"), re.MULTILINE))
    return {"memory": int(found.get("MemTotal", 0)) * 1024, "swap": int(found.get("SwapTotal", 0)) * 1024}


def modules() -> dict[str, bool]:
    """Return for each kernel feature whether it is loaded, built in or loadable."""
    release = os.uname().release
    lists = text_of(f"/lib/modules/{release}/modules.builtin") + text_of(f"/lib/modules/{release}/modules.dep")
    named = set(re.findall(r"([^/\s:]+)\.ko", lists))
    loaded = {line.split()[0] for line in text_of("/proc/modules").splitlines()}
    found = {name: name in loaded or name in named or Path("/sys/module", name).is_dir() for name in MODULES}
    if not all(found.values()):
        symbols = set(re.findall(r" [tTwW] (\w+)", text_of("/proc/kallsyms")))
        found = {name: found[name] or any(symbol in symbols for symbol in MODULES[name]) for name in MODULES}
    return found


def cgroup_controllers() -> dict[str, object]:
    """Return the cgroup version and the controllers that are on."""
    unified = text_of("/sys/fs/cgroup/cgroup.controllers")
    if unified:
        return {"cgroup": 2, "controllers": unified.split()}
    rows = [line.split() for line in text_of("/proc/cgroups").splitlines() if not line.startswith("#")]
    return {"cgroup": 1, "controllers": [row[0] for row in rows if len(row) == 4 and row[3] == "1"]}  # noqa: PLR2004 - its four columns


def filesystem(path: str) -> dict[str, object]:
    """Return size, free space and mount options of the file system that holds `path` or its nearest parent."""
    place = Path(path)
    while not place.exists():
        place = place.parent
    found = os.statvfs(place)
    flags = {"noexec": os.ST_NOEXEC, "read-only": os.ST_RDONLY}
    return {
        "path": path,
        "size": found.f_frsize * found.f_blocks,
        "free": found.f_frsize * found.f_bavail,
        "inodes": found.f_favail,
        "options": [name for name, flag in flags.items() if found.f_flag & flag],
    }


def sockets() -> dict[tuple[str, int], set[str]]:
    """Return (protocol, port) of everything that listens, with the inodes of the sockets."""
    found: dict[tuple[str, int], set[str]] = {}
    for table, protocol, state in (("tcp", "tcp", "0A"), ("tcp6", "tcp", "0A"), ("udp", "udp", "07"), ("udp6", "udp", "07")):
        for line in text_of(f"/proc/net/{table}").splitlines()[1:]:
            words = line.split()
            if words[3] == state:
                found.setdefault((protocol, int(words[1].rpartition(":")[2], 16)), set()).add(words[9])
    return found


def owners(inodes: set[str]) -> dict[str, str]:
    """Return the name of the process that holds each socket inode; needs root to see those of others."""
    found = {}
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = str(link.readlink())
        except OSError:
            continue
        if target.startswith("socket:[") and target[8:-1] in inodes:
            found[target[8:-1]] = text_of(str(link.parents[1] / "comm")).strip()
    return found


def listening() -> list[dict[str, object]]:
    """Return what listens: protocol, port and process name."""
    found = sockets()
    names = owners({inode for inodes in found.values() for inode in inodes})
    return [
        {"protocol": protocol, "port": port, "process": next((names[i] for i in sorted(inodes) if i in names), "")}
        for (protocol, port), inodes in sorted(found.items())
    ]


def routes() -> list[dict[str, str]]:
    """Return the IPv4 routes: destination as CIDR and interface."""
    found = []
    for line in text_of("/proc/net/route").splitlines()[1:]:
        words = line.split()
        bits = bin(int(words[7], 16)).count("1")  # noqa: FURB161 - the way that old Pythons know
        address = socket.inet_ntoa(bytes.fromhex(words[1])[::-1])
        found.append({"destination": f"{address}/{bits}", "interface": words[0]})
    return found


def own_address(address: str) -> dict[str, object]:
    """Return whether this machine has `address`, and the MTU of the interface that has it (0 when not seen)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        mtu = 0
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                found = socket.inet_ntoa(fcntl.ioctl(any_socket.fileno(), SIOCGIFADDR, request)[20:24])
            except OSError:
                continue
            if found == address:
                mtu = int(text_of(f"/sys/class/net/{name}/mtu", "0"))
        try:
            any_socket.bind((address, 0))
        except OSError:
            return {"has_address": False, "mtu": mtu}
    return {"has_address": True, "mtu": mtu}


def leftovers() -> list[str]:
    """Return which places of a cluster exist here and are not empty."""
    found = []
    for name in LEFTOVERS:
        path = Path(name)
        try:
            if path.is_file() or (path.is_dir() and any(each.name != "lost+found" for each in path.iterdir())):
                found.append(name)
        except OSError:
            found.append(name)
    return found


def packages() -> list[str]:
    """Return packages that are half installed, from dpkg's own list; those that this site was installing are finished by it."""
    settled = (" installed", " config-files", " not-installed", " triggers-pending", " triggers-awaited")
    own = text_of("/etc/appliance/packages-added").split()
    found = []
    for entry in text_of("/var/lib/dpkg/status").split("\n\n"):
        fields = dict(re.findall(r"^(Package|Status): (.*)$", entry, re.MULTILINE))
        name, status = fields.get("Package", ""), fields.get("Status", "")
        if status and not status.endswith(settled) and name not in own:
            found.append(f"{name}: {status.split()[-1]}")
    return found


def facts(request: dict[str, object]) -> dict[str, object]:
    """Return everything preflight wants to know of this machine."""
    release = os_release()
    return {
        "os_id": release.get("ID", ""),
        "os_version": release.get("VERSION_ID", ""),
        "os_name": release.get("PRETTY_NAME", ""),
        "architecture": os.uname().machine,
        "kernel": os.uname().release,
        "hostname": socket.gethostname(),
        "python": ".".join(map(str, sys.version_info[:3])),
        "root": os.geteuid() == 0,
        "systemd": Path("/run/systemd/system").is_dir(),
        "cpus": len(os.sched_getaffinity(0)),
        **memory(),
        **cgroup_controllers(),
        "modules": modules(),
        "filesystems": [filesystem(str(path)) for path in list_of(request, "paths")],
        "machine_id": text_of("/etc/machine-id").strip(),
        "product_uuid": text_of("/sys/class/dmi/id/product_uuid").strip(),
        "listening": listening(),
        "routes": routes(),
        **own_address(str(request["address"])),
        "leftovers": leftovers(),
        "site_id": text_of("/etc/appliance/site-id").strip(),
        "packages": packages(),
        "hosts": [line.split() for line in text_of("/etc/hosts").splitlines() if line.split() and not line.startswith("#")],
        "inotify_instances": int(text_of("/proc/sys/fs/inotify/max_user_instances", "0")),
        "open_files": open_files(),
    }


def open_files() -> int:
    """Return the hard limit of open files that services get here."""
    found = re.search(r"Max open files\s+\S+\s+(\d+)", text_of("/proc/1/limits"))
    return int(found[1]) if found else 0


def list_of(request: dict[str, object], name: str) -> list[object]:
    """Return a list from the request; another type is an empty one."""
    value = request.get(name)
    return value if isinstance(value, list) else []


KEEP: list[socket.socket] = []
"""Listeners live as long as this process."""


def listen(request: dict[str, object]) -> dict[str, object]:
    """Listen for a moment on ports that nobody uses; says which were busy."""
    busy = []
    for entry in list_of(request, "ports"):
        protocol, _, port = str(entry).partition("/")
        kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
        listener = socket.socket(socket.AF_INET, kind)
        try:
            if kind == socket.SOCK_STREAM:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((str(request["address"]), int(port)))
            if kind == socket.SOCK_STREAM:
                listener.listen(64)
            else:
                threading.Thread(target=echo, args=(listener,), daemon=True).start()
            KEEP.append(listener)
        except OSError:
            busy.append(str(entry))
            listener.close()
    return {"busy": busy}


def echo(listener: socket.socket) -> None:
    """Answer every datagram with itself."""
    while True:
        try:
            data, sender = listener.recvfrom(64)
            listener.sendto(data, sender)
        except OSError:
            return


def reaches(target: str, seconds: float) -> str:
    """Return empty when `tcp/ADDRESS:PORT` or `udp/ADDRESS:PORT` answers, else why not."""
    protocol, _, place = target.partition("/")
    address, _, port = place.rpartition(":")
    try:
        if protocol == "tcp":
            socket.create_connection((address, int(port)), timeout=seconds).close()
            return ""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(seconds / TRIES)
            for attempt in range(TRIES):
                client.sendto(b"appliance preflight", (address, int(port)))
                try:
                    client.recvfrom(64)
                except socket.timeout:  # noqa: UP041 - the name that old Pythons know
                    if attempt == TRIES - 1:
                        return "no answer"
                    continue
                return ""
    except OSError as error:
        return error.strerror or str(error) or "no answer"
    return "no answer"


def connect(request: dict[str, object]) -> dict[str, object]:
    """Try every target at the same time; says for each what went wrong, empty when nothing did."""
    targets = [str(target) for target in list_of(request, "targets")]
    results: dict[str, str] = {}

    def attempt(target: str) -> None:
        results[target] = reaches(target, float(str(request["seconds"])))

    workers = [threading.Thread(target=attempt, args=(target,)) for target in targets]
    run_all(workers)
    return {"results": results}


def run_all(workers: Iterable[threading.Thread]) -> None:
    """Start all and wait for all."""
    started = list(workers)
    for worker in started:
        worker.start()
    for worker in started:
        worker.join()


def clock(_request: dict[str, object]) -> float:
    """Return this machine's time in seconds since 1970."""
    return time.time()


def main() -> None:
    """Answer lines until there are no more."""
    handlers: dict[str, Callable[[dict[str, object]], object]] = {"facts": facts, "clock": clock, "listen": listen, "connect": connect}
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        sys.stdout.write(json.dumps(handlers[request["do"]](request)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
