# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""This site's cluster, as the depot reaches it, and waiting until all of it is well."""

from __future__ import annotations

import time
from pathlib import Path

from appliance.adapters.cluster import Cluster, Pod
from appliance.errors import ToolError
from appliance.install.places import SitePlaces
from appliance.install.sitefile import SiteFile
from appliance.progress import Progress

KUBECTL = Path("/usr/local/bin/kubectl")
_POLL_SECONDS = 0.5


def cluster_of(places: SitePlaces) -> Cluster:
    """Return the cluster by the operator's kubeconfig and the release's kubectl."""
    return Cluster(kubectl=KUBECTL, kubeconfig=places.kubeconfig)


def wait_until_well(site: SiteFile, cluster: Cluster, *, seconds: float, progress: Progress) -> tuple[Pod, ...]:
    """Wait until every node is Ready and every pod runs; say each node and pod once it does. Returns the pods.

    Raises:
        ToolError: something is not well after `seconds`; the message names it.
    """
    deadline = time.monotonic() + seconds
    said: set[str] = set()
    while True:
        waiting, pods = _look(site, cluster, said, progress)
        if not waiting:
            return pods
        if time.monotonic() > deadline:
            raise ToolError(
                f"after {seconds:.0f} s: {waiting}",
                step="wait until the cluster is well",
                hint="see kubectl describe for it and journalctl -u kubelet on its node, then run it again",
            )
        time.sleep(_POLL_SECONDS)


def _look(site: SiteFile, cluster: Cluster, said: set[str], progress: Progress) -> tuple[str, tuple[Pod, ...]]:
    try:
        nodes = {node.name: node for node in cluster.nodes()}
        pods = cluster.pods()
    except ToolError as error:
        return error.message, ()
    waiting = ""
    for machine in site.machines:
        if not machine.in_cluster:
            continue
        node = nodes.get(machine.name)
        if node is None or not node.ready:
            waiting = waiting or f"{machine.name} is not Ready: {node.reason if node is not None else 'it is not in the cluster'}"
        elif machine.name not in said:
            said.add(machine.name)
            progress.note(f"{machine.name}: Ready, {node.version}")
    for pod in pods:
        if not pod.running:
            waiting = waiting or f"pod {pod.namespace}/{pod.name} does not run: {pod.reason}"
    return waiting, pods
