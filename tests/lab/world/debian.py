# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The layer of Debian tools that kube-proxy and flannel stand on: nft, iptables, conntrack, kmod, a shell.

Upstream's own base for kube-proxy is made the same way: chosen packages laid out as files, no package manager run, no
maintainer script. What those scripts would have done and a container needs (merged /usr, alternatives, accounts) is
written out below. apt of this machine, with this machine's sources, chooses and checks the packages; the same package
index gives the same bytes.
"""

from __future__ import annotations

import json
import subprocess
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from appliance.errors import ToolError
from tests.lab.world import cache
from tests.lab.world.archive import Item
from tests.lab.world.image import Layer, ReadyLayer, write_layer

PACKAGES = ("base-files", "netbase", "dash", "coreutils", "sed", "nftables", "iptables", "conntrack", "kmod")

PASSWD = b"root:x:0:0:root:/root:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
GROUP = b"root:x:0:\nnogroup:x:65534:\n"
NSSWITCH = b"hosts: files dns\n"

_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_ALTERNATIVES = tuple(
    (f"usr/sbin/{family}{verb}", f"{family}-nft{verb}") for family in ("iptables", "ip6tables") for verb in ("", "-save", "-restore")
)
_LEFT_OUT = ("usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian", "usr/share/bash-completion")

ACCOUNTS = (
    Item(path="etc/passwd", mode=0o644, content=PASSWD),
    Item(path="etc/group", mode=0o644, content=GROUP),
    Item(path="etc/nsswitch.conf", mode=0o644, content=NSSWITCH),
    Item(path="tmp", mode=0o1777),
)


def debian_layer() -> ReadyLayer:
    """The layer, from the cache or made now.

    Raises:
        ToolError: apt could not fetch the packages.
    """
    recipe = json.dumps([PACKAGES, _MERGED, _ALTERNATIVES, _LEFT_OUT])
    entry = cache.obtain("debian-layer", cache.key("debian/2", recipe, PASSWD, GROUP, NSSWITCH), _make)
    made = json.loads((entry / "layer.json").read_bytes())
    return ReadyLayer(path=entry / "blobs" / made["digest"].removeprefix("sha256:"), **made)


def _make(folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="apt-", dir=folder) as scratch:
        debs = _fetch(Path(scratch))
        items = _lay_out(debs, Path(scratch) / "files")
        layer = write_layer(Layer(items=items, made_by=f"debian packages: {' '.join(PACKAGES)}"), folder / "blobs")
        (folder / "packages.txt").write_text("".join(f"{cache.sha256(deb)}  {deb.name}\n" for deb in debs))
    names = ("digest", "diff_id", "size", "made_by", "compression")
    (folder / "layer.json").write_text(json.dumps({name: getattr(layer, name) for name in names}) + "\n")


def _fetch(scratch: Path) -> list[Path]:
    """Let apt fetch the packages' closure against an empty system; apt checks signatures and hashes."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (scratch / name).mkdir(parents=True)
    (scratch / "state" / "status").touch()
    settings = {
        "APT::Architecture": "amd64",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "",
        "Debug::NoLocking": "true",
        "Dir::Cache": str(scratch / "cache"),
        "Dir::State": str(scratch / "state"),
        "Dir::State::status": str(scratch / "state" / "status"),
    }
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in settings.items())]
    for step in (["update"], ["--yes", "--download-only", "install", *PACKAGES]):
        done = subprocess.run([*apt, *step], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise ToolError(
                f"apt-get {step[0]} gave {done.returncode}: {(done.stderr or done.stdout).strip()[-2000:]}",
                step="fetch Debian packages",
                hint="Check that this machine's apt can update and install, then run again.",
            )
    return sorted((scratch / "cache" / "archives").glob("*.deb"))


def _lay_out(debs: list[Path], scratch: Path) -> tuple[Item, ...]:
    """The files of all packages under merged /usr, plus what maintainer scripts would have written."""
    items: dict[str, Item] = {name: Item(path=name, target=f"usr/{name}") for name in _MERGED[:3]}
    items["lib64"] = Item(path="lib64", target="usr/lib64")
    for number, deb in enumerate(debs):
        place = scratch / str(number)
        place.mkdir(parents=True)
        with (place / "tar").open("wb") as tar:
            subprocess.run(["dpkg-deb", "--fsys-tarfile", str(deb)], check=True, stdout=tar)
        for item in _read(place):
            items[item.path] = item
        control = subprocess.run(["dpkg-deb", "--field", str(deb)], check=True, capture_output=True).stdout
        name = deb.name.partition("_")[0]
        items[f"var/lib/dpkg/status.d/{name}"] = Item(path=f"var/lib/dpkg/status.d/{name}", mode=0o644, content=control)
    for item in (Item(path="usr/bin/sh", target="dash"), *(Item(path=path, target=to) for path, to in _ALTERNATIVES), *ACCOUNTS):
        items[item.path] = item
    return tuple(items.values())


def _read(place: Path) -> list[Item]:
    """The members of one package worth keeping, their contents unpacked below `place`."""
    found = []
    with tarfile.open(place / "tar") as tar:
        for number, member in enumerate(tar):
            path = _merged(member.name)
            if not path or not _is_kept(path):
                continue
            if member.isdir():
                found.append(Item(path=path, mode=member.mode))
            elif member.issym():
                found.append(Item(path=path, target=member.linkname))
            else:
                stream = tar.extractfile(member)
                if stream is None:
                    continue
                content = place / str(number)
                content.write_bytes(stream.read())
                found.append(Item(path=path, mode=member.mode, content=content))
    return found


def _merged(name: str) -> str:
    path = PurePosixPath(name)
    if path.parts and path.parts[0] in _MERGED:
        path = "usr" / path
    return "" if str(path) == "." else str(path)


def _is_kept(path: str) -> bool:
    """Documentation stays out, licences stay in."""
    return path.endswith("/copyright") or not any(path == left or path.startswith(f"{left}/") for left in _LEFT_OUT)
