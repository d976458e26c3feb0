# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What a failed Ansible task says, in one line, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_MAX_CAUSE = 400
_KUBEADM_ERROR = re.compile(r"\[ERROR ([^\]]+)\]: (.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One task that failed on one host, and why."""

    host: str
    task: str
    cause: str
    unreachable: bool = False


_NEXT = (
    (re.compile(r"No space left on device|not enough free space|Disk quota", re.IGNORECASE), "make room on {host}, then run it again"),
    (
        re.compile(r"Could not get lock|dpkg frontend lock", re.IGNORECASE),
        "wait until the other apt on {host} has ended, then run it again",
    ),
    (re.compile(r"the release has no package|no attribute '", re.IGNORECASE), "add it to the profile and carry a new bundle"),
    (re.compile(r"FAILED$|did NOT match|computed checksum", re.IGNORECASE), "run store verify on the depot, then run it again"),
    (re.compile(r"ctr images pull", re.IGNORECASE), "run systemctl status appliance-registry on the depot, then run it again"),
    (re.compile(r"haproxy", re.IGNORECASE), "run journalctl -u haproxy on {host}, then run it again"),
    (re.compile(r"containerd", re.IGNORECASE), "run journalctl -u containerd on {host}, then run it again"),
    (
        re.compile(r"kubelet|context deadline exceeded|timed out waiting", re.IGNORECASE),
        "run journalctl -u kubelet on {host}, then run it again",
    ),
)


def cause_of(result: Mapping[str, object]) -> str:
    """Return the one line of a task's result that says most: kubeadm's errors, a loop's failed item, or the end of stderr."""
    items = result.get("results")
    if isinstance(items, list):
        for item in items:
            if isinstance(item, dict) and (item.get("failed") or item.get("unreachable")):
                return cause_of(item)
    if result.get("censored"):
        return "it failed; its output is hidden because it holds a secret"
    for name in ("stderr", "module_stderr", "msg", "stdout", "exception"):
        text = result.get(name)
        if isinstance(text, str) and (line := _telling_line(text)):
            return line[:_MAX_CAUSE]
    return "it failed and gave no reason"


def _telling_line(text: str) -> str:
    found = _KUBEADM_ERROR.findall(text)
    if found:
        return "; ".join(f"{check}: {reason.strip()}" for check, reason in found)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in lines:
        if line.startswith(("error:", "error execution phase", "E: ", "Error: ")):
            return line
    return lines[-1] if lines else ""


def next_step(failure: Failure) -> str:
    """Return what a person does next, in one imperative sentence without its full stop."""
    if failure.unreachable:
        return f"start {failure.host}, check its cable, its address and that root may log in over ssh, then run it again"
    for pattern, advice in _NEXT:
        if pattern.search(failure.cause):
            return advice.format(host=failure.host)
    return f"look at {failure.host}, correct it, then run it again"
