# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Copies are the bytes that were there, past the page cache and through it, whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.adapters.copying import DIRECT_FROM, Sink, Source, copy_file, copy_range
from appliance.adapters.hashing import ALIGN, BUFFER_BYTES
from appliance.adapters.ingest import ResumableTwin
from appliance.errors import HostError
from tests.support.faults import failing

NOISE = os.urandom(3 * BUFFER_BYTES + 12_345)
WHOLE = len(NOISE)


def plain(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def is_direct(descriptor: int) -> bool:
    return bool(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT)


@contextmanager
def watched(name: str, seen: list[bool], *, refuse: bool = False) -> Iterator[None]:
    """Note for every `os.<name>` whether it went past the page cache; with `refuse`, such calls are invalid here."""
    real: Callable[..., int] = getattr(os, name)

    def call(descriptor: int, *rest: Any) -> int:  # noqa: ANN401 - stands for functions of several signatures
        seen.append(is_direct(descriptor))
        if refuse and seen[-1]:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(descriptor, *rest)

    with mock.patch.object(os, name, call):
        yield


class Files:
    """A source with `NOISE` and an empty target, open."""

    def __init__(self, folder: Path) -> None:
        self.path, self.copy = folder / "file", folder / "there" / "copy"
        self.copy.parent.mkdir(exist_ok=True)
        self.path.write_bytes(NOISE)
        self.copy.write_bytes(b"")
        self.reading = os.open(self.path, os.O_RDONLY)
        self.writing = os.open(self.copy, os.O_RDWR)

    def run(self, offset: int, size: int, *, at_byte: int = 0, direct: bool = True, twin: ResumableTwin | None = None) -> str:
        with Source(self.reading, direct=direct) as source, Sink(self.writing, direct=direct) as sink:
            return copy_range(source, offset, size, target=sink, at_byte=at_byte, path=self.path, twin=twin)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Files]:
    made = Files(tmp_path)
    yield made
    os.close(made.reading)
    os.close(made.writing)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(data=st.data(), direct=st.booleans(), along=st.booleans())
def test_a_piece_from_anywhere_to_anywhere_is_copied_and_hashed(files: Files, data: st.DataObject, *, direct: bool, along: bool) -> None:
    offset = data.draw(st.one_of(st.integers(0, WHOLE), st.sampled_from([0, ALIGN, ALIGN - 1, 64])))
    size = data.draw(st.one_of(st.integers(0, WHOLE - offset), st.just(WHOLE - offset)))
    at_byte = data.draw(st.sampled_from([0, 1, ALIGN, 10 * ALIGN, 777]))
    os.ftruncate(files.writing, 0)
    twin = ResumableTwin() if along else None
    assert files.run(offset, size, at_byte=at_byte, direct=direct, twin=twin) == plain(NOISE[offset : offset + size])
    assert files.copy.read_bytes() == (bytes(at_byte) + NOISE[offset : offset + size] if size else b"")
    if twin is not None:
        assert twin.freeze()
        assert twin.close() == plain(NOISE[offset : offset + size])


def test_large_pieces_go_past_the_page_cache_and_small_ones_through_it(files: Files) -> None:
    read: list[bool] = []
    written: list[bool] = []
    with watched("preadv", read), watched("pwrite", written):
        files.run(100, DIRECT_FROM + 1)
        assert read == [True]
        assert written == [True, False], "all whole blocks, then the rest of less than a block"
        read.clear()
        written.clear()
        files.run(100, DIRECT_FROM - 1)
        assert (read, written) == ([False], [False])


@pytest.mark.parametrize("name", ["preadv", "pwrite"])
def test_a_file_system_that_takes_it_back_is_read_and_written_the_ordinary_way(files: Files, name: str) -> None:
    seen: list[bool] = []
    with watched(name, seen, refuse=True):
        assert files.run(100, WHOLE - 100) == plain(NOISE[100:])
    assert {True, False} <= set(seen)
    assert files.copy.read_bytes() == NOISE[100:]


def test_where_there_is_no_way_past_the_page_cache_the_ordinary_one_is_taken(files: Files) -> None:
    real = os.open

    def refusing(path: str, flags: int, *rest: Any, **more: Any) -> int:  # noqa: ANN401 - stands for os.open
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return real(path, flags, *rest, **more)

    with mock.patch.object(os, "open", refusing):
        assert files.run(0, WHOLE) == plain(NOISE)


@pytest.mark.parametrize("direct", [True, False])
def test_a_source_that_ends_before_is_named_with_the_byte(files: Files, *, direct: bool) -> None:
    with pytest.raises(HostError, match=f"{files.path}: ends at byte {WHOLE}, expected at least {WHOLE + 10}"):
        files.run(WHOLE - DIRECT_FROM, DIRECT_FROM + 10, direct=direct)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_target_that_fails_beside_a_twin_ends_the_copy_and_leaves_the_twin_usable(files: Files, code: int) -> None:
    twin = ResumableTwin()
    with failing(["pwrite"], code, below=files.copy.parent, after_calls=1), pytest.raises(OSError, match=os.strerror(code)):
        files.run(0, WHOLE, twin=twin)
    assert twin.freeze()
    twin.close()


def test_a_source_that_fails_beside_a_twin_is_named_and_leaves_the_twin_usable(files: Files) -> None:
    twin = ResumableTwin()
    with failing(["preadv"], errno.EIO, below=files.path, after_calls=1), pytest.raises(HostError, match=f"file at byte {BUFFER_BYTES}"):
        files.run(0, WHOLE, twin=twin)
    assert twin.freeze()
    assert twin.close() == plain(NOISE[:BUFFER_BYTES])


def test_a_copied_file_is_whole_with_its_mode(files: Files, tmp_path: Path) -> None:
    assert copy_file(files.path, tmp_path / "new", mode=0o755) == plain(NOISE)
    assert (tmp_path / "new").read_bytes() == NOISE
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o755
    with pytest.raises(HostError, match="file exists"):
        copy_file(files.path, tmp_path / "new", mode=0o755)
    assert (tmp_path / "new").read_bytes() == NOISE


def test_no_copy_is_left_on_a_full_disk(files: Files) -> None:
    target = files.copy.parent / "new"
    with failing(["pwrite"], errno.ENOSPC, below=files.copy.parent, after_calls=1), pytest.raises(HostError, match="no space left"):
        copy_file(files.path, target, mode=0o444)
    assert not target.exists()


def test_no_copy_is_left_of_a_file_that_changes_meanwhile(files: Files) -> None:
    real = os.pwrite

    def touching(*arguments: Any) -> int:  # noqa: ANN401 - stands for os.pwrite
        with files.path.open("ab") as stream:
            stream.write(b"x")
        return real(*arguments)

    target = files.copy.parent / "new"
    with mock.patch.object(os, "pwrite", touching), pytest.raises(HostError, match="changed while it was read"):
        copy_file(files.path, target, mode=0o444)
    assert not target.exists()
