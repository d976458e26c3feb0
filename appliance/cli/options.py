# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share, each with the one name users know it by."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from appliance.errors import UsageError


class Output(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[Output, typer.Option("--output", "-o", help="Print a table for people or JSON for programs.")]
WorkersOption = Annotated[int | None, typer.Option("--workers", "-j", min=1, help="Parallel workers (default: one per core).")]
PassphraseFileOption = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        envvar="APPLIANCE_PASSPHRASE_FILE",
        help="Read the passphrase from the first line of this file instead of asking.",
    ),
]
StateOption = Annotated[Path, typer.Option("--state", envvar="APPLIANCE_STATE", help="Where this site keeps its state.")]
STATE_DEFAULT = Path("/var/lib/appliance")


def existing(path: Path, what: str) -> Path:
    """Return `path`, which the argument or option `what` names.

    Raises:
        UsageError: nothing is there.
    """
    if not path.exists():
        raise UsageError(f"{path}: nothing is there", hint=f"correct the path given as {what}")
    return path
