# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.carried import ONE, World, small_chunks


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[World]:
    """A site that has read one release."""
    with small_chunks():
        world = World(tmp_path)
        world.write(room=ONE)
        world.read()
        yield world
