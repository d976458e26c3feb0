# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: INP001 - a program of its own, run on machines
"""Unpacks the archive of programs if it is the one the depot made; runs on a machine with Python's standard library alone.

Arguments: the archive, its SHA-256, the folder it is for, the mark, what the mark says. The bytes that were hashed are the bytes that are
unpacked: it is one open file. Every file is on the disk before the mark says so, and the mark of another set is gone before the first
link is replaced. A file of a person's in the place of one of the links is never touched: exit 1 names it, before any change.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tarfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

OURS = "../lib/appliance/"


def strangers(tar: tarfile.TarFile, root: Path) -> list[str]:
    """Return what stands where a link goes and is not a link of ours."""
    places = [root / member.name for member in tar.getmembers() if member.issym()]
    return [
        str(place) for place in places if os.path.lexists(place) and not (place.is_symlink() and str(place.readlink()).startswith(OURS))
    ]


def place(tar: tarfile.TarFile, member: tarfile.TarInfo, root: Path) -> None:
    """Put one member in its place in one step."""
    target = root / member.name
    if member.isdir():
        target.mkdir(mode=0o755, exist_ok=True)
        return
    pending = target.with_name(f".{target.name}.part")
    pending.unlink(missing_ok=True)
    content = None if member.issym() else tar.extractfile(member)
    if member.issym():
        pending.symlink_to(member.linkname)
    elif content is not None:
        with pending.open("xb") as out:
            shutil.copyfileobj(content, out, 1 << 20)
            os.fchmod(out.fileno(), member.mode)
    pending.replace(target)


def flush(paths: Iterable[Path]) -> None:
    """Wait until the files and folders are on the disk, all of them in as few of its own steps as it can."""
    with ThreadPoolExecutor(max_workers=16) as pool:
        list(pool.map(flush_one, paths))


def flush_one(path: Path) -> None:
    """Wait for one."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def main() -> None:
    """Check, then unpack, then say so."""
    archive, sha256, root, mark = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])
    with archive.open("rb") as stream:
        got = hashlib.file_digest(stream, "sha256").hexdigest()
        if got != sha256:
            raise SystemExit(f"{archive}: expected sha256 {sha256}, got {got}: the computed checksum did NOT match")
        stream.seek(0)
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            found = strangers(tar, root)
            if found:
                raise SystemExit(f"{', '.join(found)}: not of this site; move it to another place, then install again")
            mark.unlink(missing_ok=True)
            for member in tar.getmembers():
                place(tar, member, root)
            flush(root / member.name for member in tar.getmembers() if not member.issym())
    pending = mark.with_name(f".{mark.name}.part")
    pending.write_text(sys.argv[5], encoding="ascii")
    pending.replace(mark)


if __name__ == "__main__":
    main()
