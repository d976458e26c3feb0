# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The registry client against a real server: logins, redirects, retries, and what it refuses by name."""

from __future__ import annotations

import base64
import email.utils
import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.adapters.credentials import Credentials
from appliance.adapters.download import Location, Web, public_url
from appliance.adapters.references import parse_reference
from appliance.adapters.registry import Registry
from appliance.build.images import ResolvedImage, resolve_image
from appliance.errors import ApplianceError, FormatError, ToolError, UsageError, VerificationError
from tests.support.registry import OCI_INDEX, OCI_MANIFEST, PASSWORD, TOKEN, USER, Fault, Upstream, dumps, serving

SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"


OPENED: list[Web] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    while OPENED:
        OPENED.pop().close()


class Client:
    """A registry client of `registry.test`, which is really `upstream`."""

    def __init__(self, upstream: Upstream, config: dict[str, object] | None = None, *, trust: bool = True) -> None:
        self.waits: list[float] = []
        self.web = Web(wait=self.waits.append)
        OPENED.append(self.web)
        self.location = Location(url=upstream.url, ca=upstream.ca if trust else None)
        self.registry = Registry(self.web, credentials=Credentials(config or {}, where="config.json"), locate=lambda _: self.location)

    def resolve(self, reference: str = "registry.test/team/app:1.0") -> ResolvedImage:
        return resolve_image(self.registry, reference, system="linux", architecture="amd64")


def login(address: str, user: str = USER, password: str = PASSWORD) -> dict[str, object]:
    return {"auths": {address: {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}}}


@pytest.fixture(params=["basic", "token"])
def guarded(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Upstream]:
    with serving(tmp_path / "tls", login=request.param) as up:
        up.put_image("team/app", "1.0")
        yield up


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[Upstream]:
    with serving(tmp_path / "tls") as up:
        up.put_image("team/app", "1.0")
        yield up


def test_an_image_resolves_to_index_manifest_config_and_layers_in_order(upstream: Upstream) -> None:
    image = upstream.put_image("team/app", "1.0", (b"one", b"two", b"one"))
    locked = Client(upstream).resolve().locked
    assert (locked.index, locked.manifest, locked.config) == (image.index, image.manifest, image.config)
    assert [blob.digest for blob in locked.blobs] == [image.index, image.manifest, image.config, *image.layers[:2]]


def test_an_image_without_index_is_its_own_index(upstream: Upstream) -> None:
    image = upstream.put_image("team/app", "1.0", index=False)
    locked = Client(upstream).resolve().locked
    assert locked.index == locked.manifest == image.manifest


def test_the_platform_is_chosen_and_attestations_are_passed_over(upstream: Upstream) -> None:
    other = {"mediaType": OCI_MANIFEST, "digest": "sha256:" + "1" * 64, "size": 1, "platform": {"os": "linux", "architecture": "arm64"}}
    unknown = other | {"platform": {"os": "unknown", "architecture": "unknown"}}
    image = upstream.put_image("team/app", "1.0", extra=(other, unknown))
    assert Client(upstream).resolve().locked.manifest == image.manifest


def test_a_pinned_reference_is_asked_by_digest_and_locked_by_tag(upstream: Upstream) -> None:
    image = upstream.put_image("team/app", "1.0")
    locked = Client(upstream).resolve(f"registry.test/team/app:1.0@{image.index}").locked
    assert locked.reference == "registry.test/team/app:1.0"
    assert not upstream.asked("manifests/1.0")


def test_a_login_of_docker_is_used(guarded: Upstream) -> None:
    Client(guarded, login(guarded.address)).resolve()
    if guarded.login == "token":
        assert len(guarded.asked("/token")) == 1


def test_without_a_login_the_host_is_named_and_no_manifest_given(guarded: Upstream) -> None:
    with pytest.raises(ToolError, match="wants a login") as caught:
        Client(guarded).resolve()
    assert "docker login" in (caught.value.hint or "")


def test_a_wrong_login_is_refused_without_showing_it(guarded: Upstream) -> None:
    with pytest.raises(ToolError) as caught:
        Client(guarded, login(guarded.address, password="wrong-secret-3311")).resolve()
    assert "wrong-secret-3311" not in f"{caught.value.message}{caught.value.hint}"


def test_a_login_of_another_host_is_not_sent(guarded: Upstream) -> None:
    with pytest.raises(ToolError):
        Client(guarded, login("elsewhere.test")).resolve()
    assert all(not request.authorization for request in guarded.requests)


def test_a_login_kept_by_a_helper_is_refused_by_the_helpers_name(guarded: Upstream) -> None:
    with pytest.raises(UsageError, match="credential helper 'desktop'"):
        Client(guarded, {"credHelpers": {guarded.address: "desktop"}}).resolve()


def test_a_redirect_to_another_origin_gets_no_login(guarded: Upstream, tmp_path: Path) -> None:
    image = guarded.put_image("team/app", "1.0")
    with serving(tmp_path / "other") as other:
        other.files["/store/config"] = guarded.blobs[f"team/app@{image.config}"]
        guarded.redirects[f"/v2/team/app/blobs/{image.config}"] = f"{other.url}/store/config?signature=planted-query"
        client = Client(guarded, login(guarded.address))
        both = tmp_path / "both.pem"
        assert guarded.ca is not None
        assert other.ca is not None
        both.write_bytes(guarded.ca.read_bytes() + other.ca.read_bytes())
        client.location = Location(url=guarded.url, ca=both)
        client.resolve()
        assert [request.authorization for request in other.requests] == [""]


def test_a_redirect_from_https_to_http_is_refused_and_its_query_not_shown(upstream: Upstream, tmp_path: Path) -> None:
    image = upstream.put_image("team/app", "1.0")
    with serving(tmp_path / "plain", tls=False) as plain:
        upstream.redirects[f"/v2/team/app/blobs/{image.config}"] = f"{plain.url}/x?signature=planted-query"
        with pytest.raises(ToolError, match="redirects from https to http") as caught:
            Client(upstream).resolve()
        assert plain.requests == []
    assert "planted-query" not in caught.value.message


def test_an_unknown_authority_is_named_with_what_to_do(upstream: Upstream) -> None:
    with pytest.raises(ToolError, match="no authority this machine trusts") as caught:
        Client(upstream, trust=False).resolve()
    assert "mirrors.toml" in (caught.value.hint or "")


def test_retry_after_is_waited_out_in_seconds_and_as_a_date(upstream: Upstream) -> None:
    date = email.utils.formatdate(time.time() + 90, usegmt=True)
    upstream.faults += [Fault("429", "manifests", retry_after="7"), Fault("503", "manifests", retry_after=date), Fault("500", "blobs")]
    client = Client(upstream)
    client.resolve()
    assert client.waits[0] == 7
    assert 80 < client.waits[1] <= 90
    assert 0 < client.waits[2] <= 0.5


def test_a_registry_that_asks_for_an_hour_is_an_error_at_once(upstream: Upstream) -> None:
    upstream.faults.append(Fault("429", "manifests", retry_after="3600"))
    client = Client(upstream)
    with pytest.raises(ToolError, match="asks to wait 3600 s"):
        client.resolve()
    assert client.waits == []


def test_after_six_failures_the_registry_is_given_up_with_growing_pauses(upstream: Upstream) -> None:
    upstream.faults.append(Fault("500", "manifests", times=99))
    client = Client(upstream)
    with pytest.raises(ToolError, match=r"HTTP 500 \(6 times\)") as caught:
        client.resolve()
    assert len(client.waits) == 5
    assert client.waits[4] > client.waits[0]
    assert "run the same command again" in (caught.value.hint or "")


def test_a_manifest_that_breaks_off_is_asked_for_again(upstream: Upstream) -> None:
    upstream.faults.append(Fault("drop", "manifests", after=10))
    Client(upstream).resolve()


def test_a_slow_drip_is_still_the_same_bytes(upstream: Upstream) -> None:
    upstream.faults.append(Fault("drip", "manifests", times=9))
    Client(upstream).resolve()


@pytest.mark.parametrize("kind", ["manifests/sha256", "blobs"])
def test_wrong_bytes_are_refused(upstream: Upstream, kind: str) -> None:
    upstream.faults.append(Fault("wrong", kind))
    with pytest.raises(VerificationError, match="expected a manifest sha256:"):
        Client(upstream).resolve()


def test_a_tag_that_is_not_there_names_the_reference(upstream: Upstream) -> None:
    with pytest.raises(ToolError, match=r"registry\.test/team/app:9: manifests/9 is not there"):
        Client(upstream).resolve("registry.test/team/app:9")


@pytest.mark.parametrize(
    ("media_type", "value", "said"),
    [
        (SCHEMA_1, {"schemaVersion": 1, "name": "x"}, "docker schema 1 images are not done"),
        (OCI_MANIFEST, {"schemaVersion": 1}, "docker schema 1 images are not done"),
        ("application/vnd.example+json", {"schemaVersion": 2}, "application/vnd.example"),
        (OCI_INDEX, {"schemaVersion": 2, "manifests": []}, "no image for linux/amd64"),
    ],
)
def test_other_documents_are_refused_by_name(upstream: Upstream, media_type: str, value: object, said: str) -> None:
    upstream.put_manifest("team/app", "1.0", media_type, value)
    with pytest.raises(UsageError, match=said):
        Client(upstream).resolve()


def test_an_image_of_another_architecture_is_refused(upstream: Upstream) -> None:
    upstream.put_image("team/app", "1.0", architecture="arm64", index=False)
    with pytest.raises(UsageError, match="made for linux/arm64"):
        Client(upstream).resolve()


def test_an_index_that_lies_about_its_manifest_is_refused(upstream: Upstream) -> None:
    image = upstream.put_image("team/app", "1.0")
    media_type, data = upstream.manifests[f"team/app@{image.index}"]
    index = json.loads(data)
    index["manifests"][0]["size"] += 1
    upstream.put_manifest("team/app", "1.0", media_type, index)
    with pytest.raises(FormatError, match=r"describes manifest .* wrongly"):
        Client(upstream).resolve()


@pytest.mark.parametrize(
    "change",
    [
        {"mediaType": "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"},
        {"mediaType": "application/vnd.example.layer"},
        {"urls": ["https://elsewhere.test/layer"]},
        {"digest": "sha512:" + "0" * 128},
    ],
)
def test_layers_this_version_does_not_carry_are_refused(upstream: Upstream, change: dict[str, object]) -> None:
    image = upstream.put_image("team/app", "1.0", index=False)
    manifest = json.loads(upstream.manifests[f"team/app@{image.manifest}"][1])
    manifest["layers"][0] |= change
    upstream.put_manifest("team/app", "1.0", OCI_MANIFEST, manifest)
    with pytest.raises(UsageError, match="not done by this version"):
        Client(upstream).resolve()


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"null", b'{"schemaVersion":2', b"<html>", b"[" * 100_000])
def test_malformed_manifests_are_refused(upstream: Upstream, data: bytes) -> None:
    upstream.put_manifest("team/app", "1.0", OCI_MANIFEST, data)
    with pytest.raises(ApplianceError):
        Client(upstream).resolve()


def test_a_manifest_of_gigabytes_is_not_read_to_its_end(upstream: Upstream) -> None:
    upstream.put_manifest("team/app", "1.0", OCI_MANIFEST, dumps({"schemaVersion": 2, "x": "y" * (9 << 20)}))
    with pytest.raises(ToolError, match="more than"):
        Client(upstream).resolve()


@pytest.mark.parametrize(
    "text", ["busybox:1", "library/busybox:1", "registry.test/App:1", "registry.test/app", "r.test/a:b/c:d:e", "r.test/../x:1"]
)
def test_references_that_are_not_written_in_full_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="image"):
        parse_reference(text)


@pytest.mark.parametrize("text", ["registry.test:5000/a/b/c:1.0-x", "localhost/a:1", "docker.io/library/busybox:1.36"])
def test_references_in_full_come_back_as_they_were(text: str) -> None:
    assert str(parse_reference(text)) == text
    assert str(parse_reference(f"{text}@sha256:{'0' * 64}")) == text


def test_a_url_is_shown_without_login_query_and_fragment() -> None:
    assert public_url("https://me:secret@host.test:1/p?sig=secret#f") == "https://host.test:1/p"


def test_secrets_stand_in_no_representation() -> None:
    credentials = Credentials(login("h.test"), where="config.json")
    assert PASSWORD not in repr(credentials.login("h.test"))
    assert TOKEN not in repr(credentials)


@pytest.mark.parametrize(
    "text", ["not json", "[]", '{"auths": 3}', '{"auths": {"h.test": {"auth": "%%%"}}}', '{"auths": {"h.test": {"auth": "aGk="}}}']
)
def test_a_malformed_docker_configuration_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with pytest.raises(FormatError, match=r"config\.json"):
        Credentials.read().login("h.test")
