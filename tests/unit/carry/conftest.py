# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.carried import CHUNK, World, small_chunks


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with small_chunks():
        yield World(tmp_path)


@pytest.fixture
def few(tmp_path: Path) -> Iterator[World]:
    """A world of few blobs, for tests that go through every call there is."""
    with small_chunks():
        yield World(tmp_path, sizes={"large": 2 * CHUNK + 100, "one": 1})
