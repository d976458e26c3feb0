# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""One line of cause and one of advice from what tools say, in their own words."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.adapters.playbook_failures import Failure, as_error, cause_of, failure_of, next_step
from appliance.errors import ApplianceError, FormatError, HostError, ToolError, VerificationError

KUBEADM = """\
[init] Using Kubernetes version: v1.36.4
error: error execution phase preflight: [preflight] Some fatal errors occurred:
\t[ERROR Swap]: swap is supported for cgroup v2 only
\t[ERROR Port-6443]: Port 6443 is in use
[preflight] If you know what you are doing
"""


def test_kubeadms_errors_are_told_and_its_advice_to_ignore_them_is_not() -> None:
    assert (
        cause_of({"stderr": KUBEADM, "msg": "non-zero return code"})
        == "Swap: swap is supported for cgroup v2 only; Port-6443: Port 6443 is in use"
    )


def test_the_item_that_failed_speaks_for_a_loop() -> None:
    results = [{"failed": False, "msg": "fine"}, {"failed": True, "stderr": "E: Broken packages\n"}]
    assert cause_of({"msg": "One or more items failed", "results": results}) == "E: Broken packages"


def test_a_censored_result_says_why_it_is_silent() -> None:
    assert "secret" in cause_of({"censored": "the output has been hidden", "msg": "x"})


def test_stderr_says_more_than_ansibles_own_message() -> None:
    assert cause_of({"stderr": "warning\nno such thing\n", "msg": "non-zero return code"}) == "no such thing"


def test_a_silent_failure_is_called_one() -> None:
    assert cause_of({}) == "it failed and gave no reason"


@pytest.mark.parametrize(
    ("cause", "advice"),
    [
        ("tar: write error: No space left on device", "make room on gpu1, then run it again"),
        ("E: Could not get lock /var/lib/dpkg/lock-frontend", "wait until the other apt on gpu1 has ended, then run it again"),
        ("the release has no package runc", "add it to the profile and carry a new bundle"),
        ("pool/runc.deb: FAILED", "run store verify on the depot, then run it again"),
        ("ctr images pull x: connection refused", "run systemctl status appliance-registry on the depot, then run it again"),
        ("something nobody has seen", "look at gpu1, correct it, then run it again"),
    ],
)
def test_every_known_cause_has_something_to_do(cause: str, advice: str) -> None:
    assert next_step(Failure(host="gpu1", task="t", cause=cause)) == advice


def refusal(code: int) -> dict[str, object]:
    """What `node place` leaves in the result of a loop over models when it refuses one with `code`."""
    said = "tiny: 4096 of 9000 bytes\nappliance: error: model.safetensors: 1 byte differs\nappliance: hint: find out who changed it\n"
    return {"msg": "One or more items failed", "results": [{"rc": 0}, {"failed": True, "rc": code, "stderr": said, "msg": "non-zero"}]}


@pytest.mark.parametrize(("code", "kind"), [(3, VerificationError), (4, FormatError), (5, HostError), (6, ToolError), (2, ToolError)])
def test_a_refusal_of_our_own_program_on_a_machine_keeps_its_error_hint_and_class(code: int, kind: type[ApplianceError]) -> None:
    error = as_error(failure_of("gpu1", "Place the models", refusal(code), unreachable=False), others={"gpu2"}, log=Path("/x/run.log"))
    assert type(error) is kind
    assert error.message == "gpu1: Place the models: model.safetensors: 1 byte differs (also failed: gpu2)"
    assert error.hint == "find out who changed it; all of it: /x/run.log"


@pytest.mark.parametrize("stderr", ["it ended with 3", "error: no appliance: error: here"])
def test_another_programs_exit_code_3_is_no_refusal_of_ours(stderr: str) -> None:
    found = failure_of("gpu1", "t", {"failed": True, "rc": 3, "stderr": stderr}, unreachable=False)
    assert type(as_error(found, others=(), log=Path("/x/run.log"))) is ToolError


def test_a_changed_host_key_met_in_the_middle_is_a_refusal_and_not_a_cable() -> None:
    said = {"unreachable": True, "msg": "Failed to connect to the host via ssh: Host key verification failed."}
    error = as_error(failure_of("gpu1", "Machine", said, unreachable=True), others=(), log=Path("/x/run.log"))
    assert type(error) is VerificationError
    assert "find out who changed" in (error.hint or "")


def test_what_a_role_of_ours_says_to_do_is_the_hint() -> None:
    said = "a, b: half installed, and not by this site; run dpkg --configure -a there, then install again"
    error = as_error(failure_of("gpu1", "Refuse", {"failed": True, "msg": said}, unreachable=False), others=(), log=Path("/x/run.log"))
    assert error.message == "gpu1: Refuse: a, b: half installed, and not by this site"
    assert error.hint == "run dpkg --configure -a there, then install again; all of it: /x/run.log"
