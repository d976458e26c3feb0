# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A whole journey in one folder: a valid bundle, media written from it, a site that pinned its root.

Chunks are 4 KiB here, so that a bundle of some kilobytes has blobs of several chunks and sets of several parts.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from unittest import mock

import msgspec

from appliance.bundle.contents import ContentClass, Contents
from appliance.bundle.media import ChunkEntry, MetadataEntry, encode_head, encode_trailer, part_length, with_offsets
from appliance.carry.parts import read_part
from appliance.carry.read import ReadResult, read_media
from appliance.carry.write import WrittenSet, write_media
from appliance.digests import Digest, digest_of
from appliance.store import Store
from appliance.verify import pin_root
from tests.support.simulator import Files, Line, blob_of, bytes_of, contents_of, file_artifact, write_bundle

CHUNK = 4096
ONE = 10**6
THREE = 24_000
"""Room for chunks that gives one part, or three."""
INSTALLER = b"#!/usr/bin/env python3\n" + bytes(range(256)) * 8
SIZES: Mapping[str, int] = {"large": 5 * CHUNK + 100, "even": 3 * CHUNK, "small": 1000, "one": 1, "chunk": CHUNK, "empty": 0}


@contextmanager
def small_chunks(size: int = CHUNK) -> Iterator[None]:
    """Within the block a chunk has `size` bytes, in every module that has the name."""
    import appliance.carry.status  # noqa: PLC0415 - every module that has the name must be loaded first
    import appliance.store.checking  # noqa: PLC0415, F401

    modules = [module for name, module in list(sys.modules.items()) if name.startswith(("appliance.", "tests.support."))]
    having = [module for module in modules if "CHUNK_BYTES" in vars(module)]
    patches = [mock.patch.object(module, "CHUNK_BYTES", size) for module in having]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def sample(
    sizes: Mapping[str, int] = SIZES, extra: Mapping[str, bytes] | None = None
) -> tuple[dict[ContentClass, Contents], dict[Digest, bytes]]:
    """Contents of files and installer: large and small, an empty one, one whose chunks repeat, one that shares chunks."""
    payloads = {name: bytes_of(name, size) for name, size in sizes.items()}
    if sizes is SIZES:
        payloads["zeros"] = bytes(3 * CHUNK)
        payloads["shares"] = payloads["large"][CHUNK : 3 * CHUNK] + b"tail"
    payloads |= extra or {}
    blobs: dict[Digest, bytes] = {}
    artifacts = []
    for name, payload in payloads.items():
        artifact, more = file_artifact(name, payload)
        artifacts.append(artifact)
        blobs |= more
    files = contents_of(ContentClass.FILES, artifacts, map(blob_of, blobs.values()))
    installer, other = file_artifact("appliance", INSTALLER)
    program = contents_of(ContentClass.INSTALLER, [installer], map(blob_of, other.values()))
    return {ContentClass.FILES: files, ContentClass.INSTALLER: program}, {**blobs, **other}


@dataclass
class World:
    """One publication, its bundle, folders for media, and a site."""

    root: Path
    line: Line = field(default_factory=Line)
    contents: dict[ContentClass, Contents] = field(default_factory=dict)
    blobs: dict[Digest, bytes] = field(default_factory=dict)
    files: Files = field(default_factory=dict)
    number: int = 0
    sizes: Mapping[str, int] = field(default_factory=lambda: SIZES)

    def __post_init__(self) -> None:
        if not self.blobs:
            self.contents, self.blobs = sample(self.sizes)
        self.publish()
        pin_root(self.state / "trust", self.line.pin)

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def store(self) -> Store:
        return Store(self.state)

    @property
    def bundle(self) -> Path:
        return self.root / f"bundle{self.number}"

    def publish(self, *, version: str = "1.0.0", extra: Mapping[str, bytes] | None = None) -> None:
        """Publish a further release and write its bundle folder."""
        if extra:
            self.contents, self.blobs = sample(self.sizes, extra)
        self.number += 1
        self.files = self.line.publish(self.contents, release=self.line.release(version))
        write_bundle(self.bundle, self.files, self.blobs)

    def write(self, to: str = "media", *, room: int = THREE, workers: int = 2) -> WrittenSet:
        """Write the newest bundle as parts that hold about `room` bytes of chunks besides the metadata."""
        part_size = sum(len(data) + 200 for data in self.files.values()) + 1000 + room
        return write_media(self.bundle, self.root / to, part_size=part_size, workers=workers, written_by="ann")

    def parts(self, of: str = "media") -> list[Path]:
        """The parts in a folder."""
        return sorted((self.root / of).glob("*.part"))

    def carry(self, to: str, *parts: Path) -> Path:
        """A folder with copies of `parts` only."""
        folder = self.root / to
        folder.mkdir(exist_ok=True)
        for part in parts:
            shutil.copy2(part, folder)
        return folder

    def read(self, *folders: str, clock: datetime | None = None, workers: int = 2) -> ReadResult:
        """Read folders into the site's store."""
        return read_media(
            [self.root / name for name in (folders or ("media",))], self.store, workers=workers, who="ann", clock=clock or self.line.now
        )

    def trusted(self) -> list[Path]:
        """What a refusal must leave as it is: trust, releases and the log of imports."""
        return [self.state / "trust", self.state / "releases", self.state / "log"]

    def holds_all(self) -> bool:
        """Whether the store has every blob of the newest bundle, byte for byte and read-only, and nothing unverified."""
        store = self.store
        return all(
            store.blob_path(digest).read_bytes() == data and store.blob_path(digest).stat().st_mode & 0o777 == 0o444
            for digest, data in self.blobs.items()
        )


def rewrite(path: Path, metadata: Mapping[str, bytes], more: bytes = b"") -> None:
    """Write the part again, well formed, with other metadata, and with one more chunk if `more` is given."""
    table, data = read_part(path).table, path.read_bytes()
    chunks = b"".join(data[entry.offset : entry.offset + entry.size] for entry in table.chunks)
    entries = tuple(MetadataEntry(path=name, offset=0, size=len(each), digest=digest_of(each)) for name, each in sorted(metadata.items()))
    stray = (ChunkEntry(digest=digest_of(more), offset=0, size=len(more)),) if more else ()
    changed = with_offsets(msgspec.structs.replace(table, metadata=entries, chunks=(*table.chunks, *stray)))
    head = encode_head(changed)
    body = b"".join(each for _, each in sorted(metadata.items())) + chunks + more
    path.write_bytes(head + body + encode_trailer(head, part_length(changed)))
