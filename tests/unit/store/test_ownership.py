# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A state that others may write to, or that leads elsewhere, is not believed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from appliance.errors import HostError
from appliance.store.checking import verify_store
from appliance.store.registry import registry_tree
from appliance.verify import load_trust
from tests.support.carried import World
from tests.support.observe import unchanged

FOLDERS = (".", "store", "store/blobs", "store/blobs/sha256", "store/staging", "releases", "trust")


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_a_state_that_others_may_write_to_is_refused_and_nothing_changes(stored: World, name: str, mode: int) -> None:
    folder = stored.state / name
    folder.chmod(mode)
    with unchanged(*stored.trusted()):
        for use in (stored.read, stored.store.release, lambda: verify_store(stored.store, workers=1)):
            with pytest.raises(HostError, match="others may write there") as caught:
                use()
            assert "chmod go-w" in str(caught.value.hint)


@pytest.mark.parametrize("name", FOLDERS[1:])
def test_a_folder_of_the_state_that_is_a_link_is_refused(stored: World, name: str) -> None:
    folder = stored.state / name
    folder.rename(stored.root / "elsewhere")
    folder.symlink_to(stored.root / "elsewhere")
    with pytest.raises(HostError, match="a symbolic link"):
        stored.read()


@pytest.mark.parametrize("name", [".", "root.json", "seen.json"])
def test_pinned_trust_that_others_may_write_is_refused(stored: World, name: str) -> None:
    path = stored.state / "trust" / "acme" / name
    path.chmod(path.stat().st_mode | 0o022)
    with pytest.raises(HostError, match="others may write there"):
        load_trust(stored.state / "trust" / "acme")


def test_with_no_umask_nothing_of_a_state_is_writable_by_others(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        world = World(tmp_path)
        world.write()
        world.read()
        registry_tree(world.store, world.store.release())
    finally:
        os.umask(before)
    loose = [path for path in world.state.rglob("*") if not path.is_symlink() and path.stat().st_mode & 0o022]
    assert loose == []
