# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab.machines import Lab


@pytest.fixture(scope="session", autouse=True)
def _root() -> None:
    if os.geteuid():
        pytest.fail("these tests make machines: run them as root, with `make lab`")


@pytest.fixture(scope="session")
def stick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stick")
    (folder / "part-1").write_bytes(bytes(range(256)) * 16)
    return folder


@pytest.fixture(scope="session")
def lab(stick: Path) -> Iterator[Lab]:
    """One lab for all tests that leave it as they found it: bastion with a stick, cp1, and gpu1 on a small disk."""
    name = "suite"
    Lab.down(name)
    yield Lab.up(name, machines=("bastion", "cp1", "gpu1"), media=[stick], disks={"gpu1": 700})
    Lab.down(name)
