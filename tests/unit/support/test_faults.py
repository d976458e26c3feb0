# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Each tool breaks what it says (positive control) and nothing else (negative control)."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import pytest

from tests.support import faults

NEEDS_MOUNT = pytest.mark.skipif(not faults.can_mount(), reason="mounting a small disk needs root")
NEEDS_STRACE = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
MIB = 1 << 20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(100)))
    path.chmod(0o444)
    return path


@pytest.mark.parametrize(("offset", "place"), [(0, 0), (57, 57), (-1, 99)])
def test_flipping_changes_that_byte_alone_and_neither_mode_nor_time(file: Path, offset: int, place: int) -> None:
    before, data = file.stat(), file.read_bytes()
    faults.flip_byte(file, offset, mask=0x80)
    changed = [at for at, (old, new) in enumerate(zip(data, file.read_bytes(), strict=True)) if old != new]
    assert changed == [place]
    assert (file.stat().st_mode, file.stat().st_mtime_ns) == (before.st_mode, before.st_mtime_ns)


def test_a_flip_that_would_change_nothing_is_refused(file: Path) -> None:
    with pytest.raises(ValueError, match="changes no byte"):
        faults.flip_byte(file, 0, mask=0)
    with pytest.raises(IndexError, match="none at 100"):
        faults.flip_byte(file, 100)
    with pytest.raises(IndexError, match="none at -101"):
        faults.flip_byte(file, -101)
    assert file.read_bytes() == bytes(range(100))


def test_a_byte_flipped_for_a_block_is_itself_again_after_it(file: Path) -> None:
    def refused() -> None:
        with faults.flipped(file, 3):
            assert file.read_bytes()[3] == 2
            raise RuntimeError

    with pytest.raises(RuntimeError):
        refused()
    assert file.read_bytes() == bytes(range(100))


def test_truncating_cuts_and_never_leaves_the_file_as_it_was(file: Path) -> None:
    faults.truncate(file, -1)
    assert file.read_bytes() == bytes(range(99))
    faults.truncate(file, 10)
    assert file.read_bytes() == bytes(range(10))
    for size in (10, 11, -11):
        with pytest.raises(ValueError, match="cannot be cut"):
            faults.truncate(file, size)


def test_overwriting_duplicating_and_swapping(file: Path, tmp_path: Path) -> None:
    copy = faults.duplicate(file, tmp_path / "copy")
    assert copy.read_bytes() == file.read_bytes()
    assert copy.stat().st_mtime_ns == file.stat().st_mtime_ns
    assert copy.stat().st_ino != file.stat().st_ino
    faults.overwrite(copy, 2, b"xy")
    assert copy.read_bytes() == b"\0\1xy" + bytes(range(4, 100))
    faults.swap(file, copy)
    assert file.read_bytes()[2:4] == b"xy"
    assert copy.read_bytes() == bytes(range(100))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "file"]


def test_links_read_the_same_and_are_links(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"other")
    faults.replace_by_hard_link(other, of=file)
    assert other.samefile(file)
    assert not other.is_symlink()
    moved = faults.replace_by_symlink(file)
    assert file.is_symlink()
    assert file.read_bytes() == moved.read_bytes() == bytes(range(100))


@NEEDS_MOUNT
@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_small_disk_is_full_when_filled_and_writable_before_and_gone_after(tmp_path: Path, kind: str) -> None:
    place = tmp_path / "disk"
    with faults.small_disk(place, 4 * MIB, kind=kind):
        (place / "fits").write_bytes(bytes(4096))
        faults.fill(place)
        with pytest.raises(OSError, match="No space left") as caught:
            (place / "more").write_bytes(bytes(8192))
        assert caught.value.errno == errno.ENOSPC
    assert list(place.iterdir()) == []


@NEEDS_MOUNT
def test_filling_can_leave_some_room(tmp_path: Path) -> None:
    with faults.small_disk(tmp_path / "disk", 4 * MIB):
        faults.fill(tmp_path / "disk", leave=MIB)
        status = os.statvfs(tmp_path / "disk")
        assert MIB - 4096 <= status.f_bavail * status.f_frsize <= MIB


def test_a_disk_that_is_not_small_is_never_filled(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    if status.f_bavail * status.f_frsize <= 1 << 30:
        pytest.skip("the disk of the test itself is nearly full")
    with pytest.raises(ValueError, match="fill only a small disk"):
        faults.fill(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_file_grows_beyond_the_limit_within_the_block_and_any_does_after_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    child = [sys.executable, "-c", f"import os; os._exit(os.write(os.open({str(path)!r}, os.O_WRONLY), bytes(5000)) != 5000)"]
    with faults.largest_file(4096):
        with path.open("wb", buffering=0) as file:
            assert file.write(bytes(5000)) == 4096
            with pytest.raises(OSError, match="File too large"):
                file.write(b"x")
        assert subprocess.run(child, check=False, capture_output=True).returncode == 1
    assert subprocess.run(child, check=False, capture_output=True).returncode == 0
    assert path.stat().st_size == 5000


def write_all(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def test_writes_fail_after_the_allowed_bytes_and_only_below_the_folder(tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    with faults.failing(faults.WRITES, errno.ENOSPC, below=inside, after_bytes=70) as fault:
        write_all(outside / "file", bytes(100))
        write_all(inside / "first", bytes(50))
        with pytest.raises(OSError, match="No space left"):
            write_all(inside / "second", bytes(50))
    assert (fault.struck, fault.passed_bytes) == (1, 70)
    assert (inside / "second").stat().st_size == 20
    write_all(inside / "third", bytes(100))
    assert (inside / "third").stat().st_size == (outside / "file").stat().st_size == 100


@pytest.mark.parametrize("name", ["pwrite", "writev", "pwritev", "sendfile", "copy_file_range"])
def test_every_way_of_writing_moves_fewer_bytes_then_fails(tmp_path: Path, name: str) -> None:
    source, target = tmp_path / "source", tmp_path / "in" / "target"
    source.write_bytes(bytes(100))
    target.parent.mkdir()
    with source.open("rb") as reading, target.open("wb") as writing:
        arguments = {
            "pwrite": (writing.fileno(), bytes(100), 0),
            "writev": (writing.fileno(), [bytes(60), bytes(40)]),
            "pwritev": (writing.fileno(), [bytes(60), bytes(40)], 0),
            "sendfile": (writing.fileno(), reading.fileno(), 0, 100),
            "copy_file_range": (reading.fileno(), writing.fileno(), 100, 0),
        }[name]
        with faults.failing(faults.WRITES, errno.ENOSPC, below=target.parent, after_bytes=70):
            assert getattr(os, name)(*arguments) == 70
            with pytest.raises(OSError, match="No space left"):
                getattr(os, name)(*arguments)


def test_reads_fail_with_an_io_error_after_the_allowed_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(100))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with faults.failing(faults.READS, errno.EIO, below=tmp_path, after_bytes=64):
            assert len(os.pread(descriptor, 100, 0)) == 64
            with pytest.raises(OSError, match="Input/output error"):
                os.preadv(descriptor, [bytearray(10)], 64)
        assert os.preadv(descriptor, [bytearray(100)], 0) == 100
    finally:
        os.close(descriptor)


def test_counting_up_strikes_once_at_every_call_there_is(tmp_path: Path) -> None:
    struck = []
    for allowed in count():
        with faults.failing(("write", "fsync"), errno.EIO, below=tmp_path, after_calls=allowed) as fault:
            try:
                write_all(tmp_path / f"{allowed}", b"data")
            except OSError as error:
                struck.append(error.errno)
        if not fault.struck:
            break
    assert struck == [errno.EIO, errno.EIO]


def test_a_failing_rename_is_met_by_path(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with faults.failing(faults.CHANGES, errno.EROFS, below=tmp_path), pytest.raises(OSError, match="Read-only"):
        (tmp_path / "a").replace(tmp_path / "b")
    (tmp_path / "a").replace(tmp_path / "b")


@NEEDS_STRACE
def test_a_system_call_fails_in_a_program_of_any_language_on_that_file_alone(tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_text("fine\n")
    bad.write_text("fine\n")
    read = [faults.strace_injecting(["cat", str(path)], calls=["read"], code="EIO", path=bad) for path in (good, bad)]
    ran = [subprocess.run(command, check=False, capture_output=True, text=True) for command in read]
    assert (ran[0].returncode, ran[0].stdout) == (0, "fine\n")
    assert ran[1].returncode == 1
    assert "Input/output error" in ran[1].stderr


def test_a_command_is_killed_with_its_children_within_its_time(tmp_path: Path) -> None:
    script = f"sleep 60 & echo $! > {tmp_path}/child; echo started; wait"
    kill = faults.kill_when(["bash", "-c", script], (tmp_path / "child").exists)
    assert (kill.killed, kill.status) == (True, -9)
    child = Path("/proc") / (tmp_path / "child").read_text().strip() / "stat"
    deadline = time.monotonic() + 10
    while child.exists() and child.read_text().split()[2] != "Z":  # it was killed, and may not have died yet
        assert time.monotonic() < deadline
    drawn = faults.kill_at_random(["sleep", "60"], between=(0.01, 0.05), seed=5)
    assert drawn.killed
    assert 0.01 <= drawn.after <= 0.05


def test_a_command_that_ends_first_is_not_called_killed(capsys: pytest.CaptureFixture[str]) -> None:
    kill = faults.kill_at_random(["bash", "-c", "echo done; exit 3"], between=(30, 31), seed=7)
    assert (kill.killed, kill.status, kill.output) == (False, 3, "done\n")
    assert "seed 7" in capsys.readouterr().out


def test_one_seed_gives_one_moment_and_another_seed_another() -> None:
    moments = [faults.kill_at_random(["true"], between=(20, 30), seed=seed).after for seed in (1, 1, 2)]
    assert moments[0] == moments[1] != moments[2]


def test_a_seed_can_be_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAULT_SEED", "17")
    assert faults.new_seed() == 17
    monkeypatch.delenv("FAULT_SEED")
    assert faults.new_seed() != faults.new_seed()
