# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Model folders: walked without following links, every file judged, hashed whole and by chunk in one read."""

from __future__ import annotations

import os
import stat
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

from appliance.adapters.disk import at
from appliance.adapters.hashing import Advance, FileHashes, hash_open
from appliance.adapters.ingest import open_beneath, walk_beneath
from appliance.adapters.parallel import for_each
from appliance.bundle.lock import LockedModel, LockedModelFile
from appliance.bundle.model import EntryKind, ModelEntry, ModelFile, check_model
from appliance.bundle.profile import ModelWanted
from appliance.errors import VerificationError


def model_files(name: str, folder: Path) -> tuple[ModelFile, ...]:
    """Return the files of the model in `folder`, each looked into as far as its kind demands.

    Raises:
        VerificationError: a symbolic link, a pickle, code.
        FormatError: a file that is malformed or of an unknown kind, no weights.
        HostError: unreadable.
    """
    return check_model([_entry(folder, relative) for relative in walk_beneath(folder)], name=name)


def _entry(folder: Path, relative: str) -> ModelEntry:
    with at(folder / relative):
        size = (folder / relative).lstat().st_size

    def opened() -> AbstractContextManager[BinaryIO]:
        return os.fdopen(open_beneath(folder, relative), "rb")

    return ModelEntry(path=relative, kind=EntryKind.FILE, size=size, open=opened)


def model_bytes(folder: Path) -> int:
    """Return the size of all regular files below `folder`, for a progress bar only."""
    total = 0
    for top, _, names in os.walk(folder):
        for name in names:
            status = os.lstat(Path(top, name))
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total


def lock_model(wanted: ModelWanted, folder: Path, *, workers: int, advance: Advance) -> LockedModel:
    """Return the lock's entry of the model in `folder`; every byte is read once.

    Raises:
        VerificationError, FormatError, HostError: as `model_files`, or a file changes while it is read.
    """
    files = model_files(wanted.name, folder)

    def hashed(file: ModelFile) -> FileHashes:
        descriptor = open_beneath(folder, file.path)
        try:
            return hash_open(descriptor, path=folder / file.path, advance=advance)
        finally:
            os.close(descriptor)

    largest_first = sorted(files, key=lambda file: (-file.size, file.path))
    found = dict(zip(largest_first, for_each(largest_first, hashed, workers=workers), strict=True))
    return LockedModel(
        name=wanted.name,
        version=wanted.version,
        path=wanted.path,
        license=wanted.license,
        files=tuple(
            LockedModelFile(path=file.path, digest=found[file].digest, size=found[file].size, chunks=found[file].chunks) for file in files
        ),
    )


def files_as_locked(locked: LockedModel, folder: Path) -> tuple[ModelFile, ...]:
    """Return the files of the model again and check that they are those of the lock, by name and size.

    Raises:
        VerificationError: a file is new, gone or of another size.
        FormatError, HostError: as `model_files`.
    """
    files = model_files(locked.name, folder)
    there, wanted = {file.path: file.size for file in files}, {file.path: file.size for file in locked.files}
    for path in sorted(there.keys() | wanted.keys()):
        if there.get(path) != wanted.get(path):
            raise changed(folder / path)
    return files


def changed(path: Path) -> VerificationError:
    """Return the refusal of a source that is not what it was when the lock was made."""
    return VerificationError(
        f"changed since lock: {path}", hint="restore the file, or run `appliance bundle lock` again and look at what changed"
    )
