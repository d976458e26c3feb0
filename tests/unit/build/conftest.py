# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""An upstream with an image and a file, and a workbench beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.building import Bench
from tests.support.registry import Upstream, serving
from tests.support.simulator import bytes_of

WORLD = """
[[images]]
reference = "registry.test/team/app:1.0"
[[files]]
name = "tool"
version = "2.0"
url = "https://files.test/tool"
license = "MIT"
[[charts]]
name = "demo"
path = "chart"
namespace = "demo"
[charts.values]
replicas = 2
[[models]]
name = "tiny"
version = "1"
path = "tiny"
license = "Apache-2.0"
"""


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[Upstream]:
    with serving(tmp_path / "tls") as up:
        yield up


@pytest.fixture
def bench(tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Everything one profile can hold but packages and the installer."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("PATH", "/nonexistent")
    upstream.put_image("team/app", "1.0", (bytes_of("layer", 5000), b"second"), labels={"org.opencontainers.image.licenses": "MIT"})
    upstream.files["/files/tool"] = bytes_of("tool", 20_000)
    made = Bench(folder=tmp_path / "bench", upstream=upstream)
    made.folder.mkdir()
    made.model()
    made.chart("registry.test/team/app:1.0")
    made.profile(WORLD)
    return made
