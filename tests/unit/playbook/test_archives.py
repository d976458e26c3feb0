# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Archives for other machines: what is in them, when they are made again, and what is refused."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from appliance.adapters.nodearchives import Program, pack_packages, pack_programs
from appliance.errors import FormatError, HostError


def packed(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.uid, info.mode = len(data), 1001, 0o775
            tar.addfile(info, io.BytesIO(data))
    return path


def program(name: str, path: Path) -> Program:
    return Program(name=name, version="1.2.3", path=path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def two(tmp_path: Path) -> list[Program]:
    plain = tmp_path / "blob"
    plain.write_bytes(b"kubeadm's bytes")
    return [program("kubeadm", plain), program("crictl", packed(tmp_path / "crictl.tgz", {"crictl": b"crictl's", "README": b"not wanted"}))]


def test_each_version_has_its_folder_and_the_mark_is_the_last_member(tmp_path: Path) -> None:
    archive = pack_programs(two(tmp_path), {"kubeadm": "kubeadm"}, tmp_path / "out")
    with tarfile.open(archive.path) as tar:
        members = tar.getmembers()
        names = [member.name for member in members]
        kubeadm = tar.extractfile("lib/appliance/kubeadm-1.2.3/kubeadm")
        assert kubeadm is not None
        assert kubeadm.read() == b"kubeadm's bytes"
        assert tar.getmember("bin/kubeadm").linkname == "../lib/appliance/kubeadm-1.2.3/kubeadm"
    assert names[-1] == f"lib/appliance/{archive.digits}.complete"
    assert "lib/appliance/crictl-1.2.3/crictl" in names
    assert "lib/appliance/crictl-1.2.3/README" not in names
    assert {(member.uid, member.mtime) for member in members} == {(0, 0)}
    assert "lib" not in names, "a folder that every machine has is not ours to set"


def test_an_archive_that_is_there_is_not_made_again_and_a_short_one_is(tmp_path: Path) -> None:
    programs = two(tmp_path)
    archive = pack_programs(programs, {}, tmp_path / "out")
    whole = archive.path.read_bytes()
    before = archive.path.stat().st_mtime_ns
    pack_programs(programs, {}, tmp_path / "out")
    assert archive.path.stat().st_mtime_ns == before
    archive.path.write_bytes(whole[: len(whole) // 2 - 12345 if len(whole) > 50000 else 512])
    pack_programs(programs, {}, tmp_path / "out")
    assert archive.path.read_bytes() == whole


def test_another_digest_is_another_archive(tmp_path: Path) -> None:
    programs = two(tmp_path)
    first = pack_programs(programs, {}, tmp_path / "out")
    programs[0].path.write_bytes(b"other bytes")
    second = pack_programs([program("kubeadm", programs[0].path), programs[1]], {}, tmp_path / "out")
    assert first.digits != second.digits


def test_an_upstream_archive_without_its_program_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    strange = program("crictl", packed(tmp_path / "c.tgz", {"other": b"x"}))
    with pytest.raises(FormatError, match=r"crictl 1\.2\.3 is not packed as expected: crictl"):
        pack_programs([strange], {}, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.tar"))


def test_what_is_not_a_compressed_tar_is_refused(tmp_path: Path) -> None:
    plain = tmp_path / "blob"
    plain.write_bytes(b"no archive")
    with pytest.raises(FormatError, match="not a compressed tar"):
        pack_programs([program("containerd", plain)], {}, tmp_path / "out")


def test_a_blob_that_is_gone_is_named(tmp_path: Path) -> None:
    gone = Program(name="kubelet", version="1", path=tmp_path / "gone", sha256="0" * 64)
    with pytest.raises(HostError, match="gone: No such file"):
        pack_programs([gone], {}, tmp_path / "out")


def test_the_repository_goes_with_a_list_that_names_it_alone(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    (repository / "pool").mkdir(parents=True)
    (repository / "pool/a_1_amd64.deb").write_bytes(b"deb")
    (repository / "Packages").write_text("Package: a\n")
    archive = pack_packages(repository, {"pool/a_1_amd64.deb": hashlib.sha256(b"deb").hexdigest()}, tmp_path / "out")
    with tarfile.open(archive.path) as tar:
        sources = tar.extractfile("appliance/packages/sources.list")
        assert sources is not None
        assert sources.read() == b"deb [trusted=yes] file:/var/cache/appliance/packages ./\n"
        assert {"appliance/packages/lists/partial", "appliance/packages/archives/partial"} <= set(tar.getnames())
