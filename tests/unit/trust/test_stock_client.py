# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""python-tuf's own client reads our metadata from a directory, ML-DSA keys and all."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient import FetcherInterface, Updater

from appliance.bundle.contents import ContentClass
from appliance.bundle.documents import encode
from appliance.trust.metadata import contents_target
from tests.support.simulator import Files, Line, sample_files


class Folder(FetcherInterface):
    """Fetches from files in memory, as from a directory."""

    def __init__(self, files: Files) -> None:
        self.files = files

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = url.removeprefix("bundle:/")
        if path not in self.files:
            raise DownloadHTTPError(f"{path} is absent", 404)
        yield self.files[path]


def client(line: Line, files: Files, state: Path) -> Updater:
    (state / "targets").mkdir(parents=True, exist_ok=True)
    return Updater(str(state), "bundle:/", str(state / "targets"), "bundle:/targets/", fetcher=Folder(files), bootstrap=line.pin)


@pytest.mark.parametrize("people", [("alice",), ("alice", "spare")], ids=["2 of 2", "3 of 4"])
def test_the_stock_client_fetches_release_and_contents(tmp_path: Path, people: tuple[str, ...]) -> None:
    line = Line(people=people, now=datetime.now(UTC))
    line.replace_keys(people[::-1])
    contents, _ = sample_files()
    updater = client(line, line.publish(contents), tmp_path)
    updater.refresh()
    release = updater.get_targetinfo("release.json")
    assert release is not None
    assert Path(updater.download_target(release)).read_bytes() == encode(line.release())
    for each in ContentClass:
        target = updater.get_targetinfo(contents_target(each))
        assert target is not None
        data = Path(updater.download_target(target)).read_bytes()
        if each in contents:
            assert data == encode(contents[each])


def test_the_stock_client_follows_the_next_release_and_refuses_the_last_one(tmp_path: Path) -> None:
    line = Line(now=datetime.now(UTC))
    old, new = line.publish(), line.publish(release=line.release("1.0.1"))
    client(line, new, tmp_path).refresh()
    with pytest.raises(Exception, match="must be >= 2"):
        client(line, old, tmp_path).refresh()


def test_metadata_of_four_people_stays_within_the_stock_limits() -> None:
    """`tuf.ngclient` reads at most 512,000 bytes of root, 16,384 of timestamp and 5,000,000 of targets."""
    files = Line(people=("alice", "spare")).publish()
    assert len(files["timestamp.json"]) < 16_384
    assert len(files["1.root.json"]) < 512_000
    assert len(files["1.targets.json"]) < 5_000_000
