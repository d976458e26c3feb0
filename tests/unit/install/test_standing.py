# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What the cluster that stands cannot follow is refused by name, before anything changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.digests import Digest
from appliance.errors import UsageError
from appliance.install import standing
from appliance.install.initialise import load_accepted
from appliance.install.records import Installed, write_installed
from tests.support.site import SITE, World, installed_of, snapshot

RELEASE = Digest("sha256:" + "1" * 64)
GPU2 = '\n[[machines]]\nname = "gpu2"\naddress = "10.20.0.22"\nroles = ["worker", "gpu"]\n'


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A site whose first installation has begun, and whose record was not written yet."""
    found = World(tmp_path, text=SITE + GPU2)
    found.init()
    standing.begin(load_accepted(found.places), found.places, kubernetes="v1.36.4", release=RELEASE)
    return found


def record(kubernetes: str) -> Installed:
    return installed_of(RELEASE, kubernetes=kubernetes)


MOVED = ('roles = ["control-plane"]', 'roles = ["worker"]')
"""And the control plane is `gpu2` now."""
POD_CIDR = '[network]\npod_cidr = "10.200.0.0/16"\n\n[[networks]]'
ALONE, WHOLE = "run site reset gpu2 first", "reset the whole site first: site reset"


@pytest.mark.parametrize(
    ("edit", "problem", "way"),
    [
        ((GPU2, ""), "gpu2.*cannot be taken out", ALONE),
        (('"gpu2"', '"gpu3"'), "gpu2.*cannot be called gpu3", ALONE),
        (("10.20.0.22", "10.20.0.23"), "gpu2.*its address cannot change from 10.20.0.22 to 10.20.0.23", ALONE),
        (('"cp1"', '"cp2"'), "cp1.*cannot be called cp2", WHOLE),
        (("10.20.0.11", "10.20.0.12"), "cp1.*its address", WHOLE),
        (MOVED, "cp1.*its roles cannot change from control-plane to worker", WHOLE),
        (("[[networks]]", POD_CIDR), "pod_cidr and service_cidr cannot", "reset the site first"),
        (("[[networks]]", POD_CIDR.replace("pod_cidr", "service_cidr")), "pod_cidr and service_cidr cannot", "reset the site first"),
    ],
    ids=["removed", "renamed", "re-addressed", "plane renamed", "plane re-addressed", "the plane is another machine", "pods", "services"],
)
@pytest.mark.parametrize("known", ["begun", "installed", "installed before this was written"])
def test_an_edit_that_the_standing_cluster_cannot_follow_is_refused(
    world: World, edit: tuple[str, str], problem: str, way: str, known: str
) -> None:
    if known != "begun":
        write_installed(world.places, record("v1.36.4"))
    if known == "installed before this was written":
        world.places.standing.unlink()
    text = world.text.replace(*edit, 1)
    world.write(text if edit != MOVED else text.replace(GPU2, GPU2.replace('"worker", "gpu"', '"control-plane"')))
    before = snapshot(world.places.state)
    with pytest.raises(UsageError, match=problem) as caught:
        world.init()
    assert way in (caught.value.hint or "")
    assert snapshot(world.places.state) == before


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('roles = ["depot"]', 'roles = ["depot"]\nssh_user = "ops"'),
        ("10.20.0.10", "10.20.0.9"),
        ('"depot"\naddress', '"bastion"\naddress'),
        ("[[networks]]", '[[networks]]\nname = "more"\ncidr = "10.23.0.0/24"\nclass = "users"\n\n[[networks]]'),
        (GPU2, GPU2.replace(', "gpu"', "") + GPU2.replace("gpu2", "gpu3").replace("0.22", "0.23")),
    ],
    ids=["a login", "the depot's address", "the depot's name", "a network", "another machine, and no models on this one"],
)
def test_what_the_cluster_can_follow_is_accepted(world: World, old: str, new: str) -> None:
    world.write(world.text.replace(old, new, 1))
    assert world.init().serial == 2


def test_after_its_reset_a_machine_may_go_and_after_the_sites_everything_may(world: World) -> None:
    world.write(SITE)
    with pytest.raises(UsageError, match="gpu2"):
        world.init()
    world.write(SITE + GPU2)
    standing.leave(load_accepted(world.places), world.places, "gpu2")
    world.write(SITE)
    assert world.init().serial == 2
    world.places.standing.unlink()
    world.write(SITE.replace('"cp1"', '"cp2"').replace("10.20.0.11", "10.20.0.12"))
    world.init()


def test_a_machine_that_left_a_site_installed_before_this_was_written_may_go(world: World) -> None:
    world.places.standing.unlink()
    write_installed(world.places, record("v1.36.4"))
    standing.leave(load_accepted(world.places), world.places, "gpu2")
    found = standing.read_standing(world.places, load_accepted(world.places))
    assert found is not None
    assert found.kubernetes == "1.36.4"
    world.write(SITE)
    world.init()


@pytest.mark.parametrize("known", ["begun", "installed"])
def test_a_release_with_another_kubernetes_than_what_stands_is_refused_with_both(world: World, known: str) -> None:
    if known == "installed":
        world.places.standing.unlink()
        write_installed(world.places, record("v1.36.4"))
    here = load_accepted(world.places)
    standing.refuse_other_kubernetes(world.places, here, "1.36.4")
    with pytest.raises(UsageError, match=r"the release has Kubernetes 1\.37\.0, the cluster that stands has 1\.36\.4") as caught:
        standing.refuse_other_kubernetes(world.places, here, "v1.37.0")
    assert "carry a release with Kubernetes 1.36.4" in (caught.value.hint or "")


def test_where_nothing_stands_any_kubernetes_may_come(tmp_path: Path) -> None:
    bare = World(tmp_path)
    bare.init()
    standing.refuse_other_kubernetes(bare.places, load_accepted(bare.places), "v1.37.0")
