# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A bundle's folder: every file in it follows from what was signed, so every other byte is found."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.bundle.contents import Artifact, ContentClass, Contents, ImageBinding
from appliance.bundle.formats import OCI_INDEX
from appliance.bundle.layout import json_bytes
from appliance.digests import digest_of
from appliance.errors import FormatError
from appliance.trust.client import VerifiedBundle
from appliance.verify.blobs import Finding, Wrong, verify_bundle_blobs
from appliance.verify.index import expected_index
from appliance.verify.metadata import read_metadata
from tests.support.carried import ONE, World, small_chunks
from tests.support.simulator import blob_of

DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with small_chunks():
        made = World(tmp_path)
        made.write(room=ONE)
        verified = made.read().bundle
        (made.bundle / "index.json").write_bytes(expected_index(verified.contents, verified.blobs))
        yield made


def check(world: World) -> list[tuple[str, Wrong]]:
    verified: VerifiedBundle = world.store.release().bundle
    found: tuple[Finding, ...] = verify_bundle_blobs(world.bundle, verified.blobs, contents=verified.contents, workers=2)
    return [(finding.path.relative_to(world.bundle).as_posix(), finding.wrong) for finding in found]


def test_a_whole_bundle_has_no_finding(world: World) -> None:
    assert check(world) == []


@pytest.mark.parametrize("name", ["index.json", "oci-layout"])
def test_every_byte_of_the_layout_files_is_verified(world: World, name: str) -> None:
    path = world.bundle / name
    data = path.read_bytes()
    for changed in (data + b" ", data[:-1], b"", data.replace(b"1", b"2", 1), b'{"manifests":[],"schemaVersion":2}'):
        path.write_bytes(changed)
        assert check(world) == [(name, Wrong.DAMAGED)]
    path.unlink()
    assert check(world) == [(name, Wrong.MISSING)]
    path.mkdir()
    assert check(world) == [(name, Wrong.LINK)]


def test_files_that_nothing_lists_are_found(world: World) -> None:
    (world.bundle / "README").write_text("x")
    (world.bundle / "blobs" / "sha512").mkdir()
    assert check(world) == [("README", Wrong.EXTRA), ("blobs/sha512", Wrong.EXTRA)]


@pytest.mark.parametrize("name", ["blobs", "blobs/sha256", "metadata"])
def test_a_folder_that_is_a_link_is_found(world: World, name: str) -> None:
    folder = world.bundle / name
    folder.rename(world.root / "elsewhere")
    folder.symlink_to(world.root / "elsewhere")
    assert check(world) == [(name, Wrong.LINK)]


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_blob_that_is_no_file_is_called_by_its_kind(world: World, kind: str) -> None:
    blob = min((world.bundle / "blobs" / "sha256").iterdir())
    blob.rename(world.root / "aside")
    if kind == "link":
        blob.symlink_to(world.root / "aside")
    elif kind == "pipe":
        os.mkfifo(blob)
    else:
        blob.mkdir()
    verified = world.store.release().bundle
    (finding,) = verify_bundle_blobs(world.bundle, verified.blobs, contents=verified.contents, workers=2)
    assert finding.wrong is Wrong.LINK
    assert kind in finding.detail


def test_metadata_that_is_a_link_or_holds_an_empty_folder_is_refused(world: World) -> None:
    (world.bundle / "metadata" / "empty").mkdir()
    with pytest.raises(FormatError, match="an empty folder"):
        read_metadata(world.bundle)
    (world.bundle / "metadata" / "empty").rmdir()
    (world.bundle / "metadata").rename(world.root / "elsewhere")
    (world.bundle / "metadata").symlink_to(world.root / "elsewhere")
    with pytest.raises(FormatError, match="a symbolic link"):
        read_metadata(world.bundle)


@pytest.mark.parametrize("dialect", [DOCKER_MANIFEST, "application/vnd.oci.image.manifest.v1+json"])
def test_an_image_in_dockers_dialect_stands_under_its_name_with_the_index_made_for_it(dialect: str) -> None:
    root, manifest = blob_of(b"root"), blob_of(b"manifest")
    described = {
        "mediaType": dialect,
        "digest": manifest.digest,
        "size": manifest.size,
        "platform": {"architecture": "amd64", "os": "linux"},
    }
    made = blob_of(json_bytes({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [described]}))
    blobs = {blob.digest: blob for blob in (root, manifest, made)}
    name = "registry.test/team/app:1.0"
    binding = ImageBinding(reference=name, index=root.digest, manifest=manifest.digest, config=digest_of(b"c"), platform="debian-12-amd64")
    artifact = Artifact(name=name, version="1.0", media_type=DOCKER_LIST, root=root.digest, blobs=tuple(sorted(blobs)), image=binding)
    contents = Contents(format=Contents.FORMAT, content_class=ContentClass.IMAGES, artifacts=(artifact,), blobs=tuple(blobs.values()))
    index = json.loads(expected_index({ContentClass.IMAGES: contents}, blobs))
    names = {each["annotations"]["org.opencontainers.image.ref.name"]: each["digest"] for each in index["manifests"]}
    assert names == {name: made.digest, f"{name}@{root.digest}": root.digest}
