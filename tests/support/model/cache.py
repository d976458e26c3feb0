# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Where a trained model is kept, by the digest of all that decides it, and how a copy of it is handed out.

Copies, never links: tests break their copy. A kept result carries the digest of each of its files; a result that no
longer matches is removed and made anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from appliance.errors import HostError

HERE = Path(__file__).resolve().parent
# Files here that cannot change the result; any other file of this folder is part of its name.
UNRELATED = frozenset({"__init__.py", "__main__.py", "cache.py", "environment.py", "requirements.in"})
DIGESTS, MODEL, GOLDEN = "digests.json", "model", "golden.json"


def folder() -> Path:
    """The project's cache: ``APPLIANCE_CACHE`` where make set it, else the user's cache directory."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("APPLIANCE_CACHE") or Path(base) / "appliance")


def key(*, seed: int, corpus: str, recipe_folder: Path = HERE) -> str:
    """What a result is kept under: the digest of trainer sources and pinned libraries, of the text, and of the seed."""
    whole = hashlib.sha256(f"{seed}\n{corpus}\n".encode())
    for path in sorted(recipe_folder.iterdir()):
        if path.is_file() and path.name not in UNRELATED:
            whole.update(f"{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return whole.hexdigest()[:16]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold ``path``.lock: one process at a time makes what ``path`` names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def digests(result: Path) -> dict[str, str]:
    """SHA-256 of every file below ``result``, by relative name, besides the list of digests itself."""
    files = sorted(path for path in result.rglob("*") if path.is_file() and path.name != DIGESTS)
    return {path.relative_to(result).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def is_whole(result: Path) -> bool:
    """Whether ``result`` is there and every file is as it was when it was kept."""
    try:
        return bool(json.loads((result / DIGESTS).read_text(encoding="utf-8")) == digests(result))
    except (FileNotFoundError, ValueError):
        return False


def keep(made: Path, result: Path) -> None:
    """Move the folder ``made`` to ``result``, all or nothing; both on one filesystem."""
    (made / DIGESTS).write_text(json.dumps(digests(made), indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if result.exists():
        shutil.rmtree(result)
    made.rename(result)


def golden_beside(out: Path) -> Path:
    """Where the golden answers of the model folder ``out`` stand: beside it, so that the folder is a model and no more."""
    return out.with_name(f"{out.name}.golden.json")


def hand_out(result: Path, out: Path) -> None:
    """Copy the model of ``result`` to the folder ``out`` and its golden answers beside it, replacing an older copy.

    Raises:
        HostError: ``out`` holds something else.
    """
    if out.exists() and not golden_beside(out).is_file() and any(out.iterdir()):
        raise HostError(f"{out} holds something other than a tiny model", hint="Name an empty or new folder.")
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = out.with_name(f".{out.name}.{os.getpid()}")
    shutil.copytree(result / MODEL, fresh, copy_function=shutil.copyfile)
    shutil.copyfile(result / GOLDEN, golden_beside(out))
    if out.exists():
        shutil.rmtree(out)
    fresh.rename(out)
