# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A cache by content, outside the clone: an entry is a folder whose name holds the hash of all its inputs.

An entry is made in a folder of its own and renamed into place when it is complete, so a kill leaves no half of one.
One flock per entry: of two processes that want the same entry one makes it and the other waits.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

ENTRY = "entry.json"
_BLOCK = 1 << 20


def root() -> Path:
    """The cache's folder, made when it is missing: `lab` below the Makefile's `$APPLIANCE_CACHE`, else below its default."""
    base = os.environ.get("APPLIANCE_CACHE") or f"{os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'}/appliance"
    path = Path(base) / "lab"
    path.mkdir(parents=True, exist_ok=True)
    return path


def key(*parts: str | bytes) -> str:
    """The SHA-256 of `parts`, each with its length before it, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def place(name: str, entry_key: str) -> Path:
    """Where the entry lies, or would lie."""
    return root() / f"{name}-{entry_key[:24]}"


def is_whole(entry: Path) -> bool:
    """Whether every file the entry lists is there with its size; a crash of the machine can cut files short."""
    try:
        listed = json.loads((entry / ENTRY).read_bytes())["files"]
        return all((entry / name).stat().st_size == size for name, size in listed.items())
    except (OSError, ValueError, KeyError):
        return False


def obtain(name: str, entry_key: str, make: Callable[[Path], None]) -> Path:
    """The entry's folder, made by `make` (into an empty folder it is given) unless it is there already."""
    entry = place(name, entry_key)
    if is_whole(entry):
        return entry
    with _locked(root() / "locks" / entry.name):
        if is_whole(entry):
            return entry
        for left in root().glob(f".{glob.escape(entry.name)}@*"):
            shutil.rmtree(left)
        making = Path(tempfile.mkdtemp(prefix=f".{entry.name}@", dir=root()))
        try:
            make(making)
            _seal(making)
            if entry.exists():
                shutil.rmtree(entry)
            making.rename(entry)
        except BaseException:
            shutil.rmtree(making, ignore_errors=True)
            raise
    return entry


def prune(keep: set[Path]) -> tuple[Path, ...]:
    """Remove every entry that is not in `keep` and every leftover of a killed run, unless it is being made; gives what went."""
    removed = []
    for path in sorted(root().iterdir()):
        left_over = path.name.startswith(".")
        if path in keep or not path.is_dir() or not (left_over or (path / ENTRY).exists()):
            continue
        name = path.name[1:].partition("@")[0] if left_over else path.name
        with _locked(root() / "locks" / name, wait=False) as held:
            if held:
                shutil.rmtree(path)
                removed.append(path)
    return tuple(removed)


def link(source: Path, target: Path) -> None:
    """Give `source` a second name; a copy where a hard link is impossible (another filesystem, another owner)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def sha256(path: Path) -> str:
    """The file's SHA-256 as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _seal(folder: Path) -> None:
    """Write the list of files and sizes, last of all; files are read-only from here on, since others link to them."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            files[path.relative_to(folder).as_posix()] = path.stat().st_size
            path.chmod(path.stat().st_mode & 0o555)
    (folder / ENTRY).write_text(json.dumps({"format": "lab-entry/1", "files": files}, indent=1) + "\n")
    folder.chmod(0o755)


@contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the flock of `path`; False when it is taken and `wait` is not wanted."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
