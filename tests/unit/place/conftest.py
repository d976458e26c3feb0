# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.adapters import depot
from tests.support.carried import small_chunks
from tests.support.depot import Placement, Served, serving


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Placement]:
    """A depot with one release of one model, and a node that has nothing but the pinned root; chunks are 4 KiB."""
    monkeypatch.setattr(depot, "PAUSES_SECONDS", (0.0, 0.01))
    with small_chunks():
        yield Placement(tmp_path)


@pytest.fixture
def served(world: Placement, tmp_path: Path) -> Iterator[Served]:
    """The depot's registry tree behind TLS."""
    with serving(world.tree, tmp_path / "tls") as running:
        yield running
