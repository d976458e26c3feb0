# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The engine: the same digests as one plain hash over the whole, whatever the size; files that change are refused."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from appliance.adapters import hashing, parallel
from appliance.adapters.parallel import for_each
from appliance.errors import HostError
from tests.support.carried import CHUNK, small_chunks
from tests.support.faults import failing


@pytest.fixture(autouse=True)
def _small() -> Iterator[None]:
    with small_chunks():
        yield


def plain(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(size=st.one_of(st.integers(0, 6 * CHUNK), st.sampled_from([CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1])))
def test_blob_and_chunks_are_hashed_as_one_plain_hash_would(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    path = tmp_path / "file"
    path.write_bytes(data)
    found = hashing.hash_file(path)
    assert (found.size, found.digest) == (size, plain(data))
    expected = [plain(data[start : start + CHUNK]) for start in range(0, max(1, size), CHUNK)]
    assert list(found.chunk_digests) == expected
    assert bool(found.chunks) is (size > CHUNK)


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(3 * CHUNK))

    def grow(_amount: int) -> None:
        with path.open("ab") as stream:
            stream.write(b"x")

    with pytest.raises(HostError, match="changed while it was read"):
        hashing.hash_file(path, advance=grow)


def test_a_file_that_becomes_shorter_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(3 * CHUNK))
    with pytest.raises(HostError, match="ends at byte"):
        hashing.hash_file(path, advance=lambda _amount: os.truncate(path, CHUNK))


def test_a_device_that_fails_is_named_with_the_byte(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(3 * CHUNK))
    with failing(["preadv"], errno.EIO, below=tmp_path, after_calls=1), pytest.raises(HostError, match=f"{path} at byte {CHUNK}"):
        hashing.hash_file(path)


def test_the_first_error_stops_the_jobs_that_have_not_begun() -> None:
    begun: list[int] = []
    gate = threading.Event()

    def work(number: int) -> int:
        begun.append(number)
        if number == 3:
            gate.set()
            raise HostError("three")
        if number > 3:
            gate.wait(10)
        return number

    with pytest.raises(HostError, match="three"):
        for_each(range(1000), work, workers=2)
    assert len(begun) < 20
    assert for_each(range(100), lambda number: number * 2, workers=3) == list(range(0, 200, 2))
    assert for_each([], lambda number: number, workers=3) == []


def test_an_absurd_number_of_workers_starts_few_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Pool(ThreadPoolExecutor):
        def __init__(self, max_workers: int, thread_name_prefix: str) -> None:
            asked.append(max_workers)
            super().__init__(max_workers, thread_name_prefix)

    monkeypatch.setattr(parallel, "ThreadPoolExecutor", Pool)
    assert parallel.for_each(range(10), lambda number: number, workers=100_000) == list(range(10))
    assert asked == [parallel.MAX_WORKERS]
