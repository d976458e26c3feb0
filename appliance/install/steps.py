# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Live progress of a playbook: one line when a machine has done a step (a role), and how long it took there."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, field

from appliance.adapters.playbook import TaskEvent, TaskStatus
from appliance.progress import Progress

_ROLE_WORDS = re.compile(r"[_-]+")


@dataclass(slots=True, kw_only=True)
class StepReporter:
    """Turns task events into a note per machine and role. A play's own tasks (which only include roles) say nothing.

    A role's line is said when the machine begins its next role, or at the end; one that failed has said so. `width` is the longest
    machine name.
    """

    progress: Progress
    width: int = 8
    _current: dict[str, str] = field(default_factory=dict)
    _since: dict[str, float] = field(default_factory=dict)
    _until: dict[str, float] = field(default_factory=dict)
    _changed: dict[str, int] = field(default_factory=dict)
    _failed: set[str] = field(default_factory=set)

    def __call__(self, event: TaskEvent) -> None:
        """Take one event."""
        failed = event.status in {TaskStatus.FAILED, TaskStatus.UNREACHABLE}
        if event.status is TaskStatus.SKIPPED or not (event.role or failed):
            return
        step = _ROLE_WORDS.sub(" ", event.role or event.play)
        if self._current.get(event.host) != step:
            self._say(event.host)
            self._current[event.host] = step
            self._since[event.host] = time.monotonic() - event.seconds
            self._changed[event.host] = 0
            self._failed.discard(event.host)
        self._until[event.host] = time.monotonic()
        if event.status is TaskStatus.CHANGED:
            self._changed[event.host] += 1
        if failed:
            self._failed.add(event.host)
            self.progress.note(f"{event.host:{self.width}}  {step}: {event.task}: {event.status.value}")

    def finish(self) -> None:
        """Say the last step of every machine."""
        for host in sorted(self._current):
            self._say(host)
        self._current.clear()

    def _say(self, host: str) -> None:
        step = self._current.get(host)
        if step is None or host in self._failed:
            return
        changed = self._changed[host]
        did = f"{changed} changed" if changed else "as it should be"
        self.progress.note(f"{host:{self.width}}  {step}: {did} ({self._until[host] - self._since[host]:.1f} s)")
