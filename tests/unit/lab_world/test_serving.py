# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import pytest

from tests.lab.world import fileserver, registry
from tests.lab.world.archive import Item
from tests.lab.world.image import Image, Layer, write_image
from tests.lab.world.releases import ReleaseFile
from tests.lab.world.tls import Certificates, issue

CONTENT = bytes(range(256)) * 5000


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return issue(tmp_path / "tls")


@pytest.fixture
def base(tmp_path: Path, certificates: Certificates) -> Iterator[str]:
    (tmp_path / "tool").write_bytes(CONTENT)
    (tmp_path / "tool.sum").write_text(hashlib.sha256(CONTENT).hexdigest())
    hosts = ("dl.k8s.io/v1/tool", "get.helm.sh/tool")
    released = tuple(
        ReleaseFile(url=f"https://{url}", path=tmp_path / "tool", checksum=tmp_path / "tool.sum", checksum_url=".sha256") for url in hosts
    )
    with fileserver.serving(fileserver.tree(released), tmp_path / "files.log", certificates) as address:
        yield address


def get(url: str, certificates: Certificates, **headers: str) -> tuple[int, bytes, Message, str]:
    trust = ssl.create_default_context(cafile=str(certificates.ca))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust))
    try:
        with opener.open(urllib.request.Request(url, headers=headers), timeout=10) as answer:  # noqa: S310 -- https on loopback
            return answer.status, answer.read(), answer.headers, answer.url
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers, url


def test_a_file_comes_whole_with_its_checksum_beside_it(base: str, certificates: Certificates) -> None:
    status, body, _, _ = get(f"{base}/get.helm.sh/tool", certificates)
    assert (status, body) == (200, CONTENT)
    assert get(f"{base}/get.helm.sh/tool.sha256", certificates)[1].decode() == hashlib.sha256(CONTENT).hexdigest()


def test_a_host_that_redirects_upstream_redirects_here(base: str, certificates: Certificates) -> None:
    status, body, _, url = get(f"{base}/dl.k8s.io/v1/tool", certificates)
    assert (status, body) == (200, CONTENT)
    assert url == f"{base}/cdn.dl.k8s.io/v1/tool"


@pytest.mark.parametrize(
    ("asked", "first", "last"), [("bytes=0-0", 0, 0), ("bytes=100-", 100, 1_279_999), ("bytes=7-99999999", 7, 1_279_999)]
)
def test_a_range_is_answered_with_just_that_range(base: str, certificates: Certificates, asked: str, first: int, last: int) -> None:
    status, body, headers, _ = get(f"{base}/get.helm.sh/tool", certificates, Range=asked)
    assert status == 206
    assert body == CONTENT[first : last + 1]
    assert headers["Content-Range"] == f"bytes {first}-{last}/{len(CONTENT)}"


def test_a_range_past_the_end_is_416_and_an_unknown_path_404(base: str, certificates: Certificates) -> None:
    assert get(f"{base}/get.helm.sh/tool", certificates, Range=f"bytes={len(CONTENT)}-")[0] == 416
    for path in ("/get.helm.sh/other", "/", "/cdn.dl.k8s.io/", "/get.helm.sh/../tool"):
        assert get(f"{base}{path}", certificates)[0] == 404


def test_a_client_that_never_speaks_does_not_stop_the_next_one(base: str, certificates: Certificates) -> None:
    host, port = base.removeprefix("https://").split(":")
    with socket.create_connection((host, int(port))):
        assert get(f"{base}/get.helm.sh/tool", certificates)[0] == 200


def test_another_authoritys_certificate_is_not_accepted(base: str, tmp_path: Path) -> None:
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        get(f"{base}/get.helm.sh/tool", issue(tmp_path / "other"))


def test_a_seeded_registry_tree_links_every_blob_and_copies_none(tmp_path: Path) -> None:
    image = Image(reference="registry.example/team/tool:v1", layers=(Layer(items=(Item(path="a", content=b"a"),), made_by="test"),))
    built = write_image(image, tmp_path / "layout")
    registry.seed(tmp_path / "data", (built,))
    top = tmp_path / "data" / "docker" / "registry" / "v2"
    for digest in built.blobs:
        hexadecimal = digest.removeprefix("sha256:")
        assert (top / "blobs/sha256" / hexadecimal[:2] / hexadecimal / "data").samefile(built.blob(digest))
    repository = top / "repositories/registry.example/team/tool"
    assert (repository / "_manifests/tags/v1/current/link").read_text() == built.index
    revisions = {path.parent.name for path in (repository / "_manifests/revisions/sha256").glob("*/link")}
    assert revisions == {digest.removeprefix("sha256:") for digest in (built.index, built.manifest)}
    layers = {path.parent.name for path in (repository / "_layers/sha256").glob("*/link")}
    assert layers == {digest.removeprefix("sha256:") for digest in (built.config, *built.layers)}


def test_the_key_of_a_run_is_readable_by_its_owner_alone(certificates: Certificates) -> None:
    assert certificates.key.stat().st_mode & 0o777 == 0o600
