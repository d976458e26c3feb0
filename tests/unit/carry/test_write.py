# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Writing media: the same parts every time, whole before they have their names, and refusals before the first byte."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.adapters.disk import locked_folder
from appliance.bundle.contents import Blob, ContentClass
from appliance.bundle.media import TRAILER_BYTES, ChunkEntry, MetadataEntry, encode_head, part_length
from appliance.carry.layout import PRESETS, parse_part_size, plan_parts
from appliance.carry.listing import read_listing
from appliance.carry.parts import read_part, read_part_metadata
from appliance.carry.sheet import init_command, typed_commands
from appliance.carry.write import write_media
from appliance.digests import CHUNK_BYTES, Digest, digest_of
from appliance.errors import FormatError, HostError, UsageError, VerificationError
from appliance.trust.publication import delegate
from tests.support.carried import INSTALLER, ONE, THREE, World
from tests.support.faults import can_mount, small_disk
from tests.support.observe import unchanged
from tests.support.simulator import Line, person


def test_two_writes_of_one_bundle_give_the_same_bytes(world: World) -> None:
    world.write("one", workers=1)
    world.write("other", workers=4)
    names = [path.name for path in world.parts("one")]
    assert names == [path.name for path in world.parts("other")]
    for name in names:
        assert (world.root / "one" / name).read_bytes() == (world.root / "other" / name).read_bytes()


def test_every_part_holds_all_metadata_and_the_parts_hold_every_chunk_once(world: World) -> None:
    world.write(room=THREE)
    chunks: list[str] = []
    for path in world.parts():
        part = read_part(path)
        assert read_part_metadata(part) == world.files
        chunks += [entry.digest for entry in part.table.chunks]
        data = path.read_bytes()
        for entry in part.table.chunks:
            assert digest_of(data[entry.offset : entry.offset + entry.size]) == entry.digest
    assert len(chunks) == len(set(chunks))
    listed = {digest for contents in world.contents.values() for blob in contents.blobs for digest in (blob.chunks or (blob.digest,))}
    assert set(chunks) == listed


def test_nothing_but_parts_installer_and_sheet_is_left_on_the_medium(world: World) -> None:
    written = world.write()
    names = {path.name for path in (world.root / "media").iterdir()}
    assert names == {*(name for name, _ in written.parts), "install.pyz", written.sheet.name}
    assert (world.root / "media" / "install.pyz").read_bytes() == INSTALLER


def test_finished_parts_are_not_written_again(world: World) -> None:
    world.write()
    with unchanged(*world.parts(), world.root / "media" / "install.pyz"):
        assert world.write().bytes_copied == 0


def test_the_sheet_says_what_to_type_and_every_digit_to_compare(world: World) -> None:
    sheet = world.write().sheet.read_text()
    assert typed_commands()[0] in sheet
    assert f"\n    {init_command()}\n" in sheet
    assert typed_commands()[1].split()[0] in sheet
    digits = digest_of(INSTALLER).removeprefix("sha256:")
    assert digits in sheet.replace(" ", "").replace("\n", "")
    assert digest_of(world.line.pin).removeprefix("sha256:") in sheet.replace(" ", "").replace("\n", "")
    assert "ann" in sheet
    assert all(path.name in sheet for path in world.parts())


@pytest.mark.skipif(not can_mount(), reason="needs root to mount a small disk")
def test_a_finished_medium_that_cannot_be_written_is_left_as_it_is(world: World) -> None:
    with small_disk(world.root / "media", 8 * 1024 * 1024, kind="tmpfs") as place:
        written = world.write()
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        again = world.write()
    assert (again.bytes_copied, again.parts) == (0, written.parts)


def test_the_sheet_shows_the_first_root_also_after_keys_were_replaced(world: World) -> None:
    world.line.new_root()
    world.publish()
    sheet = world.write().sheet.read_text()
    assert "root 1\n" in sheet
    assert digest_of(world.line.pin).removeprefix("sha256:") in sheet.replace(" ", "").replace("\n", "")


@pytest.mark.parametrize(
    ("text", "size"), [("fat32", 2**32 - 1), ("700MB", 700_000_000), ("4GiB", 2**32), ("5000000", 5_000_000), ("BD25", PRESETS["bd25"])]
)
def test_a_part_size_is_a_preset_or_a_number_with_a_unit(text: str, size: int) -> None:
    assert parse_part_size(text) == size


@pytest.mark.parametrize("text", ["4G", "", "cd", "0", "-1", "1.5GB", "4 GB GB", "99999999999999999MB"])
def test_any_other_part_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--part-size") as caught:
        parse_part_size(text)
    assert caught.value.hint


def test_a_part_too_small_for_metadata_and_one_chunk_is_refused_with_the_size_that_would_do(world: World) -> None:
    with pytest.raises(UsageError, match=r"it is (\d+) bytes too small") as caught:
        write_media(world.bundle, world.root / "media", part_size=1000, workers=1, written_by="ann")
    enough = 1000 + int(str(caught.value.hint).split("larger by ")[1].split()[0])
    assert not (world.root / "media").exists()
    assert write_media(world.bundle, world.root / "media", part_size=enough, workers=1, written_by="ann").parts
    with pytest.raises(UsageError):
        write_media(world.bundle, world.root / "other", part_size=enough - 1, workers=1, written_by="ann")


def test_a_missing_or_shortened_blob_is_named_before_the_first_byte(world: World) -> None:
    blob = max((world.bundle / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    data = blob.read_bytes()
    blob.write_bytes(data[:-1])
    with pytest.raises(VerificationError, match=f"changed since create: .*{blob.name}"):
        world.write()
    blob.unlink()
    with pytest.raises(VerificationError, match=f"{blob.name}: missing"):
        world.write()
    assert not (world.root / "media").exists()


def test_a_file_of_another_set_under_the_same_name_is_left_alone(world: World) -> None:
    world.write(room=ONE)
    part = world.parts()[0]
    part.write_bytes(b"a photo")
    with unchanged(world.root / "media"), pytest.raises(UsageError, match="not part of this set"):
        world.write(room=ONE)


def test_a_medium_that_is_being_written_by_another_run_is_refused(world: World) -> None:

    folder = world.root / "media"
    folder.mkdir()
    with locked_folder(folder), pytest.raises(HostError, match="in use by another process"):
        world.write()


def test_a_bundle_that_lacks_signatures_is_not_written(world: World) -> None:
    keys = [signer.public_key for signer in person("bob")]
    world.line.publication = delegate(world.line.publication, ContentClass.FILES, keys)
    world.publish()
    with pytest.raises(VerificationError, match=r"signatures are still lacking: files \(2\)") as caught:
        world.write("unsigned")
    assert "appliance keys sign" in str(caught.value.hint)
    assert not (world.root / "unsigned").exists()


def test_a_folder_that_is_no_bundle_is_refused(world: World) -> None:
    with pytest.raises(UsageError, match="is not a bundle"):
        read_listing(world.root)


def test_a_bundle_with_two_releases_is_refused(world: World) -> None:
    digits = "0" * 64
    (world.bundle / "metadata" / "targets" / f"{digits}.release.json").write_bytes(b"{}")
    with pytest.raises(FormatError, match="expected one release"):
        read_listing(world.bundle)


def blobs_of(sizes: list[int]) -> dict[Digest, Blob]:
    blobs = {}
    for number, size in enumerate(sizes):
        count = -(-size // CHUNK_BYTES)
        chunks = tuple(digest_of(f"{number}/{index}".encode()) for index in range(count)) if count > 1 else ()
        digest = digest_of(f"blob {number}".encode())
        blobs[digest] = Blob(digest=digest, size=size, chunks=chunks)
    return blobs


@settings(max_examples=40)
@given(
    sizes=st.lists(st.integers(0, 5 * CHUNK_BYTES), max_size=40),
    metadata=st.dictionaries(st.from_regex(r"[a-z]{1,8}\.json", fullmatch=True), st.binary(max_size=500), min_size=1, max_size=6),
    room=st.integers(0, 4 * CHUNK_BYTES),
)
def test_every_plan_tiles_its_parts_keeps_their_size_and_holds_every_chunk(sizes: list[int], metadata: dict[str, bytes], room: int) -> None:
    blobs = blobs_of(sizes)
    part_size = CHUNK_BYTES + 20_000 + room
    plan = plan_parts(Line().release(), blobs, metadata, part_size=part_size)
    held = []
    for number, table in enumerate(plan.tables, start=1):
        assert (table.index, table.count, table.set) == (number, len(plan.tables), plan.tables[0].set)
        length = part_length(table)
        assert length <= part_size
        offset = len(encode_head(table))
        entries: list[MetadataEntry | ChunkEntry] = [*table.metadata, *table.chunks]
        for entry in entries:
            assert entry.offset == offset
            offset += entry.size
        assert offset + TRAILER_BYTES == length
        held += [chunk.digest for chunk in table.chunks]
    assert sorted(held) == sorted({digest for blob in blobs.values() for digest in (blob.chunks or (blob.digest,))})
    assert plan_parts(Line().release(), blobs, metadata, part_size=part_size) == plan
