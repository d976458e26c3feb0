# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Files on this machine: what is written is whole or not there, and errors say what to do."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.adapters import disk
from appliance.errors import FormatError, HostError
from tests.support.faults import CHANGES, WRITES, can_mount, failing, fill, small_disk


def test_an_atomic_write_that_fails_anywhere_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    for call in (*WRITES, "fsync"):
        with failing([call], errno.ENOSPC, below=tmp_path) as fault:
            if call in {"pwrite", "fsync"}:
                with pytest.raises(HostError, match=r"needs 3 bytes, \d+ bytes are available"):
                    disk.write_atomic(path, b"new")
                assert fault.struck
                assert path.read_bytes() == b"old"
                assert [each.name for each in tmp_path.iterdir()] == ["file"]
    disk.write_atomic(path, b"new", mode=0o600)
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o600)


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS, errno.EACCES, errno.ENOENT, errno.EFBIG, errno.ENODEV, errno.EMFILE])
def test_every_kind_of_failure_names_the_path_and_what_to_do(code: int) -> None:
    error = disk.host_error(OSError(code, os.strerror(code)), "/a/path")
    assert error.message.startswith("/a/path: ")
    assert error.hint


def test_a_link_a_folder_and_a_pipe_are_not_opened_as_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(HostError, match="link"):
        disk.open_regular(tmp_path / "link")
    for name in (".", "pipe"):
        with pytest.raises(FormatError, match="expected a regular file"):
            disk.open_regular(tmp_path / name)


def test_a_file_longer_than_it_may_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert disk.read_small(tmp_path / "file", limit=5) == b"12345"
    with pytest.raises(FormatError, match="more than the 4 bytes"):
        disk.read_small(tmp_path / "file", limit=4)


def test_a_lock_is_held_by_one_process_whose_id_the_other_is_told(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    program = f"""
from pathlib import Path
from appliance.adapters.disk import locked
with locked(Path({str(path)!r}), what="it"):
    print("held", flush=True)
    input()
"""
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(HostError, match=f"it is in use by process {other.pid}"), disk.locked(path, what="it"):
            pass
        other.kill()
    with disk.locked(path, what="it"):
        assert path.read_text() == f"{os.getpid()}\n"


def test_two_names_are_exchanged_in_one_step(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    disk.exchange(tmp_path / "one", tmp_path / "other")
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["other"]
    with pytest.raises(FileNotFoundError):
        disk.exchange(tmp_path / "one", tmp_path / "none")


def test_a_line_is_appended_behind_a_torn_one(tmp_path: Path) -> None:
    log = tmp_path / "log" / "imports.jsonl"
    disk.append_line(log, b"one")
    with log.open("ab") as stream:
        stream.write(b"to")
    disk.append_line(log, b"three")
    assert log.read_bytes() == b"one\nto\nthree\n"


def test_space_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    there = disk.free_bytes(tmp_path / "not" / "there")
    disk.require_space(tmp_path, 1, what="it")
    with pytest.raises(HostError, match=f"it needs {2 * there} bytes") as caught:
        disk.require_space(tmp_path, 2 * there, what="it")
    assert caught.value.hint


@pytest.mark.skipif(not can_mount(), reason="needs root to mount a small disk")
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_reservation_that_does_not_fit_a_real_small_disk_is_refused(tmp_path: Path, kind: str) -> None:
    with small_disk(tmp_path / "disk", 8 * 1024 * 1024, kind=kind) as place:
        descriptor = os.open(place / "file", os.O_RDWR | os.O_CREAT)
        try:
            with pytest.raises(HostError, match="no space left: needs 67108864 bytes"):
                disk.reserve(descriptor, 64 * 1024 * 1024, place / "file")
            assert disk.reserve(descriptor, 1024 * 1024, place / "file")
        finally:
            os.close(descriptor)
        fill(place)
        with pytest.raises(HostError, match="bytes are available"):
            disk.write_atomic(place / "other", bytes(100_000))
        assert not [path for path in place.iterdir() if path.name.endswith(".new")]


def test_a_rename_that_fails_is_told_with_its_path(tmp_path: Path) -> None:
    with failing(CHANGES, errno.EROFS, below=tmp_path), pytest.raises(HostError, match=f"{tmp_path}/file: read-only"):
        disk.write_atomic(tmp_path / "file", b"x")


def test_a_lock_file_that_is_a_link_or_a_pipe_is_refused_and_its_target_is_untouched(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("precious")
    (tmp_path / "link").symlink_to(target)
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe"):
        with pytest.raises(HostError), disk.locked(tmp_path / name, what="it"):
            pass
    assert target.read_text() == "precious"


@pytest.mark.parametrize("mask", [0, 0o777])
def test_new_folders_have_their_mode_whatever_the_umask(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        disk.make_directory(tmp_path / "a" / "b", mode=0o700)
        disk.write_atomic(tmp_path / "a" / "copy", b"", mode=0o444)
    finally:
        os.umask(before)
    modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "a", tmp_path / "a" / "b", tmp_path / "a" / "copy")]
    assert modes == [0o755, 0o700, 0o444]


def test_a_file_where_a_folder_is_needed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "folder"):
        with pytest.raises(HostError):
            disk.make_directory(path)
