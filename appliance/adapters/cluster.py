# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The cluster, through the release's own `kubectl`: what its nodes and pods are. Nothing here changes it.

Kubernetes' own client speaks to this very version; only the fields below are read from
its JSON (Kubernetes API reference v1.36, Node v1 and Pod v1). No token or key is on a command line: the kubeconfig is a
file that only root reads.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from appliance.errors import ToolError

_REQUEST_SECONDS = 15
_PATIENCE_SECONDS = 30
_KEPT = ("HOME", "PATH", "TMPDIR", "USER", "LOGNAME")


class _Struct(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Fields that are not named here are not read."""


class _Meta(_Struct, frozen=True, kw_only=True):
    name: str
    namespace: str = ""
    uid: str = ""


class _Condition(_Struct, frozen=True, kw_only=True):
    type: str
    status: str
    reason: str = ""
    message: str = ""


class _Address(_Struct, frozen=True, kw_only=True):
    type: str
    address: str


class _NodeInfo(_Struct, frozen=True, kw_only=True):
    kubelet_version: str = ""


class _NodeStatus(_Struct, frozen=True, kw_only=True):
    conditions: tuple[_Condition, ...] = ()
    addresses: tuple[_Address, ...] = ()
    node_info: _NodeInfo = _NodeInfo()


class _NodeSpec(_Struct, frozen=True, kw_only=True):
    unschedulable: bool = False


class _Node(_Struct, frozen=True, kw_only=True):
    metadata: _Meta
    status: _NodeStatus
    spec: _NodeSpec = _NodeSpec()


class _StateReason(_Struct, frozen=True, kw_only=True):
    reason: str = ""


class _ContainerState(_Struct, frozen=True, kw_only=True):
    waiting: _StateReason | None = None
    terminated: _StateReason | None = None


class _Container(_Struct, frozen=True, kw_only=True):
    name: str
    ready: bool = False
    restart_count: int = 0
    image: str = ""
    image_id: str = msgspec.field(name="imageID", default="")
    state: _ContainerState = _ContainerState()


class _PodStatus(_Struct, frozen=True, kw_only=True):
    phase: str = ""
    reason: str = ""
    conditions: tuple[_Condition, ...] = ()
    container_statuses: tuple[_Container, ...] = ()


class _PodSpec(_Struct, frozen=True, kw_only=True):
    node_name: str = ""


class _Pod(_Struct, frozen=True, kw_only=True):
    metadata: _Meta
    status: _PodStatus
    spec: _PodSpec


class _Nodes(_Struct, frozen=True, kw_only=True):
    items: tuple[_Node, ...]


class _Pods(_Struct, frozen=True, kw_only=True):
    items: tuple[_Pod, ...]


def plain_environment() -> dict[str, str]:
    """Return what kubectl and helm need of this process's environment: no proxy, no setting of theirs."""
    return {**{name: os.environ[name] for name in _KEPT if name in os.environ}, "LC_ALL": "C.UTF-8"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One Kubernetes node. `reason` says why it is not ready; `version` is its kubelet's."""

    name: str
    ready: bool
    reason: str
    version: str
    address: str
    schedulable: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """One pod. `running` is true when it is ready or has finished well; else `reason` says what it waits for.

    `over` is true when it has failed for good, as an evicted one has: it stays to be read and never runs again.
    """

    namespace: str
    name: str
    uid: str
    node: str
    running: bool
    reason: str
    restarts: int
    over: bool = False


_ListT = TypeVar("_ListT", _Nodes, _Pods)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A cluster by the operator's kubeconfig, spoken to through the `kubectl` at that path."""

    kubectl: Path
    kubeconfig: Path

    def nodes(self) -> tuple[Node, ...]:
        """Return the nodes by name.

        Raises:
            ToolError: the API does not answer.
        """
        found = self._list("nodes", _Nodes)
        return tuple(sorted((_node(node) for node in found.items), key=lambda node: node.name))

    def pods(self) -> tuple[Pod, ...]:
        """Return all pods by namespace and name.

        Raises:
            ToolError: the API does not answer.
        """
        found = self._list("pods", _Pods)
        return tuple(sorted((_pod(pod) for pod in found.items), key=lambda pod: (pod.namespace, pod.name)))

    def _list(self, kind: str, shape: type[_ListT]) -> _ListT:
        step = f"list {kind}"
        data = self._run(["get", kind, "--all-namespaces", "--output=json"], step=step)
        try:
            return msgspec.json.decode(data, type=shape)
        except msgspec.MsgspecError as error:
            raise ToolError(f"{step}: kubectl's answer cannot be read: {error}", step=step, hint="run site install again") from error

    def _run(self, words: Sequence[str], *, step: str) -> bytes:
        command = [str(self.kubectl), f"--kubeconfig={self.kubeconfig}", f"--request-timeout={_REQUEST_SECONDS}s", *words]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PATIENCE_SECONDS, check=False, env=plain_environment()
            )
        except FileNotFoundError as error:
            raise ToolError(f"{self.kubectl}: no kubectl there yet", step=step, hint="run site install") from error
        except subprocess.TimeoutExpired as error:
            raise ToolError(
                f"{step}: no answer after {_PATIENCE_SECONDS} s", step=step, hint="look at the control plane, then run it again"
            ) from error
        if done.returncode == 0:
            return done.stdout
        lines = [line.strip() for line in done.stderr.decode(errors="replace").splitlines() if line.strip()]
        raise ToolError(
            f"{step}: {lines[-1] if lines else f'kubectl ended with {done.returncode}'}",
            step=step,
            hint="see that the control plane runs: journalctl -u kubelet there",
        )


def _node(node: _Node) -> Node:
    condition = next((found for found in node.status.conditions if found.type == "Ready"), None)
    ready = condition is not None and condition.status == "True"
    return Node(
        name=node.metadata.name,
        ready=ready,
        reason="" if ready else (condition.message or condition.reason if condition is not None else "its kubelet has not reported yet"),
        version=node.status.node_info.kubelet_version,
        address=next((found.address for found in node.status.addresses if found.type == "InternalIP"), ""),
        schedulable=not node.spec.unschedulable,
    )


def _pod(pod: _Pod) -> Pod:
    finished = pod.status.phase == "Succeeded"
    ready = any(found.type == "Ready" and found.status == "True" for found in pod.status.conditions)
    return Pod(
        namespace=pod.metadata.namespace,
        name=pod.metadata.name,
        uid=pod.metadata.uid,
        node=pod.spec.node_name,
        running=finished or ready,
        reason="" if finished or ready else _why(pod.status),
        restarts=sum(found.restart_count for found in pod.status.container_statuses),
        over=pod.status.phase == "Failed",
    )


def _why(status: _PodStatus) -> str:
    for container in status.container_statuses:
        for state in (container.state.waiting, container.state.terminated):
            if state is not None and state.reason:
                return f"{container.name}: {state.reason}"
    unscheduled = next((found.message for found in status.conditions if found.type == "PodScheduled" and found.status == "False"), "")
    return unscheduled or status.reason or status.phase or "unknown"
