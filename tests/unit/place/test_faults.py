# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A depot that lies, breaks off, or is another: nothing unverified becomes visible, and a later run goes on."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from appliance.adapters.depot import Depot, parse_address
from appliance.bundle import formats
from appliance.bundle.contents import ContentClass
from appliance.bundle.metadata_artifact import metadata_artifact, parse_metadata_manifest
from appliance.bundle.weights import WeightsFile, build_statement
from appliance.digests import digest_of, hex_of
from appliance.errors import ApplianceError, FormatError, HostError, ToolError, UsageError, VerificationError
from appliance.place import trusted
from tests.lab.world.tls import issue
from tests.support.depot import CHUNK, TINY, Asked, Fault, Placement, Served, model_contents, serving
from tests.support.faults import can_mount, failing, small_disk
from tests.support.observe import unchanged
from tests.support.simulator import Line, blob_of, bytes_of

BIG = "model-00001-of-00002.safetensors"


def blob(path: str) -> str:
    """The part of a request's path that names this file's blob."""
    return hex_of(digest_of(TINY[path]))


def goes_on(world: Placement, served: Served) -> list[Asked]:
    """Run again without faults; give what was asked for."""
    served.faults.clear()
    served.asked.clear()
    world.place(served)
    assert world.holds()
    return served.ranges()


@pytest.mark.parametrize("chunk", range(6))
def test_a_flipped_byte_names_file_chunk_and_digests_and_the_good_chunks_are_kept(world: Placement, served: Served, chunk: int) -> None:
    served.faults.append(Fault("flip", blob(BIG), skip=chunk, at=99))
    with pytest.raises(VerificationError) as caught:
        world.place(served, workers=1)
    good = TINY[BIG][chunk * CHUNK :][:CHUNK]
    bad = good[:99] + bytes([good[99] ^ 1]) + good[100:]
    assert f"model tiny: {BIG}, chunk {chunk} (byte {chunk * CHUNK}): the depot" in caught.value.message
    assert f"has {digest_of(bad)}, expected {digest_of(good)}" in caught.value.message
    assert "store verify" in str(caught.value.hint)
    assert world.nothing_is_visible()
    again = [each for each in goes_on(world, served) if blob(BIG) in each.path]
    assert [each.first // CHUNK for each in again] == list(range(chunk, 6))


@pytest.mark.parametrize("at", [0, 1, CHUNK - 1])
def test_a_dropped_connection_is_taken_up_and_the_model_is_placed(world: Placement, served: Served, at: int) -> None:
    served.faults.append(Fault("drop", blob(BIG), times=1, skip=2, at=at))
    world.place(served)
    assert world.holds()
    assert sum(each.size for each in served.ranges()) <= sum(map(len, TINY.values())) + CHUNK


def test_bytes_that_came_before_a_drop_are_not_asked_for_again(world: Placement, served: Served) -> None:
    """What TLS had delivered when the connection ended stays; the next request begins behind it."""
    served.faults.append(Fault("drop", blob(BIG), times=1, at=1000))
    world.place(served, workers=1)
    asked = [each for each in served.ranges() if blob(BIG) in each.path]
    assert asked[1].first + asked[1].size == CHUNK
    assert asked[1].first in {0, 1000}


def test_a_depot_that_always_drops_is_an_outside_failure_that_a_later_run_mends(world: Placement, served: Served) -> None:
    served.faults.append(Fault("drop", blob(BIG), skip=3, at=10))
    with pytest.raises(ToolError, match="did not give models/tiny@sha256:") as caught:
        world.place(served, workers=1)
    assert caught.value.step == "fetch from the depot"
    assert world.nothing_is_visible()
    again = [each for each in goes_on(world, served) if blob(BIG) in each.path]
    assert [each.first // CHUNK for each in again] == [3, 4, 5]


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("416", "shorter than what was signed"),
        ("404", "does not offer it"),
        ("302", "a redirect, which a node does not follow"),
        ("401", "status 401"),
        ("503", "status 503"),
        ("short", "asked for bytes"),
        ("other-range", "asked for bytes"),
        ("forget-range", "offered the whole"),
        ("encoded", "encoded answer"),
    ],
)
def test_an_answer_other_than_the_range_asked_for_is_refused(world: Placement, served: Served, kind: str, says: str) -> None:
    served.faults.append(Fault(kind, blob(BIG), skip=1))
    with pytest.raises(ToolError, match=says):
        world.place(served, workers=1)
    assert world.nothing_is_visible()
    goes_on(world, served)


def test_a_busy_depot_is_asked_again(world: Placement, served: Served) -> None:
    served.faults.append(Fault("503", "/v2/", times=2))
    world.place(served)
    assert world.holds()


class Sink:
    """Takes what comes."""

    def room(self, most: int) -> memoryview:
        return memoryview(bytearray(most))

    def filled(self, count: int) -> None:
        assert count >= 0


@pytest.mark.parametrize("kind", ["stall", "drip"])
def test_a_depot_that_falls_silent_or_only_drips_is_cut_off_in_time(served: Served, kind: str) -> None:
    served.faults.append(Fault(kind, blob(BIG), at=5))
    with Depot(served.address, ca=served.certificates.ca, pauses=(), patience=0.3) as client, pytest.raises(ToolError):
        client.connection().blob_range("models/tiny", digest_of(TINY[BIG]), offset=0, size=200, sink=Sink())
    assert served.sent < 200


def test_a_depot_that_is_away_says_what_to_look_at(world: Placement, tmp_path: Path) -> None:
    with serving(world.tree, tmp_path / "tls") as served:
        pass
    with pytest.raises(ToolError, match="Connection refused") as caught:
        world.place(served)
    assert "appliance-registry.service" in str(caught.value.hint)
    assert world.nothing_is_visible()


def test_a_server_with_a_certificate_of_another_authority_gets_no_request(world: Placement, served: Served, tmp_path: Path) -> None:
    other = issue(tmp_path / "other")
    with pytest.raises(VerificationError, match="is not this site's depot"):
        world.place(served, ca=other.ca)
    assert served.asked == []
    assert world.nothing_is_visible()


def test_a_server_under_another_name_gets_no_request(world: Placement, served: Served) -> None:
    """The certificate is of 127.0.0.1; who shows it at 127.0.0.2 is not the machine that it was issued to."""
    with serving(world.tree, world.root, certificates=served.certificates, host="127.0.0.2") as second:
        with pytest.raises(VerificationError, match="IP address mismatch"):
            world.place(second)
        assert second.asked == []


def test_a_file_that_is_no_certificate_is_not_taken_for_the_authority(world: Placement, served: Served) -> None:
    with pytest.raises(FormatError, match="not a certificate"):
        world.place(served, ca=world.pinned)
    with pytest.raises(HostError):
        world.place(served, ca=world.root / "nowhere.crt")


@pytest.mark.parametrize("text", ["", "depot", "depot:", "depot:0", "depot:70000", "https://depot:1", "::1:5000", "depot:1/x"])
def test_an_address_that_is_no_host_and_port_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text)
    assert str(parse_address("[::1]:5000")) == "[::1]:5000"


def test_without_a_pinned_root_nothing_is_asked_of_anybody(world: Placement, served: Served) -> None:
    world.pinned.unlink()
    with pytest.raises(HostError, match="no root is pinned on this node"):
        world.place(served)
    assert served.asked == []


def test_the_root_of_another_publication_refuses_the_release(world: Placement, served: Served) -> None:
    world.pin(Line("acme", people=("mallory",)).pin)
    with pytest.raises(VerificationError, match="is not the root 1 that this side pinned"):
        world.place(served)
    assert world.nothing_is_visible()


@pytest.mark.parametrize("line", ["acme", "umbrella"])
def test_a_pinned_root_that_was_exchanged_later_is_refused(world: Placement, served: Served, line: str) -> None:
    world.place(served)
    world.pin(Line(line, people=("mallory",)).pin)
    with unchanged(world.root / "node", besides=["node.lock"]), pytest.raises(VerificationError, match="trust"):
        world.place(served)
    world.pin(world.line.pin)
    assert not world.place(served).changed


def test_newer_roots_reach_the_node_by_the_chain_alone(world: Placement, served: Served) -> None:
    world.place(served)
    world.line.replace_keys(["bob"])
    world.publish(version="2.0.0")
    served.tree = world.tree
    world.place(served)
    trust = trusted.node_trust(world.places, world.pinned)
    assert (trust.pin, trust.directory.joinpath("root.json").read_bytes()) == (world.line.roots[-1], world.line.pin)


@pytest.mark.parametrize("kind", ["flip", "drop"])
def test_metadata_that_is_not_what_was_signed_is_refused(world: Placement, served: Served, kind: str) -> None:
    for file in parse_metadata_manifest(metadata_artifact(world.files).manifest, max_files=99, max_bytes=10**7):
        served.faults[:] = [Fault(kind, f"appliance/metadata/blobs/{file.digest}", at=file.size // 2)]
        with pytest.raises(VerificationError if kind == "flip" else ToolError):
            world.place(served)
        assert world.nothing_is_visible()
    goes_on(world, served)


def serve_metadata(world: Placement, files: dict[str, bytes]) -> None:
    """Let the depot's tree offer other metadata under the same release."""
    top = world.tree / "docker" / "registry" / "v2"
    artifact = metadata_artifact(files)
    documents = {digest_of(data): data for data in (*files.values(), artifact.manifest, artifact.config)}
    place = top / "repositories" / "appliance" / "metadata"
    for digest, data in documents.items():
        blob_file = top / "blobs" / "sha256" / hex_of(digest)[:2] / hex_of(digest) / "data"
        blob_file.parent.mkdir(parents=True, exist_ok=True)
        if not blob_file.exists():
            blob_file.write_bytes(data)
        for kind in ("_layers", "_manifests/revisions"):
            link = place / kind / "sha256" / hex_of(digest) / "link"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.write_text(digest)
    (place / "_manifests" / "tags" / hex_of(world.release) / "current" / "link").write_text(digest_of(artifact.manifest))


def test_every_missing_or_added_metadata_file_is_refused(world: Placement, served: Served) -> None:
    for path in world.files:
        serve_metadata(world, {name: data for name, data in world.files.items() if name != path})
        with pytest.raises(ApplianceError) as caught:
            world.place(served)
        assert caught.value.exit_code in {3, 4}, path
        assert world.nothing_is_visible()
    serve_metadata(world, {**world.files, "extra.json": b"{}"})
    with pytest.raises(VerificationError, match=r"extra\.json is named by no role"):
        world.place(served)
    assert world.nothing_is_visible()


@pytest.mark.parametrize("path", ["../up.json", "/etc/passwd", "a/../../b", "a//b", "a\\b", ""])
def test_a_metadata_path_that_leaves_its_folder_is_malformed(world: Placement, served: Served, path: str) -> None:
    serve_metadata(world, {**world.files, path: b"{}"})
    with pytest.raises(FormatError, match="not a plain relative path"):
        world.place(served)
    assert world.nothing_is_visible()


def test_a_manifest_of_too_much_or_of_another_kind_is_malformed(world: Placement) -> None:
    manifest = metadata_artifact(world.files).manifest
    with pytest.raises(FormatError, match="are more than 3"):
        parse_metadata_manifest(manifest, max_files=3, max_bytes=10**7)
    with pytest.raises(FormatError, match="or 100"):
        parse_metadata_manifest(manifest, max_files=99, max_bytes=100)
    other = manifest.replace(formats.METADATA_ARTIFACT.encode(), formats.FILE_ARTIFACT.encode())
    for data in (b"", b"{", b"[]", b"\xff", other):
        with pytest.raises(FormatError):
            parse_metadata_manifest(data, max_files=99, max_bytes=10**7)


@pytest.mark.parametrize("path", ["../evil.json", "/etc/cron.d/evil", "a/../../evil", "."])
def test_a_weights_manifest_whose_path_leaves_the_model_is_refused_though_signed(world: Placement, served: Served, path: str) -> None:
    """The publisher's own tools refuse to build it, so its bytes are forged and then signed with the real keys."""
    data = b"{}"
    blob_ = blob_of(data)
    plain = build_statement("tiny", "1.0", [WeightsFile(path="placeholder", size=len(data), digest=blob_.digest)])
    statement = plain.replace(b'"placeholder"', json.dumps(path).encode())
    contents, _, (old,) = model_contents({"tiny": {"placeholder": data}})
    assert old == plain
    (artifact,) = contents.artifacts
    swapped = sorted({digest_of(statement), *artifact.blobs} - {digest_of(plain)})
    blobs = [each for each in contents.blobs if each.digest != digest_of(plain)] + [blob_of(statement)]
    forged = replace(
        contents,
        artifacts=(replace(artifact, weights=digest_of(statement), blobs=tuple(swapped)),),
        blobs=tuple(sorted(blobs, key=lambda each: each.digest)),
    )
    serve_metadata(world, world.line.publish({ContentClass.MODELS: forged}, statements=[statement]))
    with pytest.raises(FormatError, match="not a plain relative path"):
        world.place(served)
    assert world.nothing_is_visible()


@pytest.mark.skipif(not can_mount(), reason="needs the right to mount a file system")
def test_a_full_disk_at_any_size_leaves_nothing_visible_and_is_gone_on_from(world: Placement, served: Served) -> None:
    for size in (64 * 1024, 48 * 1024, 24 * 1024, 16 * 1024):
        with small_disk(world.root / "node", size):
            try:
                world.place(served)
            except HostError as error:
                assert "bytes are available" in error.message or "no space left" in error.message  # noqa: PT017 - some sizes fit
                assert [path.name for path in world.places.models.glob("*") if not path.name.startswith(".partial-")] == []
            else:
                assert world.holds()


@pytest.mark.parametrize("call", ["pwrite", "open", "fsync", "ftruncate", "rename", "chmod", "write", "mkdir"])
def test_a_disk_that_fails_once_at_every_call_leaves_nothing_half_visible(world: Placement, served: Served, call: str) -> None:
    node = world.root / "node"
    calls = 0
    while True:
        with failing([call], errno.EIO, below=node, after_calls=calls) as fault:
            try:
                world.place(served, workers=1)
            except HostError:
                assert fault.struck
            else:
                break
        if world.places.models.is_dir() and world.folder().exists():
            assert (world.folder() / BIG).read_bytes() == TINY[BIG]
        calls += 1
    assert world.holds()
    assert not world.place(served).changed


def test_a_chunk_list_of_another_file_is_refused_though_signed(world: Placement, served: Served) -> None:
    """A publisher whose chunks are right one by one but are not the file it names: its own digest decides."""
    data, other = bytes_of("a", 2 * CHUNK), bytes_of("b", 2 * CHUNK)
    contents, _, _ = model_contents({"tiny": {"w.gguf": data}})
    lie = replace(blob_of(other), digest=digest_of(data))
    statement = build_statement("tiny", "1.0", [WeightsFile(path="w.gguf", size=lie.size, digest=lie.digest, chunks=lie.chunks)])
    (artifact,) = contents.artifacts
    old = artifact.weights
    assert old is not None
    keep = [each for each in contents.blobs if each.digest not in {old, lie.digest}]
    forged = replace(
        contents,
        artifacts=(replace(artifact, weights=digest_of(statement), blobs=tuple(sorted({digest_of(statement), *artifact.blobs} - {old}))),),
        blobs=tuple(sorted([*keep, lie, blob_of(statement)], key=lambda each: each.digest)),
    )
    world.publish({"tiny": {"w.gguf": data}}, version="2.0.0")
    served.tree = world.tree
    files = world.line.publish({ContentClass.MODELS: forged}, statements=[statement], release=world.line.release("2.0.0"))
    serve_metadata(world, files)
    digits = hex_of(lie.digest)
    stored = world.tree / "docker" / "registry" / "v2" / "blobs" / "sha256" / digits[:2] / digits / "data"
    stored.unlink()
    stored.write_bytes(other)
    with pytest.raises(VerificationError, match=f"every chunk is as signed, but the whole is {digest_of(other)}, expected {lie.digest}"):
        world.place(served)
    assert world.nothing_is_visible()
