# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import json
import os
import select
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.adapters.credentials import Credentials
from appliance.adapters.download import Location, Web
from appliance.adapters.references import parse_reference
from appliance.adapters.registry import Registry
from appliance.digests import Digest
from appliance.errors import ToolError
from tests.lab.world import Upstream, upstream
from tests.lab.world.image import write_image
from tests.lab.world.images import PROTECTED, wanted

REPOSITORY = Path(__file__).resolve().parents[2]
DEADLINE = 10.0


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    with upstream(tmp_path_factory.mktemp("upstream")) as running:
        yield running


@pytest.fixture(scope="module")
def web() -> Iterator[Web]:
    client = Web()
    yield client
    client.close()


def mirror(up: Upstream, table: str, name: str) -> Location:
    found = tomllib.loads(up.mirrors.read_text())[table][name]
    return Location(url=found["location"], ca=Path(found["ca"]))


def client(up: Upstream, web: Web, *, logins: dict[str, object]) -> Registry:
    def locate(host: str) -> Location:
        found = mirror(up, "registries", host)
        return Location(url=f"https://{found.url}", ca=found.ca)

    return Registry(web, credentials=Credentials(logins, where="config.json"), locate=locate)


@pytest.mark.parametrize("reference", [image.reference for image in wanted()])
def test_the_products_client_gets_every_image_by_name_down_to_its_last_layer(up: Upstream, web: Web, reference: str) -> None:
    image = next(image for image in up.world.images if image.reference == reference)
    registry, asked = client(up, web, logins=json.loads(up.docker_config.read_bytes())), parse_reference(reference)
    assert registry.manifest(asked).digest == image.index
    assert registry.manifest(asked, Digest(image.manifest)).digest == image.manifest
    for digest in (image.config, *image.layers):
        with registry.opener(asked, Digest(digest), manifest=False)(0) as answer:
            got = hashlib.sha256()
            for piece in answer.iter_raw():
                got.update(piece)
        assert f"sha256:{got.hexdigest()}" == digest


def test_the_protected_image_is_refused_without_a_login(up: Upstream, web: Web) -> None:
    with pytest.raises(ToolError, match="wants a login"):
        client(up, web, logins={}).manifest(parse_reference(PROTECTED))


def test_every_release_file_comes_through_its_redirect_with_the_published_checksum(up: Upstream, web: Web) -> None:
    for file in up.world.files:
        host = file.url.split("/")[2]
        base = mirror(up, "files", f"https://{host}/")
        location = Location(url=base.url + file.url.removeprefix(f"https://{host}/"), ca=base.ca)
        with web.open(location) as answer:
            got = hashlib.sha256()
            for piece in answer.iter_raw():
                got.update(piece)
        assert got.hexdigest() == file.checksum.read_text().split()[0], file.url


def test_every_image_written_again_has_the_same_digests(up: Upstream, tmp_path: Path) -> None:
    for number, image in enumerate(wanted()):
        scratch = tmp_path / str(number)
        scratch.mkdir()
        again = write_image(image.make(scratch), scratch / "layout")
        assert again.blobs == next(built.blobs for built in up.world.images if built.reference == image.reference)


def registries_of(folder: Path) -> list[int]:
    """The processes whose command line names a registry configuration below `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if any(word.startswith(str(folder / "registries").encode()) for word in words):
            found.append(int(process.name))
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["terminated", "killed"])
def test_the_registries_end_with_the_server_however_it_ends(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "tests.lab.world", "serve", "--dir", str(tmp_path)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        assert any(line.startswith("mirrors ") for line in iter(server.stdout.readline, ""))
        handles = [os.pidfd_open(process) for process in registries_of(tmp_path)]
        assert len(handles) == 3
        server.send_signal(number)
        assert server.wait(DEADLINE) == (0 if number is signal.SIGTERM else -signal.SIGKILL)
    for handle in handles:
        ended, _, _ = select.select([handle], [], [], DEADLINE)
        os.close(handle)
        assert ended
    assert registries_of(tmp_path) == []
