# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A damaged folder of one release: named by list and verify, mended by reading its media again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.cli.options import Output
from appliance.cli.store import list_command
from appliance.errors import ApplianceError
from appliance.store.checking import verify_store
from appliance.verify.blobs import Wrong
from tests.support.carried import World


def _without_timestamp(metadata: Path) -> None:
    (metadata / "timestamp.json").unlink()


def _without_everything(metadata: Path) -> None:
    shutil.rmtree(metadata)


def _with_junk(metadata: Path) -> None:
    path = metadata / "timestamp.json"
    path.chmod(0o644)
    path.write_bytes(b"[" * 4000)


def _with_a_file_instead(metadata: Path) -> None:
    shutil.rmtree(metadata)
    metadata.write_bytes(b"")


DAMAGES = (_without_timestamp, _without_everything, _with_junk, _with_a_file_instead)


@pytest.mark.parametrize("damage", DAMAGES)
def test_reading_the_media_again_replaces_a_damaged_release_folder(stored: World, damage: Callable[[Path], None]) -> None:
    whole = stored.store.release()
    damage(whole.path / "metadata")
    with pytest.raises(ApplianceError) as caught:
        stored.store.release()
    assert caught.value.hint is not None
    assert "media read" in caught.value.hint
    assert stored.read().complete
    assert stored.store.release().bundle.metadata == whole.bundle.metadata


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_release_does_not_hide_the_others(
    stored: World, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    bad = stored.store.release()
    stored.publish(version="1.1.0", extra={"more": b"more"})
    stored.write("second")
    stored.read("second")
    damage(bad.path / "metadata")
    good = stored.store.release()
    report = verify_store(stored.store, workers=1)
    assert [release.digest for release in report.releases] == [good.digest]
    assert [(finding.path, finding.wrong) for finding in report.findings] == [(bad.path, Wrong.DAMAGED)]
    list_command(stored.state, Output.JSON)
    listed = json.loads(capsys.readouterr().out)
    assert [each["release"] for each in listed["releases"]] == [good.digest]
    assert [each["path"] for each in listed["damaged"]] == [str(bad.path)]
