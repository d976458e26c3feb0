# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Every byte of a folder of blobs against what was signed: one pass of SHA-256, nothing written.

A blob is judged by its own digest. Only if that is wrong, its chunks are read again to say where. That the chunk list
belongs to the blob is what create and read check over the same buffer.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from appliance.adapters import disk, hashing
from appliance.adapters.parallel import for_each
from appliance.bundle.contents import Blob, ContentClass, Contents
from appliance.bundle.layout import OCI_LAYOUT
from appliance.digests import CHUNK_BYTES, Digest, chunk_size, hex_of
from appliance.errors import FormatError, HostError, VerificationError
from appliance.progress import SILENT, Progress
from appliance.verify.index import expected_index

_SHOWN = 20
_KNOWN = {"oci-layout", "index.json", "blobs", "metadata"}
_MAX_INDEX = 64 * 1024 * 1024


class Wrong(StrEnum):
    """What can be wrong with a file."""

    MISSING = "missing"
    SIZE = "size"
    DAMAGED = "damaged"
    CHUNKS = "chunks"
    EXTRA = "extra"
    UNREADABLE = "unreadable"
    LINK = "no plain file or folder"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is not as it was signed; `offset` is where the first wrong chunk begins."""

    path: Path
    wrong: Wrong
    detail: str
    offset: int | None = None

    def __str__(self) -> str:
        """Return one line for people."""
        where = f" at byte {self.offset}" if self.offset is not None else ""
        return f"{self.path}: {self.wrong.value}{where}: {self.detail}"


def verify_blobs(
    folder: Path, blobs: Mapping[Digest, Blob], *, workers: int, strangers: bool = True, progress: Progress = SILENT
) -> tuple[Finding, ...]:
    """Read every one of `blobs` in `folder` (files named by their 64 digits) and return what is wrong, by path.

    `strangers`: files there that nothing lists are findings too.

    Raises:
        HostError: `folder` itself cannot be read.
    """
    progress.start("verify", total=sum(blob.size for blob in blobs.values()))
    ordered = sorted(blobs.values(), key=lambda blob: (-blob.size, blob.digest))
    checked = for_each(
        ordered,
        lambda blob: _check(folder, blob, progress),
        workers=workers,
        prepare=lambda blob: hashing.prefetch(folder / hex_of(blob.digest)),
    )
    found = [finding for finding in checked if finding]
    if strangers:
        found += _strangers(folder, {hex_of(digest) for digest in blobs})
    progress.finish()
    return tuple(sorted(found, key=lambda finding: finding.path))


def verify_bundle_blobs(
    bundle: Path,
    blobs: Mapping[Digest, Blob],
    *,
    contents: Mapping[ContentClass, Contents],
    workers: int,
    progress: Progress = SILENT,
) -> tuple[Finding, ...]:
    """Return what is wrong with the bundle folder outside `metadata/`.

    Blobs, strange files, folders that are links, and `index.json` and `oci-layout`, of which every byte follows from the
    verified `contents`.

    Raises:
        FormatError: the contents allow no `index.json`.
    """
    folders = [Finding(path=path, wrong=Wrong.LINK, detail="expected a folder") for path in _not_folders(bundle)]
    if folders:
        return tuple(folders)
    found = list(verify_blobs(bundle / "blobs" / "sha256", blobs, workers=workers, progress=progress))
    found += _strangers(bundle, _KNOWN)
    found += _strangers(bundle / "blobs", {"sha256"})
    found += _check_bytes(bundle / "index.json", expected_index(contents, blobs))
    found += _check_bytes(bundle / "oci-layout", OCI_LAYOUT)
    return tuple(sorted(found, key=lambda finding: finding.path))


def _not_folders(bundle: Path) -> Iterator[Path]:
    for path in (bundle / "blobs", bundle / "blobs" / "sha256", bundle / "metadata"):
        with disk.at(path):
            if os.path.lexists(path) and not stat.S_ISDIR(path.lstat().st_mode):
                yield path


def _check_bytes(path: Path, expected: bytes) -> list[Finding]:
    if not os.path.lexists(path):
        return [Finding(path=path, wrong=Wrong.MISSING, detail=f"expected {len(expected)} bytes")]
    try:
        data = disk.read_small(path, limit=max(_MAX_INDEX, len(expected)))
    except FormatError as error:
        return [Finding(path=path, wrong=Wrong.LINK, detail=error.message)]
    except HostError as error:
        return [Finding(path=path, wrong=Wrong.UNREADABLE, detail=error.message)]
    if data == expected:
        return []
    first = next((at for at, (one, other) in enumerate(zip(data, expected, strict=False)) if one != other), min(len(data), len(expected)))
    return [Finding(path=path, wrong=Wrong.DAMAGED, detail="not the bytes that follow from the signed contents", offset=first)]


def refuse(findings: Iterable[Finding], *, what: str, hint: str) -> None:
    """Raise if there are findings.

    Raises:
        VerificationError: names the first of them, and how many there are.
    """
    lines = [str(finding) for finding in findings]
    if lines:
        more = f"\n  and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
        raise VerificationError(f"{what}: {len(lines)} wrong:\n  " + "\n  ".join(lines[:_SHOWN]) + more, hint=hint)


def _check(folder: Path, blob: Blob, progress: Progress) -> Finding | None:
    path = folder / hex_of(blob.digest)
    try:
        status = path.lstat()
    except FileNotFoundError:
        return Finding(path=path, wrong=Wrong.MISSING, detail=f"expected {blob.size} bytes")
    except OSError as error:
        return Finding(path=path, wrong=Wrong.UNREADABLE, detail=str(error.strerror))
    if not stat.S_ISREG(status.st_mode):
        return Finding(path=path, wrong=Wrong.LINK, detail=f"{_kind(status.st_mode)}, expected a file of {blob.size} bytes")
    if status.st_size != blob.size:
        return Finding(path=path, wrong=Wrong.SIZE, detail=f"{status.st_size} bytes, expected {blob.size}")
    descriptor = disk.open_regular(path)
    try:
        return _check_open(descriptor, path, blob, progress)
    except HostError as error:
        return Finding(path=path, wrong=Wrong.UNREADABLE, detail=error.message)
    finally:
        os.close(descriptor)


def _kind(mode: int) -> str:
    names = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return names.get(stat.S_IFMT(mode), "a device")


def _check_open(descriptor: int, path: Path, blob: Blob, progress: Progress) -> Finding | None:
    if blob.size > CHUNK_BYTES:
        found = hashing.hash_with_reader(descriptor, blob.size, path=path, advance=progress.advance)
    else:
        found = hashing.hash_range(descriptor, 0, blob.size, path=path, advance=progress.advance)
    if found == blob.digest:
        return None
    for index, digest in enumerate(blob.chunks):
        offset, size = index * CHUNK_BYTES, chunk_size(blob.size, index)
        chunk = hashing.hash_range(descriptor, offset, size, path=path)
        if chunk != digest:
            return Finding(path=path, wrong=Wrong.DAMAGED, detail=f"{size} bytes are {chunk}, expected {digest}", offset=offset)
    if blob.chunks:
        return Finding(path=path, wrong=Wrong.CHUNKS, detail="every chunk is as listed, but they are not this blob")
    return Finding(path=path, wrong=Wrong.DAMAGED, detail=f"{blob.size} bytes are {found}", offset=0)


def _strangers(folder: Path, known: set[str]) -> list[Finding]:
    with disk.at(folder):
        names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    return [Finding(path=folder / name, wrong=Wrong.EXTRA, detail="nothing lists it") for name in names if name not in known]
