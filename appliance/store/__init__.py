# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The site's content-addressed blobs and releases.

```
<state>/store/blobs/sha256/<hex>      0444, verified whole before it got this name
<state>/store/staging/                being read; nothing here is believed by anybody else
<state>/store.lock                    held while blobs or releases change
<state>/releases/<hex>/metadata/      verified metadata of one release; <hex> is the digest of its release.json
<state>/releases/<hex>/registry/      its registry tree: hard links into the store (appliance.store.registry)
<state>/releases/<hex>/packages/      its package repository: hard links into the store (appliance.store.packages)
<state>/releases/current              symbolic link to the release imported last
<state>/trust/<line>/                 what is pinned (appliance.verify)
<state>/log/imports.jsonl             who imported what, when
```
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import msgspec

from appliance.adapters import disk
from appliance.adapters.ownership import require_own
from appliance.bundle.contents import Blob
from appliance.bundle.documents import reason_of
from appliance.digests import Digest, hex_of
from appliance.errors import ApplianceError, FormatError, HostError, UsageError, VerificationError
from appliance.trust.client import VerifiedBundle, verify_metadata
from appliance.trust.clock import parse_instant
from appliance.verify.metadata import read_metadata

CURRENT = "current"
_HEX = re.compile(r"[0-9a-f]{64}")
_PINNED_ROOT_LIMIT = 1024 * 1024
_READ_AGAIN = "read the media of this release again: appliance media read DIR..."


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRelease:
    """A release whose metadata the store keeps; `missing` are the blobs it needs and the store has not."""

    digest: Digest
    path: Path
    bundle: VerifiedBundle
    missing: tuple[Digest, ...]

    @property
    def complete(self) -> bool:
        """Whether every blob is in the store."""
        return not self.missing


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedRelease:
    """A release's folder whose metadata is not what was imported; reading its media again replaces it."""

    path: Path
    error: ApplianceError


class _IssuedAt(msgspec.Struct, frozen=True):
    issued: str = msgspec.field(name="x-issued")


class _Timestamp(msgspec.Struct, frozen=True):
    signed: _IssuedAt


class Store:
    """What lies below one state folder. Reading needs no lock; `lock` is for those who change it."""

    def __init__(self, state: Path) -> None:
        """Name the places below `state`; nothing is touched yet."""
        self.state = state
        self.blobs = state / "store" / "blobs" / "sha256"
        self.staging = state / "store" / "staging"
        self.releases_folder = state / "releases"
        self.trust_folder = state / "trust"
        self.imports_log = state / "log" / "imports.jsonl"

    def blob_path(self, digest: Digest) -> Path:
        """Where the bytes of `digest` are, or would be."""
        return self.blobs / hex_of(digest)

    def has(self, blob: Blob) -> bool:
        """Whether the blob is in the store with its size; its bytes were verified before it got its name."""
        try:
            status = self.blob_path(blob.digest).lstat()
        except OSError:
            return False
        return stat.S_ISREG(status.st_mode) and status.st_size == blob.size

    def missing(self, blobs: Mapping[Digest, Blob]) -> tuple[Digest, ...]:
        """Return those of `blobs` that the store has not, sorted."""
        return tuple(digest for digest in sorted(blobs) if not self.has(blobs[digest]))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the store for changes.

        Raises:
            HostError: another process holds it; its process id is named. Or others may write to it, see `require_own`.
        """
        self.require_own()
        with disk.locked(self.state / "store.lock", what=f"the store {self.state}"):
            yield

    def require_own(self) -> None:
        """Refuse a state that others may write to, or whose folders are symbolic links.

        Raises:
            HostError: the first such folder.
        """
        require_own([self.state], links=True)
        require_own([self.blobs.parent.parent, self.blobs.parent, self.blobs, self.staging, self.releases_folder, self.trust_folder])

    def trust_of(self, line: str | None = None) -> Path:
        """Return the folder of the pinned trust of `line`, or of the only line there is.

        Raises:
            HostError: nothing is pinned.
            UsageError: several lines are pinned and none is named.
        """
        found = sorted(path.parent for path in self.trust_folder.glob("*/root.json"))
        if line is not None and (self.trust_folder / line) in found:
            return self.trust_folder / line
        if not found:
            raise HostError(
                f"{self.trust_folder}: no publication is pinned on this machine",
                hint="compare the root with the paper sheet and pin it: appliance site init SITE.toml --root ROOT.json",
            )
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise UsageError(f"several lines are pinned here: {names}", hint="give media of one of these lines")
        return found[0]

    def load(self, path: Path) -> StoredRelease:
        """Return the release in the folder `path`, its metadata verified again from the root pinned by hand.

        It was in time when it was imported; here it is judged at the moment it was issued, so that a site can go on
        using what it has. `bundle.expires` says until when it is fresh.

        Raises:
            VerificationError, FormatError, HostError: the folder was changed since the import.
        """
        if not (path / "metadata").is_dir():
            raise FormatError(f"{path}: the metadata of this release is gone", hint=_READ_AGAIN)
        files = read_metadata(path)
        trust = self._trust_for(files)
        pinned = disk.read_small(trust / "root.json", limit=_PINNED_ROOT_LIMIT)
        try:
            bundle = verify_metadata(files, pinned_root=pinned, seen=None, now=_issued(files))
        except (FormatError, VerificationError) as error:
            raise type(error)(f"{path}: {error.message}", hint=_READ_AGAIN) from error
        return StoredRelease(digest=bundle.digest, path=path, bundle=bundle, missing=self.missing(bundle.blobs))

    def _trust_for(self, files: Mapping[str, bytes]) -> Path:
        return self.trust_of(line_named_in(files))

    def releases(self) -> tuple[StoredRelease, ...]:
        """Return every release, the newest (by its signed versions) first.

        Raises:
            VerificationError, FormatError, HostError: see `load`.
        """
        whole, damaged = self.survey()
        if damaged:
            raise damaged[0].error
        return whole

    def survey(self) -> tuple[tuple[StoredRelease, ...], tuple[DamagedRelease, ...]]:
        """Return the releases that verify, the newest (by its signed versions) first, and the folders that do not.

        Raises:
            HostError: the folder of releases cannot be read.
        """
        self.require_own()
        if not self.releases_folder.is_dir():
            return (), ()
        with disk.at(self.releases_folder):
            folders = sorted(path for path in self.releases_folder.iterdir() if _HEX.fullmatch(path.name) and not path.is_symlink())
        whole: list[StoredRelease] = []
        damaged: list[DamagedRelease] = []
        for path in folders:
            try:
                whole.append(self.load(path))
            except ApplianceError as error:
                damaged.append(DamagedRelease(path=path, error=error))
        return tuple(sorted(whole, key=lambda release: _order(release.bundle), reverse=True)), tuple(damaged)

    def release(self, digest: Digest | None = None) -> StoredRelease:
        """Return the release `digest`, or the one imported last.

        Raises:
            HostError: the store has no such release.
        """
        self.require_own()
        path = self.releases_folder / (hex_of(digest) if digest else CURRENT)
        if not path.is_dir():
            name = f"release {digest}" if digest else "release"
            raise HostError(f"{self.state}: the store has no {name}", hint="read its media first: appliance media read DIR...")
        return self.load(path.resolve())


def _issued(files: Mapping[str, bytes]) -> datetime:
    try:
        text = msgspec.json.decode(files.get("timestamp.json", b""), type=_Timestamp).signed.issued
    except (msgspec.MsgspecError, RecursionError) as error:
        raise FormatError(f"timestamp.json: {reason_of(error)}") from error
    return parse_instant(text, what="timestamp.json")


def _order(bundle: VerifiedBundle) -> tuple[int, int, int]:
    return (bundle.seen.timestamp, bundle.seen.snapshot, bundle.seen.targets)


def line_named_in(files: Mapping[str, bytes]) -> str | None:
    """Return the line that `release.json` among `files` names, unverified: it only selects whose pinned root will judge."""

    class _Line(msgspec.Struct, frozen=True):
        line: str

    for path, data in files.items():
        if path.startswith("targets/") and path.endswith(".release.json"):
            try:
                return msgspec.json.decode(data, type=_Line).line
            except msgspec.MsgspecError:
                return None
    return None
