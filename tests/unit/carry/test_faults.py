# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Full disks, failing devices and stops at every call: a clean refusal, and running again ends as if nothing had been."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.adapters import disk
from appliance.carry.parts import read_part
from appliance.errors import HostError, VerificationError
from appliance.verify import load_trust
from tests.support.carried import ONE, THREE, World
from tests.support.faults import CHANGES, READS, WRITES, failing, flip_byte
from tests.support.observe import snapshot


def media_of(world: World, folder: str = "media") -> dict[str, tuple[int, str]]:
    root = world.root / folder
    found = snapshot(root, times=False)
    return {str(Path(name).relative_to(root)): (entry.size, entry.content) for name, entry in found.items() if entry.kind == "file"}


def store_of(world: World) -> dict[str, tuple[int, str]]:
    found = snapshot(world.store.blobs, world.state / "releases", world.state / "trust", times=False)
    return {name: (entry.mode, entry.content) for name, entry in found.items() if entry.kind == "file"}


def outcome(work: Callable[[], object]) -> HostError | None:
    """How `work` ended: None, or the refusal with its hint."""
    try:
        work()
    except HostError as error:
        return error
    return None


def release_in(world: World) -> bool:
    """Whether anybody can see a release; if so, all of it is there, blob by blob."""
    visible = [path.name for path in (world.state / "releases").glob("[!.]*")]
    if visible:
        (release,) = world.store.releases()
        assert release.complete
        assert world.holds_all()
    return bool(visible)


def test_a_full_disk_at_any_write_of_media_is_refused_and_running_again_ends_the_same(few: World) -> None:
    world = few
    world.write("whole", room=THREE)
    expected = media_of(world, "whole")
    calls = struck = 0
    while True:
        with failing(WRITES, errno.ENOSPC, below=world.root / "media", after_calls=calls) as fault:
            error = outcome(lambda: world.write(room=THREE, workers=1))
        if not fault.struck:
            break
        struck += 1
        assert error is not None
        assert "bytes are available" in error.message
        assert error.hint
        assert not [path for path in world.parts() if read_part(path).length != path.stat().st_size]
        world.write(room=THREE)
        assert media_of(world) == expected
        shutil.rmtree(world.root / "media")
        calls += 1
    assert struck > 20


def test_a_full_disk_at_any_write_into_the_store_leaves_no_release_and_running_again_completes_it(few: World) -> None:
    world = few
    world.write(room=ONE)
    world.read()
    expected = store_of(world)
    pinned = world.state / "trust" / "acme" / "root.json"
    root = pinned.read_bytes()
    calls = struck = 0
    while True:
        shutil.rmtree(world.state)
        pinned.parent.mkdir(parents=True)
        pinned.write_bytes(root)
        with failing((*WRITES, *CHANGES), errno.ENOSPC, below=world.state, after_calls=calls) as fault:
            error = outcome(lambda: world.read(workers=1))
        if not fault.struck:
            break
        struck += 1
        appeared = release_in(world)
        assert error is None or error.hint
        assert appeared or error is not None
        assert load_trust(pinned.parent).pin == root
        assert world.read().complete
        assert store_of(world) == expected
        calls += 1
    assert struck > 50


def believed(world: World) -> dict[str, tuple[str, str]]:
    """What the site trusts, has released and logged: files and links, not empty folders."""
    found = snapshot(*world.trusted(), times=False)
    return {name: (entry.kind, entry.content) for name, entry in found.items() if entry.kind in {"file", "link"}}


@pytest.mark.parametrize("before", ["nothing", "an older release", "the same with older signatures"])
def test_a_disk_that_fails_while_a_release_appears_takes_its_steps_back(few: World, before: str) -> None:
    world = few
    if before != "nothing":
        world.write("older", room=ONE)
        world.read("older")
        world.line.pass_days(1)
        world.publish(version="2.0.0" if before == "an older release" else "1.0.0")
    world.write(room=ONE)
    kept = world.root / "kept"
    shutil.copytree(world.state, kept, symlinks=True)
    picture = believed(world)
    calls = struck = 0
    while True:
        with failing((*WRITES, "fsync", "link", "symlink", "mkdir"), errno.ENOSPC, below=world.state, after_calls=calls) as fault:
            error = outcome(lambda: world.read(workers=1))
        if not fault.struck:
            break
        struck += 1
        if error is not None:
            assert error.hint
            assert believed(world) == picture, f"call {calls}"
        assert world.read().complete
        shutil.rmtree(world.state)
        shutil.copytree(kept, world.state, symlinks=True)
        calls += 1
    assert struck > 10


def test_a_part_that_cannot_be_read_is_named_with_its_byte_and_the_rest_is_kept(world: World) -> None:
    world.write(room=ONE)
    (part,) = world.parts()
    first = read_part(part).table.chunks[0].offset
    with failing(["preadv"], errno.EIO, below=world.root / "media", after_calls=3), pytest.raises(HostError, match=f"{part.name} at byte"):
        world.read(workers=1)
    assert not (world.state / "releases").exists()
    kept = len(list(world.store.blobs.iterdir()))
    assert kept
    assert first
    assert world.read().complete


def test_the_space_for_a_whole_release_is_asked_for_before_the_first_chunk(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.write()
    monkeypatch.setattr(disk, "free_bytes", lambda _path: 1000)
    with pytest.raises(HostError, match=r"the release needs \d+ bytes, 1000 bytes are available"):
        world.read()
    assert not list(world.store.blobs.iterdir())


def test_the_space_for_a_media_set_is_asked_for_before_the_first_byte(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "free_bytes", lambda _path: 1000)
    with pytest.raises(HostError, match=r"the media set needs \d+ bytes, 1000 bytes are available"):
        world.write()
    assert not list((world.root / "media").iterdir())


def test_a_stopped_write_reads_nothing_twice_but_the_unit_it_was_in(world: World) -> None:
    total = sum(len(data) for data in world.blobs.values())
    with failing(["pwrite"], errno.EIO, below=world.root / "media", after_calls=40) as fault, pytest.raises(HostError):
        world.write(room=ONE, workers=1)
    assert fault.struck
    with failing(READS, errno.EIO, below=world.bundle / "blobs", after_calls=10**9) as before:
        world.write(room=ONE, workers=1)
    assert 0 < before.passed_bytes < total
    with failing(READS, errno.EIO, below=world.bundle / "blobs", after_calls=10**9) as again:
        world.write(room=ONE)
    assert again.passed_bytes == 0


def test_a_stopped_read_takes_no_chunk_twice_from_the_media(world: World) -> None:
    world.write(room=ONE)
    with failing(["pwrite"], errno.ENOSPC, below=world.store.staging, after_calls=12), pytest.raises(HostError):
        world.read(workers=1)
    staged = sum(1 for path in world.store.staging.iterdir() if len(path.name) == 64)
    journals = sum(len(path.read_text().splitlines()) for path in world.store.staging.glob("*.journal"))
    assert staged + journals
    result = world.read()
    assert result.complete
    assert world.holds_all()


def test_a_changed_source_file_is_named_and_no_part_is_finished(world: World) -> None:
    blob = max((world.bundle / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    aside = shutil.copy(blob, world.root / "aside")
    flip_byte(blob, 5000)

    with pytest.raises(VerificationError, match=f"changed since create: .*{blob.name}") as caught:
        world.write(room=ONE)
    assert caught.value.hint
    left = {path.suffix for path in (world.root / "media").iterdir()}
    assert left <= {".partial", ".journal", ".lock"}
    shutil.copy(aside, blob)
    world.write(room=ONE)
    world.write("whole", room=ONE)
    assert media_of(world) == media_of(world, "whole")


@pytest.mark.parametrize("left", ["another set in the journal", "an empty partial", "a partial of an older signature", "a torn journal"])
def test_what_a_stopped_write_left_is_believed_only_if_it_is_of_this_very_part(world: World, left: str) -> None:
    world.write("whole", room=ONE)
    with failing(["pwrite"], errno.EIO, below=world.root / "media", after_calls=40), pytest.raises(HostError):
        world.write(room=ONE, workers=1)
    (partial,) = (world.root / "media").glob("*.partial")
    (journal,) = (world.root / "media").glob("*.journal")
    units = "".join(f"{number}\n" for number in range(100))
    if left == "another set in the journal":
        journal.write_text(f"sha256:{'0' * 64}\n{units}")
    elif left == "an empty partial":
        journal.write_text(journal.read_text().splitlines()[0] + "\n" + units)
        partial.write_bytes(b"")
    elif left == "a partial of an older signature":
        world.line.pass_days(1)
        world.publish()
        shutil.rmtree(world.root / "whole")
        world.write("whole", room=ONE)
    else:
        journal.write_text(journal.read_text() + "1")
    world.write(room=ONE)
    assert media_of(world) == media_of(world, "whole")
