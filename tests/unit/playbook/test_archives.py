# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Archives for other machines: what is in them, when they are made again, and what is refused."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from appliance.adapters.nodearchives import ARCHIVES, Archive, Program, archive_variables, pack_packages, pack_programs
from appliance.adapters.playbook import playbooks_folder
from appliance.errors import FormatError, HostError, VerificationError


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


def test_each_blob_has_its_folder(tmp_path: Path) -> None:
    programs = two(tmp_path)
    kubeadm_folder, crictl_folder = (f"lib/appliance/{one.name}-1.2.3-{one.sha256[:12]}" for one in programs)
    archive = pack_programs(programs, {"kubeadm": "kubeadm"}, tmp_path / "out")
    with tarfile.open(archive.path) as tar:
        members = tar.getmembers()
        names = [member.name for member in members]
        kubeadm = tar.extractfile(f"{kubeadm_folder}/kubeadm")
        assert kubeadm is not None
        assert kubeadm.read() == b"kubeadm's bytes"
        assert tar.getmember("bin/kubeadm").linkname == f"../{kubeadm_folder}/kubeadm"
    assert f"{crictl_folder}/crictl" in names
    assert f"{crictl_folder}/README" not in names
    assert {(member.uid, member.mtime) for member in members} == {(0, 0)}
    assert "lib" not in names, "a folder that every machine has is not ours to set"


def test_an_archive_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    programs = two(tmp_path)
    archive = pack_programs(programs, {}, tmp_path / "out")
    before = archive.path.stat().st_mtime_ns
    assert pack_programs(programs, {}, tmp_path / "out") == archive
    assert archive.path.stat().st_mtime_ns == before
    assert archive.sha256 == hashlib.sha256(archive.path.read_bytes()).hexdigest()


@pytest.mark.parametrize("damage", ["short", "flipped", "no digest"])
def test_an_archive_that_is_not_the_one_that_was_made_is_made_again(tmp_path: Path, damage: str) -> None:
    programs = two(tmp_path)
    archive = pack_programs(programs, {}, tmp_path / "out")
    whole = archive.path.read_bytes()
    if damage == "short":
        archive.path.write_bytes(whole[:-1024])
    elif damage == "flipped":
        place = whole.index(b"kubeadm's bytes")
        archive.path.write_bytes(whole[:place] + b"K" + whole[place + 1 :])
    else:
        archive.path.with_suffix(".sha256").write_text("")
    assert pack_programs(programs, {}, tmp_path / "out") == archive
    assert archive.path.read_bytes() == whole


@pytest.mark.parametrize("which", ["kubeadm", "crictl"])
def test_a_blob_that_is_not_what_was_signed_is_refused_while_it_is_packed(tmp_path: Path, which: str) -> None:
    programs = [
        Program(name=p.name, version=p.version, path=p.path, sha256="0" * 64 if p.name == which else p.sha256) for p in two(tmp_path)
    ]
    with pytest.raises(VerificationError, match="expected sha256 0000"):
        pack_programs(programs, {}, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_package_that_is_not_what_was_signed_is_refused_while_it_is_packed(tmp_path: Path) -> None:
    (tmp_path / "Packages").write_text("Package: a\n")
    (tmp_path / "a.deb").write_bytes(b"deb")
    with pytest.raises(VerificationError, match="expected sha256 0000"):
        pack_packages(tmp_path, {"a.deb": "0" * 64}, tmp_path / "out")


def test_an_unread_tail_of_a_compressed_archive_counts(tmp_path: Path) -> None:
    good = two(tmp_path)[1]
    with good.path.open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(VerificationError, match="expected sha256"):
        pack_programs([good], {}, tmp_path / "out")


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


def unpack(archive: Archive, root: Path, *, sha256: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the program that nodes run."""
    program = playbooks_folder() / "roles/programs/files/place_programs.py"
    words = [str(archive.path), sha256 or archive.sha256, str(root), str(root / "lib/appliance/programs"), archive.digits]
    return subprocess.run([sys.executable, str(program), *words], capture_output=True, text=True, check=False)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine's /usr/local."""
    for name in ("bin", "lib"):
        (tmp_path / "local" / name).mkdir(parents=True)
    return tmp_path / "local"


def test_a_node_unpacks_what_the_depot_packed_and_then_says_so(tmp_path: Path, root: Path) -> None:
    archive = pack_programs(two(tmp_path), {"kubeadm": "kubeadm", "crictl": "crictl"}, tmp_path / "out")
    assert unpack(archive, root).returncode == 0
    assert (root / "bin/kubeadm").read_bytes() == b"kubeadm's bytes"
    assert os.access(root / "bin/crictl", os.X_OK)
    assert (root / "lib/appliance/programs").read_text() == archive.digits
    assert not [path for path in root.rglob("*") if path.name.endswith(".part")]


def test_a_node_refuses_an_archive_that_is_not_the_depots_before_it_writes(tmp_path: Path, root: Path) -> None:
    archive = pack_programs(two(tmp_path), {}, tmp_path / "out")
    done = unpack(archive, root, sha256="0" * 64)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("did NOT match")
    assert list((root / "lib").iterdir()) == []


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_program_of_a_persons_is_named_and_left(tmp_path: Path, root: Path, kind: str) -> None:
    own = root / "bin/kubeadm"
    if kind == "file":
        own.write_text("own")
    else:
        own.symlink_to("/opt/own/kubeadm")
    archive = pack_programs(two(tmp_path), {"kubeadm": "kubeadm"}, tmp_path / "out")
    done = unpack(archive, root)
    assert done.returncode == 1
    assert done.stderr.startswith(f"{own}: not of this site")
    assert list((root / "lib").iterdir()) == []
    assert own.is_symlink() == (kind == "link")


def test_another_set_takes_the_mark_away_before_its_first_link(tmp_path: Path, root: Path) -> None:
    programs = two(tmp_path)
    first = pack_programs(programs, {"kubeadm": "kubeadm"}, tmp_path / "out")
    assert unpack(first, root).returncode == 0
    programs[0].path.write_bytes(b"kubeadm's other bytes")
    second = pack_programs(
        [program("kubeadm", programs[0].path), programs[1]], {"kubeadm": "kubeadm", "crictl": "crictl"}, tmp_path / "out"
    )
    (root / "bin/.crictl.part").mkdir()  # the run dies at the second link
    assert unpack(second, root).returncode == 1
    assert not (root / "lib/appliance/programs").exists()
    (root / "bin/.crictl.part").rmdir()
    assert unpack(first, root).returncode == 0
    assert (root / "bin/kubeadm").read_bytes() == b"kubeadm's bytes"


def test_archives_of_other_releases_are_removed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "programs-old.tar").write_bytes(b"old")
    (out / "programs-old.part").write_bytes(b"old")
    (tmp_path / "Packages").write_text("")
    names = ("containerd", "cni-plugins", "crictl", "kubeadm", "kubelet", "kubectl", "registry", "helm")
    files = {name: release_file(tmp_path, name) for name in names}
    made = archive_variables({"appliance_files": files, "appliance_packages": [], "appliance_packages_repo": str(tmp_path)}, out)
    assert len(list(out.iterdir())) == 6
    assert Path(str(made["appliance_packages_archive"])).is_file()


def release_file(folder: Path, name: str) -> dict[str, str]:
    """A file of the release, packed as its upstream packs it."""
    layout = ARCHIVES.get(name)
    path = folder / f"blob-{name}"
    if layout is None:
        path.write_text(name)
    else:
        packed(path, {f"{layout.folder}/{member}".lstrip("/"): b"x" for member in layout.members})
    return {"path": str(path), "version": "1", "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
