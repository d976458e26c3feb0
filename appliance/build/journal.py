# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What a killed run had already verified, one JSON line each, so that the next one goes on there.

A line is written after the bytes it speaks of were handed to the kernel: they survive a killed process. They may not
survive a power cut, so the first line names the boot, and a journal of another boot counts for nothing. A torn last
line is dropped. The journal decides only where to go on: every digest is computed over bytes that were read.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

import msgspec

from appliance.adapters.disk import at, boot_id
from appliance.adapters.hashing import FileHashes
from appliance.digests import Digest


class _Line(msgspec.Struct, frozen=True, omit_defaults=True):
    boot: str = ""
    blob: Digest = Digest("")
    size: int = 0
    chunks: tuple[Digest, ...] = ()
    chunk: Digest = Digest("")
    state: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A blob that is not whole: the digests of its first chunks, and the frozen hash state behind the last of them."""

    chunks: tuple[Digest, ...]
    state: bytes


class Journal:
    """The journal at `path`, read and then appended to; safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        """Read what is there; begin anew when it is of another boot.

        Raises:
            HostError: it cannot be read or written.
        """
        self._path = path
        self._lock = threading.Lock()
        self.finished: dict[Digest, FileHashes] = {}
        self.begun: dict[Digest, Begun] = {}
        boot = boot_id()
        lines = self._read()
        keep = bool(lines) and lines[0].boot == boot
        with at(path):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | (0 if keep else os.O_TRUNC)
            self._descriptor = os.open(path, flags, 0o644)
        if not keep:
            self._append(_Line(boot=boot))
        for line in lines[1:] if keep else []:
            self._take(line)

    def _read(self) -> list[_Line]:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return []
        whole, _, torn = data.rpartition(b"\n")
        lines = []
        for raw in whole.split(b"\n"):
            try:
                lines.append(msgspec.json.decode(raw, type=_Line))
            except (msgspec.MsgspecError, ValueError):
                return []
        if torn:
            with at(self._path):
                os.truncate(self._path, len(whole) + 1)
        return lines

    def _take(self, line: _Line) -> None:
        if line.chunk:
            before = self.begun.get(line.blob)
            self.begun[line.blob] = Begun(chunks=(*(before.chunks if before else ()), line.chunk), state=line.state)
        elif line.blob:
            self.begun.pop(line.blob, None)
            if line.size >= 0:
                self.finished[line.blob] = FileHashes(size=line.size, digest=line.blob, chunks=line.chunks)

    def _append(self, line: _Line) -> None:
        with self._lock, at(self._path):
            os.write(self._descriptor, msgspec.json.encode(line) + b"\n")
            self._take(line)

    def chunk_done(self, blob: Digest, chunk: Digest, state: bytes) -> None:
        """Note one more chunk of `blob`; without a `state` nobody could go on behind it, so nothing is noted."""
        if state:
            self._append(_Line(blob=blob, chunk=chunk, state=state))

    def forget(self, blob: Digest) -> None:
        """Begin `blob` anew: what was noted of it does not hold."""
        self._append(_Line(blob=blob, size=-1))

    def blob_done(self, hashes: FileHashes) -> None:
        """Note that a blob is whole and verified."""
        self._append(_Line(blob=hashes.digest, size=hashes.size, chunks=hashes.chunks))

    def close(self) -> None:
        """Close the file; it stays."""
        os.close(self._descriptor)
