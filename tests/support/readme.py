# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The commands of the README, so that tests run what readers type."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"


def blocks() -> tuple[tuple[tuple[str, ...], ...], ...]:
    """Return the shell blocks of the README in order, each as commands, each command as words without its comment."""
    found = re.findall(r"^```sh\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    return tuple(tuple(tuple(shlex.split(line, comments=True)) for line in block.splitlines() if line.strip()) for block in found)
