# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The note that a placement leaves, so that a second run need not read every byte again.

It says what this program did, and how the files looked to the file system when it was done. It is **never evidence of a
hash**: whoever can write to the folder can write the note. Evidence is made by `appliance.place.observe`, which reads
the bytes and does not know this module.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import ClassVar, Final

from appliance.adapters.disk import at, read_small, write_atomic
from appliance.bundle.documents import MAX_DOCUMENT_BYTES, Document, Record, Sha256, Size, decode, encode
from appliance.bundle.weights import Weights
from appliance.digests import Digest

FILE_MODE: Final = 0o444
FOLDER_MODE: Final = 0o755


class PlacedFile(Record, frozen=True, kw_only=True):
    """How one file looked: size in bytes, owner, and nanoseconds of its last change of content and of anything.

    Nanoseconds are text, since they do not fit into the integers that every JSON reader keeps exact.
    """

    path: str
    size: Size
    owner: int
    modified: str
    changed: str


class PlacementRecord(Document, frozen=True, kw_only=True):
    """What was placed: model, the digest of its weights manifest, for which release, when by trusted time."""

    FORMAT: ClassVar[str] = "placement/1"

    name: str
    version: str
    weights: Sha256
    release: Sha256
    when: str
    files: tuple[PlacedFile, ...]


def describe_files(folder: Path, weights: Weights) -> tuple[PlacedFile, ...] | None:
    """Return how the model's files look now; None if one is missing, no plain file, or of another size or mode."""
    found = []
    for file in weights.files:
        placed = _describe(folder / file.path, file.path)
        if placed is None or placed.size != file.size:
            return None
        found.append(placed)
    return tuple(found)


def _describe(path: Path, name: str) -> PlacedFile | None:
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(status.st_mode) or stat.S_IMODE(status.st_mode) != FILE_MODE:
        return None
    times = {"modified": str(status.st_mtime_ns), "changed": str(status.st_ctime_ns)}
    return PlacedFile(path=name, size=status.st_size, owner=status.st_uid, **times)


def looks_as_placed(folder: Path, record: PlacementRecord) -> bool:
    """Whether the folder holds exactly the files of `record`, each looking as it did. No byte of them is read.

    Raises:
        HostError: the folder cannot be read.
    """
    there = set()
    if folder.is_symlink():
        return False
    with at(folder):
        for place, folders, files in os.walk(folder, followlinks=False):
            top = Path(place)
            there |= {(top / name).relative_to(folder).as_posix() for name in files}
            there |= {f"{name}/" for name in folders if (top / name).is_symlink()}
        found = {_describe(folder / each.path, each.path) for each in record.files}
    return there == {each.path for each in record.files} and found == set(record.files)


def load_record(path: Path) -> PlacementRecord | None:
    """Return the note at `path`, None if there is none.

    Raises:
        FormatError: it is none.
        HostError: it cannot be read.
    """
    if not os.path.lexists(path):
        return None
    return decode(read_small(path, limit=MAX_DOCUMENT_BYTES), PlacementRecord, what=str(path))


def new_record(weights: Weights, *, digest: Digest, release: Digest, when: str, files: tuple[PlacedFile, ...]) -> PlacementRecord:
    """Return the note of a placement."""
    return PlacementRecord(
        format=PlacementRecord.FORMAT,
        name=weights.name,
        version=weights.version,
        weights=digest,
        release=release,
        when=when,
        files=files,
    )


def save_record(path: Path, record: PlacementRecord) -> None:
    """Write the note, whole or not at all.

    Raises:
        HostError: it cannot be written.
    """
    write_atomic(path, encode(record))
