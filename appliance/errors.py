# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The tree of errors: each leaf says who must act, and with which exit code.

```
ApplianceError
├── UsageError          2  the command was asked for something it does not do
├── VerificationError   3  refused: signature, digest, expiry, rollback; nothing was changed
├── FormatError         4  malformed, or made by a newer appliance; nothing was changed
├── HostError           5  this machine is unfit: disk, clock, operating system, lock; nothing was changed
└── ToolError           6  an outside tool failed; `step` says which; running again resumes
```

Anything else that reaches the boundary is a bug: exit 1 with a traceback. A message states what was expected and
what was found; `hint` is something to *do*. No hint names a way around a check.
"""

from __future__ import annotations

from typing import ClassVar


class ApplianceError(Exception):
    """Base of all expected failures.

    `hint` is one imperative sentence for the person at the terminal, or None.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        """Keep `message` (expected and got) and `hint` (what to do)."""
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(ApplianceError):
    """The request itself is wrong or names something this version does not do."""

    exit_code = 2


class VerificationError(ApplianceError):
    """Refused by verification; nothing was changed."""

    exit_code = 3


class FormatError(ApplianceError):
    """Bytes that do not have the form they claim; nothing was changed."""

    exit_code = 4


class HostError(ApplianceError):
    """This machine cannot do it as it is; nothing was changed."""

    exit_code = 5


class ToolError(ApplianceError):
    """An outside tool, registry, machine or cluster failed at `step`; running again resumes."""

    exit_code = 6

    def __init__(self, message: str, *, step: str, hint: str | None = None) -> None:
        """Keep the name of the `step` that failed."""
        super().__init__(message, hint=hint)
        self.step = step
