# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import hashlib
import json
import os
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from tests.lab.world.archive import Compression, Item, write_archive
from tests.lab.world.image import DOCKER, INDEX, MANIFEST, BuiltImage, Image, Layer, read_image, write_image


def program(folder: Path, *, mtime: int) -> Path:
    folder.mkdir(parents=True)
    path = folder / "program"
    path.write_bytes(b"#!/bin/true\n" * 50_000)
    os.utime(path, (mtime, mtime))
    return path


def image(path: Path, *, compression: Compression = "gzip") -> Image:
    items = (Item(path="usr/bin/sh", target="program"), Item(path="usr/bin/program", content=path), Item(path="tmp", mode=0o1777))
    labels = {"b": "2", "a": "1"}
    return Image(
        reference="registry.example/team/tool:v1",
        layers=(Layer(items=items, made_by="test", compression=compression),),
        entrypoint=("/usr/bin/program",),
        labels=labels,
    )


def digests(built: BuiltImage) -> set[str]:
    return {path.name for path in (built.layout / "blobs" / "sha256").iterdir()}


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_two_builds_at_other_times_from_other_folders_give_the_same_bytes(tmp_path: Path, compression: Compression) -> None:
    one = write_image(image(program(tmp_path / "x", mtime=1), compression=compression), tmp_path / "one")
    two = write_image(image(program(tmp_path / "y", mtime=10**9), compression=compression), tmp_path / "two")
    assert one.blobs == two.blobs
    assert digests(one) == digests(two)
    assert (one.layout / "index.json").read_bytes() == (two.layout / "index.json").read_bytes()


def test_one_changed_byte_of_a_program_changes_layer_manifest_and_index(tmp_path: Path) -> None:
    path = program(tmp_path / "x", mtime=1)
    one = write_image(image(path), tmp_path / "one")
    path.write_bytes(b"!" + path.read_bytes()[1:])
    two = write_image(image(path), tmp_path / "two")
    assert not set(one.blobs) & set(two.blobs)


def test_every_blob_is_named_by_its_bytes_and_index_differs_from_manifest(tmp_path: Path) -> None:
    built = write_image(image(program(tmp_path / "x", mtime=1)), tmp_path / "layout")
    for digest in built.blobs:
        assert f"sha256:{hashlib.sha256(built.blob(digest).read_bytes()).hexdigest()}" == digest
    assert built.index != built.manifest
    index, manifest = json.loads(built.blob(built.index).read_bytes()), json.loads(built.blob(built.manifest).read_bytes())
    assert (index["mediaType"], manifest["mediaType"]) == (INDEX, MANIFEST)
    (child,) = index["manifests"]
    assert (child["digest"], child["size"]) == (built.manifest, built.blob(built.manifest).stat().st_size)
    assert child["platform"] == {"architecture": "amd64", "os": "linux"}
    assert read_image(built.layout) == built


def test_an_image_in_dockers_dialect_names_no_oci_type_and_has_other_digests(tmp_path: Path) -> None:
    wanted = image(program(tmp_path / "x", mtime=1))
    built, other = write_image(replace(wanted, dialect=DOCKER), tmp_path / "layout"), write_image(wanted, tmp_path / "other")
    for digest in (built.index, built.manifest):
        assert b"vnd.oci" not in built.blob(digest).read_bytes()
    assert built.layers == other.layers
    assert built.manifest != other.manifest


def test_the_configuration_names_the_layers_uncompressed(tmp_path: Path) -> None:
    built = write_image(image(program(tmp_path / "x", mtime=1)), tmp_path / "layout")
    config = json.loads(built.blob(built.config).read_bytes())
    plain = gzip.decompress(built.blob(built.layers[0]).read_bytes())
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(plain).hexdigest()}"]
    assert config["config"]["Labels"] == {"a": "1", "b": "2"}


def test_an_archive_holds_no_time_no_owner_and_every_parent_before_its_child(tmp_path: Path) -> None:
    target = tmp_path / "a.tgz"
    written = write_archive(target, [Item(path="b/c/d", content=b"d"), Item(path="b-x", content=b"x", mode=0o644)], "gzip")
    with tarfile.open(target) as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == ["b", "b/c", "b/c/d", "b-x"]
    assert {(member.mtime, member.uid, member.gid, member.uname) for member in members} == {(0, 0, 0, "")}
    assert target.read_bytes()[4:8] == b"\0\0\0\0"
    assert written.sha256 == hashlib.sha256(target.read_bytes()).hexdigest()
    assert written.size == target.stat().st_size


def test_a_path_given_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="b is in the archive twice"):
        write_archive(tmp_path / "a.tar", [Item(path="b", content=b"1"), Item(path="b", content=b"2")], "none")
