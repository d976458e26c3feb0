# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The store: releases are believed only from the pinned root, trees are links, and every wrong byte is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from appliance.bundle.contents import ContentClass
from appliance.digests import Digest, digest_of, hex_of
from appliance.errors import ApplianceError, FormatError, HostError, UsageError, VerificationError
from appliance.store.checking import verify_store
from appliance.store.registry import registry_tree
from appliance.verify import pin_root
from appliance.verify.blobs import Wrong, refuse, verify_blobs
from tests.support.carried import CHUNK, World
from tests.support.faults import flip_byte, truncate
from tests.support.observe import unchanged
from tests.support.simulator import Line


def make_writable(path: Path) -> Path:
    path.chmod(0o644)
    return path


def test_an_empty_store_has_no_release_and_says_what_to_do(tmp_path: Path) -> None:
    store = World(tmp_path).store
    assert store.releases() == ()
    with pytest.raises(HostError, match="the store has no release") as caught:
        store.release()
    assert "media read" in str(caught.value.hint)


def test_a_release_is_judged_at_the_moment_it_was_issued_so_that_a_site_goes_on(stored: World) -> None:
    release = stored.store.release()
    assert release.complete
    assert release.bundle.expires["timestamp"] > release.bundle.issued


def test_changed_metadata_of_a_stored_release_is_refused(stored: World) -> None:
    release = stored.store.release()
    for path in sorted((release.path / "metadata").rglob("*.json")):
        data = path.read_bytes()
        flip_byte(make_writable(path), len(data) // 2)
        with pytest.raises(ApplianceError) as caught:
            stored.store.release()
        assert caught.value.exit_code in {3, 4}, path
        path.write_bytes(data)
    assert stored.store.release().digest == release.digest


def test_a_blob_that_went_away_makes_the_release_incomplete(stored: World) -> None:
    digest = next(iter(stored.blobs))
    stored.store.blob_path(digest).unlink()
    release = stored.store.release()
    assert (release.complete, release.missing) == (False, (digest,))


def test_reading_again_brings_back_a_blob_that_went_away(stored: World) -> None:
    digest = next(iter(stored.blobs))
    stored.store.blob_path(digest).unlink()
    assert stored.read().bytes_written == len(stored.blobs[digest])
    assert stored.holds_all()


def test_a_blob_that_became_shorter_is_missing_and_reading_again_mends_it(stored: World) -> None:
    digest = max(stored.blobs, key=lambda each: len(stored.blobs[each]))
    truncate(make_writable(stored.store.blob_path(digest)), -1)
    assert stored.store.release().missing == (digest,)
    assert stored.read().bytes_written == len(stored.blobs[digest])
    assert stored.holds_all()


def test_the_trust_of_several_lines_has_to_be_named(stored: World) -> None:
    pin_root(stored.state / "trust", Line("umbrella").pin)
    assert stored.store.trust_of("acme").name == "acme"
    with pytest.raises(UsageError, match="acme, umbrella"):
        stored.store.trust_of()
    assert stored.store.release().complete


def test_every_byte_of_the_store_is_verified_and_nothing_is_changed(stored: World) -> None:
    registry_tree(stored.store, stored.store.release())
    with unchanged(stored.state):
        report = verify_store(stored.store, workers=2)
    assert report.findings == ()
    assert report.size == sum(len(data) for data in stored.blobs.values())
    assert (report.unneeded, report.blobs) == (0, len(stored.blobs))


def test_a_flipped_byte_of_the_store_is_named_with_the_chunk_it_lies_in(stored: World) -> None:
    for digest, data in stored.blobs.items():
        if not data:
            continue
        path = make_writable(stored.store.blob_path(digest))
        at = len(data) * 2 // 3
        flip_byte(path, at)
        (finding,) = verify_store(stored.store, workers=2).findings
        assert (finding.path, finding.wrong, finding.offset) == (path, Wrong.DAMAGED, at // CHUNK * CHUNK if len(data) > CHUNK else 0)
        with pytest.raises(VerificationError, match=f"{path.name}: damaged at byte {finding.offset}"):
            refuse([finding], what="store", hint="do")
        flip_byte(path, at)


def test_missing_short_strange_and_linked_blobs_are_found(stored: World) -> None:
    big, small, gone = sorted(stored.blobs, key=lambda digest: -len(stored.blobs[digest]))[:3]
    truncate(make_writable(stored.store.blob_path(big)), -1)
    stored.store.blob_path(gone).unlink()
    aside = stored.root / "aside"
    stored.store.blob_path(small).rename(aside)
    stored.store.blob_path(small).symlink_to(aside)
    (stored.store.blobs / "notes.txt").write_text("x")
    stranger = hex_of(digest_of(b"stranger"))
    (stored.store.blobs / stranger).write_bytes(b"strangeR")
    found = {finding.path.name: finding.wrong for finding in verify_store(stored.store, workers=2).findings}
    assert found == {
        hex_of(big): Wrong.SIZE,
        hex_of(gone): Wrong.MISSING,
        hex_of(small): Wrong.LINK,
        "notes.txt": Wrong.EXTRA,
        stranger: Wrong.DAMAGED,
    }


def test_a_whole_blob_that_no_release_needs_is_counted_and_is_no_fault(stored: World) -> None:
    data = b"left by an import that was given up"
    (stored.store.blobs / hex_of(digest_of(data))).write_bytes(data)
    report = verify_store(stored.store, workers=2)
    assert (report.findings, report.unneeded) == ((), 1)


def test_chunks_that_are_not_the_blobs_are_told_apart_from_damage(stored: World) -> None:
    blobs = dict(stored.store.release().bundle.blobs)
    victim = next(blob for blob in blobs.values() if len(blob.chunks) == 6)
    data = stored.blobs[victim.digest]
    other = data[CHUNK : 2 * CHUNK] + data[:CHUNK] + data[2 * CHUNK :]
    path = stored.bundle / "blobs" / "sha256" / hex_of(victim.digest)
    path.write_bytes(other)
    chunks = tuple(digest_of(other[start : start + CHUNK]) for start in range(0, len(other), CHUNK))
    blobs[victim.digest] = type(victim)(digest=victim.digest, size=victim.size, chunks=chunks)
    (finding,) = verify_blobs(path.parent, blobs, workers=1)
    assert finding.wrong is Wrong.CHUNKS


def test_the_registry_tree_is_links_and_is_made_once(stored: World) -> None:
    release = stored.store.release()
    place = registry_tree(stored.store, release)
    top = place / "docker" / "registry" / "v2"
    artifact = release.bundle.contents[ContentClass.FILES].artifacts[0]
    for digest in artifact.blobs:
        data = top / "blobs" / "sha256" / hex_of(digest)[:2] / hex_of(digest) / "data"
        assert data.stat().st_ino == stored.store.blob_path(digest).stat().st_ino
    repository = top / "repositories" / "files" / artifact.name
    assert (repository / "_manifests" / "tags" / "1" / "current" / "link").read_text() == artifact.root
    assert (repository / "_manifests" / "revisions" / "sha256" / hex_of(artifact.root) / "link").read_text() == artifact.root
    assert artifact.payload is not None
    assert (repository / "_layers" / "sha256" / hex_of(artifact.payload) / "link").read_text() == artifact.payload
    with unchanged(place):
        assert registry_tree(stored.store, release) == place


def test_newer_contents_add_to_a_living_registry_tree(stored: World) -> None:
    place = registry_tree(stored.store, stored.store.release())
    before = {path for path in place.rglob("*") if path.is_file()}
    stored.publish(extra={"another": b"file"})
    stored.write("second")
    stored.read("second")
    release = stored.store.release()
    assert release.path == place.parent
    registry_tree(stored.store, release)
    assert before <= {path for path in place.rglob("*") if path.is_file()}
    assert (place / "docker" / "registry" / "v2" / "repositories" / "files" / "another").is_dir()


def test_a_blob_replaced_behind_the_registry_is_found(stored: World) -> None:
    place = registry_tree(stored.store, stored.store.release())
    data = next(path for path in place.rglob("data") if Digest(f"sha256:{path.parent.name}") in stored.blobs)
    content = data.read_bytes()
    data.unlink()
    data.write_bytes(content)
    assert [finding.path for finding in verify_store(stored.store, workers=1).findings] == [data]


def test_no_tree_is_made_of_a_release_that_lacks_a_blob(stored: World) -> None:
    release = stored.store.release()
    stored.store.blob_path(Digest(release.bundle.contents[ContentClass.FILES].artifacts[0].root)).unlink()
    with pytest.raises(HostError, match="is not in the store"):
        registry_tree(stored.store, release)
    assert not (release.path / "registry").exists()


def test_trees_need_one_file_system(stored: World, tmp_path: Path) -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("one file system only")
    release = stored.store.release()
    elsewhere = shm / f"appliance-{tmp_path.name}-{tmp_path.stat().st_ino}"
    shutil.copytree(release.path, elsewhere)
    try:
        moved = type(release)(digest=release.digest, path=elsewhere, bundle=release.bundle, missing=())
        with pytest.raises(HostError, match="two file systems") as caught:
            registry_tree(stored.store, moved)
        assert caught.value.exit_code == 5
    finally:
        shutil.rmtree(elsewhere)


def test_names_are_served_in_lower_case(tmp_path: Path) -> None:
    world = World(tmp_path, sizes={"Tiny-Llama": 10})
    world.write(room=10**6)
    world.read()
    place = registry_tree(world.store, world.store.release())
    assert (place / "docker" / "registry" / "v2" / "repositories" / "files" / "tiny-llama").is_dir()


def test_a_name_that_no_registry_can_serve_is_refused(tmp_path: Path) -> None:
    world = World(tmp_path, sizes={"a+b": 10})
    world.write(room=10**6)
    world.read()
    with pytest.raises(FormatError, match="cannot be served"):
        registry_tree(world.store, world.store.release())
