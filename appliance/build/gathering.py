# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Every blob of a lock into `BUNDLE.partial/blobs`: fetched or read, verified against the lock, hashed once.

A blob from the web goes through the download cache and is a hard link to it; a user's file is cloned or copied, and
linked only when asked. The journal beside the blobs says which are whole, and of large ones how many chunks are.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from appliance.adapters.disk import at, require_space
from appliance.adapters.hashing import Advance, FileHashes, ignore
from appliance.adapters.ingest import Resume, can_clone, ingest, open_beneath
from appliance.adapters.packages import Apt, Download
from appliance.adapters.parallel import for_each
from appliance.build.cache import DownloadCache
from appliance.build.collecting import FETCHING
from appliance.build.journal import Journal
from appliance.build.models import changed
from appliance.build.sources import Local, Remote, Sources
from appliance.digests import Digest, hex_of
from appliance.errors import ToolError, VerificationError
from appliance.progress import Progress

_BATCH = 32
_SPARE = 32 * 1024 * 1024
"""Room for documents, metadata, the installer and what file systems keep for themselves."""


@dataclass(slots=True, kw_only=True)
class Gatherer:
    """Gathers `sources` into the folder `blobs`; `copied` counts the bytes that were written there."""

    sources: Sources
    blobs: Path
    journal: Journal
    cache: DownloadCache
    apt: Apt
    link: bool
    workers: int
    progress: Progress
    found: dict[Digest, FileHashes] = field(default_factory=dict)

    def check_space(self) -> None:
        """Refuse before the first byte when it cannot fit.

        Raises:
            HostError: with what is needed and available.
        """
        fetching = sum(self.cache.missing_bytes(each.wanted) for each in self.sources.remote)
        linked = self._same_device()
        writing = _SPARE if linked else _SPARE + sum(each.wanted.size for each in self.sources.remote if not self._done(each.wanted.digest))
        writing += self._local_bytes()
        if linked:
            require_space(self.blobs, fetching + writing, what="this bundle with its downloads")
            return
        require_space(self.cache.root, fetching, what="downloading this bundle")
        require_space(self.blobs, writing, what="this bundle")

    def _local_bytes(self) -> int:
        """Return the bytes to copy from the user's folders; links and clones cost none, nor what a killed run has copied."""
        folders: dict[Path, list[Local]] = {}
        for each in self.sources.local:
            if each.size and not self._done(each.digest):
                folders.setdefault(each.root, []).append(each)
        return sum(self._missing(each) for items in folders.values() if not self._shares(items[0]) for each in items)

    def _shares(self, item: Local) -> bool:
        """Whether the folder of `item` and the bundle can have one copy of the bytes."""
        with item.opened() as source, at(self.blobs):
            return (self.link and os.fstat(source).st_dev == self.blobs.stat().st_dev) or can_clone(source, self.blobs)

    def _missing(self, item: Local) -> int:
        try:
            return max(0, item.size - self._target(item.digest).stat().st_blocks * 512)
        except FileNotFoundError:
            return item.size

    def _same_device(self) -> bool:
        with at(self.blobs):
            return self.cache.root.stat().st_dev == self.blobs.stat().st_dev

    def _target(self, digest: Digest) -> Path:
        return self.blobs / hex_of(digest)

    def _done(self, digest: Digest) -> FileHashes | None:
        """Return what the journal says of a blob that lies here whole."""
        hashes = self.journal.finished.get(digest)
        try:
            return hashes if hashes and self._target(digest).stat().st_size == hashes.size else None
        except FileNotFoundError:
            return None

    def gather(self) -> dict[Digest, FileHashes]:
        """Gather everything and return what each blob is.

        Raises:
            VerificationError: a source gives other bytes than the lock says.
            HostError, ToolError: no space, or a source failed; running again goes on.
        """
        self._fetch_packages()
        self.progress.start("collect", total=self.sources.size)
        self._all(self.sources.remote, FETCHING)
        self._all(self.sources.local, self.workers)
        self.progress.finish()
        return self.found

    def _all(self, items: Sequence[Remote | Local], workers: int) -> None:
        largest_first = sorted(items, key=lambda each: (-each.size, each.digest))
        for hashes in for_each(largest_first, self._one, workers=workers):
            self.found[hashes.digest] = hashes

    def _one(self, item: Remote | Local) -> FileHashes:
        done = self._done(item.digest)
        if done is not None:
            self.progress.advance(done.size)
            return done
        hashes = self._remote(item) if isinstance(item, Remote) else self._local(item)
        self.journal.blob_done(hashes)
        return hashes

    def _remote(self, item: Remote) -> FileHashes:
        wanted = item.wanted
        for last in (False, True):
            fetched = None
            if not self.cache.holds(wanted.digest, wanted.size):
                if item.open_at is None:
                    raise ToolError(f"{wanted.what} was in the cache and is gone", step="collect", hint="run the same command again")
                fetched = self.cache.fetch(wanted, item.open_at, advance=self.progress.advance)
            hashes = self._from_cache(wanted.digest, fetched)
            if (hashes.digest, hashes.size) == (wanted.digest, wanted.size):
                return hashes
            self._spoiled(wanted.digest)
            if last:
                break
            self.progress.advance(-hashes.size)
            self.cache.drop(wanted.digest)
            if item.open_at is None:
                self._fetch_packages()
        raise VerificationError(
            f"{wanted.what}: the cached file is not {wanted.digest}, twice", hint=f"check the disk under {self.cache.root}"
        )

    def _from_cache(self, digest: Digest, fetched: FileHashes | None) -> FileHashes:
        """Link the cached blob, or copy it to another file system; hash it unless that was done while it came in."""
        target = self._target(digest)
        source = open_beneath(self.cache.root, hex_of(digest))
        try:
            if fetched is not None and self._same_device():
                with at(target):
                    target.unlink(missing_ok=True)
                    os.link(self.cache.path(digest), target, follow_symlinks=False)
                return fetched
            advance = self.progress.advance if fetched is None else ignore
            return self._ingest(source, digest, path=self.cache.path(digest), link=True, advance=advance)
        finally:
            os.close(source)

    def _local(self, item: Local) -> FileHashes:
        with item.opened() as source:
            hashes = self._ingest(source, item.digest, path=item.path, link=self.link, advance=self.progress.advance)
        if (hashes.digest, hashes.size) != (item.digest, item.size):
            self._spoiled(item.digest)
            raise changed(item.path)
        return hashes

    def _ingest(self, source: int, digest: Digest, *, path: Path, link: bool, advance: Advance) -> FileHashes:
        begun = self.journal.begun.get(digest)
        resume = Resume(chunks=begun.chunks, state=begun.state) if begun else None
        if resume is not None and not self._target(digest).exists():
            self.journal.forget(digest)
            resume = None
        if resume is not None:
            advance(min(os.fstat(source).st_size, resume.size))

        def chunk_done(chunk: Digest, state: bytes) -> None:
            self.journal.chunk_done(digest, chunk, state)

        return ingest(source, self._target(digest), path=path, link=link, resume=resume, chunk_done=chunk_done, advance=advance)

    def _spoiled(self, digest: Digest) -> None:
        with at(self._target(digest)):
            self._target(digest).unlink(missing_ok=True)
        self.journal.forget(digest)

    def _fetch_packages(self) -> None:
        """Let apt fetch the packages that neither bundle nor cache has."""
        missing = [
            each
            for each in self.sources.remote
            if each.open_at is None and not self._done(each.wanted.digest) and not self.cache.holds(each.wanted.digest, each.wanted.size)
        ]
        if not missing:
            return
        self.progress.start("fetch packages", total=sum(each.wanted.size for each in missing))
        for batch in _batches(missing):
            asked = [
                Download(path=each.url_path, digest=each.wanted.digest, target=self.cache.scratch(each.wanted.digest)) for each in batch
            ]
            self.apt.download(asked)
            for each in batch:
                self.cache.adopt(self.cache.scratch(each.wanted.digest), each.wanted)
                self.progress.advance(each.wanted.size)


def _batches(items: list[Remote]) -> Iterator[list[Remote]]:
    left = iter(items)
    while batch := list(islice(left, _BATCH)):
        yield batch
