# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What goes to other machines in one piece: programs and Debian packages of a release, as plain tar archives.

A machine then needs one transfer and one pass over it instead of one for each file, and unpacks nothing compressed.

* `programs-<set>.tar`, unpacked in /usr/local: `lib/appliance/NAME-VERSION/PROGRAM`, links in `bin`, and as its last member the mark
  `lib/appliance/<set>.complete`, so a machine that has the mark has all of it. `<set>` are digits of the digests it was made of.
* `packages-<set>.tar`, unpacked in /var/cache: `appliance/packages` with the repository, folders for apt, and a `sources.list`.

An archive is written under another name and renamed when it is whole. It is not flushed to disk, which would take longer than making
it: a power cut leaves a shorter file at worst, and one that does not end with its last member is made again.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from appliance.errors import FormatError, HostError

_PLACE = "lib/appliance"
_CACHE = "appliance/packages"
_SOURCES = f"deb [trusted=yes] file:/var/cache/{_CACHE} ./\n"
"""`trusted`: every package is compared on the machine with a digest the publication signed, which is stronger than an index's signature."""
_SET_DIGITS = 16
_TAIL_BYTES = 32 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How an upstream packs a program: `folder` of the archive and the `members` taken from it (all of it when empty)."""

    folder: str = ""
    members: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One file of the release: its blob in the store, version and SHA-256 (64 hexadecimal digits)."""

    name: str
    version: str
    path: Path
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """A finished archive and the set of digests it was made of."""

    path: Path
    digits: str


ARCHIVES: Mapping[str, Layout] = {
    "containerd": Layout(folder="bin", members=("containerd", "containerd-shim-runc-v2", "ctr")),
    "cni-plugins": Layout(members=("bandwidth", "bridge", "firewall", "host-local", "loopback", "portmap", "tuning")),
    "crictl": Layout(members=("crictl",)),
    "registry": Layout(members=("registry",)),
    "helm": Layout(folder="linux-amd64", members=("helm",)),
}
"""Upstreams that publish a compressed tar; any other name is a program as it is."""

NODE_PROGRAMS = ("containerd", "cni-plugins", "crictl", "kubeadm", "kubelet", "kubectl")
NODE_LINKS = {"kubeadm": "kubeadm", "kubelet": "kubelet", "kubectl": "kubectl", "crictl": "crictl", "ctr": "containerd"}
DEPOT_PROGRAMS = ("registry", "helm", "kubectl")
DEPOT_LINKS = {"kubectl": "kubectl", "helm": "helm"}
"""What people call by name, and whose program it is."""


def archive_variables(variables: Mapping[str, object], folder: Path) -> dict[str, object]:
    """Make the archives of a release below `folder`; return the variables the playbooks know them by.

    `variables` are those of `appliance.install.inventory`: `appliance_files`, `appliance_packages`, `appliance_packages_repo`.

    Raises:
        HostError: the disk is full, or a blob cannot be read.
        FormatError: a file of the release is not packed as its upstream packs it, or is missing.
    """
    files = variables["appliance_files"]
    packages = variables["appliance_packages"]
    if not isinstance(files, Mapping) or not isinstance(packages, list):
        raise FormatError("appliance_files and appliance_packages are not what the inventory makes", hint="carry the bundle again")
    programs = {name: Program(name=name, version=f["version"], path=Path(f["path"]), sha256=f["sha256"]) for name, f in files.items()}
    node = pack_programs([_named(programs, name) for name in NODE_PROGRAMS], NODE_LINKS, folder)
    depot = pack_programs([_named(programs, name) for name in DEPOT_PROGRAMS], DEPOT_LINKS, folder)
    repository = Path(str(variables["appliance_packages_repo"]))
    debs = pack_packages(repository, {package["path"]: package["sha256"] for package in packages}, folder)
    return {
        "appliance_node_programs": {"path": str(node.path), "set": node.digits},
        "appliance_depot_programs": {"path": str(depot.path), "set": depot.digits},
        "appliance_packages_archive": str(debs.path),
    }


def _named(programs: Mapping[str, Program], name: str) -> Program:
    if name not in programs:
        raise FormatError(f"the release has no file {name!r}", hint="add it to the profile and carry a new bundle")
    return programs[name]


def pack_programs(programs: Sequence[Program], links: Mapping[str, str], folder: Path) -> Archive:
    """Return the archive of `programs` with `links` (name to the program's file name) in `bin`, made if it is not there.

    Raises:
        HostError: it cannot be written, or a blob cannot be read.
        FormatError: a file is not packed as its upstream packs it.
    """
    lines = [f"{program.name}-{program.version} {program.sha256}" for program in programs] + [f"{a} {b}" for a, b in links.items()]
    digits = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:_SET_DIGITS]

    def fill(tar: tarfile.TarFile) -> None:
        _add_folders(tar, [_PLACE, *(f"{_PLACE}/{program.name}-{program.version}" for program in programs)])
        for program in programs:
            _add_program(tar, program)
        by_name = {program.name: program for program in programs}
        for link, owner in links.items():
            target = f"../{_PLACE}/{owner}-{by_name[owner].version}/{link}"
            tar.addfile(_entry(f"bin/{link}", kind=tarfile.SYMTYPE, target=target))
        mark = "".join(f"{line}\n" for line in lines).encode()
        tar.addfile(_entry(f"{_PLACE}/{digits}.complete", size=len(mark), mode=0o644), io.BytesIO(mark))

    return Archive(path=_ensure(folder / f"programs-{digits}.tar", fill, last=f"{digits}.complete"), digits=digits)


def pack_packages(repository: Path, packages: Mapping[str, str], folder: Path) -> Archive:
    """Return the archive of the flat `repository` with the package files `packages` (path to SHA-256), made if it is not there.

    Raises:
        HostError: it cannot be written, or the repository cannot be read.
    """
    lines = [f"{sha256}  {path}" for path, sha256 in sorted(packages.items())]
    digits = hashlib.sha256("\n".join([_SOURCES, *lines]).encode()).hexdigest()[:_SET_DIGITS]

    def fill(tar: tarfile.TarFile) -> None:
        parents = {f"{_CACHE}/{PurePosixPath(path).parent}" for path in packages} - {f"{_CACHE}/."}
        _add_folders(tar, [_CACHE, *sorted(parents), f"{_CACHE}/lists/partial", f"{_CACHE}/archives/partial"])
        for path in ("Packages", *sorted(packages)):
            _add_file(tar, repository / path, f"{_CACHE}/{path}", mode=0o644)
        sources = _SOURCES.encode()
        tar.addfile(_entry(f"{_CACHE}/sources.list", size=len(sources), mode=0o644), io.BytesIO(sources))

    return Archive(path=_ensure(folder / f"packages-{digits}.tar", fill, last="sources.list"), digits=digits)


def _ensure(target: Path, fill: Callable[[tarfile.TarFile], None], *, last: str) -> Path:
    pending = target.with_suffix(".part")
    try:
        if _is_whole(target, last):
            return target
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with pending.open("wb") as stream, tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 20) as tar:
            fill(tar)
        pending.replace(target)
    except OSError as error:
        pending.unlink(missing_ok=True)
        reason = error.strerror or str(error)
        raise HostError(f"{error.filename or target}: {reason}", hint="make room or run store verify, then run it again") from error
    return target


def _is_whole(target: Path, last: str) -> bool:
    if not target.is_file():
        return False
    with target.open("rb") as stream:
        stream.seek(max(0, target.stat().st_size - _TAIL_BYTES))
        return last.encode() in stream.read()


def _add_folders(tar: tarfile.TarFile, folders: Iterable[str]) -> None:
    wanted = {str(parent) for folder in folders for parent in (PurePosixPath(folder), *PurePosixPath(folder).parents)} - {".", "lib"}
    for folder in sorted(wanted):
        tar.addfile(_entry(folder, kind=tarfile.DIRTYPE))


def _add_program(tar: tarfile.TarFile, program: Program) -> None:
    place = f"{_PLACE}/{program.name}-{program.version}"
    layout = ARCHIVES.get(program.name)
    if layout is None:
        _add_file(tar, program.path, f"{place}/{program.name}", mode=0o755)
        return
    taken = set()
    try:
        with tarfile.open(program.path, "r|gz") as packed:
            for member in packed:
                path = PurePosixPath(member.name)
                if (
                    not member.isfile()
                    or str(path.parent) != (layout.folder or ".")
                    or (layout.members and path.name not in layout.members)
                ):
                    continue
                taken.add(path.name)
                tar.addfile(_entry(f"{place}/{path.name}", size=member.size), packed.extractfile(member))
    except (tarfile.TarError, EOFError) as error:
        raise FormatError(
            f"{program.name} {program.version}: not a compressed tar: {error}", hint="carry a bundle with upstream's file"
        ) from error
    if not taken or set(layout.members) - taken:
        missing = ", ".join(sorted(set(layout.members) - taken)) or "no file"
        raise FormatError(
            f"{program.name} {program.version} is not packed as expected: {missing}", hint="carry a bundle with upstream's file"
        )


def _add_file(tar: tarfile.TarFile, source: Path, name: str, *, mode: int) -> None:
    with source.open("rb") as stream:
        tar.addfile(_entry(name, size=os.fstat(stream.fileno()).st_size, mode=mode), stream)


def _entry(name: str, *, kind: bytes = tarfile.REGTYPE, size: int = 0, mode: int = 0o755, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode, info.linkname = kind, size, (0o777 if target else mode), target
    return info
