# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The moment a release appears: all its blobs are in the store, its metadata was verified, and now the site remembers it.

Order, each step durable before the next: the release's folder beside its place; what the site has seen; the folder in
its place; `current`; the line in the log of imports. A run that dies in between does the rest when it runs again; one
whose disk fails in between takes its steps back, so that no release appeared and the site remembers what it did before.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import ClassVar

from appliance.adapters import disk
from appliance.bundle.documents import Document, Sha256, encode
from appliance.digests import Digest, hex_of
from appliance.errors import HostError
from appliance.store import CURRENT, Store
from appliance.trust.client import VerifiedBundle
from appliance.trust.clock import format_instant
from appliance.verify import save_seen


class ImportRecord(Document, frozen=True, kw_only=True):
    """One line of `imports.jsonl`: what a receipt will state (docs/bundle-format.md section 7).

    `when` is trusted time; `parts` are the indices read, over all visits; `timestamp` is the version accepted.
    """

    FORMAT: ClassVar[str] = "import/1"

    line: str
    name: str
    version: str
    release: Sha256
    timestamp: int
    set: Sha256
    parts: tuple[int, ...]
    count: int
    bytes_written: int
    who: str
    when: str


def activate(
    store: Store, bundle: VerifiedBundle, *, set_name: Digest, parts: tuple[int, ...], count: int, written: int, who: str, now: datetime
) -> bool:
    """Make the complete release `bundle` appear; return False when exactly this was imported before.

    Raises:
        HostError: the state cannot be written, or a blob is missing after all.
    """
    if missing := store.missing(bundle.blobs):
        raise HostError(f"{len(missing)} blobs of the release are not in the store", hint="read the media again")
    place = store.releases_folder / hex_of(bundle.digest)
    fresh = store.releases_folder / f".{hex_of(bundle.digest)}.new"
    known = _same_metadata(place, bundle.metadata)
    with disk.at(fresh):
        shutil.rmtree(fresh, ignore_errors=True)
    with ExitStack() as undo:
        if not known:
            undo.callback(shutil.rmtree, fresh, ignore_errors=True)
            _write_metadata(fresh, bundle.metadata)
        _remember(store.trust_of(bundle.line), bundle, undo)
        if not known:
            _into_place(fresh, place, undo)
        _point(store.releases_folder / CURRENT, place.name, undo)
        new = not (known and _logged(store.imports_log, bundle))
        if new:
            record = ImportRecord(
                format=ImportRecord.FORMAT,
                line=bundle.line,
                name=bundle.release.name,
                version=bundle.release.version,
                release=bundle.digest,
                timestamp=bundle.seen.timestamp,
                set=set_name,
                parts=parts,
                count=count,
                bytes_written=written,
                who=who,
                when=format_instant(now),
            )
            disk.append_line(store.imports_log, encode(record))
        undo.pop_all()
    shutil.rmtree(fresh, ignore_errors=True)
    with suppress(OSError):  # both are only what an undo would have needed
        (store.trust_of(bundle.line) / ".seen.json.before").unlink(missing_ok=True)
        _kept(store.releases_folder / CURRENT).unlink(missing_ok=True)
    return new


def _remember(trust: Path, bundle: VerifiedBundle, undo: ExitStack) -> None:
    """Save what the bundle proved."""
    seen, kept, roots = trust / "seen.json", trust / ".seen.json.before", trust / "roots"
    with disk.at(trust):
        known = {path.name for path in roots.iterdir()} if roots.is_dir() else set()
        kept.unlink(missing_ok=True)
        if seen.exists():
            os.link(seen, kept)

    def forget() -> None:
        for path in roots.iterdir():
            if path.name not in known:
                path.unlink()
        if not kept.exists():
            seen.unlink(missing_ok=True)
        elif kept.samefile(seen):  # a rename onto the same file would leave both names
            kept.unlink()
        else:
            kept.replace(seen)

    undo.callback(_try, forget)
    save_seen(trust, bundle)


def _try(step: Callable[[], object]) -> None:
    """Take back a step as far as the disk lets us: the error that led here is the one to tell."""
    with suppress(OSError):
        step()


def _same_metadata(place: Path, metadata: Mapping[str, bytes]) -> bool:
    folder = place / "metadata"
    if not folder.is_dir():
        return False
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}
    return there == set(metadata) and all((folder / name).read_bytes() == data for name, data in metadata.items())


def _write_metadata(folder: Path, metadata: Mapping[str, bytes]) -> None:
    places = {folder / "metadata" / name: data for name, data in metadata.items()}
    for path in places:
        disk.make_directory(path.parent)
    for path, data in places.items():
        with disk.at(path, needed=len(data)):
            path.write_bytes(data)
            path.chmod(0o444)
    disk.sync_filesystem(folder)


def _into_place(fresh: Path, place: Path, undo: ExitStack) -> None:
    """Move the whole release in, or, where it is known with older signatures, exchange its metadata in one step."""
    here, there = (fresh, place) if not place.exists() else (fresh / "metadata", place / "metadata")
    with disk.at(place):
        _swap(here, there, undo)
    disk.sync_directory(place.parent)


def _swap(new: Path, name: Path, undo: ExitStack) -> None:
    """Let `new` have the name `name`, in one step; what had it before, if anything, is then called `new`."""
    if os.path.lexists(name):
        disk.exchange(new, name)
        undo.callback(_try, lambda: disk.exchange(new, name))
    else:
        new.rename(name)
        undo.callback(_try, lambda: name.rename(new))


def _kept(link: Path) -> Path:
    return link.with_name(f".{link.name}.before")


def _point(link: Path, name: str, undo: ExitStack) -> None:
    beside, kept = link.with_name(f".{link.name}.new"), _kept(link)
    with disk.at(link):
        before = str(link.readlink()) if link.is_symlink() else None
        if before == name:
            return
        undo.callback(_try, lambda: kept.rename(link) if before is not None else link.unlink(missing_ok=True))
        undo.callback(_try, lambda: beside.unlink(missing_ok=True))
        for each, target in ((beside, name), (kept, before)):
            each.unlink(missing_ok=True)
            if target is not None:
                each.symlink_to(target)
        beside.rename(link)
    disk.sync_directory(link.parent)


def _logged(log: Path, bundle: VerifiedBundle) -> bool:
    """Whether the last line of the log is of this very import: a run may have died just before writing it."""
    if not log.is_file():
        return False
    with disk.at(log):
        lines = log.read_bytes().splitlines()
    wanted = (f'"release":"{bundle.digest}"'.encode(), f'"timestamp":{bundle.seen.timestamp},'.encode())
    return any(all(each in line for each in wanted) for line in lines)
