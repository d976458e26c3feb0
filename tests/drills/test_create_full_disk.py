# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`bundle create` onto a real small disk: refused before the first byte, or stopped by somebody who fills it; then it goes on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from appliance.adapters import disk
from appliance.errors import HostError
from tests.support.building import Bench, safetensors
from tests.support.faults import can_mount, fill, small_disk
from tests.support.registry import serving
from tests.support.simulator import bytes_of

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not can_mount(), reason="mounting needs root")]
MIB = 1 << 20


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    with serving(tmp_path / "tls") as upstream:
        upstream.files["/files/tool"] = bytes_of("tool", 20 * MIB)
        made = Bench(folder=tmp_path / "bench", upstream=upstream)
        made.folder.mkdir()
        made.model(files={f"w{number}.safetensors": safetensors(10 * MIB, seed=str(number)) for number in range(6)})
        (made.folder / "tiny" / "model.safetensors").unlink()
        for number in range(6):
            path = made.folder / "tiny" / f"w{number}.safetensors"
            path.write_bytes(path.read_bytes().replace(b'"t0"', f'"t{number}"'.encode()))
        made.profile(
            '[[files]]\nname = "tool"\nversion = "1"\nurl = "https://files.test/tool"\n'
            '[[models]]\nname = "tiny"\nversion = "1"\npath = "tiny"\nlicense = "MIT"\n'
        )
        yield made


def test_a_disk_that_is_too_small_is_refused_before_the_first_byte(bench: Bench) -> None:
    bench.lock()
    with small_disk(bench.folder / "out", 60 * MIB):
        with pytest.raises(HostError, match=r"needs \d+ bytes, \d+ bytes are available"):
            bench.create("out/one.bundle")
        blobs = bench.folder / "out" / "one.bundle.partial" / "blobs" / "sha256"
        assert list(blobs.iterdir()) == []


def test_a_disk_that_somebody_fills_stops_create_and_it_goes_on_when_there_is_room(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.lock()
    real: Callable[..., None] = disk.require_space
    with small_disk(bench.folder / "out", 160 * MIB) as out:

        def looked_then_filled(path: Path, needed: int, *, what: str) -> None:
            real(path, needed, what=what)
            if path.is_relative_to(out):
                fill(out, leave=45 * MIB)

        monkeypatch.setattr("appliance.build.gathering.require_space", looked_then_filled)
        with pytest.raises(HostError, match="no space left: needs") as caught:
            bench.create("out/one.bundle")
        assert "what was finished is kept" in (caught.value.hint or "")
        assert not (out / "one.bundle").exists()
        (out / ".filler").unlink()
        monkeypatch.setattr("appliance.build.gathering.require_space", real)
        bench.upstream.requests.clear()
        bench.create("out/one.bundle")
        assert bench.upstream.requests == []
        assert bench.verify("out/one.bundle")[1] == ()
