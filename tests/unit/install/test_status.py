# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What the cluster says, and what `site status` makes of it."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from appliance.adapters import host
from appliance.adapters.cluster import Cluster
from appliance.adapters.host import Login, Outcome
from appliance.adapters.playbook import TaskEvent, TaskStatus
from appliance.bundle.contents import ContentClass
from appliance.bundle.release import ChartRelease
from appliance.digests import hex_of
from appliance.errors import ToolError
from appliance.install import cluster as waiting
from appliance.install import status
from appliance.install.cluster import own_namespaces, wait_until_well
from appliance.install.initialise import load_accepted
from appliance.install.operator import give_kubeconfig, take_kubeconfig
from appliance.install.placements import ask_placements
from appliance.install.records import write_installed
from appliance.install.runs import KEPT, new_run
from appliance.install.steps import StepReporter
from appliance.progress import SILENT, Silent
from tests.support.simulator import Line, blob_of, contents_of, file_artifact
from tests.support.site import World, installed_of, site

OURS = frozenset({"kube-system", "kube-flannel"})


def node(name: str, *, ready: bool = True, plane: bool = False, cordoned: bool = False) -> dict[str, Any]:
    condition = {
        "type": "Ready",
        "status": "True" if ready else "False",
        "reason": "KubeletNotReady",
        "message": "" if ready else "cni plugin not initialized",
    }
    labels = {"node-role.kubernetes.io/control-plane": ""} if plane else {}
    return {
        "metadata": {"name": name, "labels": labels, "annotations": {"x": "y"}},
        "spec": {"podCIDR": "10.244.0.0/24", **({"unschedulable": True} if cordoned else {})},
        "status": {
            "conditions": [{"type": "MemoryPressure", "status": "False"}, condition],
            "addresses": [{"type": "InternalIP", "address": "10.20.0.11"}, {"type": "Hostname", "address": name}],
            "nodeInfo": {"kubeletVersion": "v1.36.4", "containerRuntimeVersion": "containerd://2.2.3"},
        },
    }


def pod(name: str, *, phase: str = "Running", ready: bool = True, waiting_for: str = "", namespace: str = "kube-system") -> dict[str, Any]:
    state = {"waiting": {"reason": waiting_for}} if waiting_for else {"running": {"startedAt": "2026-11-23T06:31:00Z"}}
    return {
        "metadata": {"name": name, "namespace": namespace, "uid": f"uid-{name}"},
        "spec": {"nodeName": "cp1", "containers": []},
        "status": {
            "phase": phase,
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "containerStatuses": [{"name": "main", "ready": ready, "restartCount": 2, "image": "x", "imageID": "y", "state": state}],
        },
    }


@pytest.fixture
def kubectl(tmp_path: Path) -> Callable[..., Cluster]:
    """A `kubectl` that answers with given JSON, or fails as one does, and writes down what it was asked."""

    def make(nodes: list[dict[str, Any]], pods: list[dict[str, Any]], *, fails: str = "") -> Cluster:
        (tmp_path / "nodes").write_text(json.dumps({"items": nodes}))
        (tmp_path / "pods").write_text(json.dumps({"items": pods}))
        program = tmp_path / "kubectl"
        failing = f'echo "{fails}" >&2; exit 1' if fails else ""
        program.write_text(
            f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n{failing}\ncase "$*" in *"get nodes"*) cat {tmp_path}/nodes;; *"get pods"*) cat {tmp_path}/pods;; *readyz*) printf ok;; esac\n'
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        return Cluster(kubectl=program, kubeconfig=tmp_path / "kubeconfig")

    return make


def test_nodes_and_pods_are_read_with_the_reason_when_they_are_not_well(kubectl: Callable[..., Cluster]) -> None:
    found = kubectl(
        [node("gpu1", ready=False), node("cp1", plane=True)],
        [
            pod("etcd"),
            pod("done", phase="Succeeded", ready=False),
            pod("bad", phase="Pending", ready=False, waiting_for="ImagePullBackOff"),
            pod("new", phase="Pending", ready=False),
        ],
    )
    first, second = found.nodes()
    assert (first.name, first.ready, first.version, first.address) == ("cp1", True, "v1.36.4", "10.20.0.11")
    assert (second.name, second.ready, second.reason) == ("gpu1", False, "cni plugin not initialized")
    pods = {each.name: (each.running, each.reason, each.restarts) for each in found.pods()}
    assert pods == {"bad": (False, "main: ImagePullBackOff", 2), "done": (True, "", 2), "etcd": (True, "", 2), "new": (False, "Pending", 2)}


def test_an_api_that_does_not_answer_is_told_in_kubectls_last_words(kubectl: Callable[..., Cluster], tmp_path: Path) -> None:
    found = kubectl([], [], fails="Unable to connect to the server: dial tcp 127.0.0.1:8443")
    with pytest.raises(ToolError, match="list nodes: Unable to connect"):
        found.nodes()
    with pytest.raises(ToolError, match="no kubectl there yet"):
        Cluster(kubectl=tmp_path / "none", kubeconfig=tmp_path / "kubeconfig").nodes()


class Notes(Silent):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


def test_waiting_ends_when_every_node_is_ready_and_every_pod_runs(kubectl: Callable[..., Cluster], tmp_path: Path) -> None:
    world = World(tmp_path)
    world.init()
    here = load_accepted(world.places)
    notes = Notes()
    assert len(wait_until_well(here, kubectl([node("cp1"), node("gpu1")], [pod("etcd")]), namespaces=OURS, seconds=5, progress=notes)) == 1
    assert notes.lines == ["cp1: Ready, v1.36.4", "gpu1: Ready, v1.36.4"]


@pytest.mark.parametrize(
    ("cluster", "words"),
    [
        (([node("cp1")], []), "gpu1 is not Ready: it is not in the cluster"),
        (([node("cp1"), node("gpu1", ready=False)], []), "gpu1 is not Ready: cni plugin not initialized"),
        (
            ([node("cp1"), node("gpu1")], [pod("bad", ready=False, waiting_for="CrashLoopBackOff")]),
            "pod kube-system/bad does not run: main: CrashLoop",
        ),
    ],
)
def test_waiting_gives_up_with_the_name_of_what_is_not_well(
    kubectl: Callable[..., Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cluster: tuple[list[Any], list[Any]], words: str
) -> None:
    monkeypatch.setattr(waiting, "_POLL_SECONDS", 0.01)
    world = World(tmp_path)
    world.init()
    with pytest.raises(ToolError, match=words):
        wait_until_well(load_accepted(world.places), kubectl(*cluster), namespaces=OURS, seconds=0.05, progress=SILENT)


USERS = [
    pod("job-1", phase="Failed", ready=False, namespace="team"),
    pod("crash", ready=False, waiting_for="CrashLoopBackOff", namespace="team"),
    pod("wants-a-gpu", phase="Pending", ready=False, namespace="team"),
]


def test_what_users_run_and_what_a_restart_left_behind_keeps_no_installation_waiting(
    kubectl: Callable[..., Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_POLL_SECONDS", 0.01)
    world = World(tmp_path)
    world.init()
    evicted = pod("coredns-old", phase="Failed", ready=False, waiting_for="")
    cluster = kubectl([node("cp1"), node("gpu1")], [pod("etcd"), evicted, *USERS])
    found = wait_until_well(load_accepted(world.places), cluster, namespaces=OURS, seconds=0.05, progress=SILENT)
    assert [each.name for each in found] == ["etcd"]


def test_a_machine_that_never_joins_has_a_hint_that_is_an_action(
    kubectl: Callable[..., Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting, "_POLL_SECONDS", 0.01)
    world = World(tmp_path)
    world.init()
    with pytest.raises(ToolError) as caught:
        wait_until_well(load_accepted(world.places), kubectl([node("cp1")], []), namespaces=OURS, seconds=0.05, progress=SILENT)
    assert "run site reset gpu1" in (caught.value.hint or "")


def test_our_namespaces_are_the_systems_and_those_of_the_releases_charts() -> None:
    charts = (ChartRelease(name="flannel", namespace="kube-flannel", chart="flannel"),)
    assert own_namespaces(charts) == {"kube-system", "kube-flannel"}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """An installed site whose machines answer that every unit is active."""
    world = World(tmp_path)
    world.init()
    stored = world.import_release()
    write_installed(world.places, installed_of(stored.digest, by="me"))

    def run_on(login: Login, command: list[str], **_: object) -> Outcome:
        if login.name in world.silent:
            raise ToolError(f"{login.name}: ssh failed: No route to host", step="ssh")
        return Outcome(code=0, output=b"active\n" * (len(command) - 2) if command[0] == "systemctl" else b"", errors="")

    monkeypatch.setattr(host, "run_on", run_on)
    return world


def look(world: World, cluster: Cluster, monkeypatch: pytest.MonkeyPatch, *, days: float = 1) -> status.SiteStatus:
    monkeypatch.setattr(status, "cluster_of", lambda _: cluster)
    return status.status(load_accepted(world.places), world.places, bundle=None, now=world.line.now + timedelta(days=days))


def test_a_site_that_is_well_has_no_problem(installed: World, kubectl: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch) -> None:
    found = look(installed, kubectl([node("cp1", plane=True), node("gpu1")], [pod("etcd")]), monkeypatch)
    assert found.problems == ()
    assert [(machine.name, machine.ready, machine.version) for machine in found.machines] == [
        ("depot", None, ""),
        ("cp1", True, "v1.36.4"),
        ("gpu1", True, "v1.36.4"),
    ]
    status.refuse_unhealthy(found)


@pytest.mark.parametrize(
    ("cluster", "problem"),
    [
        (([node("cp1"), node("gpu1", ready=False)], []), "gpu1: not ready: cni plugin not initialized"),
        (([node("cp1"), node("gpu1", cordoned=True)], []), "gpu1: takes no new pods (cordoned)"),
        (([node("cp1")], []), "gpu1: it is not in the cluster"),
        (([node("cp1"), node("gpu1")], [pod("bad", ready=False, waiting_for="Error")]), "pod kube-system/bad: main: Error"),
    ],
)
def test_the_first_thing_that_is_not_well_is_named(
    installed: World, kubectl: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch, cluster: tuple[list[Any], list[Any]], problem: str
) -> None:
    found = look(installed, kubectl(*cluster), monkeypatch)
    assert found.problems == (problem,)
    with pytest.raises(ToolError) as caught:
        status.refuse_unhealthy(found)
    assert caught.value.message == problem
    assert caught.value.step == "status"


def test_a_machine_that_does_not_answer_is_a_problem_and_not_an_error(
    installed: World, kubectl: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed.silent = {"gpu1"}
    found = look(installed, kubectl([node("cp1"), node("gpu1")], []), monkeypatch)
    assert found.problems == ("gpu1: ssh failed: No route to host",)


def test_an_api_that_is_away_is_a_problem_and_not_an_error(
    installed: World, kubectl: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = look(installed, kubectl([], [], fails="connection refused"), monkeypatch)
    assert found.problems == ("the cluster's API: list nodes: connection refused",)


def test_what_users_run_is_a_warning_and_a_node_that_the_site_file_does_not_have_is_a_problem(
    installed: World, kubectl: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = look(installed, kubectl([node("cp1"), node("gpu1")], USERS), monkeypatch)
    assert found.problems == ()
    assert "pod team/crash: main: CrashLoopBackOff" in found.warnings
    assert len(found.not_running) == 3
    found = look(installed, kubectl([node("cp1"), node("gpu1"), node("gpu7")], []), monkeypatch)
    assert found.problems == ("gpu7: in the cluster and not in the site file",)


def test_an_answer_that_does_not_name_every_unit_is_a_problem(
    installed: World, kubectl: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "run_on", lambda *_, **__: Outcome(code=1, output=b"", errors="Failed to connect to bus"))
    found = look(installed, kubectl([node("cp1"), node("gpu1")], []), monkeypatch)
    assert "gpu1: systemctl told 0 of 3 units: Failed to connect to bus" in found.problems


def test_a_certificate_that_is_not_valid_yet_is_a_problem(
    installed: World, kubectl: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = look(installed, kubectl([node("cp1"), node("gpu1")], []), monkeypatch, days=-1)
    assert found.problems == ("certificate site: ca is not valid yet",)


def test_kubectl_gets_no_proxy_and_no_setting_of_the_caller(kubectl: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "KUBECONFIG", "HELM_NAMESPACE"):
        monkeypatch.setenv(name, "http://proxy.example:3128")
    cluster = kubectl([], [], fails="$(env | grep -c proxy.example)")
    with pytest.raises(ToolError, match="list nodes: 0"):
        cluster.nodes()


def test_certificates_near_their_end_are_warned_of_and_then_a_problem(
    installed: World, kubectl: Callable[..., Cluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    well = kubectl([node("cp1"), node("gpu1")], [])
    found = look(installed, well, monkeypatch, days=3640)
    assert found.warnings == ("certificate site: ca ends in 13 days",)
    found = look(installed, well, monkeypatch, days=3700)
    assert found.problems == ("certificate site: ca has ended",)


def test_before_an_installation_status_says_so(tmp_path: Path, installed: World) -> None:
    installed.places.installed.unlink()
    found = status.status(load_accepted(installed.places), installed.places, bundle=None, now=installed.line.now)
    assert found.problems == ("harbour: nothing is installed yet",)
    assert tmp_path.exists()


def test_kubectl_finds_the_sites_kubeconfig_and_a_persons_own_is_left_alone(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.init()
    world.places.kubeconfig.write_text("apiVersion: v1\n")
    home = tmp_path / "home"
    home.mkdir()
    assert give_kubeconfig(world.places, home=home)
    assert (home / ".kube/config").resolve() == world.places.kubeconfig
    assert world.places.kubeconfig.stat().st_mode & 0o777 == 0o600
    assert not give_kubeconfig(world.places, home=home)
    assert take_kubeconfig(world.places, home=home)
    assert not take_kubeconfig(world.places, home=home)
    (home / ".kube/config").write_text("mine")
    assert not give_kubeconfig(world.places, home=home)
    assert not take_kubeconfig(world.places, home=home)
    assert (home / ".kube/config").read_text() == "mine"


def test_a_line_is_said_when_a_machine_has_done_a_step() -> None:
    notes = Notes()
    report = StepReporter(progress=notes, width=5)

    def event(role: str, task: str, how: TaskStatus) -> TaskEvent:
        return TaskEvent(host="gpu1", play="nodes", role=role, task=task, status=how, seconds=1.0)

    report(event("containerd", "unpack", TaskStatus.CHANGED))
    report(event("containerd", "unit", TaskStatus.CHANGED))
    report(event("kubernetes_node", "hosts", TaskStatus.OK))
    report(event("worker", "nothing here", TaskStatus.SKIPPED))
    report.finish()
    assert [line.rpartition(" (")[0] for line in notes.lines] == ["gpu1   containerd: 2 changed", "gpu1   kubernetes node: as it should be"]
    report(event("worker", "join", TaskStatus.FAILED))
    report.finish()
    assert notes.lines[-1] == "gpu1   worker: join: failed"


def test_old_runs_are_removed_and_every_run_is_private(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.init()
    folders = [new_run(world.places, "install") for _ in range(KEPT + 3)]
    kept = sorted(world.places.runs.iterdir())
    assert kept == folders[-KEPT:]
    assert folders[-1].stat().st_mode & 0o777 == 0o700


def test_what_a_killed_run_left_is_scrubbed_by_the_next_and_its_log_stays(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.init()
    killed = new_run(world.places, "install")
    for name in ("env/extravars", "inventory/hosts.json", "ansible/tmp/admin.conf", "artifacts/run/stdout"):
        (killed / name).parent.mkdir(parents=True, exist_ok=True)
        (killed / name).write_text("secret" if name != "artifacts/run/stdout" else "what it said")
    new_run(world.places, "install")
    assert [path.name for path in killed.rglob("*")] == ["run.log"]
    assert (killed / "run.log").read_text() == "what it said"


def test_models_that_a_node_lacks_are_told_and_those_it_has_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line()
    installer, more = file_artifact("appliance", b"pyz")
    model, blobs = file_artifact("tiny", b"weights", version="2")
    contents = {
        ContentClass.INSTALLER: contents_of(ContentClass.INSTALLER, [installer], map(blob_of, more.values())),
        ContentClass.MODELS: contents_of(ContentClass.MODELS, [model], map(blob_of, blobs.values())),
    }
    base = line.verify(line.publish())
    bundle = replace(base, contents={**base.contents, **contents})
    asked: list[list[str]] = []
    answers: list[Outcome] = []

    def run_on(_: Login, command: list[str], **__: object) -> Outcome:
        asked.append(command)
        return answers.pop()

    monkeypatch.setattr(host, "run_on", run_on)
    gpu1, login = site().machines[2], Login(name="gpu1", address="10.20.0.21", user="ops")

    def ask(output: object) -> tuple[list[str], str]:
        answers.append(Outcome(code=0, output=json.dumps(output).encode(), errors=""))
        found, problem = ask_placements(gpu1, login, bundle)
        return [f"{each.name} {each.version} {each.looks}" for each in found], problem

    placed = {"name": "tiny", "version": "2", "looks": "as placed", "weights": "sha256:x", "files": 3}
    assert ask({"models": [placed]}) == (["tiny 2 as placed"], "")
    assert ask({"models": [placed | {"looks": "changed since"}]}) == (["tiny 2 changed since"], "model tiny 2: changed since")
    assert ask({"models": [placed | {"version": "1"}]}) == (["tiny 1 as placed"], "model tiny 2: not placed")
    assert ask({"models": []}) == ([], "model tiny 2: not placed")
    assert ask("what?") == ([], "it does not say which models it has")
    assert asked[0][:2] == ["sudo", "-n"]
    assert installer.payload is not None
    assert f"/opt/appliance/{hex_of(installer.payload)}/install.pyz" in asked[0]
    assert ask_placements(gpu1, login, base) == ((), "")
