# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Reading media: any order, any number of visits; what is wrong is refused by part and offset and changes nothing."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
from datetime import timedelta

import msgspec
import pytest

from appliance.bundle.contents import ContentClass, Contents
from appliance.bundle.media import ChunkEntry, MetadataEntry
from appliance.carry import parts
from appliance.carry.parts import read_part
from appliance.digests import Digest, digest_of, hex_of
from appliance.errors import ApplianceError, FormatError, HostError, UsageError, VerificationError
from appliance.verify import load_trust
from tests.support.carried import CHUNK, INSTALLER, ONE, THREE, World, rewrite
from tests.support.faults import duplicate, flip_byte, flipped, replace_by_symlink, truncate
from tests.support.observe import unchanged
from tests.support.simulator import Line, write_bundle


def refused(world: World, kind: type[ApplianceError], match: str, *folders: str) -> ApplianceError:
    """Reading is refused with a hint, and trust, releases and log are as before."""
    with unchanged(*world.trusted()), pytest.raises(kind, match=match) as caught:
        world.read(*folders)
    assert caught.value.hint
    return caught.value


def test_a_whole_set_becomes_a_release_and_a_line_in_the_log(world: World) -> None:
    world.write()
    result = world.read()
    assert (result.complete, result.new, result.missing_parts) == (True, True, ())
    assert world.holds_all()
    assert result.bytes_written == sum(len(data) for data in world.blobs.values())
    release = world.store.release()
    assert release.complete
    assert release.digest == result.bundle.digest
    seen = load_trust(world.state / "trust" / "acme").seen
    assert seen == result.bundle.seen
    record = json.loads((world.state / "log" / "imports.jsonl").read_text())
    assert (record["who"], record["when"], record["release"]) == ("ann", "2026-11-23T06:31:00Z", release.digest)
    assert record["parts"] == list(range(1, len(world.parts()) + 1))


def test_reading_the_same_set_again_changes_nothing(world: World) -> None:
    world.write()
    world.read()
    with unchanged(world.state, besides=["store.lock", "*.json", "staging", "boot"], times=False):
        result = world.read()
    assert (result.complete, result.new, result.bytes_written) == (True, False, 0)


@pytest.mark.parametrize("order", list(itertools.permutations((0, 1, 2)))[:6])
def test_parts_come_one_by_one_in_any_order(world: World, order: tuple[int, int, int]) -> None:
    world.write(room=THREE)
    parts = world.parts()
    assert len(parts) == 3
    left = {1, 2, 3}
    for number in order:
        world.carry(f"visit{number}", parts[number])
        result = world.read(f"visit{number}")
        left.discard(number + 1)
        assert result.complete is (not left)
        assert set(result.missing_parts) == left
        assert (world.state / "releases").exists() is result.complete
    assert world.holds_all()


def test_parts_may_lie_in_several_folders_under_other_names(world: World) -> None:
    world.write()
    for number, part in enumerate(world.parts()):
        world.carry(f"stick{number}", part)
        copy = next((world.root / f"stick{number}").iterdir())
        copy.rename(copy.with_name(f"HOLIDAY{number}.BIN"))
    assert world.read(*(f"stick{number}" for number in reversed(range(len(world.parts()))))).complete


def test_media_are_never_written_to(world: World) -> None:
    world.write()
    with unchanged(world.root / "media"):
        world.read()


def test_metadata_alone_is_a_valid_set(world: World) -> None:
    world.contents, world.blobs = {}, {}
    world.number += 1
    world.files = world.line.publish({})
    write_bundle(world.bundle, world.files, {})
    world.write()
    assert len(world.parts()) == 1
    result = world.read()
    assert (result.complete, result.new, result.bytes_written) == (True, True, 0)


def test_newer_signatures_over_the_same_release_replace_the_older_ones(world: World) -> None:
    world.write()
    first = world.read()
    world.line.pass_days(30)
    world.publish()
    world.write("renewed")
    second = world.read("renewed")
    assert second.new
    assert second.bundle.digest == first.bundle.digest
    assert second.bytes_written == 0
    assert world.store.release().bundle.seen.timestamp == first.bundle.seen.timestamp + 1
    assert len(world.store.releases()) == 1


def test_a_second_release_writes_only_what_is_new(world: World) -> None:
    world.write()
    world.read()
    before = set(world.blobs)
    world.publish(version="1.1.0", extra={"new": b"n" * 5000})
    world.write("second")
    result = world.read("second")
    assert result.bytes_written == sum(len(data) for digest, data in world.blobs.items() if digest not in before)
    assert [each.bundle.release.version for each in world.store.releases()] == ["1.1.0", "1.0.0"]
    assert world.store.release().bundle.release.version == "1.1.0"


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_damaged_chunk_is_named_by_part_and_offset_and_the_rest_is_kept(world: World, place: str) -> None:
    world.write()
    for path in world.parts():
        for entry in read_part(path).table.chunks:
            if entry.size == 0:
                continue
            at = {"first": 0, "middle": entry.size // 2, "last": entry.size - 1}[place]
            shutil.rmtree(world.state / "store", ignore_errors=True)
            with flipped(path, entry.offset + at):
                error = refused(world, VerificationError, f"{path.name}: offset {entry.offset}: ")
            assert entry.digest in error.message
            assert not world.store.blob_path(entry.digest).exists()
            for blob in [*world.store.blobs.iterdir(), *world.store.staging.iterdir()]:
                if len(blob.name) == 64:
                    assert digest_of(blob.read_bytes()) == f"sha256:{blob.name}"
    again = world.read()
    assert again.complete
    assert again.bytes_written < sum(len(data) for data in world.blobs.values())
    assert world.holds_all()


def test_after_a_damaged_chunk_only_its_part_is_needed_again(world: World) -> None:
    world.write(room=THREE)
    bad = world.carry("bad", *world.parts())
    victim = sorted(bad.glob("*.part"))[1]
    flip_byte(victim, read_part(victim).table.chunks[0].offset)
    refused(world, VerificationError, "offset", "bad")
    world.carry("good", world.parts()[1])
    assert world.read("good").complete
    assert world.holds_all()


@pytest.mark.parametrize("where", ["media", "other"])
def test_a_part_that_is_there_twice_is_taken_once(world: World, where: str) -> None:
    world.write(room=THREE)
    (world.root / "other").mkdir()
    copy = duplicate(world.parts()[0], world.root / where / "again.part")
    result = world.read("media", "other")
    assert (result.complete, result.new, result.missing_parts) == (True, True, ())
    assert result.parts_read == tuple(range(1, len(world.parts("media")) + 1 - (where == "media")))
    assert result.bytes_written == sum(len(data) for data in world.blobs.values())
    assert world.holds_all()
    assert not [note for note in result.notes if "damaged" in note]
    assert copy.exists()


@pytest.mark.parametrize(("name", "note"), [("a.part", "another copy of it was good"), ("zz.part", "once more")])
def test_a_damaged_copy_beside_a_good_one_is_noted_and_does_no_harm(world: World, name: str, note: str) -> None:
    world.write(room=THREE)
    copy = duplicate(world.parts()[0], world.root / "media" / name)
    flip_byte(copy, read_part(copy).table.chunks[0].offset)
    result = world.read()
    assert result.complete
    assert [each for each in result.notes if note in each and name in each]
    assert world.holds_all()


def test_every_byte_of_header_table_and_trailer_is_refused_by_part_and_offset_and_changes_nothing(few: World) -> None:
    world = few
    world.write(room=ONE)
    (path,) = world.parts()
    size = path.stat().st_size
    head = 64 + int.from_bytes(path.read_bytes()[8:16], "big")
    for offset in (*range(head), *range(size - 48, size)):
        with flipped(path, offset, mask=1 << (offset % 8)):
            with pytest.raises(FormatError, match=rf"^{re.escape(str(path))}: offset \d+: ") as caught:
                read_part(path)
            found = int(caught.value.message.removeprefix(f"{path}: offset ").partition(":")[0])
            assert found <= offset or (offset < 64 and found == 64), caught.value.message
            if not 64 <= offset < head or offset % 8 == 0:
                assert refused(world, FormatError, re.escape(path.name)).message == caught.value.message
    assert not (world.state / "releases").exists()
    assert not (world.state / "store").exists() or not list(world.store.blobs.iterdir())
    assert world.read().complete


def test_a_damaged_metadata_file_is_named_by_its_offset(world: World) -> None:
    world.write(room=ONE)
    (path,) = world.parts()
    for entry in read_part(path).table.metadata:
        for at in (0, entry.size // 2, entry.size - 1):
            with flipped(path, entry.offset + at):
                refused(world, FormatError, f"offset {entry.offset}: metadata {entry.path}")


def test_a_part_cut_at_any_boundary_is_truncated(world: World) -> None:
    world.write(room=ONE)
    (path,) = world.parts()
    table = read_part(path).table
    size = path.stat().st_size
    cuts = {0, 1, 63, 64, 65, size - 1, size - 48, size - 49}
    entries: tuple[MetadataEntry | ChunkEntry, ...] = (*table.metadata, *table.chunks)
    for entry in entries:
        cuts |= {entry.offset - 1, entry.offset, entry.offset + 1}
    for cut in sorted(cuts & set(range(size))):
        folder = world.carry(f"cut{cut}", path)
        truncate(folder / path.name, cut)
        refused(world, FormatError, "truncated|not what the header states", folder.name)
        shutil.rmtree(folder)


def test_bytes_behind_the_end_are_refused(world: World) -> None:
    world.write()
    path = world.parts()[0]
    size = path.stat().st_size
    with path.open("ab") as stream:
        stream.write(b"x")
    refused(world, FormatError, f"offset {size}: 1 bytes behind the end")


def test_a_malformed_part_beside_good_ones_is_refused_and_the_good_ones_count(world: World) -> None:
    world.write(room=THREE)
    truncate(world.parts()[2], -1)
    error = refused(world, FormatError, r"0003\.part: .*truncated")
    assert "good chunks are kept" in error.message
    world.carry("mended", *world.parts()[:2])
    assert world.read("mended").missing_parts == (3,)


def test_junk_beside_a_complete_set_is_a_note_and_the_release_is_made(world: World) -> None:
    world.write(room=THREE)
    (world.root / "media" / "junk.part").write_bytes(b"junk")
    result = world.read()
    assert result.complete
    assert result.new
    assert [note for note in result.notes if "junk.part" in note and "remove this file" in note]
    assert world.holds_all()


def test_a_refusal_counts_the_bytes_it_kept(world: World) -> None:
    world.write(room=ONE)
    part = world.parts()[0]
    gone = next(digest for digest, data in world.blobs.items() if data == INSTALLER)
    flip_byte(part, next(entry.offset for entry in read_part(part).table.chunks if entry.digest == gone))
    error = refused(world, VerificationError, "damaged")
    kept = sum(len(data) for digest, data in world.blobs.items() if digest != gone)
    assert f"(0 bytes in staging, {kept} bytes in the store)" in error.message


def test_a_symbolic_link_is_no_part(world: World) -> None:
    world.write(room=ONE)
    moved = replace_by_symlink(world.parts()[0])
    moved.rename(world.root / "elsewhere")
    world.parts()[0].unlink()
    (world.root / "media" / "a.part").symlink_to(world.root / "elsewhere")
    refused(world, FormatError, "symbolic link")


def test_a_folder_or_a_pipe_with_the_name_of_a_part_is_refused(world: World) -> None:
    folder = world.root / "media"
    (folder / "folder.part").mkdir(parents=True)
    refused(world, FormatError, "expected a regular file")
    (folder / "folder.part").rmdir()
    os.mkfifo(folder / "pipe.part")
    refused(world, FormatError, "expected a regular file")


def test_parts_of_two_sets_in_one_folder_are_refused_by_name(world: World) -> None:
    world.write(room=THREE)
    world.publish(version="1.1.0", extra={"new": b"n" * 5000})
    world.write("other", room=THREE)
    world.carry("mixed", world.parts()[0], world.parts("other")[1])
    error = refused(world, UsageError, "parts of two sets", "mixed")
    assert all(path.name in error.message for path in (world.parts()[0], world.parts("other")[1]))


def test_a_folder_without_parts_is_refused(world: World) -> None:
    (world.root / "media").mkdir()
    (world.root / "media" / "holiday.jpg").write_bytes(b"x")
    refused(world, UsageError, "no part in")


def test_a_part_still_being_written_is_not_taken(world: World) -> None:
    world.write(room=ONE)
    world.parts()[0].rename(world.root / "media" / "x.part.partial")
    refused(world, UsageError, "no part in")


def test_an_older_release_after_a_newer_one_is_refused(world: World) -> None:
    world.write("old")
    world.publish(version="1.1.0")
    world.write("new")
    world.read("new")
    refused(world, VerificationError, "went back from version 2 to 1", "old")


def test_a_release_of_another_line_is_refused(world: World) -> None:
    other = World(world.root / "other", line=Line("umbrella"))
    other.write()
    refused(world, VerificationError, "this bundle is of line 'umbrella'; this side trusts line 'acme'", "other/media")


def test_a_release_of_another_line_with_the_same_keys_is_refused(world: World) -> None:
    world.write(room=ONE)
    rewrite(world.parts()[0], Line("umbrella").publish())
    refused(world, VerificationError, "this bundle is of line 'umbrella'; this side trusts line 'acme'")


def test_a_role_of_another_line_in_a_release_is_refused(world: World) -> None:
    world.write(room=ONE)
    rewrite(world.parts()[0], {**world.files, "timestamp.json": Line("umbrella").publish()["timestamp.json"]})
    refused(world, VerificationError, "metadata/timestamp.json is of line 'umbrella'; this side trusts line 'acme'")


def test_an_expired_release_is_refused(world: World) -> None:
    world.write()
    world.line.pass_days(91)
    refused(world, VerificationError, "timestamp expired")


def test_a_clock_behind_the_signed_time_is_refused(world: World) -> None:
    world.write()
    signed = world.line.now
    world.line.now -= timedelta(seconds=1)
    error = refused(world, HostError, "this machine's clock says 2026-11-23T06:30:59Z, but 2026-11-23T06:31:00Z has already passed")
    assert "clock" in str(error.hint)
    assert not list(world.store.blobs.glob("*"))
    world.line.now = signed
    assert world.read().complete


def test_a_clock_behind_what_an_earlier_release_proved_is_refused(world: World) -> None:
    world.write("old")
    world.line.pass_days(10)
    world.publish(version="1.1.0")
    world.write("new")
    world.read("new")
    world.line.pass_days(-1)
    for folder in ("old", "new"):
        refused(world, HostError, "has already passed", folder)


def test_nothing_is_read_where_no_root_is_pinned(world: World) -> None:
    world.write()
    shutil.rmtree(world.state / "trust")
    refused(world, HostError, "no publication is pinned")
    assert not world.store.blobs.exists()


def test_a_chunk_list_that_is_not_the_blobs_is_refused_and_thrown_away(world: World) -> None:
    digest = lie_about_chunks(world)
    world.write()
    error = refused(world, VerificationError, "together they are another blob")
    assert digest in error.message
    assert not world.store.blob_path(digest).exists()
    assert not (world.store.staging / f"{hex_of(digest)}.data").exists()


def test_a_part_that_lists_a_chunk_nobody_signed_is_refused(world: World) -> None:
    world.write(room=ONE)
    rewrite(world.parts()[0], world.files, b"unsigned")
    refused(world, VerificationError, f"a chunk {digest_of(b'unsigned')} of 8 bytes that the signed contents do not list")


def test_a_part_with_other_metadata_than_the_rest_of_its_set_is_refused(world: World) -> None:
    world.write(room=THREE)
    older = world.files
    world.line.pass_days(1)
    world.files = world.line.publish(world.contents, release=world.line.release())
    rewrite(world.parts()[1], world.files)
    error = refused(world, FormatError, r"0002\.part: carries other metadata than .*0001\.part")
    assert error.hint
    rewrite(world.parts()[1], older)
    assert world.read().complete


def lie_about_chunks(world: World) -> Digest:
    """Publish contents that list the chunks of other bytes for the largest blob; return its digest."""
    files = world.contents[ContentClass.FILES]
    victim = next(blob for blob in files.blobs if len(blob.chunks) == 6)
    data = world.blobs[victim.digest]
    other = data[CHUNK : 2 * CHUNK] + data[:CHUNK] + data[2 * CHUNK :]
    chunks = tuple(digest_of(other[start : start + CHUNK]) for start in range(0, len(other), CHUNK))
    lied = msgspec.structs.replace(victim, chunks=chunks)
    blobs = tuple(lied if blob.digest == victim.digest else blob for blob in files.blobs)
    world.contents[ContentClass.FILES] = Contents(
        format=files.format, content_class=files.content_class, artifacts=files.artifacts, blobs=blobs
    )
    world.publish()
    (world.bundle / "blobs" / "sha256" / hex_of(victim.digest)).write_bytes(other)
    return victim.digest


def test_a_release_that_lists_other_chunks_for_a_blob_the_store_has_is_refused(world: World) -> None:
    world.write()
    world.read()
    digest = lie_about_chunks(world)
    world.write("second")
    error = refused(world, VerificationError, "disagree about its size or chunks", "second")
    assert digest in error.message


def test_a_part_that_claims_endless_metadata_is_refused_before_it_is_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.write(room=ONE)
    total = sum(len(data) for data in world.files.values())
    monkeypatch.setattr(parts, "MAX_METADATA_BYTES", total - 1)
    refused(world, FormatError, f"metadata files of {total} bytes")
    monkeypatch.setattr(parts, "MAX_METADATA_BYTES", total)
    monkeypatch.setattr(parts, "MAX_FILES", len(world.files) - 1)
    refused(world, FormatError, f"{len(world.files)} metadata files")


def test_the_store_is_locked_while_it_is_read_into(world: World) -> None:
    world.write()
    with world.store.lock(), pytest.raises(HostError, match=f"in use by process {os.getpid()}"):
        world.read()


def test_staging_of_another_boot_is_hashed_again_before_it_is_believed(world: World) -> None:
    world.write(room=THREE)
    world.carry("first", world.parts()[0])
    world.read("first")
    staged = sorted(world.store.staging.glob("*.data"))
    assert staged
    flip_byte(staged[0], 0)
    (world.store.staging / "boot").write_text("another boot")
    assert world.read().complete
    assert world.holds_all()


def test_staging_of_this_boot_is_not_read_again(world: World) -> None:
    world.write(room=THREE)
    world.carry("first", world.parts()[0])
    world.carry("rest", *world.parts()[1:])
    partial = world.read("first")
    assert not partial.complete
    assert world.read("rest").complete
    assert world.holds_all()
