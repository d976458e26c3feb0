# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The operator at the depot of a lab: types commands of the installed `appliance`, and what can be read from the answers."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

from tests.lab.journey import Journey
from tests.lab.machines import Lab
from tests.lab_suite.cluster_watch import until, works

APPLIANCE = "/usr/local/sbin/appliance"
BACK_SECONDS = 180


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    code: int
    text: str
    err: str
    seconds: float

    def said(self, kind: str) -> str:
        """The line of the error, or of the hint, on standard error; there is exactly one."""
        (line,) = [line for line in self.err.splitlines() if line.startswith(f"appliance: {kind}: ")]
        return line.removeprefix(f"appliance: {kind}: ")

    @property
    def changed(self) -> dict[str, int]:
        """The `changed` column by machine."""
        return {machine: int(count) for machine, count in re.findall(r"^(bastion|cp1|gpu1) +(\d+) *$", self.text, re.MULTILINE)}


@dataclass(slots=True)
class Site:
    """The lab with the operator at its depot. `quiet`: nothing else runs here (`make lab-timed`), so seconds mean something."""

    lab: Lab
    journey: Journey
    quiet: bool

    def appliance(self, *words: str) -> Finished:
        began = time.monotonic()
        done = self.lab.exec("bastion", [APPLIANCE, *words], check=False, timeout=900, env={"HOME": "/root"})
        return Finished(code=done.returncode, text=done.stdout + done.stderr, err=done.stderr, seconds=time.monotonic() - began)

    def install(self) -> Finished:
        return self.appliance("site", "install")

    def well(self, seconds: float = BACK_SECONDS) -> float:
        return until(lambda: works(self.lab), seconds=seconds, what="every node Ready, every pod running, DNS answering")
