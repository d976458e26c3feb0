# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`media status`: what lies in some folders, and what of it a site still lacks. Nothing is written or believed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from appliance.carry.parts import scan
from appliance.carry.staging import Staging
from appliance.digests import Digest
from appliance.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class SetStatus:
    """One set: which of its parts are `here` (file by index), which this site `read` before, and which are `missing`."""

    set_name: Digest
    name: str
    version: str
    platform: str
    count: int
    here: dict[int, Path]
    read: tuple[int, ...]
    missing: tuple[int, ...]
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MediaStatus:
    """Every set in the folders, and why some files are no usable parts."""

    sets: tuple[SetStatus, ...]
    bad: tuple[str, ...]


class _Import(msgspec.Struct, frozen=True):
    release: str
    set: str


def _read_before(store: Store, name: Digest, count: int) -> set[int]:
    """The parts read in earlier visits: all of them once the release is there, by the log of imports."""
    try:
        lines = store.imports_log.read_bytes().splitlines()
    except OSError:
        lines = []
    for line in lines:
        with suppress(msgspec.MsgspecError):
            each = msgspec.json.decode(line, type=_Import)
            if each.set == name and (store.releases_folder / each.release.removeprefix("sha256:")).is_dir():
                return set(range(1, count + 1))
    return Staging(store).parts_read(name)


def media_status(folders: Sequence[Path], store: Store | None = None) -> MediaStatus:
    """Return what is in `folders`; with `store`, parts that were read in earlier visits do not count as missing.

    Raises:
        UsageError: there is no part.
        HostError: a folder cannot be read.
    """
    found = scan(folders)
    sets = []
    for name, parts in sorted(found.sets().items()):
        table = parts[0].table
        here = {part.table.index: part.path for part in parts}
        read = _read_before(store, name, table.count) if store is not None else set()
        sets.append(
            SetStatus(
                set_name=name,
                name=table.name,
                version=table.version,
                platform=table.platform,
                count=table.count,
                here=here,
                read=tuple(sorted(read)),
                missing=tuple(index for index in range(1, table.count + 1) if index not in here and index not in read),
                size=sum(part.length for part in parts),
            )
        )
    return MediaStatus(sets=tuple(sets), bad=tuple(error.message for error in found.bad))
