# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The package repository: real packages made by dpkg-deb, each checked against contents before it is offered."""

from __future__ import annotations

import gzip
import hashlib
import subprocess
from pathlib import Path

import msgspec
import pytest

from appliance.bundle.contents import Artifact, ContentClass, PackageEntry
from appliance.digests import Digest, digest_of, hex_of
from appliance.errors import VerificationError
from appliance.store.packages import package_repository
from tests.support.carried import ONE, World
from tests.support.faults import flip_byte
from tests.support.observe import unchanged
from tests.support.simulator import blob_of, contents_of, file_artifact

CONTROL = """Package: {name}
Version: {version}
Architecture: amd64
Maintainer: nobody <nobody@example.org>
Description: a package
 with a second line
"""


def deb(folder: Path, name: str, version: str) -> bytes:
    tree = folder / name
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN" / "control").write_text(CONTROL.format(name=name, version=version))
    (tree / "DEBIAN").chmod(0o755)
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", str(tree), str(folder / f"{name}.deb")], check=True, capture_output=True)
    return (folder / f"{name}.deb").read_bytes()


def entry(name: str, version: str, data: bytes) -> PackageEntry:
    return PackageEntry(
        name=name, version=version, architecture="amd64", path=f"pool/{name}_{version}_amd64.deb", digest=digest_of(data), size=len(data)
    )


def site_with(tmp_path: Path, packages: dict[PackageEntry, bytes]) -> World:
    world = World(tmp_path / "world", sizes={"one": 1})
    artifact, blobs = file_artifact("packages", b"index")
    blobs = {**blobs, **{package.digest: data for package, data in packages.items()}}
    listed: Artifact = msgspec.structs.replace(
        artifact, blobs=tuple(sorted(blobs)), packages=tuple(sorted(packages, key=lambda package: package.path))
    )
    world.contents[ContentClass.OS] = contents_of(ContentClass.OS, [listed], map(blob_of, blobs.values()))
    world.blobs = {**world.blobs, **blobs}
    world.publish()
    world.write(room=ONE)
    world.read()
    return world


def test_the_repository_offers_every_package_with_its_signed_digest(tmp_path: Path) -> None:
    one, two = deb(tmp_path, "one", "1.0"), deb(tmp_path, "two", "2.0-1")
    packages = {entry("one", "1.0", one): one, entry("two", "2.0-1", two): two}
    world = site_with(tmp_path, packages)
    release = world.store.release()
    place = package_repository(world.store, release)
    for package, data in packages.items():
        assert (place / package.path).read_bytes() == data
        assert (place / package.path).stat().st_ino == world.store.blob_path(package.digest).stat().st_ino
    index = (place / "Packages").read_text()
    assert gzip.decompress((place / "Packages.gz").read_bytes()).decode() == index
    stanzas = index.split("\n\n")
    assert [stanza.splitlines()[0] for stanza in stanzas] == ["Package: one", "Package: two"]
    assert f"SHA256: {hex_of(Digest(digest_of(two)))}" in stanzas[1]
    assert " with a second line" in stanzas[0]
    said = hashlib.sha256((place / "Packages").read_bytes()).hexdigest()
    assert f" {said} {len(index.encode())} Packages" in (place / "Release").read_text()
    with unchanged(place):
        assert package_repository(world.store, release) == place


def test_a_package_damaged_in_the_store_is_not_offered(tmp_path: Path) -> None:
    one = deb(tmp_path, "one", "1.0")
    package = entry("one", "1.0", one)
    world = site_with(tmp_path, {package: one})
    path = world.store.blob_path(package.digest)
    path.chmod(0o644)
    flip_byte(path, 100)
    with pytest.raises(VerificationError, match=r"pool/one_1\.0_amd64\.deb: .* expected"):
        package_repository(world.store, world.store.release())
    assert not (world.store.release().path / "packages").exists()


def test_a_package_that_says_another_version_than_contents_is_not_offered(tmp_path: Path) -> None:
    one = deb(tmp_path, "one", "1.0")
    world = site_with(tmp_path, {entry("one", "9.0", one): one})
    with pytest.raises(VerificationError, match=r"its version is '1\.0', contents say '9\.0'"):
        package_repository(world.store, world.store.release())


def test_a_release_without_packages_has_an_empty_repository(tmp_path: Path) -> None:
    world = World(tmp_path, sizes={"one": 1})
    world.write(room=ONE)
    world.read()
    place = package_repository(world.store, world.store.release())
    assert (place / "Packages").read_bytes() == b""
