# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`store verify`: every byte of the store against its name and against the releases that need it. Nothing is written."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.adapters import disk
from appliance.adapters.hashing import hash_file
from appliance.bundle.contents import Blob
from appliance.digests import Digest, hex_of
from appliance.progress import SILENT, Progress
from appliance.store import Store, StoredRelease
from appliance.verify.blobs import Finding, Wrong, verify_blobs

_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreReport:
    """What was read and what is wrong. `unneeded` blobs are whole, but no release asks for them."""

    releases: tuple[StoredRelease, ...]
    blobs: int
    size: int
    unneeded: int
    findings: tuple[Finding, ...]


def verify_store(store: Store, *, workers: int, progress: Progress = SILENT) -> StoreReport:
    """Hash every blob in the store again; check that registry and package trees are links to these very blobs.

    Raises:
        HostError: the store cannot be read.
    """
    releases, damaged = store.survey()
    needed: dict[Digest, Blob] = {}
    for release in releases:
        needed |= release.bundle.blobs
    extra = {blob.digest: blob for blob in _others(store, needed)}
    findings = [Finding(path=each.path, wrong=Wrong.DAMAGED, detail=each.error.message) for each in damaged]
    findings += list(verify_blobs(store.blobs, needed | extra, workers=workers, progress=progress))
    for release in releases:
        findings += _broken_links(store, release)
    everything = needed | extra
    return StoreReport(
        releases=releases,
        blobs=len(everything),
        size=sum(blob.size for blob in everything.values()),
        unneeded=len(extra),
        findings=tuple(findings),
    )


def _others(store: Store, needed: dict[Digest, Blob]) -> Iterator[Blob]:
    if not store.blobs.is_dir():
        return
    with disk.at(store.blobs):
        for path in store.blobs.iterdir():
            digest = Digest(f"sha256:{path.name}")
            if _HEX.fullmatch(path.name) and digest not in needed:
                yield Blob(digest=digest, size=path.lstat().st_size)


def _broken_links(store: Store, release: StoredRelease) -> list[Finding]:
    top = release.path / "registry" / "docker" / "registry" / "v2" / "blobs" / "sha256"
    found = [
        Finding(path=path, wrong=Wrong.DAMAGED, detail="not a link to the store's blob")
        for path in top.glob("*/*/data")
        if not _serves_what_it_names(store, release, path)
    ]
    for contents in release.bundle.contents.values():
        for artifact in contents.artifacts:
            for package in artifact.packages:
                path = release.path / "packages" / package.path
                if os.path.lexists(path) and not _same(path, store.blobs / hex_of(package.digest)):
                    found.append(Finding(path=path, wrong=Wrong.DAMAGED, detail="not a link to the store's blob"))
    return found


def _serves_what_it_names(store: Store, release: StoredRelease, path: Path) -> bool:
    """Whether a file of the registry tree is the store's blob, or, for metadata, has the bytes that its name says."""
    digest = Digest(f"sha256:{path.parent.name}")
    if digest in release.bundle.blobs:
        return _same(path, store.blob_path(digest))
    return hash_file(path).digest == digest


def _same(one: Path, other: Path) -> bool:
    try:
        return one.lstat().st_ino == other.lstat().st_ino and one.lstat().st_dev == other.lstat().st_dev
    except OSError:
        return False
