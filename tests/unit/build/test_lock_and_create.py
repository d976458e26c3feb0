# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""From a profile to a lock to a signed bundle: equal every time, resumed after a kill, refused when a source changed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from appliance.adapters.disk import at
from appliance.adapters.publication import load_publication, save_publication
from appliance.bundle.contents import ContentClass
from appliance.carry.write import write_media
from appliance.digests import hex_of
from appliance.errors import FormatError, HostError, ToolError, UsageError, VerificationError
from appliance.trust.countersign import countersign
from appliance.trust.publication import delegate
from tests.support.building import Bench, safetensors, tree
from tests.support.carried import small_chunks
from tests.support.faults import WRITES, failing, flip_byte, kill_when, replace_by_symlink
from tests.support.observe import unchanged
from tests.support.registry import Fault
from tests.support.simulator import bytes_of, person
from tests.unit.build.conftest import WORLD


def test_a_second_lock_of_the_same_upstream_is_equal_byte_for_byte(bench: Bench) -> None:
    first = bench.lock().path.read_bytes()
    again = bench.lock()
    assert again.path.read_bytes() == first
    assert again.previous is not None
    assert again.licenses == {"registry.test/team/app:1.0": "MIT"}


def test_a_lock_holds_no_mirror_no_port_and_no_local_path(bench: Bench) -> None:
    text = bench.lock().path.read_text()
    assert bench.upstream.address not in text
    assert "127.0.0.1" not in text
    assert str(bench.folder) not in text


def test_without_helm_a_note_says_what_was_not_checked(bench: Bench) -> None:
    assert "no helm on this machine" in bench.lock().notes[0]


def test_an_image_of_a_chart_that_is_not_in_the_profile_is_refused(bench: Bench) -> None:
    bench.chart("registry.test/team/other:1.0")
    with pytest.raises(UsageError, match=r"registry\.test/team/other:1\.0 is not in the profile"):
        bench.lock()
    assert not (bench.folder / "core.lock.json").exists()


def test_two_creates_from_one_lock_differ_only_below_metadata(bench: Bench) -> None:
    bench.lock()
    bench.create("one.bundle")
    bench.create("two.bundle")
    one, two = (tree(bench.folder / name, without="metadata") for name in ("one.bundle", "two.bundle"))
    assert one == two
    assert len(one) > 10


def test_a_created_bundle_verifies_and_is_an_oci_layout(bench: Bench) -> None:
    bench.lock()
    created = bench.create()
    verified, findings = bench.verify()
    assert findings == ()
    assert verified.digest == created.release
    assert created.unsigned == ()
    layout = tree(bench.folder / "one.bundle")
    index = json.loads(layout["index.json"])
    names = {each["annotations"]["org.opencontainers.image.ref.name"] for each in index["manifests"]}
    assert names == {"registry.test/team/app:1.0", "charts/demo:1.2.3", "models/tiny:1", "files/tool:2.0"}
    for name, data in layout.items():
        if name.startswith("blobs/"):
            assert name.rpartition("/")[2] == hashlib.sha256(data).hexdigest()
    image = verified.contents[ContentClass.IMAGES].artifacts[0]
    assert image.image is not None
    assert image.root == image.image.index != image.image.manifest


def test_nothing_but_the_bundle_is_left_beside_it(bench: Bench) -> None:
    bench.lock()
    bench.create()
    assert not list(bench.folder.glob("*.partial"))
    assert sorted(path.name for path in (bench.folder / "one.bundle").iterdir()) == ["blobs", "index.json", "metadata", "oci-layout"]


def test_a_finished_bundle_is_never_touched(bench: Bench) -> None:
    bench.lock()
    bench.create()
    before = tree(bench.folder / "one.bundle")
    with pytest.raises(UsageError, match="is there already"):
        bench.create()
    assert tree(bench.folder / "one.bundle") == before


def test_downloads_are_hard_links_and_a_users_files_are_not(bench: Bench) -> None:
    bench.lock()
    bench.create()
    verified, _ = bench.verify()
    blobs = bench.folder / "one.bundle" / "blobs" / "sha256"
    tool = verified.contents[ContentClass.FILES].artifacts[0].payload
    assert tool is not None
    assert (blobs / hex_of(tool)).samefile(bench.folder / "cache" / "downloads" / "sha256" / hex_of(tool))
    weights = bench.folder / "tiny" / "model.safetensors"
    own = blobs / hashlib.sha256(weights.read_bytes()).hexdigest()
    assert not own.samefile(weights)
    assert own.stat().st_mode & 0o222 == 0


def test_link_hard_links_a_users_model(bench: Bench) -> None:
    bench.lock()
    bench.create(link=True)
    weights = bench.folder / "tiny" / "model.safetensors"
    assert (bench.folder / "one.bundle" / "blobs" / "sha256" / hashlib.sha256(weights.read_bytes()).hexdigest()).samefile(weights)


def test_a_person_who_edits_a_linked_model_after_create_is_told_which_file_changed(bench: Bench) -> None:
    bench.lock()
    bench.create(link=True)
    weights = bench.folder / "tiny" / "model.safetensors"
    name = hashlib.sha256(weights.read_bytes()).hexdigest()
    flip_byte(weights, -1)
    bundle, media = bench.folder / "one.bundle", bench.folder / "media"
    with unchanged(bundle), pytest.raises(VerificationError, match=f"changed since create: .*{name}") as caught:
        write_media(bundle, media, part_size=10**8, workers=1, written_by="ann")
    assert caught.value.hint
    assert {path.suffix for path in media.iterdir()} <= {".partial", ".journal", ".lock"}
    (finding,) = bench.verify()[1]
    assert name in f"{finding}"
    flip_byte(weights, -1)
    assert len(write_media(bundle, media, part_size=10**8, workers=1, written_by="ann").parts) == 1
    assert bench.verify()[1] == ()


def test_the_second_create_asks_nobody_for_anything(bench: Bench) -> None:
    bench.lock()
    bench.create("one.bundle")
    bench.upstream.requests.clear()
    bench.create("two.bundle")
    assert bench.upstream.requests == []


def test_a_changed_model_file_is_refused_by_name(bench: Bench) -> None:
    bench.lock()
    weights = bench.folder / "tiny" / "model.safetensors"
    flip_byte(weights, -1)
    with pytest.raises(VerificationError, match=r"changed since lock: .*model\.safetensors"):
        bench.create()
    assert not (bench.folder / "one.bundle").exists()
    assert bench.publication.joinpath("publication.json").read_bytes().count(b"snapshot") == 0
    flip_byte(weights, -1)
    bench.create()
    assert bench.verify()[1] == ()


def test_an_extra_file_in_a_model_is_refused_by_name(bench: Bench) -> None:
    bench.lock()
    (bench.folder / "tiny" / "more.json").write_text("{}")
    with pytest.raises(VerificationError, match=r"changed since lock: .*more\.json"):
        bench.create()


def test_a_changed_chart_is_refused_by_name(bench: Bench) -> None:
    bench.lock()
    (bench.folder / "chart" / "values.yaml").write_text("replicas: 3\n")
    with pytest.raises(VerificationError, match=r"changed since lock: .*chart"):
        bench.create()


@pytest.mark.parametrize("name", ["model.bin", "weights.pkl", "modeling_tiny.py"])
def test_a_pickle_or_code_in_a_model_is_refused(bench: Bench, name: str) -> None:
    (bench.folder / "tiny" / name).write_bytes(b"\x80\x04.")
    with pytest.raises(VerificationError):
        bench.lock()


def test_a_symbolic_link_in_a_model_is_refused_at_lock_and_at_create(bench: Bench) -> None:
    bench.lock()
    replace_by_symlink(bench.folder / "tiny" / "config.json")
    for run in (bench.create, bench.lock):
        with pytest.raises(VerificationError, match="symbolic link"):
            run()


def test_a_path_of_the_lock_that_leaves_the_model_is_refused(bench: Bench) -> None:
    path = bench.lock().path
    path.write_bytes(path.read_bytes().replace(b'"path":"config.json"', b'"path":"../x.json"'))
    with pytest.raises(FormatError, match=r"path '\.\./x\.json' is not a plain relative path") as caught:
        bench.create()
    assert caught.value.hint
    assert not (bench.folder / "one.bundle").exists()


def test_wrong_bytes_from_upstream_are_refused_and_kept_nowhere(bench: Bench) -> None:
    bench.lock()
    layer = hashlib.sha256(bytes_of("layer", 5000)).hexdigest()
    bench.upstream.faults.append(Fault("wrong", layer, times=99))
    with pytest.raises(VerificationError, match="expected sha256:"):
        bench.create()
    assert not (bench.folder / "one.bundle").exists()
    assert not list(bench.folder.rglob(layer))
    bench.upstream.faults.clear()
    bench.create()
    assert bench.verify()[1] == ()


def test_a_spoiled_cache_is_noticed_and_fetched_again(bench: Bench) -> None:
    bench.lock()
    bench.create("one.bundle")
    tool = hashlib.sha256(bytes_of("tool", 20_000)).hexdigest()
    cached = bench.folder / "cache" / "downloads" / "sha256" / tool
    data = bytearray(cached.read_bytes())
    cached.unlink()
    data[7] ^= 1
    cached.write_bytes(data)
    bench.create("two.bundle")
    assert bench.verify("two.bundle")[1] == ()
    assert len(bench.upstream.asked("/files/tool")) == 2


def test_a_pin_that_upstream_does_not_meet_is_refused(bench: Bench) -> None:
    text = WORLD.replace('license = "MIT"\n', f'license = "MIT"\nsha256 = "{"0" * 64}"\n')
    bench.profile(text)
    with pytest.raises(VerificationError, match="file tool: expected sha256:0000"):
        bench.lock()


def test_a_full_disk_at_any_write_is_an_error_of_this_machine_and_the_next_run_goes_on(bench: Bench) -> None:
    bench.lock()
    assert bench.publication.is_dir()
    struck = after = 0
    messages: set[str] = set()
    while True:
        with failing(WRITES, 28, below=bench.folder, after_calls=after) as fault:
            try:
                bench.create(f"try{after}.bundle")
                break
            except HostError as error:
                messages.add(error.message.partition(": ")[2][:13])
        struck += fault.struck
        assert not (bench.folder / f"try{after}.bundle").exists()
        after += 1
    assert struck >= after > 10
    assert messages == {"no space left"}
    bench.create("try0.bundle")
    assert bench.verify("try0.bundle")[1] == ()


def counter(bench: Bench) -> int:
    return load_publication(bench.publication).publication.timestamp


@pytest.mark.slow
def test_a_full_disk_at_any_write_of_a_cold_run_with_an_installer_raises_no_number_twice(bench: Bench) -> None:
    """The cache is emptied before each run, so that every write is made and fails once: downloads, bundle, publication."""
    profile = bench.folder / "core.toml"
    profile.write_text(profile.read_text().replace("installer = false", "installer = true"))
    bench.lock()
    assert bench.publication.is_dir()
    struck = after = 0
    number = counter(bench)
    messages: set[str] = set()
    failed: set[str] = set()
    hints: list[str | None] = []
    while True:
        shutil.rmtree(bench.folder / "cache" / "downloads", ignore_errors=True)
        with failing(WRITES, 28, below=bench.folder, after_calls=after) as fault:
            try:
                bench.create("try.bundle", installer=an_installer)
                break
            except HostError as error:
                hints.append(error.hint)
                messages.add(error.message.partition(": ")[2][:13])
                failed.add(Path(error.message.partition(": ")[0]).relative_to(bench.folder).parts[0])
        struck += fault.struck
        assert not (bench.folder / "try.bundle").exists()
        assert number <= counter(bench) <= number + 1, "a number was used for a bundle that is not there, more than once"
        number = counter(bench)
        shutil.rmtree(bench.folder / "try.bundle.partial", ignore_errors=True)
        after += 1
    assert struck >= after > 30
    assert all(hints)
    assert messages == {"no space left"}
    assert failed >= {"cache", "try.bundle.partial", "publication"}
    assert bench.verify("try.bundle")[1] == ()
    assert bench.verify("try.bundle")[0].seen.timestamp == counter(bench) == number + 1


def an_installer(_root: bytes, target: Path) -> None:
    """Write in place of the real one, by calls that can fail."""
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o755)
    try:
        with at(target):
            os.write(descriptor, b"installer")
    finally:
        os.close(descriptor)


def test_too_little_space_is_refused_before_the_first_byte(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.lock()
    bench.upstream.requests.clear()
    monkeypatch.setattr("appliance.adapters.disk.free_bytes", lambda _: 1000)
    with pytest.raises(HostError, match=r"needs \d+ bytes, 1000 bytes are available"):
        bench.create()
    assert bench.upstream.requests == []


def test_an_upstream_that_stays_broken_costs_only_what_is_missing(bench: Bench) -> None:
    bench.lock()
    layer = hashlib.sha256(bytes_of("layer", 5000)).hexdigest()
    bench.upstream.faults.append(Fault("500", layer, times=99))
    with pytest.raises(ToolError) as caught:
        bench.create()
    assert "HTTP 500" in caught.value.message
    bench.upstream.faults.clear()
    bench.upstream.requests.clear()
    bench.create()
    assert [request.path for request in bench.upstream.requests if "/files/" in request.path] == []
    assert bench.verify()[1] == ()


def test_blobs_of_an_earlier_lock_do_not_stay_in_the_bundle(bench: Bench) -> None:
    bench.lock()
    stray = bench.folder / "one.bundle.partial" / "blobs" / "sha256" / ("0" * 64)
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"of an earlier lock")
    bench.create()
    assert bench.verify()[1] == ()


def test_counters_of_the_publication_rise_and_are_never_used_twice(bench: Bench) -> None:
    bench.lock()
    bench.create("one.bundle")
    bench.create("two.bundle")
    first, second = (bench.verify(name)[0].seen for name in ("one.bundle", "two.bundle"))
    assert (first.timestamp, second.timestamp) == (1, 2)
    assert json.loads((bench.publication / "publication.json").read_bytes())["timestamp"] == 2


def test_a_running_create_keeps_another_one_out(bench: Bench) -> None:
    bench.lock()

    def second(_root: bytes, target: Path) -> None:
        with pytest.raises(HostError, match=f"in use by process {os.getpid()}"):
            bench.create(installer=second)
        target.write_bytes(b"installer")

    profile = bench.folder / "core.toml"
    profile.write_text(profile.read_text().replace("installer = false", "installer = true"))
    bench.lock()
    bench.create(installer=second)
    verified, findings = bench.verify()
    assert findings == ()
    assert verified.contents[ContentClass.INSTALLER].artifacts[0].name == "install.pyz"


def test_a_lock_that_wants_the_installer_is_refused_without_a_builder(bench: Bench) -> None:
    profile = bench.folder / "core.toml"
    profile.write_text(profile.read_text().replace("installer = false", "installer = true"))
    bench.lock()
    with pytest.raises(UsageError, match="installer"):
        bench.create()


def test_a_tampered_lock_is_refused(bench: Bench) -> None:
    path = bench.lock().path
    path.write_bytes(path.read_bytes().replace(b'"lock/1"', b'"lock/2"'))
    with pytest.raises(FormatError, match="made by a newer appliance"):
        bench.create()


_KILLED = """
import sys
from collections.abc import Callable
from pathlib import Path
from tests.support.building import Bench
from tests.support.carried import small_chunks
from tests.support.registry import Upstream
bench = Bench(folder=Path(sys.argv[1]), upstream=Upstream(address=sys.argv[2], ca=Path(sys.argv[3])))
import appliance.build.creating, appliance.adapters.ingest
with small_chunks(65536):
    bench.create("one.bundle")
"""


def _count(folder: Path, suffix: str = "") -> int:
    """How many names there are; none when the folder was given its final name meanwhile."""
    try:
        return sum(path.name.endswith(suffix) for path in folder.iterdir())
    except FileNotFoundError:
        return 0


def test_a_create_that_is_killed_again_and_again_ends_like_one_that_was_not(bench: Bench) -> None:
    chunk = 65536
    with small_chunks(chunk):
        bench.model(files={"model.safetensors": safetensors(100 * chunk, seed="big")})
        bench.upstream.files["/files/tool"] = bytes_of("tool", 60 * chunk)
        bench.lock()
        bench.create("whole.bundle")
    cache = bench.folder / "cache" / "downloads"
    for path in list(cache.rglob("*")):
        if path.is_file():
            path.unlink()
    command = [sys.executable, "-c", _KILLED, str(bench.folder), bench.upstream.address, str(bench.upstream.ca)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    partial = bench.folder / "one.bundle.partial"
    marks: list[Callable[[], bool]] = [
        (partial / ".journal").exists,
        lambda: _count(partial / "blobs" / "sha256") > 3,
        lambda: _count(cache / "partial", ".journal") > 0,
        (partial / "index.json").exists,
    ]
    for mark in marks:
        kill = kill_when(command, mark, env=environment)
        assert kill.killed or (bench.folder / "one.bundle").exists(), kill.output
    with small_chunks(chunk):
        if not (bench.folder / "one.bundle").exists():
            bench.create("one.bundle")
        assert tree(bench.folder / "one.bundle", without="metadata") == tree(bench.folder / "whole.bundle", without="metadata")
        assert bench.verify()[1] == ()


def test_a_full_disk_at_any_write_of_lock_leaves_the_old_lock(bench: Bench) -> None:
    before = bench.lock().path.read_bytes()
    bench.upstream.files["/files/tool"] = bytes_of("newer", 20_000)
    after = 0
    while True:
        with failing(WRITES, 28, below=bench.folder, after_calls=after):
            try:
                bench.lock()
                break
            except HostError:
                assert (bench.folder / "core.lock.json").read_bytes() == before
        after += 1
    assert after > 0
    assert (bench.folder / "core.lock.json").read_bytes() != before


def test_a_class_given_to_another_person_is_said_to_be_unsigned_until_they_sign(bench: Bench) -> None:
    bench.lock()
    given = delegate(load_publication(bench.publication).publication, ContentClass.MODELS, [signer.public_key for signer in person("bob")])
    save_publication(bench.publication, given)
    assert "models" in bench.create().unsigned
    with pytest.raises(VerificationError):
        bench.verify()
    metadata = bench.folder / "one.bundle" / "metadata"
    changed, _ = countersign(tree(metadata), pinned_root=load_publication(bench.publication).pin, signers=person("bob"), roles=())
    for name, data in changed.items():
        (metadata / name).write_bytes(data)
    assert bench.verify()[1] == ()
