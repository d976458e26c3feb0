# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What a failed Ansible task says, in one line, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import ApplianceError, FormatError, HostError, ToolError, VerificationError

_MAX_CAUSE = 400
_OWN_ERROR, _OWN_HINT = "appliance: error: ", "appliance: hint: "
_OTHER_KEY = "Host key verification failed"
_KEY_HINT = "find out who changed the ssh host key; site check names the accepted one and the one that is shown"
_REFUSALS: Mapping[int, type[ApplianceError]] = {kind.exit_code: kind for kind in (VerificationError, FormatError, HostError)}
"""What our own program on a machine means by its exit code; its others are steps that failed."""
_ADVISED = re.compile(r"(.+); ([^;]+, then (?:install|reset) again)")
"""How our own roles refuse: what is wrong, and behind the last semicolon what to do."""
_KUBEADM_ERROR = re.compile(r"\[ERROR ([^\]]+)\]: (.+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One task that failed on one host, and why.

    Where our own program refused there, `code` is its exit code, else 0; `hint` is what it or one of our roles said to do.
    """

    host: str
    task: str
    cause: str
    unreachable: bool = False
    code: int = 0
    hint: str = ""


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


def failure_of(host: str, task: str, result: Mapping[str, object], *, unreachable: bool) -> Failure:
    """Return what the result of a failed task says."""
    if unreachable and _OTHER_KEY in (cause := cause_of(result)):
        return Failure(host=host, task=task, cause=cause, unreachable=True, code=VerificationError.exit_code, hint=_KEY_HINT)
    own = _own_lines(_failed_item(result))
    code = _failed_item(result).get("rc")
    refused = code if isinstance(code, int) and code in _REFUSALS and own.get(_OWN_ERROR) else 0
    cause, hint = cause_of(result), own.get(_OWN_HINT, "")
    if not hint and (advised := _ADVISED.fullmatch(cause)):
        cause, hint = advised[1], advised[2]
    return Failure(host=host, task=task, cause=cause, unreachable=unreachable, code=refused, hint=hint)


def as_error(failure: Failure, *, others: Collection[str], log: Path) -> ApplianceError:
    """Return the error of a run in which `failure` is the one to tell; `others` are hosts that failed too."""
    also = f" (also failed: {', '.join(sorted(others))})" if others else ""
    message = f"{failure.host}: {failure.task}: {failure.cause}{also}"
    hint = f"{failure.hint or next_step(failure)}; all of it: {log}"
    refusal = _REFUSALS.get(failure.code)
    return refusal(message, hint=hint) if refusal is not None else ToolError(message, step=failure.task, hint=hint)


def _failed_item(result: Mapping[str, object]) -> Mapping[str, object]:
    items = result.get("results")
    if isinstance(items, list):
        for item in items:
            if isinstance(item, dict) and (item.get("failed") or item.get("unreachable")):
                return _failed_item(item)
    return result


def _own_lines(result: Mapping[str, object]) -> dict[str, str]:
    """Return what our own program said in its last error and hint, by the words that begin such a line."""
    text = result.get("stderr")
    lines = text.splitlines() if isinstance(text, str) and not result.get("censored") else []
    return {own: line.removeprefix(own).strip() for line in lines for own in (_OWN_ERROR, _OWN_HINT) if line.startswith(own)}


def cause_of(result: Mapping[str, object]) -> str:
    """Return the one line of a task's result that says most: kubeadm's errors, a loop's failed item, or the end of stderr."""
    result = _failed_item(result)
    if own := _own_lines(result).get(_OWN_ERROR):
        return own[:_MAX_CAUSE]
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
