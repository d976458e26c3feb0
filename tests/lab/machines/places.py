# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Where the lab keeps things: a cache (may be deleted), one state folder per lab, logs that outlive it, and a registration under /run."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tests.lab.machines.errors import LabError

REGISTRATIONS = Path("/run/appliance-lab")
NAME = re.compile(r"[a-z][a-z0-9-]{0,14}")


def cache() -> Path:
    chosen = os.environ.get("APPLIANCE_CACHE")
    base = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "appliance"
    return base / "lab"


def default_state(name: str) -> Path:
    return Path(os.environ.get("LAB_STATE") or cache() / "labs") / name


def new_log(name: str) -> Path:
    base = Path(os.environ.get("LAB_LOG") or cache() / "log") / name
    path = base / datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    path.mkdir(parents=True)
    latest = base / "latest"
    pending = base / f".latest-{path.name}"
    pending.symlink_to(path.name)
    pending.replace(latest)
    return path


def checked_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise LabError(f"'{name}' cannot name a lab", hint="use up to 15 lower-case letters, digits and dashes, a letter first")
    return name


def register(name: str, state: Path) -> None:
    """Write down which state folder the lab of this name has, before anything else of it exists: `down` starts from here."""
    REGISTRATIONS.mkdir(mode=0o755, exist_ok=True)
    known = registered(name)
    if known not in (None, state):
        raise LabError(
            f"lab '{name}' runs from another state folder: {known}", hint=f"choose another --name, or take it down with: --name {name}"
        )
    if known is None:
        pending = REGISTRATIONS / f".{name}.{os.getpid()}"
        pending.unlink(missing_ok=True)
        pending.symlink_to(state)
        pending.replace(REGISTRATIONS / name)


def registered(name: str) -> Path | None:
    try:
        return (REGISTRATIONS / name).readlink()
    except FileNotFoundError:
        return None


def state_of(name: str) -> Path | None:
    """The state folder of a lab that is registered, or, after this machine was switched off, lies where it would be by default."""
    known = registered(name)
    if known is None and default_state(name).is_dir():
        return default_state(name).resolve()
    return known


def unregister(name: str) -> None:
    (REGISTRATIONS / name).unlink(missing_ok=True)


def all_registered() -> tuple[str, ...]:
    if not REGISTRATIONS.is_dir():
        return ()
    return tuple(sorted(p.name for p in REGISTRATIONS.iterdir() if p.is_symlink() and not p.name.startswith(".")))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`. The kernel gives it back when this process dies, however it dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if not _is_at(path, handle.fileno()):
                continue  # whoever held it before has removed the file: this is a lock on nothing
            yield
            return


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return path.stat().st_ino == os.fstat(descriptor).st_ino
    except FileNotFoundError:
        return False


def remove_tree(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
