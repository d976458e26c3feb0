# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The download cache: goes on at the byte where a connection broke, at the chunk where a process was killed."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.build.cache import Wanted
from appliance.build.collecting import Tools
from appliance.digests import Digest, digest_of
from appliance.errors import HostError, ToolError, VerificationError
from tests.support.building import Bench
from tests.support.carried import small_chunks
from tests.support.faults import WRITES, failing, kill_when
from tests.support.registry import Fault, Upstream
from tests.support.simulator import blob_of, bytes_of

CHUNK = 65536
DATA = bytes_of("download", 20 * CHUNK + 1234)
URL = "https://files.test/big"


@pytest.fixture
def ready(bench: Bench) -> Iterator[Tools]:
    bench.upstream.files["/files/big"] = DATA
    with small_chunks(CHUNK), bench.tools() as tools:
        yield tools


def wanted(data: bytes = DATA) -> Wanted:
    return Wanted(digest=digest_of(data), size=len(data), what="big")


def test_a_download_gives_the_same_chunks_as_its_bytes(ready: Tools) -> None:
    hashes = ready.cache.fetch(wanted(), ready.file_opener(URL))
    blob = blob_of(DATA)
    assert (hashes.digest, hashes.size, hashes.chunks) == (blob.digest, blob.size, blob.chunks)
    assert len(blob.chunks) == 21
    assert ready.cache.path(hashes.digest).read_bytes() == DATA
    assert ready.cache.path(hashes.digest).stat().st_mode & 0o777 == 0o444


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_sizes_around_chunk_borders(ready: Tools, upstream: Upstream, size: int) -> None:
    upstream.files["/files/big"] = DATA[:size]
    hashes = ready.cache.fetch(wanted(DATA[:size]), ready.file_opener(URL))
    blob = blob_of(DATA[:size])
    assert (hashes.digest, hashes.chunks) == (blob.digest, blob.chunks)
    unknown = ready.cache.fetch_unknown(ready.file_opener(URL), what="big", key=URL)
    assert unknown == hashes


def test_a_broken_connection_costs_no_byte_twice(ready: Tools, upstream: Upstream) -> None:
    upstream.faults += [Fault("drop", "big", after=100_001), Fault("drop", "big", after=0), Fault("drop", "big", after=500_000)]
    ready.cache.fetch(wanted(), ready.file_opener(URL))
    assert [request.range for request in upstream.requests] == ["", "bytes=100001-", "bytes=100001-", "bytes=600001-"]
    assert upstream.sent == len(DATA)


def test_a_server_that_forgets_ranges_is_read_from_the_start(ready: Tools, upstream: Upstream) -> None:
    upstream.faults += [Fault("drop", "big", after=3 * CHUNK + 5), Fault("forget-range", "big")]
    assert ready.cache.fetch(wanted(), ready.file_opener(URL)).digest == digest_of(DATA)


def test_unknown_bytes_that_break_off_begin_anew(ready: Tools, upstream: Upstream) -> None:
    upstream.faults.append(Fault("drop", "big", after=100_001))
    assert ready.cache.fetch_unknown(ready.file_opener(URL), what="big", key=URL).digest == digest_of(DATA)


def test_wrong_bytes_once_are_fetched_again(ready: Tools, upstream: Upstream) -> None:
    upstream.faults.append(Fault("wrong", "big"))
    assert ready.cache.fetch(wanted(), ready.file_opener(URL)).digest == digest_of(DATA)
    assert len(upstream.requests) == 2


@pytest.mark.parametrize("change", ["flip", "longer", "shorter"])
def test_other_bytes_are_refused_and_nothing_of_them_stays(ready: Tools, upstream: Upstream, bench: Bench, change: str) -> None:
    other = {"flip": bytes([DATA[0] ^ 1]) + DATA[1:], "longer": DATA + b"x", "shorter": DATA[:-1]}[change]
    upstream.files["/files/big"] = other
    kind = ToolError if change == "shorter" else VerificationError
    with pytest.raises(kind):
        ready.cache.fetch(wanted(), ready.file_opener(URL))
    assert not ready.cache.path(digest_of(DATA)).exists()
    if change != "shorter":
        assert [path for path in (bench.folder / "cache").rglob("*") if path.is_file() and path.stat().st_size] == []


def test_a_cached_file_that_was_damaged_is_replaced(ready: Tools, upstream: Upstream) -> None:
    path = ready.cache.path(digest_of(DATA))
    path.write_bytes(DATA[:-1] + b"!")
    assert ready.cache.fetch(wanted(), ready.file_opener(URL)).digest == digest_of(DATA)
    assert path.read_bytes() == DATA
    assert len(upstream.requests) == 1


def test_a_full_disk_keeps_what_came_and_goes_on_there(ready: Tools, upstream: Upstream, bench: Bench) -> None:
    with (
        failing(WRITES, 28, below=bench.folder / "cache", after_bytes=10 * CHUNK),
        pytest.raises(HostError, match="no space left") as caught,
    ):
        ready.cache.fetch(wanted(), ready.file_opener(URL))
    assert f"needs {len(DATA)} bytes" in caught.value.message
    ready.cache.fetch(wanted(), ready.file_opener(URL))
    first = int(upstream.requests[-1].range.removeprefix("bytes=").removesuffix("-"))
    assert first >= 8 * CHUNK
    assert ready.cache.path(digest_of(DATA)).read_bytes() == DATA


_KILLED = """
import sys
from pathlib import Path
from tests.support.building import Bench
from tests.support.carried import small_chunks
from tests.support.registry import Upstream
from tests.unit.build.test_cache import CHUNK, URL, wanted
bench = Bench(folder=Path(sys.argv[1]), upstream=Upstream(address=sys.argv[2], ca=Path(sys.argv[3])))
with small_chunks(CHUNK), bench.tools() as tools:
    tools.cache.fetch(wanted(), tools.file_opener(URL))
"""


def test_a_killed_download_goes_on_at_its_last_whole_chunk(ready: Tools, upstream: Upstream, bench: Bench) -> None:
    upstream.faults.append(Fault("stall", "big", after=9 * CHUNK + 77))
    partial = bench.folder / "cache" / "downloads" / "partial" / digest_of(DATA).removeprefix("sha256:")
    command = [sys.executable, "-c", _KILLED, str(bench.folder), upstream.address, str(upstream.ca)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}

    def arrived() -> bool:
        log = partial.with_name(f"{partial.name}.journal")
        return log.exists() and log.read_bytes().count(b'"chunk"') == 9

    kill = kill_when(command, arrived, env=environment)
    assert kill.killed, kill.output
    before = upstream.sent
    hashes = ready.cache.fetch(wanted(), ready.file_opener(URL))
    assert upstream.requests[-1].range == f"bytes={9 * CHUNK}-"
    assert upstream.sent - before == len(DATA) - 9 * CHUNK
    assert hashes.chunks == blob_of(DATA).chunks


def test_a_journal_of_another_boot_counts_for_nothing(ready: Tools, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream.faults += [Fault("drop", "big", after=9 * CHUNK), Fault("500", "big", times=99)]
    with pytest.raises(ToolError):
        ready.cache.fetch(wanted(), ready.file_opener(URL))
    upstream.faults.clear()
    monkeypatch.setattr("appliance.build.journal.boot_id", lambda: "another")
    ready.cache.fetch(wanted(), ready.file_opener(URL))
    assert upstream.requests[-1].range == ""


def test_a_torn_journal_line_is_dropped(ready: Tools, upstream: Upstream, bench: Bench) -> None:
    upstream.faults += [Fault("drop", "big", after=9 * CHUNK), Fault("500", "big", times=99)]
    with pytest.raises(ToolError):
        ready.cache.fetch(wanted(), ready.file_opener(URL))
    upstream.faults.clear()
    log = next((bench.folder / "cache").rglob("*.journal"))
    log.write_bytes(log.read_bytes()[:-5])
    assert ready.cache.fetch(wanted(), ready.file_opener(URL)).digest == digest_of(DATA)
    assert upstream.requests[-1].range == f"bytes={8 * CHUNK}-"


def test_digests_are_those_of_hashlib_when_the_library_is_absent(ready: Tools, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("appliance.adapters.midstate._libcrypto", lambda: None)
    assert ready.cache.fetch(wanted(), ready.file_opener(URL)).chunks == blob_of(DATA).chunks


def test_a_url_that_is_gone_is_named_without_its_query(ready: Tools) -> None:
    with pytest.raises(ToolError, match="HTTP 404") as caught:
        ready.cache.fetch(Wanted(digest=Digest("sha256:" + "0" * 64), size=1, what="gone"), ready.file_opener("https://files.test/gone"))
    assert caught.value.step == "fetch a file"
