# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Progress as a null-object observer: verbs report, only the command line draws.

A verb takes `progress: Progress = SILENT` and never asks whether somebody looks.
"""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What a verb may report. Calls may come from several threads."""

    def start(self, step: str, *, total: int | None = None, unit: str = "B") -> None:
        """Begin `step`, of `total` units if known; ends the step before it."""

    def advance(self, amount: int) -> None:
        """Add `amount` units to the current step."""

    def note(self, line: str) -> None:
        """Say one finished fact, such as `gpu1: joined in 11 s`."""

    def finish(self) -> None:
        """End the last step."""


class Silent:
    """Nobody looks."""

    def start(self, step: str, *, total: int | None = None, unit: str = "B") -> None:
        """Do nothing."""

    def advance(self, amount: int) -> None:
        """Do nothing."""

    def note(self, line: str) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""


SILENT: Progress = Silent()
