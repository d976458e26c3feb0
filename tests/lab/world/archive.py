# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Tar and gzip whose bytes depend on names, modes and contents alone: no times, no owners, no order of a directory."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, Protocol, cast

LEVEL = 1

Compression = Literal["gzip", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One member. `content` is a file's bytes or where they lie; None with a `target` is a symlink, without one a folder."""

    path: str
    mode: int = 0o755
    content: Path | bytes | None = None
    target: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """An archive on disk: hex SHA-256 of the bytes in the file and of the tar inside, and the file's size."""

    sha256: str
    tar_sha256: str
    size: int


class _Sink(Protocol):
    def write(self, data: bytes, /) -> int: ...

    def flush(self) -> None: ...


class _Hashing:
    """Hashes and counts what passes on its way to `sink`."""

    def __init__(self, sink: _Sink) -> None:
        self._sink = sink
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes, /) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self._sink.write(data)

    def flush(self) -> None:
        self._sink.flush()


def files(folder: Path, below: str) -> tuple[Item, ...]:
    """Every regular file directly in `folder`, as executables below the archive folder `below`."""
    return tuple(Item(path=f"{below}/{path.name}".lstrip("/"), content=path) for path in sorted(folder.iterdir()) if path.is_file())


def write_archive(target: Path, items: Iterable[Item], compression: Compression) -> Written:
    """Write `items` as a tar at `target`, sorted, with the folders they lie in."""
    with ExitStack() as stack:
        outer = _Hashing(stack.enter_context(target.open("wb")))
        inner = outer
        if compression == "gzip":
            packed = gzip.GzipFile(filename="", mode="wb", compresslevel=LEVEL, fileobj=cast("io.BytesIO", outer), mtime=0)
            inner = _Hashing(cast("_Sink", stack.enter_context(packed)))
        _write_tar(inner, items)
        stack.close()
    return Written(sha256=outer.digest.hexdigest(), tar_sha256=inner.digest.hexdigest(), size=outer.size)


def _write_tar(sink: _Sink, items: Iterable[Item]) -> None:
    with tarfile.open(fileobj=cast("io.BytesIO", sink), mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for item in _with_folders(items):
            info = tarfile.TarInfo(item.path)
            info.mode, info.mtime, info.uid, info.gid = item.mode, 0, 0, 0
            match item.content:
                case None if item.target is not None:
                    info.type, info.linkname, info.mode = tarfile.SYMTYPE, item.target, 0o777
                    tar.addfile(info)
                case None:
                    info.type = tarfile.DIRTYPE
                    tar.addfile(info)
                case bytes() as data:
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
                case Path() as path:
                    info.size = path.stat().st_size
                    with path.open("rb") as stream:
                        tar.addfile(info, stream)


def _with_folders(items: Iterable[Item]) -> list[Item]:
    """The items by path, with every parent folder before what lies in it; an item given twice is a mistake."""
    by_path: dict[str, Item] = {}
    for item in items:
        if item.path in by_path:
            message = f"{item.path} is in the archive twice"
            raise ValueError(message)
        by_path[item.path] = item
    for path in list(by_path):
        for parent in PurePosixPath(path).parents:
            if str(parent) != ".":
                by_path.setdefault(str(parent), Item(path=str(parent)))
    return [by_path[path] for path in sorted(by_path, key=lambda path: PurePosixPath(path).parts)]
