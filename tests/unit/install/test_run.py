# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`site install` and `site reset` before the first change: what is refused, in which order, and that nothing was touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import NoReturn

import pytest

from appliance.adapters.disk import locked
from appliance.bundle.contents import ContentClass
from appliance.digests import hex_of
from appliance.errors import FormatError, HostError, UsageError, VerificationError
from appliance.install import preflight, reset, run, standing
from appliance.install.checks import Check, check
from appliance.install.initialise import load_accepted
from appliance.install.inventory import inventory, variables
from appliance.install.plan import FILES_NEEDED, check_release, plan, release_inputs
from appliance.install.readiness import disk_grows, disk_needed, outlook
from appliance.install.records import read_installed, write_installed
from appliance.install.releases import newest
from appliance.install.sitefile import SiteFile
from appliance.store import Store
from tests.support.simulator import blob_of, contents_of, file_artifact, sample_files
from tests.support.site import GIB, SITE_ID, World, file_blob, installed_of, snapshot


@pytest.fixture
def world(tmp_path: Path) -> World:
    found = World(tmp_path)
    found.init()
    return found


def never(*_: object, **__: object) -> NoReturn:
    raise AssertionError("a machine was spoken to")


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """No machine may be spoken to in this test."""
    monkeypatch.setattr(preflight, "look", never)
    monkeypatch.setattr(run, "run_playbook", never)
    monkeypatch.setattr(reset, "run_playbook", never)


def install(world: World) -> None:
    run.install(load_accepted(world.places), world.places, now=world.line.now + timedelta(minutes=1))


def refused(world: World, kind: type[Exception], words: str, what: Callable[[World], object] = install) -> None:
    def state() -> dict[str, tuple[int, int, str]]:
        return {name: seen for name, seen in snapshot(world.places.state).items() if not name.endswith(".lock")}

    before = state()
    with pytest.raises(kind, match=words):
        what(world)
    assert state() == before


@pytest.mark.usefixtures("untouched")
class TestBeforeAnyMachineIsSpokenTo:
    def test_an_empty_store_is_refused(self, world: World) -> None:
        refused(world, HostError, "the store has no release")

    def test_an_incomplete_release_is_refused_with_how_much_is_missing(self, world: World) -> None:
        stored = world.import_release()
        Store(world.places.state).blob_path(file_blob(stored, "kubelet")).unlink()
        refused(world, VerificationError, "not complete: 1 blobs are missing")

    def test_a_blob_that_changed_on_the_disk_is_refused_by_name(self, world: World) -> None:
        stored = world.import_release()
        path = Store(world.places.state).blob_path(file_blob(stored, "kubelet"))
        data = bytearray(path.read_bytes())
        data[700] ^= 1
        path.write_bytes(data)
        refused(world, VerificationError, path.name)

    def test_a_release_that_lacks_a_file_every_cluster_needs_is_refused_by_name(self, world: World) -> None:
        contents, _ = sample_files(dict.fromkeys([name for name in FILES_NEEDED if name != "kubelet"], 2000))
        world.import_release(files=world.line.publish(contents))
        refused(world, FormatError, "no file 'kubelet'")

    def test_a_release_for_another_platform_is_refused_by_name(self, world: World) -> None:
        contents, _ = sample_files(dict.fromkeys(FILES_NEEDED, 2000))
        world.import_release(files=world.line.publish(contents, release=world.line.release(platform="ubuntu-24.04-arm64")))
        refused(world, FormatError, "made for ubuntu-24.04-arm64")

    @pytest.mark.parametrize("undone", [ContentClass.POLICY, ContentClass.CODE])
    def test_contents_that_would_be_left_aside_in_silence_are_refused_by_name(self, world: World, undone: ContentClass) -> None:
        contents, _ = sample_files(dict.fromkeys(FILES_NEEDED, 2000))
        artifact, more = file_artifact("site-policy", b"allow nothing")
        contents[undone] = contents_of(undone, [artifact], map(blob_of, more.values()))
        world.import_release(files=world.line.publish(contents))
        for digest, data in more.items():
            Store(world.places.state).blob_path(digest).write_bytes(data)
        refused(world, UsageError, f"class {undone}: site-policy: contents of this class are not done by this version")

    @pytest.mark.parametrize("version", ["", "latest", "1.36", "v1.36.4; id", "{{ x }}"])
    def test_a_kubernetes_that_is_no_version_is_refused(self, world: World, version: str) -> None:
        contents, _ = sample_files(dict.fromkeys(FILES_NEEDED, 2000))
        world.import_release(files=world.line.publish(contents, release=world.line.release(kubernetes=version)))
        refused(world, FormatError, "expected a version of Kubernetes")

    def test_a_release_with_another_kubernetes_than_what_stands_is_refused_before_a_byte_is_hashed(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        stored = world.import_release()
        standing.begin(load_accepted(world.places), world.places, kubernetes="v1.35.9", release=stored.digest)
        monkeypatch.setattr(run, "verify_blobs", never)
        refused(world, UsageError, r"the release has Kubernetes 1\.36\.4, the cluster that stands has 1\.35\.9")

    def test_a_clock_behind_what_was_signed_is_refused(self, world: World) -> None:
        world.import_release()
        world.line.pass_days(-3)
        refused(world, HostError, "has already passed by a signed statement")

    def test_while_another_command_holds_the_site_its_process_is_named(self, world: World) -> None:
        world.import_release()
        with locked(world.places.lock, what="the site"):
            refused(world, HostError, r"the site is in use by process \d+")

    @pytest.mark.parametrize(
        ("node", "confirmed", "words"),
        [
            (None, "", "expected the site's name 'harbour'"),
            (None, "harbor", "expected the site's name 'harbour', got 'harbor'"),
            ("gpu9", "harbour", "gpu9: no machine of this site"),
            ("depot", "harbour", "the depot is not reset alone"),
            ("cp1", "harbour", "the only control plane holds the cluster"),
        ],
    )
    def test_a_reset_is_refused_without_the_name_or_for_what_cannot_be_reset_alone(
        self, world: World, node: str | None, confirmed: str, words: str
    ) -> None:
        refused(
            world, UsageError, words, lambda world: reset.reset(load_accepted(world.places), world.places, node=node, confirmed=confirmed)
        )


def test_one_unfit_machine_stops_the_installation_before_the_first_change(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.import_release()

    def look(site: SiteFile, *_: object, **__: object) -> tuple[Check, ...]:
        return (check(site.machines[2].name, "disk", ok=False, measured="1.0 GiB free on /var", expected="9.0 GiB free"),)

    monkeypatch.setattr(preflight, "look", look)
    monkeypatch.setattr(run, "run_playbook", never)
    refused(world, HostError, r"gpu1: disk: expected 9.0 GiB free, got 1.0 GiB free on /var; nothing was changed")


def test_the_plan_says_per_machine_what_comes_and_which_units_run(world: World) -> None:
    stored = world.import_release()
    found = plan(load_accepted(world.places), stored)
    assert (found.release, found.name, found.kubernetes) == (stored.digest, "tiny", "v1.36.4")
    depot, cp1, gpu1 = found.machines
    assert set(depot.files) == {"registry 1", "kubectl 1", "helm 1"}
    assert set(cp1.files) == {f"{name} 1" for name in ("kubeadm", "kubelet", "kubectl", "containerd", "cni-plugins", "crictl")}
    assert cp1.bytes == 6 * 2000
    assert "appliance-registry.service" in depot.units
    assert set(gpu1.units) == {"haproxy.service", "containerd.service", "kubelet.service"}


def test_what_the_playbooks_read_is_paths_on_the_depot_and_digests(world: World) -> None:
    stored = world.import_release()
    check_release(stored)
    store, accepted = Store(world.places.state), load_accepted(world.places)
    inputs = release_inputs(store, stored, registry_tree=Path("/tree"), packages_repo=Path("/packages"))
    found = variables(accepted, world.places, SITE_ID, inputs)
    kubelet = file_blob(stored, "kubelet")
    assert found["appliance_files"] == {
        name: {
            "path": str(store.blob_path(file_blob(stored, name))),
            "sha256": hex_of(file_blob(stored, name)),
            "version": "1",
            "size": 2000,
        }
        for name in FILES_NEEDED
    }
    assert store.blob_path(kubelet).name == hex_of(kubelet)
    assert found["appliance_release"] == hex_of(stored.digest)
    assert found["appliance_registry_address"] == "10.20.0.10:5000"
    assert found["appliance_api_host"] == "api.harbour.internal"
    assert found["appliance_site_id"] == SITE_ID
    assert "PRIVATE" not in str(found)


def test_the_inventory_has_every_group_and_ssh_that_checks(world: World) -> None:
    found = inventory(load_accepted(world.places), world.places)
    everything = found["all"]
    assert isinstance(everything, dict)
    groups = {name: sorted(group["hosts"]) for name, group in everything["children"].items()}
    assert groups == {"depot": ["depot"], "control_plane": ["cp1"], "worker": ["gpu1"], "gpu": ["gpu1"], "cluster": ["cp1", "gpu1"]}
    assert everything["hosts"]["depot"]["ansible_connection"] == "local"
    words = everything["hosts"]["cp1"]["ansible_ssh_common_args"]
    assert "StrictHostKeyChecking=yes" in words
    assert f"UserKnownHostsFile={world.places.known_hosts}" in words


def test_disk_that_a_node_needs_grows_with_images_and_models(world: World) -> None:
    stored = world.import_release()
    depot, cp1, gpu1 = load_accepted(world.places).machines
    assert disk_needed(depot, None) == GIB // 2
    assert disk_needed(cp1, stored.bundle) == 2 * GIB + 1536 * 1024 * 1024
    assert disk_needed(gpu1, None) == 3 * GIB
    images = stored.bundle.contents[ContentClass.FILES]
    grown = {**stored.bundle.contents, ContentClass.IMAGES: images, ContentClass.MODELS: images}
    size = sum(blob.size for blob in images.blobs)
    bundle = type(stored.bundle)(**{name: getattr(stored.bundle, name) for name in stored.bundle.__slots__} | {"contents": grown})
    assert disk_needed(cp1, bundle) - disk_needed(cp1, None) == 3 * size
    assert disk_needed(gpu1, bundle) - 3 * GIB == 4 * size


def test_disk_that_a_newer_release_adds_to_a_node_is_what_the_installed_one_lacks(world: World) -> None:
    stored = world.import_release()
    depot, cp1, gpu1 = load_accepted(world.places).machines
    images = stored.bundle.contents[ContentClass.FILES]
    newer = replace(stored.bundle, contents={**stored.bundle.contents, ContentClass.IMAGES: images, ContentClass.MODELS: images})
    older = replace(stored.bundle, contents={**stored.bundle.contents, ContentClass.FILES: stored.bundle.contents[ContentClass.OS]})
    size = sum(blob.size for blob in images.blobs)
    assert disk_grows(cp1, newer, older) == 3 * size + 2 * GIB
    assert disk_grows(gpu1, newer, older) == 4 * size + 2 * GIB
    assert disk_grows(gpu1, newer, newer) == 0
    assert disk_grows(gpu1, newer, None) == 0
    assert disk_grows(depot, newer, older) == 0


def test_a_run_that_was_cut_off_is_not_refused_for_the_room_that_it_took_itself(world: World) -> None:
    accepted = load_accepted(world.places)
    older = world.import_release()
    standing.begin(accepted, world.places, kubernetes="v1.36.4", release=older.digest)
    write_installed(world.places, installed_of(older.digest))
    world.line.pass_days(1)
    grown = sample_files({"a": 10, "image": 50_000})[0]
    bundle = world.import_release(files=world.line.publish(grown, release=world.line.release("2.0.0"))).bundle
    newer = replace(bundle, contents={**bundle.contents, ContentClass.IMAGES: bundle.contents[ContentClass.FILES]})

    def grows() -> int:
        return outlook(accepted, world.places, now=world.line.now, bundle=newer).disk_grows["gpu1"]

    assert grows() > 2 * GIB
    standing.begin(accepted, world.places, kubernetes="v1.36.4", release=newer.digest)
    assert grows() == 0


def test_an_older_release_that_is_damaged_is_no_reason_to_install_no_other(world: World) -> None:
    accepted = load_accepted(world.places)
    older = world.import_release()
    write_installed(world.places, installed_of(older.digest))
    world.line.pass_days(1)
    newer = world.import_release(files=world.line.publish(sample_files({"a": 10})[0], release=world.line.release("2.0.0")))
    next((older.path / "metadata").glob("*.json")).write_bytes(b"{}")
    assert outlook(accepted, world.places, now=world.line.now, bundle=newer.bundle).disk_grows["gpu1"] == 0


def test_the_outlook_has_no_floor_until_a_release_was_seen(world: World) -> None:
    accepted = load_accepted(world.places)
    assert newest(world.places) is None
    assert outlook(accepted, world.places, now=world.line.now, bundle=None).floor is None
    world.import_release()
    assert newest(world.places) is not None


def test_what_was_installed_is_written_once_per_release(world: World) -> None:
    stored = world.import_release()
    record = installed_of(stored.digest)
    assert read_installed(world.places) is None
    assert write_installed(world.places, record)
    assert not write_installed(world.places, installed_of(stored.digest, by="other"))
    assert read_installed(world.places) == record
