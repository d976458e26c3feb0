# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""From a lock to where each of its blobs comes from. Nothing is fetched here; folders are looked into and charts packed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance.adapters.ingest import open_beneath
from appliance.adapters.references import parse_reference
from appliance.build.cache import OpenAt, Wanted
from appliance.build.charts import PackedChart, pack_chart
from appliance.build.collecting import Tools, local_file
from appliance.build.models import changed, files_as_locked
from appliance.bundle.lock import Lock
from appliance.bundle.model import ModelFile
from appliance.digests import Digest
from appliance.errors import FormatError


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """A blob to fetch into the cache; `open_at` is None for a package, which apt fetches."""

    wanted: Wanted
    open_at: OpenAt | None
    url_path: str = ""

    @property
    def digest(self) -> Digest:
        """The digest of the blob."""
        return self.wanted.digest

    @property
    def size(self) -> int:
        """The size of the blob in bytes."""
        return self.wanted.size


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """A blob that is a file of the user's, `relative` below `root`."""

    digest: Digest
    size: int
    root: Path
    relative: str

    @property
    def path(self) -> Path:
        """The file, for messages."""
        return self.root / self.relative

    @contextmanager
    def opened(self) -> Iterator[int]:
        """Give the open file, no symbolic link followed below `root`."""
        descriptor = open_beneath(self.root, self.relative)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Every blob of a lock once, and what was found out on the way: packed charts and the kinds of model files by name."""

    remote: tuple[Remote, ...]
    local: tuple[Local, ...]
    charts: dict[str, PackedChart]
    models: dict[str, tuple[ModelFile, ...]]

    @property
    def size(self) -> int:
        """Bytes of all fetched and local blobs."""
        return sum(each.wanted.size for each in self.remote) + sum(each.size for each in self.local)


def find_sources(lock: Lock, folder: Path, tools: Tools) -> Sources:
    """Return where the blobs of `lock` come from; its paths are relative to `folder`.

    Raises:
        VerificationError: a chart or model is not what it was when the lock was made.
        FormatError: the lock gives one digest two sizes; a malformed chart or model.
        HostError: unreadable.
    """
    charts = {}
    for chart in lock.charts:
        packed = pack_chart(folder / chart.path)
        if packed.digest != chart.payload:
            raise changed(folder / chart.path)
        charts[chart.name] = packed
    models = {model.name: files_as_locked(model, folder / model.path) for model in lock.models}
    local = {
        file.digest: Local(digest=file.digest, size=file.size, root=folder / model.path, relative=file.path)
        for model in lock.models
        for file in model.files
    }
    remote: dict[Digest, Remote] = {}
    for each in (*_images(lock, tools), *_packages(lock)):
        _add(remote, each)
    for file in lock.files:
        path = local_file(file.url)
        if path is not None:
            local[file.digest] = Local(digest=file.digest, size=file.size, root=path.parent, relative=path.name)
        else:
            wanted = Wanted(digest=file.digest, size=file.size, what=f"file {file.name}")
            _add(remote, Remote(wanted=wanted, open_at=tools.file_opener(file.url)))
    return Sources(
        remote=tuple(each for digest, each in remote.items() if digest not in local),
        local=tuple(local.values()),
        charts=charts,
        models=models,
    )


def _add(found: dict[Digest, Remote], each: Remote) -> None:
    known = found.setdefault(each.wanted.digest, each)
    if known.wanted.size != each.wanted.size:
        raise FormatError(
            f"the lock gives {each.wanted.digest} two sizes, for {known.wanted.what} and {each.wanted.what}", hint="lock the profile again"
        )


def _images(lock: Lock, tools: Tools) -> Iterator[Remote]:
    for image in lock.images:
        reference = parse_reference(image.reference)
        for blob in image.blobs:
            opener = tools.registry.opener(reference, blob.digest, manifest=blob.digest in {image.index, image.manifest})
            yield Remote(wanted=Wanted(digest=blob.digest, size=blob.size, what=f"{image.reference}: {blob.digest}"), open_at=opener)


def _packages(lock: Lock) -> Iterator[Remote]:
    for package in lock.packages.packages if lock.packages else ():
        wanted = Wanted(digest=package.digest, size=package.size, what=f"package {package.name}")
        yield Remote(wanted=wanted, open_at=None, url_path=package.url_path)
