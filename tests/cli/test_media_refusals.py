# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Every refusal of `media read` and `media write` on the command line: its exit code, one error, one hint, nothing changed."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from appliance.carry.parts import read_part
from appliance.cli import app
from tests.support.carried import ONE, THREE, World, rewrite, small_chunks
from tests.support.faults import duplicate, failing, flip_byte, replace_by_symlink, truncate
from tests.support.observe import unchanged
from tests.support.simulator import Files, Line


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def line_at(days: float = 0, **more: object) -> Line:
    return Line(now=datetime.now(UTC).replace(microsecond=0) + timedelta(days=days), **more)  # type: ignore[arg-type]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with small_chunks():
        yield World(tmp_path, line=line_at())


def refused(done: Result, code: int, said: str) -> None:
    assert done.exit_code == code, done.output
    assert re.search(f"^appliance: error: .*{said}", done.stderr, re.MULTILINE), done.stderr
    assert len(re.findall("^appliance: error: ", done.stderr, re.MULTILINE)) == 1
    assert len(re.findall("^appliance: hint: .", done.stderr, re.MULTILINE)) == 1
    assert done.stdout == ""


def part(world: World) -> Path:
    return world.parts()[0]


def with_metadata(files: Callable[[World], Files]) -> Callable[[World, ExitStack], object]:
    """What rewrites the part with other metadata."""
    return lambda world, _: rewrite(part(world), files(world))


def unsigned_chunk(world: World, _: ExitStack) -> None:
    rewrite(part(world), world.files, b"unsigned")


def two_sets(world: World, _: ExitStack) -> None:
    world.publish(version="1.1.0", extra={"new": b"n" * 5000})
    world.write("other", room=ONE)
    world.carry("media", *world.parts("other"))


def older(world: World, _: ExitStack) -> None:
    world.publish(version="1.1.0")
    world.write("newer", room=ONE)
    assert world.read("newer").complete


def linked(world: World, _: ExitStack) -> None:
    replace_by_symlink(part(world)).rename(world.root / "elsewhere")
    part(world).unlink()
    (world.root / "media" / "a.part").symlink_to(world.root / "elsewhere")


def full_disk(world: World, stack: ExitStack) -> None:
    stack.enter_context(failing(["pwrite"], errno.ENOSPC, below=world.store.staging))


def bad_medium(world: World, stack: ExitStack) -> None:
    stack.enter_context(failing(["preadv"], errno.EIO, below=world.root / "media"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is done to the media, exit code, and what is said."""

    does: Callable[[World, ExitStack], object]
    code: int
    says: str


READ = {
    "header": Case(does=lambda world, _: flip_byte(part(world), 3), code=4, says=r"\.part: offset 0: "),
    "length of the table": Case(does=lambda world, _: flip_byte(part(world), 15), code=4, says=r"\.part: offset 64: "),
    "digest of the table": Case(does=lambda world, _: flip_byte(part(world), 20), code=4, says=r"\.part: offset 64: "),
    "padding": Case(does=lambda world, _: flip_byte(part(world), 60), code=4, says=r"\.part: offset 48: "),
    "table": Case(does=lambda world, _: flip_byte(part(world), 100), code=4, says=r"\.part: offset 64: "),
    "metadata": Case(
        does=lambda world, _: flip_byte(part(world), read_part(part(world)).table.metadata[0].offset),
        code=4,
        says=r"\.part: offset \d+: metadata ",
    ),
    "chunk": Case(
        does=lambda world, _: flip_byte(part(world), read_part(part(world)).table.chunks[-1].offset),
        code=3,
        says=r"\.part: offset \d+: the chunk of \d+ bytes there is not sha256:[0-9a-f]{64}: damaged",
    ),
    "trailer": Case(does=lambda world, _: flip_byte(part(world), -48), code=4, says=r"\.part: offset \d+: "),
    "cut": Case(does=lambda world, _: truncate(part(world), -1), code=4, says=r"\.part: offset \d+: ends here.*truncated"),
    "cut in the header": Case(does=lambda world, _: truncate(part(world), 40), code=4, says=r"\.part: offset 40: ends here.*truncated"),
    "empty": Case(does=lambda world, _: truncate(part(world), 0), code=4, says=r"\.part: offset 0: ends here.*truncated"),
    "longer": Case(
        does=lambda world, _: part(world).write_bytes(part(world).read_bytes() + b"x"), code=4, says=r"offset \d+: 1 bytes behind the end"
    ),
    "a link": Case(does=linked, code=4, says=r"a\.part: a symbolic link, expected the part itself"),
    "two sets": Case(does=two_sets, code=2, says="parts of two sets"),
    "older after newer": Case(does=older, code=3, says="timestamp went back from version 2 to 1"),
    "another line": Case(
        does=with_metadata(lambda _: Line("umbrella", now=line_at().now).publish()), code=3, says="is of line 'umbrella'; this side trusts"
    ),
    "a stranger": Case(
        does=with_metadata(lambda _: line_at(people=("mallory",)).publish()), code=3, says="is not the root 1 that this side"
    ),
    "expired": Case(does=with_metadata(lambda world: aged(world, -91)), code=3, says="timestamp expired on .*, 1 days ago"),
    "a clock behind": Case(does=with_metadata(lambda world: aged(world, 1)), code=5, says="clock says .* has already passed"),
    "a chunk nobody signed": Case(does=unsigned_chunk, code=3, says="that the signed contents do not list"),
    "a full disk": Case(does=full_disk, code=5, says=r"bytes are available"),
    "a medium that cannot be read": Case(does=bad_medium, code=5, says=r"\.part at byte \d+"),
    "a store in use": Case(does=lambda world, stack: stack.enter_context(world.store.lock()), code=5, says=r"in use by process \d+"),
}


def aged(world: World, days: float) -> Files:
    """A release of the world's line, of the same keys and roots, that was signed that many days from now."""
    other = line_at(days)
    other.roots = world.line.roots
    return other.publish(world.contents)


@pytest.mark.parametrize("what", READ)
def test_a_refused_read_has_its_exit_code_and_changes_nothing(world: World, what: str) -> None:
    world.write(room=ONE)
    with ExitStack() as stack:
        READ[what].does(world, stack)
        with unchanged(*world.trusted(), world.root / "media"):
            done = run("media", "read", world.root / "media", "--state", world.state, "-j", 1)
    refused(done, READ[what].code, READ[what].says)


@pytest.mark.parametrize("what", ["a part is missing", "parts are renamed", "a part is there twice", "a damaged copy beside a good one"])
def test_what_is_no_reason_to_refuse_ends_with_0(world: World, what: str) -> None:
    world.write(room=THREE)
    parts = world.parts()
    if what == "a part is missing":
        parts[1].rename(world.root / "left behind")
    elif what == "parts are renamed":
        for number, path in enumerate(parts):
            path.rename(path.with_name(f"HOLIDAY{number}.JPG"))
    else:
        copy = duplicate(parts[0], world.root / "media" / "again.part")
        if what == "a damaged copy beside a good one":
            flip_byte(copy, read_part(copy).table.chunks[0].offset)
    done = run("media", "read", world.root / "media", "--state", world.state)
    assert done.exit_code == 0, done.output
    assert ("parts still missing: 2" in done.stdout) is (what == "a part is missing")
    assert (world.state / "releases").exists() is (what != "a part is missing")
    assert ("another copy of it was good" in done.stderr) is (what == "a damaged copy beside a good one")


def changed_blob(world: World, _: ExitStack) -> None:
    blob = max((world.bundle / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    flip_byte(blob, 5000)


def unsigned(world: World, _: ExitStack) -> None:
    files = world.line.edit(world.files, "timestamp.json", lambda _: None, sign=world.line.signers[:1])
    (world.bundle / "metadata" / "timestamp.json").write_bytes(files["timestamp.json"])


WRITE = {
    "a file changed since create": Case(does=changed_blob, code=3, says="changed since create: .*/blobs/sha256/[0-9a-f]{64}"),
    "a signature is missing": Case(does=unsigned, code=3, says=r"signatures are still lacking: timestamp \(1\)"),
    "a full disk": Case(
        does=lambda world, stack: stack.enter_context(failing(["pwrite"], errno.ENOSPC, below=world.root / "media")),
        code=5,
        says="bytes are available",
    ),
    "no bundle": Case(does=lambda world, _: world.bundle.rename(world.root / "moved"), code=2, says="is not a bundle"),
}


@pytest.mark.parametrize("what", WRITE)
def test_a_refused_write_has_its_exit_code_and_leaves_no_whole_part(world: World, what: str) -> None:
    with ExitStack() as stack:
        WRITE[what].does(world, stack)
        with unchanged(world.bundle):
            done = run("media", "write", world.bundle, "--to", world.root / "media", "-j", 1)
    refused(done, WRITE[what].code, WRITE[what].says)
    left = [path.name for path in world.root.glob("media/*") if not path.name.endswith((".partial", ".journal", ".lock"))]
    assert left == []
