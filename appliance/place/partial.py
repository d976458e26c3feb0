# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A model on its way: files at their full size in a hidden folder, and a journal of the chunks that were verified.

Journal: `boot <id of the boot>`, then a line `<file> <chunk> [<hash state behind it>]` for each verified chunk, files by
their place in the weights manifest. Nothing is synced chunk by chunk: after a killed process the kernel still has every
byte, so the journal holds. After another boot it may not, so what it claims is hashed again first.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from appliance.adapters import disk, hashing
from appliance.bundle.weights import Weights, WeightsFile
from appliance.digests import CHUNK_BYTES, chunk_count, chunk_size
from appliance.errors import HostError
from appliance.place.observe import expected_chunk, survey
from appliance.place.record import FILE_MODE, FOLDER_MODE

_BEING_WRITTEN = 0o600
_HIDDEN = 0o700
_STATE_BYTES = 112
"""A hash state that `appliance.adapters.midstate` froze; anything else is not thawed."""


class Partial:
    """One model being fetched. The node's lock is held; each file is worked on by one thread."""

    def __init__(self, folder: Path, journal: Path, weights: Weights) -> None:
        """Name the places; `prepare` opens them."""
        self.folder = folder
        self.journal = journal
        self.weights = weights
        self._states: dict[tuple[int, int], bytes] = {}
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Take over what an earlier run verified, and check that what is missing fits.

        Raises:
            HostError: no space, or the folder cannot be used.
        """
        disk.make_directory(self.folder, mode=_HIDDEN)
        self._load()
        disk.require_space(self.folder, self.missing_bytes(on_disk=True), what=f"model {self.weights.name}")
        for file in self.weights.files:
            path = self.folder / file.path
            disk.make_directory(path.parent)
            with disk.at(path):
                if path.is_file() and not path.is_symlink():
                    path.chmod(_BEING_WRITTEN)  # a run that died at its very end left it read-only

    def done(self, file: int, chunk: int) -> bool:
        """Whether that chunk is verified here."""
        return (file, chunk) in self._states

    def state(self, file: int, chunk: int) -> bytes:
        """Return the state of the file's own hash behind that chunk, b"" where it was not kept."""
        return self._states.get((file, chunk), b"")

    def missing_bytes(self, *, on_disk: bool = False) -> int:
        """Return how many bytes are still to be fetched; `on_disk`: how many blocks' worth is still to be reserved."""
        if on_disk:
            return sum(max(0, file.size - _allocated(self.folder / file.path)) for file in self.weights.files)
        return sum(
            chunk_size(file.size, chunk)
            for number, file in enumerate(self.weights.files)
            for chunk in range(chunk_count(file.size))
            if not self.done(number, chunk)
        )

    @contextmanager
    def opened(self, file: WeightsFile) -> Iterator[int]:
        """Have the file open for reading and writing, at its full size with blocks behind it.

        Raises:
            HostError: no space, or it cannot be opened.
        """
        path = self.folder / file.path
        with disk.at(path, needed=file.size):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, _BEING_WRITTEN)
        try:
            with disk.at(path, needed=file.size):
                os.fchmod(descriptor, _BEING_WRITTEN)
                if os.fstat(descriptor).st_size != file.size:
                    os.ftruncate(descriptor, file.size)
                    disk.reserve(descriptor, file.size, path)
            yield descriptor
        finally:
            os.close(descriptor)

    def record(self, file: int, chunk: int, state: bytes = b"") -> None:
        """Note a verified chunk.

        Raises:
            HostError: it cannot be written.
        """
        with self._lock, disk.at(self.journal):
            descriptor = os.open(self.journal, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                disk.append(descriptor, _line(file, chunk, state))
            finally:
                os.close(descriptor)
            self._states[file, chunk] = state

    def complete(self) -> None:
        """Make the folder what it shall be for ever: exactly these files, read-only, owned by who runs this, durable.

        Raises:
            HostError: a file that does not belong there, or it cannot be made durable.
        """
        names = {file.path for file in self.weights.files}
        if strange := survey(self.folder).keys() - names:
            raise HostError(
                f"{self.folder / min(strange)} does not belong there", hint=f"remove {self.folder} and run the same command again"
            )
        seal(self.folder, self.weights)
        disk.sync_filesystem(self.folder)

    def _load(self) -> None:
        claimed = self._read()
        same = claimed is not None and claimed[0] == disk.boot_id()
        self._states = {} if claimed is None else claimed[1] if same else self._hash_again(claimed[1])
        if not same:
            lines = b"".join(_line(*key, state) for key, state in self._states.items())
            disk.write_atomic(self.journal, f"boot {disk.boot_id()}\n".encode("ascii") + lines, mode=_BEING_WRITTEN)

    def _read(self) -> tuple[str, dict[tuple[int, int], bytes]] | None:
        try:
            lines = self.journal.read_text(encoding="ascii", errors="replace").split("\n")[:-1]
        except OSError:
            return None
        if not lines or not lines[0].startswith("boot "):
            return None
        found: dict[tuple[int, int], bytes] = {}
        for line in lines[1:]:
            words = line.split(" ")
            with suppress(ValueError, IndexError):
                number, chunk, state = int(words[0]), int(words[1]), bytes.fromhex(words[2])
                file = self.weights.files[number]
                if number >= 0 <= chunk < chunk_count(file.size) and _length(self.folder / file.path) == file.size:
                    found[number, chunk] = state if len(state) == _STATE_BYTES else b""
        return lines[0].removeprefix("boot "), found

    def _hash_again(self, claimed: dict[tuple[int, int], bytes]) -> dict[tuple[int, int], bytes]:
        """Return those of `claimed` whose bytes are still right; no hash state survives a boot."""
        right: dict[tuple[int, int], bytes] = {}
        for number, chunk in sorted(claimed):
            file = self.weights.files[number]
            path = self.folder / file.path
            descriptor = disk.open_regular(path)
            try:
                found = hashing.hash_range(descriptor, chunk * CHUNK_BYTES, chunk_size(file.size, chunk), path=path)
            finally:
                os.close(descriptor)
            if found == expected_chunk(file, chunk):
                right[number, chunk] = b""
        return right


def seal(folder: Path, weights: Weights) -> None:
    """Give files and folders of a model their modes and owner; nothing is written where they are right.

    Raises:
        HostError: it is not allowed.
    """
    below = {folder, *(parent for file in weights.files for parent in (folder / file.path).parents if parent.is_relative_to(folder))}
    for path, mode in [*((each, FOLDER_MODE) for each in below), *((folder / file.path, FILE_MODE) for file in weights.files)]:
        with disk.at(path):
            status = path.lstat()
            if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
                os.chown(path, os.geteuid(), os.getegid(), follow_symlinks=False)
            if status.st_mode & 0o7777 != mode:
                path.chmod(mode)


def clear_away(path: Path) -> None:
    """Remove a file, or a folder with all that is in it, if it is there.

    Raises:
        HostError: it cannot be removed.
    """
    with disk.at(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _line(file: int, chunk: int, state: bytes) -> bytes:
    return f"{file} {chunk} {state.hex()}\n".encode("ascii")


def _allocated(path: Path) -> int:
    try:
        return path.lstat().st_blocks * 512
    except OSError:
        return 0


def _length(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return -1
