# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Blobs on their way into the store. Only what was verified leaves this folder, by rename, after a sync.

```
<hex>.tmp            a small blob being written; never believed
<hex>                a small blob, verified whole
<hex>.data           a blob of several chunks, at its full size
<hex>.journal        its verified chunks: lines `<index> [<hash state behind it>]`
<set hex>.parts      the parts of a set that were read whole, over several visits
boot                 the boot during which all this was written
```

Nothing is synced chunk by chunk: after a killed process the kernel still has every byte, so the journal holds. After
another boot it may not, so everything here is hashed again first; what is wrong is read from the media once more.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from appliance.adapters import disk, hashing, midstate
from appliance.adapters.copying import Sink, Source, copy_range
from appliance.adapters.ingest import ResumableTwin
from appliance.bundle.contents import Blob
from appliance.bundle.media import ChunkEntry
from appliance.carry.parts import opened
from appliance.digests import CHUNK_BYTES, Digest, chunk_size, hex_of
from appliance.errors import HostError
from appliance.store import Store

_BLOB_MODE = 0o444


@dataclass(slots=True, kw_only=True)
class StagedBlob:
    """A blob of several chunks. One worker at a time, except for `done`, which `lock` guards.

    `hashed` chunks from the front are in the hash `state`.
    """

    blob: Blob
    path: Path
    journal: Path
    done: set[int] = field(default_factory=set)
    hashed: int = 0
    state: bytes = b""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def complete(self) -> bool:
        """Whether every chunk is verified."""
        return len(self.done) == len(self.blob.chunks)

    def load(self) -> None:
        """Take over what an earlier run of this boot verified."""
        try:
            lines = self.journal.read_text(encoding="ascii", errors="replace").split("\n")[:-1]
            if not self.path.is_file() or self.path.lstat().st_size != self.blob.size:
                return
        except OSError:
            return
        states: dict[int, bytes] = {}
        for line in lines:
            number, _, state = line.partition(" ")
            if number.isascii() and number.isdigit() and int(number) < len(self.blob.chunks):
                self.done.add(int(number))
                with suppress(ValueError):
                    states[int(number)] = bytes.fromhex(state)
        front = 0
        while front in self.done and states.get(front):
            front += 1
        if front:
            self.hashed, self.state = front, states[front - 1]

    def record(self, index: int, state: bytes = b"") -> None:
        """Note a verified chunk, with the hash state behind it if every chunk before it is in that hash."""
        with self.lock, disk.at(self.journal):
            descriptor = os.open(self.journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            try:
                disk.append(descriptor, f"{index} {state.hex()}\n".encode("ascii"))
            finally:
                os.close(descriptor)
            self.done.add(index)

    def forget(self) -> None:
        """Throw away what is here."""
        self.done.clear()
        self.hashed, self.state = 0, b""
        with disk.at(self.path):
            self.path.unlink(missing_ok=True)
            self.journal.unlink(missing_ok=True)


class Staging:
    """The staging folder of a store whose lock is held."""

    def __init__(self, store: Store) -> None:
        """Name the folder; `prepare` opens it."""
        self.store = store
        self.folder = store.staging
        self.large: dict[Digest, StagedBlob] = {}
        self._small: set[Digest] = set()
        self._lock = threading.Lock()

    def prepare(self, wanted: Mapping[Digest, Blob]) -> None:
        """Find what earlier runs left of the `wanted` blobs; hash it again if the machine was booted since.

        Raises:
            HostError: the folder cannot be used.
        """
        disk.make_directory(self.folder, mode=0o700)
        disk.make_directory(self.store.blobs)
        boot = self.folder / "boot"
        same = boot.is_file() and boot.read_text(encoding="ascii") == disk.boot_id()
        for blob in wanted.values():
            if blob.chunks:
                staged = StagedBlob(
                    blob=blob, path=self.folder / f"{hex_of(blob.digest)}.data", journal=self.folder / f"{hex_of(blob.digest)}.journal"
                )
                staged.load()
                if not same:
                    self._hash_again(staged)
                self.large[blob.digest] = staged
            elif self._is_staged(blob) and (same or hashing.hash_file(self._path(blob)).digest == blob.digest):
                self._small.add(blob.digest)
        if not same:
            disk.write_atomic(boot, disk.boot_id().encode())

    def _path(self, blob: Blob) -> Path:
        return self.folder / hex_of(blob.digest)

    def _is_staged(self, blob: Blob) -> bool:
        try:
            return self._path(blob).lstat().st_size == blob.size
        except OSError:
            return False

    def _hash_again(self, staged: StagedBlob) -> None:
        claimed, staged.done = sorted(staged.done), set()
        staged.hashed, staged.state = 0, b""
        if not claimed:
            return
        staged.journal.unlink(missing_ok=True)
        with opened(staged.path) as descriptor:
            for index in claimed:
                size = chunk_size(staged.blob.size, index)
                if hashing.hash_range(descriptor, index * CHUNK_BYTES, size, path=staged.path) == staged.blob.chunks[index]:
                    staged.record(index)

    def has_chunk(self, blob: Blob, index: int) -> bool:
        """Whether that chunk is verified here."""
        return index in self.large[blob.digest].done if blob.chunks else blob.digest in self._small

    def staged_bytes(self, wanted: Mapping[Digest, Blob]) -> int:
        """How much of the file system what is staged of `wanted` already takes."""
        total = 0
        for blob in wanted.values():
            with suppress(OSError):
                path = self.large[blob.digest].path if blob.chunks else self._path(blob)
                total += min(blob.size, path.lstat().st_blocks * 512)
        return total

    def add_small(
        self, source: Source, entry: ChunkEntry, blob: Blob, *, path: Path, advance: hashing.Advance
    ) -> list[ChunkEntry | HostError]:
        """Copy a blob of one chunk from the open part; return what is wrong with it, as `add_run` does.

        Raises:
            HostError: the store cannot be written.
        """
        target = self._path(blob)
        temporary = target.with_suffix(".tmp")
        try:
            temporary.unlink(missing_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _BLOB_MODE)
            try:
                found = copy_range(source, entry.offset, entry.size, target=Sink(descriptor), at_byte=0, path=path, advance=advance)
                if stat.S_IMODE(os.fstat(descriptor).st_mode) != _BLOB_MODE:  # the umask took bits away
                    os.fchmod(descriptor, _BLOB_MODE)
            finally:
                os.close(descriptor)
            if found == entry.digest:
                temporary.rename(target)
            else:
                temporary.unlink()
        except OSError as error:
            raise disk.host_error(error, target, needed=blob.size) from error
        except HostError as error:
            return [error]
        if found != entry.digest:
            return [entry]
        with self._lock:
            self._small.add(blob.digest)
        return []

    def add_run(
        self, source: Source, run: Sequence[tuple[ChunkEntry, int]], blob: Blob, *, path: Path, advance: hashing.Advance
    ) -> list[ChunkEntry | HostError]:
        """Copy chunks (entry, index in the blob) of one large blob from the open part; return those that are wrong.

        While chunks come in order, the blob's own hash goes along over the same buffers. A chunk that cannot be read is
        an exception in the list; the chunks behind it are still tried.

        Raises:
            HostError: the store cannot be written.
        """
        staged = self.large[blob.digest]
        with disk.at(staged.path, needed=blob.size):
            target = os.open(staged.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        twin: ResumableTwin | None = None
        wrong: list[ChunkEntry | HostError] = []
        sink = Sink(target, direct=True)
        try:
            if os.fstat(target).st_size != blob.size:
                with disk.at(staged.path, needed=blob.size):
                    os.ftruncate(target, blob.size)
                    disk.reserve(target, blob.size, staged.path)
            for entry, index in run:
                if index == staged.hashed and twin is None:
                    twin = ResumableTwin(staged.state)
                along = twin if twin is not None and index == staged.hashed else None
                trouble = self._copy(source, entry, index, sink, staged, path, along, advance)
                if trouble is None:
                    staged.record(index, self._advance(staged, along))
                    continue
                wrong.append(trouble)
                if along is not None:
                    along.close()
                    twin = None
        finally:
            if twin is not None:
                twin.close()
            sink.close()
            os.close(target)
        return wrong

    @staticmethod
    def _copy(  # noqa: PLR0917 - private
        source: Source,
        entry: ChunkEntry,
        index: int,
        sink: Sink,
        staged: StagedBlob,
        path: Path,
        twin: ResumableTwin | None,
        advance: hashing.Advance,
    ) -> ChunkEntry | HostError | None:
        """Copy one chunk; return None, the entry if it is damaged, or why it cannot be read."""
        try:
            found = copy_range(
                source, entry.offset, entry.size, target=sink, at_byte=index * CHUNK_BYTES, path=path, twin=twin, advance=advance
            )
        except OSError as error:
            raise disk.host_error(error, staged.path, needed=staged.blob.size) from error
        except HostError as error:
            return error
        return None if found == entry.digest else entry

    @staticmethod
    def _advance(staged: StagedBlob, twin: ResumableTwin | None) -> bytes:
        if twin is None:
            return b""
        state = twin.freeze()
        if state:
            staged.hashed, staged.state = staged.hashed + 1, state
        return state

    def check_whole(self, blob: Blob, *, advance: hashing.Advance = hashing.ignore) -> bool:
        """Whether a large blob whose chunks are all here is the blob: what was not hashed in order is read once more.

        If its chunks are as listed but are not this blob, what is here is thrown away.
        """
        staged = self.large[blob.digest]
        state = midstate.begin(staged.state)
        done = staged.hashed * CHUNK_BYTES
        with opened(staged.path) as descriptor:
            while done < blob.size:
                with disk.at(staged.path):
                    view = hashing.buffer()
                    got = hashing.fill(descriptor, view[: min(len(view), blob.size - done)], done)
                if got == 0:
                    break
                state.update(view[:got])
                done += got
                advance(got)
        if state.hexdigest() == hex_of(blob.digest):
            return True
        staged.forget()
        return False

    def publish(self, blobs: Iterable[Blob]) -> int:
        """Give whole, verified blobs their names in the store, after one sync for all; return their bytes."""
        ready = list(blobs)
        if not ready:
            return 0
        for blob in ready:
            if blob.chunks:
                path = self.large[blob.digest].path
                with disk.at(path):
                    path.chmod(_BLOB_MODE)
        disk.sync_filesystem(self.folder)
        for blob in ready:
            staged = self.large.get(blob.digest)
            with disk.at(self.store.blob_path(blob.digest)):
                (staged.path if staged else self._path(blob)).rename(self.store.blob_path(blob.digest))
                if staged:
                    staged.journal.unlink(missing_ok=True)
        disk.sync_directory(self.store.blobs)
        return sum(blob.size for blob in ready)

    def parts_read(self, name: Digest) -> set[int]:
        """The indices of the parts of set `name` that were read whole, in this and earlier visits."""
        try:
            lines = (self.folder / f"{hex_of(name)}.parts").read_text(encoding="ascii").split("\n")[:-1]
        except OSError:
            return set()
        return {int(line) for line in lines if line.isascii() and line.isdigit()}

    def note_parts(self, name: Digest, indices: set[int]) -> None:
        """Remember that these parts were read whole."""
        text = "".join(f"{index}\n" for index in sorted(indices))
        disk.write_atomic(self.folder / f"{hex_of(name)}.parts", text.encode("ascii"))

    def forget_set(self, name: Digest) -> None:
        """Forget the visits of a set whose release is complete."""
        with suppress(OSError):  # a leftover is only a note of what was read
            (self.folder / f"{hex_of(name)}.parts").unlink(missing_ok=True)
