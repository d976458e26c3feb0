# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The installer: this appliance, everything it imports and the publication's root as one reproducible file, `install.pyz`.

It holds the wheels that `requirements/base.txt` pins by hash (fetched once by this machine's own pip into a cache,
then used without a network), this very package with its playbooks, and `appliance/data/root.json`. shiv's
bootstrap gives it the start that Debian's python3 understands; the archive is written in one fixed form (order, times,
modes), so that two builds give the same bytes.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import importlib.util
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import appliance
from appliance.adapters import disk
from appliance.adapters.copying import copy_file
from appliance.adapters.hashing import hash_file
from appliance.digests import Digest, digest_of
from appliance.errors import FormatError, HostError, ToolError

INTERPRETER = "/usr/bin/python3 -sE"
ROOT_FILE = "appliance/data/root.json"
_EPOCH = (1980, 1, 1, 0, 0, 0)
_BUILT_AT = "1980-01-01 00:00:00"
_FORM = 1
_LEVEL = 6
_REQUIREMENT = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s\\;]+)")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")
_PACKAGE = Path(appliance.__file__).resolve().parent
_KEPT_SUFFIXES = {".py", ".typed", ".json", ".toml"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Requirement:
    """One pinned distribution and the SHA-256 of every file that may be it."""

    name: str
    version: str
    hashes: frozenset[str]


def parse_requirements(text: str) -> tuple[Requirement, ...]:
    """Return what a requirements file with hashes pins.

    Raises:
        FormatError: an entry without a version or without a hash.
    """
    found = []
    for entry in re.sub(r"\\\n", " ", text).splitlines():
        line = entry.strip()
        if not line or line.startswith(("#", "-")):
            continue
        match = _REQUIREMENT.match(line)
        hashes = frozenset(_HASH.findall(line))
        if match is None or not hashes:
            raise FormatError(f"requirements: {line[:80]!r} is not pinned by version and hash", hint="lock the requirements again")
        found.append(Requirement(name=match[1], version=match[2], hashes=hashes))
    return tuple(found)


def requirements_file() -> Path:
    """Return the pinned requirements of this appliance: in the package when installed, else in its source tree.

    Raises:
        HostError: neither is there.
    """
    for path in (_PACKAGE / "data" / "requirements.txt", _PACKAGE.parent / "requirements" / "base.txt"):
        if path.is_file():
            return path
    raise HostError("this appliance has no list of its requirements", hint="run it from its installer or from its source tree")


def build_installer(root_json: bytes, *, target: Path, cache: Path) -> Digest:
    """Write `install.pyz` to `target` and return its digest; wheels and finished installers are kept in `cache`.

    Raises:
        ToolError: pip cannot fetch a wheel.
        HostError: no space, or shiv or pip is not installed.
    """
    if importlib.util.find_spec("shiv") is None:
        raise HostError("shiv is missing in this Python environment", hint="install the appliance with its pinned requirements")
    requirements = requirements_file().read_bytes()
    wheels = fetch_wheels(parse_requirements(requirements.decode()), cache / "wheels")
    own = dict(_own_files())
    own["appliance/data/requirements.txt"] = requirements
    own[ROOT_FILE] = root_json
    build_id = _build_id(wheels, own)
    finished = cache / "installers" / f"{build_id}.pyz"
    disk.make_directory(finished.parent)
    if not finished.is_file():
        fresh = finished.with_suffix(f".{os.getpid()}.new")
        _write(fresh, wheels, own, build_id)
        disk.write_atomic(finished.with_suffix(".digest"), hash_file(fresh).digest.encode("ascii"))
        with disk.at(finished):
            fresh.rename(finished)
    target.unlink(missing_ok=True)
    digest = copy_file(finished, target, mode=0o755)
    if digest.encode("ascii") != finished.with_suffix(".digest").read_bytes():
        finished.unlink()
        target.unlink()
        raise HostError(f"{finished}: changed since it was built", hint="run the same command again: it is built anew")
    return digest


def fetch_wheels(requirements: tuple[Requirement, ...], folder: Path) -> list[Path]:
    """Return a wheel for every requirement, by name, each of an allowed hash; what `folder` lacks, pip fetches.

    Raises:
        ToolError: pip fails.
    """
    disk.make_directory(folder)
    have = _by_hash(folder)
    missing = [each for each in requirements if not each.hashes & have.keys()]
    if missing:
        lines = [f"{each.name}=={each.version} " + " ".join(f"--hash=sha256:{one}" for one in sorted(each.hashes)) for each in missing]
        wanted = folder / ".wanted.txt"
        disk.write_atomic(wanted, "\n".join(lines).encode())
        _pip("download", "--quiet", "--require-hashes", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), "-r", str(wanted))
        wanted.unlink()
        have = _by_hash(folder)
    wheels = []
    for each in requirements:
        found = sorted(each.hashes & have.keys())
        if not found:
            raise ToolError(f"pip fetched no wheel for {each.name} {each.version}", step="fetch wheels", hint="run the same command again")
        wheels.append(have[found[0]])
    return sorted(wheels)


def _by_hash(folder: Path) -> Mapping[str, Path]:
    return {hash_file(path).digest.removeprefix("sha256:"): path for path in sorted(folder.glob("*.whl"))}


def _pip(*arguments: str) -> None:
    try:
        done = subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True, check=False)
    except OSError as error:
        raise HostError(f"{sys.executable}: {error.strerror}", hint="install Python 3.11 with pip") from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        hint = "check that pip can reach its index (pip config list), then run the same command again"
        raise ToolError(f"pip {arguments[0]} failed: {last}", step="fetch wheels", hint=hint)


def _members(wheel: zipfile.ZipFile) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    """Yield the importable files of one verified wheel by their place in site-packages; its programs are not needed."""
    for info in wheel.infolist():
        parts = PurePosixPath(info.filename).parts
        if info.is_dir() or not parts or ".." in parts or info.filename.startswith("/"):
            continue
        if parts[0].endswith(".data"):
            if len(parts) < 3 or parts[1] not in {"purelib", "platlib"}:  # noqa: PLR2004 - <name>.data/<kind>/<file>
                continue
            parts = parts[2:]
        yield "/".join(parts), info


def _own_files() -> Iterator[tuple[str, bytes]]:
    for path in _PACKAGE.rglob("*"):
        relative = path.relative_to(_PACKAGE)
        if path.is_file() and "__pycache__" not in relative.parts and (path.suffix in _KEPT_SUFFIXES or relative.parts[0] == "data"):
            yield f"appliance/{relative.as_posix()}", path.read_bytes()
    playbooks = _PACKAGE.parent / "playbooks"
    if not (_PACKAGE / "data" / "playbooks").is_dir() and playbooks.is_dir():
        for path in playbooks.rglob("*"):
            relative = path.relative_to(playbooks)
            if path.is_file() and not any(part.startswith(".") or part == "__pycache__" for part in relative.parts):
                yield f"appliance/data/playbooks/{relative.as_posix()}", path.read_bytes()


def _build_id(wheels: Sequence[Path], own: Mapping[str, bytes]) -> str:
    """Return one digest of all that goes in: where an installer unpacks depends on it, and a finished one is found by it."""
    lines = [f"{hash_file(wheel).digest}  {wheel.name}" for wheel in wheels]
    lines += [f"{digest_of(data)}  {name}" for name, data in sorted(own.items())]
    lines += [f"{digest_of(data)}  {name}" for name, data in _bootstrap()]
    return hashlib.sha256("\n".join([INTERPRETER, str(_FORM), *lines]).encode()).hexdigest()


def _bootstrap() -> list[tuple[str, bytes]]:
    """Return the files of shiv that start the installer: they unpack it once and put it on the path."""
    folder = importlib.resources.files("shiv.bootstrap")
    files = [(f"_bootstrap/{each.name}", each.read_bytes()) for each in folder.iterdir() if each.name.endswith(".py")]
    return sorted(files)


def _write(target: Path, wheels: Sequence[Path], own: Mapping[str, bytes], build_id: str) -> None:
    """Write the archive in shiv's form: names sorted, one time, one mode, one compression."""
    from shiv.bootstrap.environment import Environment  # noqa: PLC0415 - only who builds an installer needs shiv

    environment = Environment(
        built_at=_BUILT_AT, shiv_version="1", build_id=build_id, entry_point="appliance.cli:main", compile_pyc=False, reproducible=True
    )
    fixed = {f"site-packages/{name}": data for name, data in own.items()} | dict(_bootstrap())
    fixed["environment.json"] = environment.to_json().encode()
    fixed["__main__.py"] = b"from _bootstrap import bootstrap\n\nbootstrap()\n"
    with ExitStack() as opened, disk.at(target):
        members: dict[str, tuple[zipfile.ZipFile, zipfile.ZipInfo]] = {}
        for wheel in wheels:
            source = opened.enter_context(zipfile.ZipFile(wheel))
            members |= {f"site-packages/{name}": (source, info) for name, info in _members(source)}
        stream = opened.enter_context(target.open("wb"))
        stream.write(f"#!{INTERPRETER}\n".encode("ascii"))
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in sorted(fixed.keys() | members.keys()):
                entry = zipfile.ZipInfo(name, date_time=_EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = 0o100644 << 16
                entry.create_system = 3
                data = fixed[name] if name in fixed else members[name][0].read(members[name][1])
                archive.writestr(entry, data, compresslevel=_LEVEL)
