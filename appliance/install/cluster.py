# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""This site's cluster, as the depot reaches it, and waiting until all of it is well."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from pathlib import Path

from appliance.adapters.cluster import Cluster, Pod
from appliance.bundle.release import ChartRelease
from appliance.errors import ToolError
from appliance.install.places import SitePlaces
from appliance.install.sitefile import SiteFile
from appliance.progress import Progress

KUBECTL = Path("/usr/local/bin/kubectl")
_POLL_SECONDS = 0.5
_ABSENT = "it is not in the cluster"


def cluster_of(places: SitePlaces) -> Cluster:
    """Return the cluster by the operator's kubeconfig and the release's kubectl."""
    return Cluster(kubectl=KUBECTL, kubeconfig=places.kubeconfig)


SYSTEM = "kube-system"
"""Where kubeadm and the kubelets put the cluster's own pods."""


def own_namespaces(charts: Iterable[ChartRelease]) -> frozenset[str]:
    """Return the namespaces of the cluster itself and of the release's charts; what runs in others is its users' business."""
    return frozenset({SYSTEM, *(chart.namespace for chart in charts)})


def wait_until_well(
    site: SiteFile, cluster: Cluster, *, namespaces: Collection[str], seconds: float, progress: Progress
) -> tuple[Pod, ...]:
    """Wait until every node of the site is Ready and every pod in `namespaces` runs; returns those pods.

    A pod that has failed for good (evicted, or left behind when its node restarted) is not waited for.

    Raises:
        ToolError: something is not well after `seconds`; the message names it.
    """
    deadline = time.monotonic() + seconds
    said: set[str] = set()
    while True:
        waiting, pods = _look(site, cluster, namespaces, said, progress)
        if not waiting:
            return pods
        if time.monotonic() > deadline:
            raise ToolError(f"after {seconds:.0f} s: {waiting}", step="wait until the cluster is well", hint=_next(waiting))
        time.sleep(_POLL_SECONDS)


def _look(site: SiteFile, cluster: Cluster, namespaces: Collection[str], said: set[str], progress: Progress) -> tuple[str, tuple[Pod, ...]]:
    try:
        nodes = {node.name: node for node in cluster.nodes()}
        pods = tuple(pod for pod in cluster.pods() if pod.namespace in namespaces and not pod.over)
    except ToolError as error:
        return error.message, ()
    waiting = ""
    for machine in site.machines:
        if not machine.in_cluster:
            continue
        node = nodes.get(machine.name)
        if node is None or not node.ready:
            waiting = waiting or f"{machine.name} is not Ready: {node.reason if node is not None else _ABSENT}"
        elif machine.name not in said:
            said.add(machine.name)
            progress.note(f"{machine.name}: Ready, {node.version}")
    for pod in pods:
        if not pod.running:
            waiting = waiting or f"pod {pod.namespace}/{pod.name} does not run: {pod.reason}"
    return waiting, pods


def _next(waiting: str) -> str:
    if waiting.endswith(_ABSENT):
        name = waiting.partition(" ")[0]
        return f"if {name} was in an earlier cluster, run site reset {name}; else see journalctl -u kubelet on it; then run it again"
    return "see kubectl describe for it and journalctl -u kubelet on its node, then run it again"
