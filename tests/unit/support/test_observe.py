# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Each observer sees what happened (positive control) and is quiet where nothing did (negative control)."""

from __future__ import annotations

import base64
import binascii
import gzip
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.observe import differences, forms, leaks, parse, plant, snapshot, trace, unchanged

NEEDS_STRACE = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


@pytest.fixture
def world(tmp_path: Path) -> Path:
    root = tmp_path / "world"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "file").write_text("content")
    (root / "link").symlink_to("sub/file")
    return root


def same_size_same_time(root: Path) -> None:
    path = root / "sub" / "file"
    before = path.stat()
    path.write_text("CONTENT")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def relink(root: Path) -> None:
    (root / "link").unlink()
    (root / "link").symlink_to("sub")


def come_and_go(root: Path) -> None:
    (root / "sub" / "temporary").touch()
    (root / "sub" / "temporary").unlink()


CHANGES: dict[str, Callable[[Path], object]] = {
    "appeared": lambda root: (root / "sub" / "new").touch(),
    "vanished": lambda root: (root / "link").unlink(),
    "(content)": same_size_same_time,
    "(mode)": lambda root: (root / "sub" / "file").chmod(0o600),
    "(mtime)": come_and_go,
    "(links)": lambda root: (root.parent / "beside").hardlink_to(root / "sub" / "file"),
    "content": relink,
}


@pytest.mark.parametrize("told", CHANGES)
def test_each_kind_of_change_is_told(world: Path, told: str) -> None:
    before = snapshot(world)
    CHANGES[told](world)
    assert any(told in line for line in differences(before, snapshot(world)))


def test_reading_changes_nothing(world: Path) -> None:
    with unchanged(world):
        (world / "sub" / "file").read_text()


def test_a_change_under_the_guard_is_an_assertion_also_when_the_block_was_refused(world: Path) -> None:
    def refused() -> None:
        with unchanged(world):
            (world / "extra").touch()
            raise ValueError

    with pytest.raises(AssertionError, match=re.escape(f"appeared: {world}/extra")):
        refused()


def test_what_is_left_out_may_change_and_a_folder_not_there_must_not_appear(world: Path, tmp_path: Path) -> None:
    with unchanged(world, besides=["*.lock"], times=False):
        (world / "a.lock").touch()
    with pytest.raises(AssertionError, match="kind"), unchanged(tmp_path / "later"):
        (tmp_path / "later").mkdir()


SECRET = plant("token")
SURROUNDED = f"before {SECRET} after".encode()
WRITTEN: dict[str, bytes] = {
    "raw": SURROUNDED,
    "wrapped over lines": SECRET[:10].encode() + b"\n  " + SECRET[10:].encode(),
    "escaped line ends": SECRET[:10].encode() + rb"\n" + SECRET[10:].encode(),
    "hex": binascii.hexlify(SURROUNDED),
    "upper hex": binascii.hexlify(SURROUNDED).upper(),
    "utf-16": SURROUNDED.decode().encode("utf-16-le"),
    "gzip": gzip.compress(SURROUNDED),
    "base64 of lines": base64.encodebytes(b"xx" * 40 + SURROUNDED),
    **{f"base64 shifted {shift}": base64.b64encode(b"x" * shift + SURROUNDED) for shift in range(3)},
    **{f"base64url shifted {shift}": base64.urlsafe_b64encode(b"x" * shift + SURROUNDED) for shift in range(3)},
}


@pytest.mark.parametrize("how", WRITTEN)
def test_a_secret_is_found_however_it_is_written(tmp_path: Path, how: str) -> None:
    (tmp_path / "log").write_bytes(WRITTEN[how])
    assert {leak.secret for leak in leaks({"key": SECRET, "other": plant("other")}, tmp_path)} == {"key"}


def test_a_binary_secret_is_found_in_base64_of_both_alphabets(tmp_path: Path) -> None:
    secret = bytes([0xFB, 0xEF, 0xFF] * 8)
    (tmp_path / "standard").write_bytes(base64.b64encode(b"ab" + secret + b"z"))
    (tmp_path / "urls").write_bytes(base64.urlsafe_b64encode(b"a" + secret))
    assert {leak.path.name for leak in leaks({"key": secret}, tmp_path)} == {"standard", "urls"}


def test_a_secret_is_found_in_names_link_targets_and_archives(tmp_path: Path) -> None:
    (tmp_path / SECRET).touch()
    (tmp_path / "link").symlink_to(SECRET)
    with zipfile.ZipFile(tmp_path / "archive.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner", SURROUNDED * 20)
    assert {leak.path.name for leak in leaks({"key": SECRET}, tmp_path)} == {SECRET, "link", "archive.zip"}


def test_no_leak_is_told_where_the_secret_is_not(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(SURROUNDED.replace(SECRET[5:7].encode(), b"??"))
    (tmp_path / "random").write_bytes(os.urandom(1 << 20))
    (tmp_path / "broken.gz").write_bytes(gzip.compress(SURROUNDED)[:-9])
    assert leaks({"key": SECRET}, tmp_path / "log", tmp_path / "random") == []


def test_a_secret_too_short_to_be_told_from_chance_is_refused() -> None:
    with pytest.raises(ValueError, match="found by chance"):
        forms("1234567")
    assert all(len(value) >= 8 for value in forms("12345678").values())


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-B", "-c", code]


@NEEDS_STRACE
def test_a_command_that_only_reads_makes_no_network_call_and_changes_nothing() -> None:
    seen = trace(python("print(open('/etc/hostname').read() and 'read')"))
    assert (seen.status, seen.output) == (0, "read\n")
    assert (seen.network, seen.changes) == ([], [])


@NEEDS_STRACE
def test_writes_of_a_child_of_the_command_are_seen(tmp_path: Path) -> None:
    made = tmp_path / "made"
    seen = trace(["bash", "-c", f"(echo x > {made}); mv {made} {made}2; true > /dev/null"])
    assert seen.changes[0].name == "openat"
    assert all(str(made) in call.rest for call in seen.changes)
    assert any(call.name.startswith("rename") for call in seen.changes)


@NEEDS_STRACE
def test_a_write_that_was_refused_is_still_told(tmp_path: Path) -> None:
    seen = trace(python(f"import os\ntry: os.mkdir({str(tmp_path)!r})\nexcept FileExistsError: pass"))
    assert [call.name for call in seen.changes] == ["mkdir"]


@NEEDS_STRACE
def test_loopback_is_told_from_the_world_and_both_from_unix_sockets() -> None:
    dial = "import socket\ns = socket.socket(socket.{family}, socket.SOCK_DGRAM)\ntry: s.connect({address!r})\nexcept OSError: pass"
    near = trace(python(dial.format(family="AF_INET", address=("127.0.0.1", 9))))
    six = trace(python(dial.format(family="AF_INET6", address=("::1", 9))))
    far = trace(python(dial.format(family="AF_INET", address=("192.0.2.1", 9))))
    unix = trace(python(dial.format(family="AF_UNIX", address="/nowhere")))
    assert near.network
    assert six.network
    assert not near.beyond_loopback
    assert not six.beyond_loopback
    assert ["192.0.2.1" in call.rest for call in far.beyond_loopback] == [True]
    assert unix.network == []


@NEEDS_STRACE
def test_a_command_that_cannot_be_traced_is_no_quiet_success() -> None:
    with pytest.raises(RuntimeError, match="saw nothing"):
        trace(["/nonexistent/program"])


def test_a_call_cut_in_two_by_another_process_is_read_as_one() -> None:
    log = (
        '7  openat(AT_FDCWD</>, "/a", O_WRONLY|O_CREAT <unfinished ...>\n'
        '8  connect(3<TCP:[1]>, {sa_family=AF_INET, sin_addr=inet_addr("192.0.2.1")}, 16 <unfinished ...>\n'
        "7  <... openat resumed>, 0666) = 3</a>\n"
        "8  +++ killed by SIGKILL +++\n"
    )
    calls = parse(log)
    assert [(call.pid, call.name) for call in calls] == [(7, "openat"), (8, "connect")]
    assert "O_CREAT" in calls[0].rest
    assert "= 3</a>" in calls[0].rest
