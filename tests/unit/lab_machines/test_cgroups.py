# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab.machines import cgroups
from tests.lab.machines.cgroups import Hierarchy

HYBRID = """
25 20 0:22 / /sys rw,relatime shared:7 - sysfs sysfs rw
30 25 0:26 / /sys/fs/cgroup ro,relatime shared:9 - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,relatime shared:10 - cgroup2 cgroup2 rw
32 30 0:28 / /sys/fs/cgroup/systemd rw,relatime shared:11 - cgroup cgroup rw,name=systemd
33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:12 - cgroup cgroup rw,cpu,cpuacct
99 98 0:29 / /mnt/elsewhere/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
""".strip()
UNIFIED = "30 25 0:26 / /sys/fs/cgroup rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate"


def test_a_hybrid_host_has_one_hierarchy_per_mount() -> None:
    found = cgroups.hierarchies(HYBRID)
    assert {(h.mount.name, h.unified) for h in found} == {("unified", True), ("systemd", False), ("cpu,cpuacct", False)}


def test_a_unified_host_has_one_hierarchy() -> None:
    assert cgroups.hierarchies(UNIFIED) == (Hierarchy(mount=Path("/sys/fs/cgroup"), unified=True),)


def _only(monkeypatch: pytest.MonkeyPatch, *found: Hierarchy) -> None:
    monkeypatch.setattr(cgroups, "hierarchies", lambda: found)


def test_on_v2_every_ancestor_passes_its_controllers_down_and_the_machines_own_group_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _only(monkeypatch, Hierarchy(mount=tmp_path, unified=True))
    groups = [tmp_path, tmp_path / "appliance-lab", tmp_path / "appliance-lab/a"]
    for group in groups:
        group.mkdir(exist_ok=True)
        (group / "cgroup.controllers").write_text("memory\n")
    assert cgroups.prepare("a", "cp1") == (tmp_path / "appliance-lab/a/cp1/cgroup.procs",)
    assert [(group / "cgroup.subtree_control").read_text() for group in groups] == ["+memory"] * 3
    assert not (tmp_path / "appliance-lab/a/cp1/cgroup.subtree_control").exists()


def test_on_v1_an_empty_cpuset_takes_its_parents_cpus_and_memory_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _only(monkeypatch, Hierarchy(mount=tmp_path, unified=False))
    groups = [tmp_path / "appliance-lab", tmp_path / "appliance-lab/a", tmp_path / "appliance-lab/a/cp1"]
    for group, text in ((tmp_path, "0-1\n"), *((group, "\n") for group in groups)):
        group.mkdir(exist_ok=True)
        for name in ("cpuset.cpus", "cpuset.mems", "cgroup.clone_children"):
            (group / name).write_text(text)
    cgroups.prepare("a", "cp1")
    assert [(group / "cpuset.cpus").read_text() for group in groups] == ["0-1\n"] * 3


def test_members_are_those_of_all_groups_below_in_every_hierarchy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = [Hierarchy(mount=tmp_path / name, unified=False) for name in ("memory", "systemd")]
    _only(monkeypatch, *both)
    for hierarchy, pids in zip(both, ("7\n8\n", "8\n9\n"), strict=True):
        deep = hierarchy.top / "a/cp1/kubepods/pod1"
        deep.mkdir(parents=True)
        (deep / "cgroup.procs").write_text(pids)
        other = hierarchy.top / "a/gpu1"
        other.mkdir()
        (other / "cgroup.procs").write_text("100\n")
    assert cgroups.members("a", "cp1") == {7, 8, 9}
    assert cgroups.members("a") == {7, 8, 9, 100}
    assert cgroups.members("b") == set()


def test_removing_a_lab_leaves_other_labs_and_removing_the_last_one_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hierarchy = Hierarchy(mount=tmp_path, unified=False)
    _only(monkeypatch, hierarchy)
    for path in ("a/cp1/kubepods/pod1", "b/cp1"):
        (hierarchy.top / path).mkdir(parents=True)
    cgroups.remove("a")
    assert [path.name for path in hierarchy.top.iterdir()] == ["b"]
    cgroups.remove("b")
    assert list(tmp_path.iterdir()) == []
