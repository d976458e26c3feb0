# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What goes to other machines in one piece: programs and Debian packages of a release, as plain tar archives.

A machine then needs one transfer and one pass over it instead of one for each file, and unpacks nothing compressed.

* `programs-<set>.tar`, for /usr/local: `lib/appliance/NAME-VERSION-DIGITS/PROGRAM` and links in `bin`. The folder's last digits are of
  the blob's digest, so one version made twice lies in two folders. `<set>` are digits of the digests it was made of.
* `packages-<set>.tar`, unpacked in /var/cache: `appliance/packages` with the repository, folders for apt, and a `sources.list`.

Every blob is hashed while it is packed and must be what the publication signed. The archive is flushed to the disk, renamed when it is
whole, and its own SHA-256 lies beside it; one that is found there is hashed again, and made again if it is anything else. A machine
compares the programs' digest once more before it unpacks them, and the packages' own digests before apt sees them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from appliance.errors import FormatError, HostError, VerificationError

_PLACE = "lib/appliance"
_CACHE = "appliance/packages"
_SOURCES = f"deb [trusted=yes] file:/var/cache/{_CACHE} ./\n"
"""`trusted`: every package is compared on the machine with a digest the publication signed, which is stronger than an index's signature."""
_SET_DIGITS = 16
_FOLDER_DIGITS = 12
_CHUNK = 1 << 20


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

    @property
    def folder(self) -> str:
        """Where it lies below lib/appliance; the roles' defaults spell it the same way."""
        return f"{self.name}-{self.version}-{self.sha256[:_FOLDER_DIGITS]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """A finished archive, its SHA-256 (64 hexadecimal digits), and digits of the set of digests it was made of."""

    path: Path
    sha256: str
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

    Archives of other releases are removed from there: they are made of the store and can be made again.

    Raises:
        HostError: the disk is full, or a blob cannot be read.
        VerificationError: a blob is not what was signed.
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
    _remove_others(folder, kept=(node, depot, debs))
    return {
        "appliance_node_programs": {"path": str(node.path), "sha256": node.sha256, "set": node.digits},
        "appliance_depot_programs": {"path": str(depot.path), "sha256": depot.sha256, "set": depot.digits},
        "appliance_packages_archive": str(debs.path),
    }


def _named(programs: Mapping[str, Program], name: str) -> Program:
    if name not in programs:
        raise FormatError(f"the release has no file {name!r}", hint="add it to the profile and carry a new bundle")
    return programs[name]


def _remove_others(folder: Path, *, kept: Iterable[Archive]) -> None:
    names = {name for archive in kept for name in (archive.path.name, _digest_file(archive.path).name)}
    with _told(folder):
        for path in folder.iterdir():
            if path.name not in names:
                path.unlink()


def pack_programs(programs: Sequence[Program], links: Mapping[str, str], folder: Path) -> Archive:
    """Return the archive of `programs` with `links` (name to the program's file name) in `bin`, made if it is not there.

    Raises:
        HostError: it cannot be written, or a blob cannot be read.
        VerificationError: a blob is not what was signed.
        FormatError: a file is not packed as its upstream packs it.
    """
    lines = [f"{program.folder} {program.sha256}" for program in programs] + [f"{a} {b}" for a, b in links.items()]
    digits = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:_SET_DIGITS]

    def fill(tar: tarfile.TarFile) -> None:
        _add_folders(tar, [_PLACE, *(f"{_PLACE}/{program.folder}" for program in programs)])
        for program in programs:
            _add_program(tar, program)
        by_name = {program.name: program for program in programs}
        for link, owner in links.items():
            tar.addfile(_entry(f"bin/{link}", kind=tarfile.SYMTYPE, target=f"../{_PLACE}/{by_name[owner].folder}/{link}"))

    return _ensure(folder / f"programs-{digits}.tar", fill, digits=digits)


def pack_packages(repository: Path, packages: Mapping[str, str], folder: Path) -> Archive:
    """Return the archive of the flat `repository` with the package files `packages` (path to SHA-256), made if it is not there.

    Raises:
        HostError: it cannot be written, or the repository cannot be read.
        VerificationError: a package is not what was signed.
    """
    lines = [f"{sha256}  {path}" for path, sha256 in sorted(packages.items())]
    digits = hashlib.sha256("\n".join([_SOURCES, *lines]).encode()).hexdigest()[:_SET_DIGITS]

    def fill(tar: tarfile.TarFile) -> None:
        parents = {f"{_CACHE}/{PurePosixPath(path).parent}" for path in packages} - {f"{_CACHE}/."}
        _add_folders(tar, [_CACHE, *sorted(parents), f"{_CACHE}/lists/partial", f"{_CACHE}/archives/partial"])
        _add_file(tar, repository / "Packages", f"{_CACHE}/Packages", mode=0o644)
        for path, sha256 in sorted(packages.items()):
            _add_file(tar, repository / path, f"{_CACHE}/{path}", mode=0o644, sha256=sha256)
        sources = _SOURCES.encode()
        tar.addfile(_entry(f"{_CACHE}/sources.list", size=len(sources), mode=0o644), io.BytesIO(sources))

    return _ensure(folder / f"packages-{digits}.tar", fill, digits=digits)


class _Hashing(io.RawIOBase):
    """A stream that hashes what passes through it, in either direction."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream = stream
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Read and hash."""
        data = self._stream.read(size)
        self.digest.update(data)
        return data

    def write(self, data: bytes) -> int:  # type: ignore[override]
        """Hash and write."""
        self.digest.update(data)
        return self._stream.write(data)

    def check(self, path: Path, sha256: str) -> None:
        """Read what is left and compare the digest."""
        while self.read(_CHUNK):
            pass
        if self.digest.hexdigest() != sha256:
            raise VerificationError(
                f"{path}: expected sha256 {sha256}, got {self.digest.hexdigest()}", hint="read the media again: appliance media read DIR..."
            )


@contextlib.contextmanager
def _told(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise HostError(f"{error.filename or target}: {reason}", hint="make room or run store verify, then run it again") from error


def _ensure(target: Path, fill: Callable[[tarfile.TarFile], None], *, digits: str) -> Archive:
    pending = target.with_suffix(".part")
    with _told(target):
        sha256 = _found(target)
        if sha256 is None:
            target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                sha256 = _write(pending, fill)
                _digest_file(target).write_text(f"{sha256}\n", encoding="ascii")
                pending.replace(target)
            finally:
                pending.unlink(missing_ok=True)
    return Archive(path=target, sha256=sha256, digits=digits)


def _write(pending: Path, fill: Callable[[tarfile.TarFile], None]) -> str:
    with pending.open("wb") as stream:
        hashing = _Hashing(stream)
        with tarfile.open(fileobj=hashing, mode="w|", format=tarfile.PAX_FORMAT, bufsize=_CHUNK) as tar:
            fill(tar)
        stream.flush()
        os.fsync(stream.fileno())
    return hashing.digest.hexdigest()


def _digest_file(target: Path) -> Path:
    return target.with_suffix(".sha256")


def _found(target: Path) -> str | None:
    """Return the digest of the archive that is there, if it is the one that was made."""
    try:
        noted = _digest_file(target).read_text(encoding="ascii", errors="replace").strip()
        with target.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        return None
    return sha256 if sha256 == noted else None


def _add_folders(tar: tarfile.TarFile, folders: Iterable[str]) -> None:
    wanted = {str(parent) for folder in folders for parent in (PurePosixPath(folder), *PurePosixPath(folder).parents)} - {".", "lib"}
    for folder in sorted(wanted):
        tar.addfile(_entry(folder, kind=tarfile.DIRTYPE))


def _add_program(tar: tarfile.TarFile, program: Program) -> None:
    place = f"{_PLACE}/{program.folder}"
    layout = ARCHIVES.get(program.name)
    if layout is None:
        _add_file(tar, program.path, f"{place}/{program.name}", mode=0o755, sha256=program.sha256)
        return
    taken = set()
    try:
        with program.path.open("rb") as stream, tarfile.open(fileobj=(hashing := _Hashing(stream)), mode="r|gz", bufsize=_CHUNK) as packed:
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
            hashing.check(program.path, program.sha256)
    except (tarfile.TarError, EOFError) as error:
        raise FormatError(
            f"{program.name} {program.version}: not a compressed tar: {error}", hint="carry a bundle with upstream's file"
        ) from error
    if not taken or set(layout.members) - taken:
        missing = ", ".join(sorted(set(layout.members) - taken)) or "no file"
        raise FormatError(
            f"{program.name} {program.version} is not packed as expected: {missing}", hint="carry a bundle with upstream's file"
        )


def _add_file(tar: tarfile.TarFile, source: Path, name: str, *, mode: int, sha256: str | None = None) -> None:
    with source.open("rb") as stream:
        hashing = _Hashing(stream)
        tar.addfile(_entry(name, size=os.fstat(stream.fileno()).st_size, mode=mode), hashing)
        if sha256 is not None:
            hashing.check(source, sha256)


def _entry(name: str, *, kind: bytes = tarfile.REGTYPE, size: int = 0, mode: int = 0o755, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode, info.linkname = kind, size, (0o777 if target else mode), target
    return info
