# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A valid site to break: its file, its machines' facts, its host keys, its state folder with a release in the store."""

from __future__ import annotations

import base64
import hashlib
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from appliance.adapters.host import HostKey
from appliance.bundle.contents import ContentClass
from appliance.digests import Digest, hex_of
from appliance.errors import ToolError
from appliance.install.checks import MIB, Seen
from appliance.install.facts import Facts, Filesystem, Listening, Route
from appliance.install.firsttrust import OfferedRoot, read_root
from appliance.install.initialise import Initialised, accept, offer
from appliance.install.places import SitePlaces
from appliance.install.plan import FILES_NEEDED
from appliance.install.records import Installed
from appliance.install.sitefile import Machine, SiteFile, parse_site
from appliance.store import Store, StoredRelease
from tests.support.simulator import Files, Line, sample_files

GIB = 1024 * MIB
SITE = """\
format = "site/1"
name = "harbour"
line = "acme"
accelerator = "none"

[[networks]]
name = "machines"
cidr = "10.20.0.0/24"
class = "admin"

[[networks]]
name = "offices"
cidr = "10.21.0.0/24"
class = "users"

[[machines]]
name = "depot"
address = "10.20.0.10"
roles = ["depot"]

[[machines]]
name = "cp1"
address = "10.20.0.11"
roles = ["control-plane"]

[[machines]]
name = "gpu1"
address = "10.20.0.21"
roles = ["worker", "gpu"]
"""
SITE_ID = "5" * 64


def site(text: str = SITE) -> SiteFile:
    return parse_site(text.encode(), what="site.toml")


def host_key(name: str) -> HostKey:
    """A well-formed ed25519 host key that depends on `name` alone."""
    kind = b"ssh-ed25519"
    point = hashlib.sha256(name.encode()).digest()
    blob = len(kind).to_bytes(4, "big") + kind + len(point).to_bytes(4, "big") + point
    return HostKey(kind="ssh-ed25519", blob=base64.b64encode(blob).decode())


def snapshot(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Every path below `folder`: mode, time of last change in ns, digest of its bytes."""
    found = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        data = hashlib.sha256(path.read_bytes()).hexdigest() if stat.S_ISREG(about.st_mode) else ""
        found[path.relative_to(folder).as_posix()] = (about.st_mode, about.st_mtime_ns if data else 0, data)
    return found


def facts(name: str, **changes: object) -> Facts:
    """What a fit, bare Debian 12 machine says."""
    values: dict[str, Any] = {
        "os_id": "debian",
        "os_version": "12",
        "os_name": "Debian GNU/Linux 12 (bookworm)",
        "architecture": "x86_64",
        "kernel": "6.1.0-40-amd64",
        "hostname": name,
        "python": "3.11.2",
        "root": True,
        "systemd": True,
        "cpus": 8,
        "memory": 32 * GIB,
        "swap": 0,
        "cgroup": 2,
        "controllers": ("cpuset", "cpu", "io", "memory", "pids"),
        "modules": dict.fromkeys(("overlay", "br_netfilter", "nf_tables", "nf_conntrack", "vxlan", "bridge", "veth"), True),
        "filesystems": tuple(
            Filesystem(path=path, size=500 * GIB, free=400 * GIB, inodes=10_000_000, options=())
            for path in ("/", "/var", "/var/lib/appliance")
        ),
        "machine_id": hashlib.md5(name.encode(), usedforsecurity=False).hexdigest(),
        "product_uuid": "",
        "listening": (Listening(protocol="tcp", port=22, process="sshd"),),
        "routes": (Route(destination="0.0.0.0/0", interface="eth0"), Route(destination="10.20.0.0/24", interface="eth0")),
        "has_address": True,
        "mtu": 1500,
        "leftovers": (),
        "site_id": "",
        "packages": (),
        "hosts": (("127.0.0.1", "localhost"), ("127.0.1.1", name)),
        "inotify_instances": 512,
        "open_files": 524_288,
    }
    return Facts(**{**values, **changes})


def seen(machine: Machine, **changes: object) -> Seen:
    """A fit machine as preflight saw it; `changes` are of `Seen` itself or, for other names, of its facts."""
    own: dict[str, Any] = {
        name: value for name, value in changes.items() if name in {"clock_ahead", "reached", "outside", "disk_needed", "disk_grows"}
    }
    of_facts = {name: value for name, value in changes.items() if name not in own}
    base: dict[str, Any] = {"clock_ahead": 0.01, "reached": {"tcp/10.20.0.99:22": ""}, "outside": {}, "disk_needed": 10 * GIB}
    return Seen(machine=machine, facts=facts(machine.name, **of_facts), **{**base, **own})


@dataclass
class World:
    """A site on a disk: `text` is its site file; machines answer with `keys` unless they are in `silent`."""

    folder: Path
    text: str = SITE
    line: Line = field(default_factory=Line)
    keys: dict[str, HostKey] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.places = SitePlaces(state=self.folder / "state")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file = self.folder / "site.toml"
        self.write(self.text)

    def write(self, text: str) -> None:
        self.text = text
        self.file.write_text(text)

    @property
    def root(self) -> OfferedRoot:
        return read_root(self.line.pin, what="root.json")

    def scan(self, machine: Machine) -> tuple[HostKey, ...]:
        if machine.name in self.silent:
            raise ToolError(f"{machine.name}: nobody answers", step="ssh-keyscan", hint="start it")
        return (self.keys.get(machine.name, host_key(machine.name)),)

    def init(self, *, root: OfferedRoot | None = None) -> Initialised:
        """`site init`, every new key accepted."""
        found = offer(self.file, self.places, root or self.root, scan=self.scan)
        chosen = {one.machine.address: one.keys[0] for one in found.new}
        return accept(found, chosen, self.places, now=self.line.now)

    def import_release(self, *, files: Files | None = None, without: frozenset[Digest] = frozenset()) -> StoredRelease:
        """Put a release into the store, as `media read` leaves it, but for the blobs `without`."""
        contents, blobs = sample_files(dict.fromkeys(FILES_NEEDED, 2000))
        metadata = files if files is not None else self.line.publish(contents)
        bundle = self.line.verify(metadata)
        folder = self.places.state / "releases" / hex_of(bundle.digest)
        _write_all(folder / "metadata", metadata)
        store = Store(self.places.state)
        store.blobs.mkdir(parents=True, exist_ok=True)
        for digest in set(blobs) & set(bundle.blobs) - without:
            store.blob_path(digest).write_bytes(blobs[digest])
        link = folder.parent / "current"
        link.unlink(missing_ok=True)
        link.symlink_to(folder.name)
        return store.release()


def installed_of(release: Digest, *, version: str = "1", kubernetes: str = "v1", by: str = "root") -> Installed:
    """The record of an installation of `release`."""
    return Installed(
        format=Installed.FORMAT,
        site="harbour",
        release=release,
        name="tiny",
        version=version,
        kubernetes=kubernetes,
        at="2026-11-23T06:31:00Z",
        by=by,
    )


def file_blob(stored: StoredRelease, name: str) -> Digest:
    """The payload of the file `name`."""
    artifact = next(found for found in stored.bundle.contents[ContentClass.FILES].artifacts if found.name == name)
    assert artifact.payload is not None
    return artifact.payload


def _write_all(folder: Path, files: Mapping[str, bytes]) -> None:
    for path, data in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
