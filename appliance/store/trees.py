# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Folders of hard links into the store: made beside their place and moved in whole, never half there.

A folder remembers in `made-from` the digest of what it was made from. When a release gets newer contents, links are
added to the living folder (a server may have it open); nothing is taken away.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from appliance.adapters import disk
from appliance.adapters.hashing import hash_file
from appliance.bundle.contents import ContentClass, Contents
from appliance.bundle.documents import encode
from appliance.digests import Digest, digest_of
from appliance.errors import HostError
from appliance.store import Store

MADE_FROM = "made-from"


def contents_digest(contents: Iterable[Contents]) -> Digest:
    """Return one digest for several contents, in the order of their classes."""
    ordered = sorted(contents, key=lambda each: list(ContentClass).index(each.content_class))
    return digest_of("\n".join(digest_of(encode(each)) for each in ordered).encode("ascii"))


def ensure_tree(place: Path, made_from: Digest, fill: Callable[[Path], None]) -> bool:
    """Have the folder `place` as `fill` makes it; return whether anything was done.

    Raises:
        HostError: it cannot be written; a tree that was there stays as it was.
    """
    marker = place / MADE_FROM
    with disk.at(place):
        if marker.is_file() and marker.read_text(encoding="ascii") == made_from:
            return False
    if place.is_dir():
        fill(place)
        disk.write_atomic(marker, made_from.encode("ascii"))
        return True
    fresh = place.with_name(f".{place.name}.new")
    with disk.at(fresh):
        shutil.rmtree(fresh, ignore_errors=True)
        disk.make_directory(fresh)
        fill(fresh)
        put_text(fresh / MADE_FROM, made_from)
        disk.sync_filesystem(fresh)
        fresh.rename(place)
    disk.sync_directory(place.parent)
    return True


def link_blob(store: Store, digest: Digest, target: Path) -> None:
    """Hard-link a blob of the store to `target`; nothing to do if it is that link already.

    Raises:
        HostError: the blob is not in the store, or `target` is on another file system.
    """
    source = store.blob_path(digest)
    disk.make_directory(target.parent)
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError as error:
        if not target.samefile(source):
            raise HostError(f"{target} is not the store's blob {digest}", hint=f"remove {target.parent} and run this again") from error
    except FileNotFoundError as error:
        raise HostError(f"{source} is not in the store", hint="read the media again: appliance media read DIR...") from error
    except OSError as error:
        raise disk.host_error(error, target) from error


def link_file(source: Path, digest: Digest, target: Path) -> None:
    """Hard-link a verified small file to `target`; nothing to do if those very bytes are there already.

    Raises:
        HostError: other bytes are there, or `target` is on another file system.
    """
    with disk.at(target):
        disk.make_directory(target.parent)
        try:
            os.link(source, target, follow_symlinks=False)
        except FileExistsError as error:
            if hash_file(target).digest != digest:
                raise HostError(f"{target} is not {digest}", hint=f"remove {target.parent} and run this again") from error


def require_one_filesystem(store: Store, place: Path) -> None:
    """Refuse where links cannot be made.

    Raises:
        HostError: store and releases are on two file systems.
    """
    with disk.at(store.blobs):
        if store.blobs.stat().st_dev != place.stat().st_dev:
            raise HostError(
                f"{store.blobs} and {place} are on two file systems, hard links need one",
                hint=f"keep all of {store.state} on one file system",
            )


def put_text(path: Path, text: str) -> None:
    """Write a small file if it is not there with this text."""
    with disk.at(path):
        disk.make_directory(path.parent)
        if not (path.is_file() and path.read_text(encoding="utf-8") == text):
            beside = path.with_name(f".{path.name}.new")
            beside.write_text(text, encoding="utf-8")
            beside.chmod(0o644)
            beside.rename(path)
