# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The download cache: blobs by digest under `${XDG_CACHE_HOME}/appliance/downloads`, filled piece by piece.

```
sha256/<hex>            whole, was verified when it came; used only after it was hashed again
partial/<hex>           being fetched; <hex>.journal says up to which chunk it is good
```

A broken connection goes on at the byte it broke at; a killed process at the last whole chunk, without reading what it
already hashed. Two processes that want the same blob wait for each other; the kernel ends the wait when one dies.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from appliance.adapters import midstate
from appliance.adapters.disk import at, make_directory, write_fully
from appliance.adapters.download import Pauses, Transient, read_body
from appliance.adapters.hashing import Advance, FileHashes, hash_file, ignore
from appliance.build.journal import Journal
from appliance.digests import CHUNK_BYTES, Digest, hex_of
from appliance.errors import VerificationError

OpenAt = Callable[[int], AbstractContextManager[httpx.Response]]
"""Opens the bytes of one thing from an offset on; the answer may be the whole thing (HTTP 200) all the same."""

_PARTIAL_CONTENT = 206
_MOVED = 1024 * 1024


def default_cache() -> Path:
    """Return the user's cache folder of this program (XDG base directory specification)."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base and base.startswith("/") else Path.home() / ".cache") / "appliance"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One blob to fetch; `what` names it in messages."""

    digest: Digest
    size: int
    what: str


class _Receiver:
    """Writes what arrives to an open file and hashes it on the way."""

    def __init__(self, wanted: Wanted, descriptor: int, path: Path, journal: Journal | None, advance: Advance) -> None:
        self._wanted, self._descriptor, self._path, self._journal, self._advance = wanted, descriptor, path, journal, advance
        self._begin(b"", ())
        begun = journal.begun.get(wanted.digest) if journal else None
        if begun is not None and os.fstat(descriptor).st_size >= len(begun.chunks) * CHUNK_BYTES:
            self._begin(begun.state, begun.chunks)
        elif begun is not None and journal is not None:
            journal.forget(wanted.digest)
        advance(self._offset)

    def _begin(self, state: bytes, chunks: tuple[Digest, ...]) -> None:
        self._whole, self._chunk, self._chunks = midstate.begin(state), hashlib.sha256(), list(chunks)
        self._offset = len(chunks) * CHUNK_BYTES

    def _restart(self) -> None:
        self._advance(-self._offset)
        if self._chunks and self._journal is not None:
            self._journal.forget(self._wanted.digest)
        self._begin(b"", ())

    def _take(self, piece: bytes) -> None:
        view = memoryview(piece)
        with at(self._path, needed=max(0, self._wanted.size) or None):
            write_fully(self._descriptor, view, self._offset)
        self._advance(len(view))
        while view:
            now = view[: CHUNK_BYTES - self._offset % CHUNK_BYTES]
            self._whole.update(now)
            self._chunk.update(now)
            self._offset += len(now)
            view = view[len(now) :]
            if self._offset % CHUNK_BYTES == 0:
                self._end_chunk()

    def _end_chunk(self) -> None:
        self._chunks.append(Digest("sha256:" + self._chunk.hexdigest()))
        self._chunk = hashlib.sha256()
        if self._journal is not None:
            self._journal.chunk_done(self._wanted.digest, self._chunks[-1], midstate.freeze(self._whole))

    def receive(self, open_at: OpenAt, pauses: Pauses) -> FileHashes:
        """Receive to the end, or until there is more than was wanted; return what came."""
        with at(self._path):
            os.ftruncate(self._descriptor, self._offset)
        size = self._wanted.size
        while size < 0 or self._offset < size:
            before = self._offset
            try:
                self._once(open_at)
                break
            except Transient as error:
                if self._offset - before >= _MOVED:
                    pauses.moved()
                if size < 0:
                    self._restart()
                pauses.after(error)
        with at(self._path):
            os.ftruncate(self._descriptor, self._offset)
        if self._offset % CHUNK_BYTES or self._offset == 0:
            self._end_chunk()
        chunks = tuple(self._chunks) if len(self._chunks) > 1 else ()
        return FileHashes(size=self._offset, digest=Digest("sha256:" + self._whole.hexdigest()), chunks=chunks)

    def _once(self, open_at: OpenAt) -> None:
        with open_at(self._offset) as answer:
            ranged = answer.status_code == _PARTIAL_CONTENT
            if self._offset and not (ranged and answer.headers.get("content-range", "").startswith(f"bytes {self._offset}-")):
                if ranged:
                    raise Transient("the answer is not the range that was asked for")
                self._restart()
            for piece in read_body(answer):
                self._take(piece)
                if 0 <= self._wanted.size < self._offset:
                    return
        if self._offset < self._wanted.size:
            raise Transient(f"the stream ended after {self._offset} of {self._wanted.size} bytes")


class DownloadCache:
    """The cache below `root`; safe to use from several threads and processes."""

    def __init__(self, root: Path, *, wait: Callable[[float], None]) -> None:
        """Make the folders; `wait` sleeps between tries."""
        self._blobs, self._partial, self._wait = root / "sha256", root / "partial", wait
        make_directory(self._blobs, mode=0o700)
        make_directory(self._partial, mode=0o700)

    @property
    def root(self) -> Path:
        """Where the blobs lie."""
        return self._blobs

    def path(self, digest: Digest) -> Path:
        """Return where a whole blob lies or would lie."""
        return self._blobs / hex_of(digest)

    def holds(self, digest: Digest, size: int) -> bool:
        """Whether a blob of that size lies here; its bytes are not looked at."""
        try:
            return self.path(digest).stat().st_size == size
        except OSError:
            return False

    def missing_bytes(self, wanted: Wanted) -> int:
        """Return how many bytes fetching `wanted` would still add to this file system."""
        if self.holds(wanted.digest, wanted.size):
            return 0
        try:
            there = (self._partial / hex_of(wanted.digest)).stat().st_blocks * 512
        except OSError:
            there = 0
        return max(0, wanted.size - there)

    def drop(self, digest: Digest) -> None:
        """Remove a blob whose bytes turned out to be wrong."""
        with at(self.path(digest)):
            self.path(digest).unlink(missing_ok=True)

    def fetch(self, wanted: Wanted, open_at: OpenAt, *, advance: Advance = ignore) -> FileHashes:
        """Fetch `wanted` and return its hashes; the file is whole, verified and at `path` then.

        Raises:
            VerificationError: the source gives other bytes, twice.
            ToolError: the source failed; what came is kept.
            HostError: no space; what came is kept.
        """
        for last in (False, True):
            hashes = self._try(wanted, open_at, advance)
            if hashes.digest == wanted.digest and hashes.size == wanted.size:
                return hashes
            if last:
                raise VerificationError(
                    f"{wanted.what}: expected {wanted.digest} of {wanted.size} bytes, got {hashes.digest} of {hashes.size}, twice",
                    hint="the source or something before it changed the bytes: ask its owner, or lock again if the change is wanted",
                )
            advance(-hashes.size)
        raise AssertionError(wanted)

    def _try(self, wanted: Wanted, open_at: OpenAt, advance: Advance) -> FileHashes:
        name = hex_of(wanted.digest)
        partial = self._partial / name
        with self._exclusive(partial) as descriptor:
            if self.path(wanted.digest).exists():
                hashes = hash_file(self.path(wanted.digest))
                if hashes.digest == wanted.digest:
                    partial.unlink()
                    advance(hashes.size)
                    return hashes
                self.drop(wanted.digest)
            log = self._partial / f"{name}.journal"
            journal = Journal(log) if wanted.size > CHUNK_BYTES else None
            try:
                receiver = _Receiver(wanted, descriptor, partial, journal, advance)
                hashes = receiver.receive(open_at, Pauses(wanted.what, step="download", wait=self._wait))
            finally:
                if journal is not None:
                    journal.close()
            with at(partial):
                log.unlink(missing_ok=True)
                if (hashes.digest, hashes.size) != (wanted.digest, wanted.size):
                    partial.unlink()
                    return hashes
                os.fchmod(descriptor, 0o444)
                os.fsync(descriptor)
                partial.rename(self.path(wanted.digest))
            return hashes

    def adopt(self, path: Path, wanted: Wanted) -> FileHashes:
        """Take the file `path`, which another program fetched onto this file system, in as `wanted`.

        Raises:
            VerificationError: it is something else; it is removed.
        """
        hashes = hash_file(path)
        with at(path):
            if (hashes.digest, hashes.size) != (wanted.digest, wanted.size):
                path.unlink()
                raise VerificationError(
                    f"{wanted.what}: expected {wanted.digest} of {wanted.size} bytes, got {hashes.digest} of {hashes.size}",
                    hint="run again; if it stays, lock again and look at what changed",
                )
            path.chmod(0o444)
            path.rename(self.path(wanted.digest))
        return hashes

    def scratch(self, digest: Digest) -> Path:
        """Return where another program may put the bytes of `digest`, for `adopt`."""
        return self._partial / f"other-{hex_of(digest)}"

    def fetch_unknown(self, open_at: OpenAt, *, what: str, key: str, advance: Advance = ignore) -> FileHashes:
        """Fetch something whose digest is not known yet and keep it under the digest it turns out to have.

        Raises:
            ToolError: the source failed.
            HostError: no space.
        """
        partial = self._partial / f"url-{hashlib.sha256(key.encode()).hexdigest()}"
        with self._exclusive(partial) as descriptor:
            receiver = _Receiver(Wanted(digest=Digest(""), size=-1, what=what), descriptor, partial, None, advance)
            hashes = receiver.receive(open_at, Pauses(what, step="download", wait=self._wait))
            with at(partial):
                os.fchmod(descriptor, 0o444)
                os.fsync(descriptor)
                partial.rename(self.path(hashes.digest))
            return hashes

    @contextmanager
    def _exclusive(self, partial: Path) -> Iterator[int]:
        """Open `partial` for writing, alone; a file that another process renamed away meanwhile is left to it."""
        while True:
            with at(partial):
                descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            try:
                if partial.exists() and os.path.samestat(partial.stat(), os.fstat(descriptor)):
                    yield descriptor
                    return
            finally:
                os.close(descriptor)
