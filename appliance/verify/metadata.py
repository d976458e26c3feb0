# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Reading `metadata/` of a bundle directory, bounded, and verifying it against pinned trust. Nothing is written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

from appliance.adapters.disk import at, read_small
from appliance.bundle.documents import MAX_DOCUMENT_BYTES
from appliance.errors import FormatError, HostError
from appliance.trust.client import MAX_FILES, VerifiedBundle, verify_metadata
from appliance.verify import Trust

MAX_METADATA_BYTES: Final = 256 * 1024 * 1024
_DEPTH: Final = 3


def read_metadata(bundle: Path) -> dict[str, bytes]:
    """Return all files below `bundle`/metadata by their relative POSIX path.

    Raises:
        HostError: no bundle there, or a file cannot be read.
        FormatError: a link, a device, too many, too deep or too long files.
    """
    top = bundle / "metadata"
    if top.is_symlink():
        raise FormatError(f"{top}: a symbolic link, expected the folder itself", hint="carry the bundle again")
    if not top.is_dir():
        raise HostError(f"{top}: no bundle there", hint="give the bundle's directory, the one that holds metadata/ and blobs/")
    files: dict[str, bytes] = {}
    total = 0
    for path, size in _walk(top, 1):
        total += size
        if len(files) >= MAX_FILES or total > MAX_METADATA_BYTES:
            raise FormatError(f"{top}: more than {MAX_FILES} files or {MAX_METADATA_BYTES} bytes", hint="carry the bundle again")
        files[path.relative_to(top).as_posix()] = read_small(path, limit=MAX_DOCUMENT_BYTES)
    return files


def _walk(folder: Path, depth: int) -> Iterator[tuple[Path, int]]:
    with at(folder):
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    if not entries:
        raise FormatError(f"{folder}: an empty folder in metadata", hint="remove it, or carry the bundle again")
    for entry in entries:
        path = Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            if depth == _DEPTH:
                raise FormatError(f"{path}: folders in metadata are nested too deep", hint="carry the bundle again")
            yield from _walk(path, depth + 1)
        elif entry.is_file(follow_symlinks=False):
            yield path, entry.stat(follow_symlinks=False).st_size
        else:
            raise FormatError(f"{path}: a link or device, expected a plain file", hint="carry the bundle again")


def verify_bundle_metadata(bundle: Path, trust: Trust, *, now: datetime) -> VerifiedBundle:
    """Return the release that the bundle directory describes, verified against `trust` at `now`.

    Raises:
        HostError, FormatError: it cannot be read.
        VerificationError: see `verify_metadata`.
    """
    return verify_metadata(read_metadata(bundle), pinned_root=trust.pin, seen=trust.seen, now=now)
