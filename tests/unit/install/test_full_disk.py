# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The depot's disk is full anywhere in `site init` and `site install`: exit 5 with a hint, no machine met, and running again completes."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import pytest

from appliance.adapters.hashing import hash_file
from appliance.adapters.nodearchives import ARCHIVES
from appliance.adapters.playbook import PlaybookResult
from appliance.bundle.contents import ContentClass
from appliance.errors import HostError
from appliance.install import charting, preflight, run
from appliance.install.initialise import load_accepted
from appliance.install.plan import FILES_NEEDED
from appliance.store import Store
from tests.support.faults import can_mount, fill, small_disk
from tests.support.simulator import blob_of, contents_of, file_artifact
from tests.support.site import World

pytestmark = pytest.mark.skipif(not can_mount(), reason="needs to mount a small disk")
DISK, STEP = 1 << 20, 4096


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", DISK) as place:
        yield place


def payload(name: str) -> bytes:
    """A program as its upstream packs it."""
    layout = ARCHIVES.get(name)
    if layout is None:
        return name.encode() * 500
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for member in layout.members:
            data = member.encode() * 500
            info = tarfile.TarInfo(f"{layout.folder}/{member}".lstrip("/"))
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return packed.getvalue()


def import_real(world: World) -> None:
    """A release whose files are packed as upstreams pack them."""
    made = [file_artifact(name, payload(name)) for name in FILES_NEEDED]
    blobs = {digest: data for _, more in made for digest, data in more.items()}
    files = contents_of(ContentClass.FILES, [artifact for artifact, _ in made], map(blob_of, blobs.values()))
    store = Store(world.places.state)
    store.blobs.mkdir(parents=True, exist_ok=True)
    for digest, data in blobs.items():
        store.blob_path(digest).write_bytes(data)
    world.import_release(files=world.line.publish({ContentClass.FILES: files}))


def test_a_full_disk_anywhere_in_init_is_told_and_the_next_run_completes_it(disk: Path) -> None:
    world = World(disk)
    errors = []
    for left in range(0, DISK, STEP):
        filler = fill(disk, leave=left)
        try:
            world.init()
            break
        except HostError as error:
            errors.append(error)
        finally:
            filler.unlink()
    assert len(errors) >= 3
    assert all("no space left" in error.message and "free space" in (error.hint or "") for error in errors)
    assert world.init().changed == ()
    assert load_accepted(world.places).name == "harbour"


def test_a_full_disk_anywhere_in_install_is_told_before_any_machine_and_the_next_run_completes_it(
    disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(disk)
    world.init()
    import_real(world)
    given: list[Mapping[str, object]] = []

    def play(name: str, *, variables: Mapping[str, object], **_: object) -> PlaybookResult:
        given.append(variables)
        world.places.kubeconfig.write_text("x")
        return PlaybookResult(name=name, changed={}, changes=(), seconds=0.1, log=Path("run.log"))

    monkeypatch.setattr(preflight, "look", lambda *_, **__: ())
    monkeypatch.setattr(run, "run_playbook", play)
    monkeypatch.setattr(charting, "ensure", lambda *_: ())
    monkeypatch.setattr(run, "wait_until_well", lambda *_, **__: ())
    monkeypatch.setattr(run, "give_kubeconfig", lambda *_: None)
    now = world.line.now + timedelta(minutes=1)
    errors, met = [], []
    for left in range(0, DISK, STEP):
        filler = fill(disk, leave=left)
        try:
            run.install(load_accepted(world.places), world.places, now=now)
            break
        except HostError as error:
            errors.append(error)
            met.append(len(given))
        finally:
            filler.unlink()
    assert len(errors) > 10
    assert all("free space" in (error.hint or "") or "make room" in (error.hint or "") for error in errors)
    assert not any(met), "a machine was met"
    assert len(given) == 1
    done = given[0]
    for archive in (done["appliance_node_programs"], done["appliance_depot_programs"]):
        assert isinstance(archive, Mapping)
        with tarfile.open(str(archive["path"])) as tar:
            assert tar.getnames()
        assert hash_file(Path(str(archive["path"]))).digest == f"sha256:{archive['sha256']}"
    tree = Path(str(done["appliance_registry_tree"]))
    assert (tree / "made-from").is_file()
    assert sum(path.is_file() for path in tree.rglob("data")) > len(FILES_NEEDED)
    assert (Path(str(done["appliance_packages_repo"])) / "Release").is_file()
    assert not list(disk.rglob("*.part"))
    assert world.places.installed.is_file()
    assert world.places.standing.is_file()
