# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Placement as it is on a site: the compiled registry over the product's own tree, chunks of 64 MiB, the installer, the role."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from appliance.adapters.installer import build_installer
from appliance.digests import CHUNK_BYTES, hex_of
from appliance.store import Store
from appliance.store.checking import verify_store
from tests.lab.world import build
from tests.lab.world.registry import serving
from tests.lab.world.tls import Certificates, issue
from tests.support.depot import Placement
from tests.support.faults import flip_byte, kill_at_random, new_seed, small_disk
from tests.support.observe import Entry, differences, snapshot, unchanged
from tests.support.simulator import Line

ROOT = Path(__file__).resolve().parents[2]
KILLS = 10
MODEL = {
    "model-00001-of-00002.safetensors": random.Random(1).randbytes(2 * CHUNK_BYTES + 12345),
    "model-00002-of-00002.safetensors": random.Random(2).randbytes(CHUNK_BYTES // 2),
    "nested/tokenizer.json": b"{}",
    "config.json": b'{"architectures":["LlamaForCausalLM"]}',
}
TOTAL = sum(map(len, MODEL.values()))


@dataclass(frozen=True, slots=True)
class Site:
    """The world, its certificates, and the address its registry has while it runs."""

    world: Placement
    certificates: Certificates
    folder: Path

    @contextmanager
    def registry(self) -> Iterator[str]:
        """The compiled registry over the tree, read-only."""
        data = self.folder / "data"
        if not data.is_symlink():
            data.symlink_to(self.world.tree)
        with serving(build().binaries / "distribution" / "registry", self.folder, self.certificates) as running:
            yield running.address

    def command(self, address: str, state: Path, *more: str) -> list[str]:
        return [
            *(sys.executable, "-m", "appliance", "node", "place", "--depot", address, "--ca", str(self.certificates.ca)),
            *("--release", hex_of(self.world.release), "--root", str(self.world.pinned), "--state", str(state), "-j", "2", "-o", "json"),
            *more,
        ]

    def run(self, address: str, state: Path, *more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(address, state, *more), capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    root = tmp_path_factory.mktemp("placement")
    world = Placement(root, line=Line(now=datetime.now(UTC).replace(microsecond=0)), models={"tiny": MODEL})
    (root / "registry").mkdir()
    return Site(world, issue(root / "tls"), root / "registry")


def end_state(state: Path) -> dict[str, Entry]:
    found = snapshot(state, besides=["*.lock", "*.placement.json"], times=False)
    return {str(Path(path).relative_to(state)): entry for path, entry in found.items()}


def test_a_node_places_from_the_compiled_registry_and_the_second_run_changes_nothing(site: Site, tmp_path: Path) -> None:
    with site.registry() as address:
        first = site.run(address, tmp_path)
        assert first.returncode == 0, first.stderr
        assert json.loads(first.stdout)["models"][0]["fetched"] == TOTAL
        folder = tmp_path / "models" / "by-name" / "tiny"
        assert {path: (folder / path).read_bytes() == data for path, data in MODEL.items()} == dict.fromkeys(MODEL, True)
        with unchanged(tmp_path, besides=["node.lock"]):
            second = site.run(address, tmp_path)
            verified = site.run(address, tmp_path, "--verify")
        assert (json.loads(second.stdout)["changed"], json.loads(verified.stdout)["changed"]) == (False, False)
        assert json.loads(verified.stdout)["models"][0]["state"] == "verified"
    listed = subprocess.run(
        [sys.executable, "-m", "appliance", "node", "list", "--state", str(tmp_path), "-o", "json"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert [(each["name"], each["looks"]) for each in json.loads(listed.stdout)["models"]] == [("tiny", "as placed")]
    away = site.run(address, tmp_path / "other")
    assert (away.returncode, "Connection refused" in away.stderr) == (6, True)


def test_ten_kills_at_random_moments_end_as_an_unkilled_run(site: Site, tmp_path: Path) -> None:
    """A run that outlives its moment is compared, and the next begins with an empty node."""
    seed = new_seed()
    with site.registry() as address:
        began = time.monotonic()
        assert site.run(address, tmp_path / "unkilled").returncode == 0
        whole = time.monotonic() - began
        expected = end_state(tmp_path / "unkilled")
        killed = finished = number = 0
        while killed < KILLS:
            state = tmp_path / f"node{finished}"
            run = kill_at_random(site.command(address, state), between=(0.3 * whole, whole), seed=seed + number)
            number += 1
            killed += run.killed
            if not run.killed:
                finished += 1
                assert run.status == 0, run.output
                assert differences(expected, end_state(state)) == []
        assert site.run(address, tmp_path / f"node{finished}").returncode == 0
        assert differences(expected, end_state(tmp_path / f"node{finished}")) == []


def test_a_blob_damaged_on_the_depot_is_named_by_file_and_chunk_and_the_store_says_the_same(site: Site, tmp_path: Path) -> None:
    name = "model-00001-of-00002.safetensors"
    bundle = site.world.line.verify(site.world.files)
    (digest,) = [file.digest for file in bundle.weights[site.world.weights()].files if file.path == name]
    blob = Store(site.world.depot).blob_path(digest)
    flip_byte(blob, CHUNK_BYTES + 5)
    try:
        with site.registry() as address:
            refused = site.run(address, tmp_path)
        assert refused.returncode == 3
        assert f"model tiny: {name}, chunk 1 (byte {CHUNK_BYTES}): the depot" in refused.stderr
        assert not (tmp_path / "trust").exists()
        assert [path.name for path in (tmp_path / "models").iterdir() if not path.name.startswith(".partial-")] == []
        assert [finding.path for finding in verify_store(Store(site.world.depot), workers=2).findings] == [blob]
    finally:
        flip_byte(blob, CHUNK_BYTES + 5)
    with site.registry() as address:
        again = site.run(address, tmp_path)
    assert again.returncode == 0
    assert json.loads(again.stdout)["models"][0]["fetched"] <= TOTAL - CHUNK_BYTES


def test_a_full_disk_of_the_node_leaves_nothing_visible(site: Site, tmp_path: Path) -> None:
    with site.registry() as address, small_disk(tmp_path / "state", 120 * 1024 * 1024, kind="ext4"):
        refused = site.run(address, tmp_path / "state")
        assert refused.returncode == 5
        assert "bytes are available" in refused.stderr
        assert not (tmp_path / "state" / "trust").exists()


PLAYBOOK = """\
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.include_role:
        name: weights
"""


def play(site: Site, place: Path, address: str, installer: dict[str, object], *more: str) -> tuple[int, str]:
    """Run the role on this machine; give the number of changed tasks and Ansible's output."""
    variables = {
        "ansible_connection": "local",
        "ansible_python_interpreter": "/usr/bin/python3",
        "appliance_installer": installer,
        "appliance_release": hex_of(site.world.release),
        "appliance_registry_address": address,
        "weights_site_ca": str(site.certificates.ca),
        "weights_pinned_root": str(site.world.pinned),
        "weights_state": str(place / "state"),
        "weights_directory": str(place / "opt"),
    }
    book = place / "play.yml"
    book.write_text(PLAYBOOK)
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(place),
        "LC_ALL": "C.UTF-8",
        "ANSIBLE_ROLES_PATH": str(ROOT / "playbooks" / "roles"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_INJECT_FACT_VARS": "0",
    }
    done = subprocess.run(
        [sys.executable, "-m", "ansible", "playbook", "-i", "gpu1,", "-e", json.dumps(variables), str(book), *more],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=180,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    recap = done.stdout.rpartition("changed=")[2]
    return int(recap.split()[0]), done.stdout


def test_the_role_places_with_the_installer_alone_and_its_second_run_changes_nothing(site: Site, tmp_path: Path) -> None:
    cache = Path(os.environ.get("APPLIANCE_CACHE") or Path.home() / ".cache" / "appliance") / "installer"
    cache.mkdir(parents=True, exist_ok=True)
    program = tmp_path / "store-blob"
    digest = build_installer(site.world.line.pin, target=program, cache=cache)
    installer: dict[str, object] = {"path": str(program), "sha256": hex_of(digest), "version": "1", "size": program.stat().st_size}
    place = tmp_path / "node"
    place.mkdir()
    with site.registry() as address:
        with unchanged(place, besides=["play.yml", ".ansible*", "tmp*", "*.lock", "node", "cp"], times=False):
            changed, output = play(site, place, address, installer, "--check")
            assert changed == 1, output
        changed, output = play(site, place, address, installer)
        assert changed == 3, output
        assert (place / "state" / "models" / "by-name" / "tiny" / "config.json").read_bytes() == MODEL["config.json"]
        with unchanged(place / "state", place / "opt", besides=["node.lock"]):
            assert play(site, place, address, installer, "--check")[0] == 0
            assert play(site, place, address, installer)[0] == 0
