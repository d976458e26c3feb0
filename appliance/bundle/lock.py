# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A lock: every digest, size and licence a profile resolved to (docs/bundle-format.md section 9). Canonical JSON.

Two creates from one lock give equal bytes outside `metadata/`; so a lock holds no time, host, mirror or local path
but the profile's own relative ones.
"""

from __future__ import annotations

from typing import ClassVar

from appliance.bundle.contents import check_relative
from appliance.bundle.documents import Document, Record, Sha256, Size


class LockedBlob(Record, frozen=True, kw_only=True):
    """One blob to fetch: `media_type` as its parent document states it."""

    digest: Sha256
    size: Size
    media_type: str


class LockedImage(Record, frozen=True, kw_only=True):
    """An image resolved for one platform. `blobs`: index, manifest, config and layers, in that order."""

    reference: str
    index: Sha256
    manifest: Sha256
    config: Sha256
    blobs: tuple[LockedBlob, ...]


class LockedChart(Record, frozen=True, kw_only=True):
    """A chart packed deterministically from a folder; `payload` is the digest of its `.tgz`."""

    name: str
    version: str
    path: str
    namespace: str
    values: str
    payload: Sha256
    size: Size


class LockedModelFile(Record, frozen=True, kw_only=True):
    """One file of a model, by its POSIX path inside the folder."""

    path: str
    digest: Sha256
    size: Size
    chunks: tuple[Sha256, ...] = ()


class LockedModel(Record, frozen=True, kw_only=True):
    """A model folder, file by file."""

    name: str
    version: str
    path: str
    license: str
    files: tuple[LockedModelFile, ...]


class LockedFile(Record, frozen=True, kw_only=True):
    """A file by URL."""

    name: str
    version: str
    url: str
    digest: Sha256
    size: Size
    license: str = ""


class LockedPackage(Record, frozen=True, kw_only=True):
    """One package of the closure; `url_path` is its path below the archive's root, as apt prints it."""

    name: str
    version: str
    architecture: str
    url_path: str
    digest: Sha256
    size: Size
    wanted: bool = False
    """Named in the profile, not only drawn in as a dependency."""


class LockedPackages(Record, frozen=True, kw_only=True):
    """The closure of the named packages against a clean root of `suite`."""

    suite: str
    packages: tuple[LockedPackage, ...]


class Lock(Document, frozen=True, kw_only=True):
    """A profile with every digest filled in. `profile` is the digest of the profile's bytes."""

    FORMAT: ClassVar[str] = "lock/1"

    profile: Sha256
    name: str
    version: str
    platform: str
    kubernetes: str
    images: tuple[LockedImage, ...] = ()
    charts: tuple[LockedChart, ...] = ()
    models: tuple[LockedModel, ...] = ()
    files: tuple[LockedFile, ...] = ()
    packages: LockedPackages | None = None
    installer: bool = True


def check_lock(lock: Lock, *, what: str) -> None:
    """Check that every file of every model is named inside its folder.

    Raises:
        FormatError: a path that is not plain; `what` names the lock.
    """
    for model in lock.models:
        for file in model.files:
            check_relative(file.path, what=f"{what}: model {model.name}")
