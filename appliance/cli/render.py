# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Rendering: results on stdout (a table or JSON), progress on stderr (bars on a terminal, plain lines elsewhere).

The rules: stdout holds what was asked for and nothing else; with `-o json` it is one JSON document. Progress never
goes to stdout. Nothing here decides anything.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Sequence

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from appliance.cli.options import Output
from appliance.errors import HostError
from appliance.progress import Progress as Observer

_LINE_EVERY_SECONDS = 5.0
_KIBI = 1024.0


def size_text(size: float) -> str:
    """Return `size` bytes as people read it, in binary units: `1.5 GiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < _KIBI:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= _KIBI
    return f"{size:.1f} TiB"


def printable(text: str, *, newline: str = "\n  ") -> str:
    """Return `text` safe for a terminal: names from a medium cannot move the cursor, nor begin a line of their own."""
    lines = ("".join(char if char.isprintable() else ascii(char)[1:-1] for char in line) for line in text.split("\n"))
    return newline.join(lines)


def emit(output: Output, document: object, *, columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """Print `document` as JSON, or `rows` under `columns` as a table.

    Raises:
        HostError: standard output takes no more.
    """
    try:
        _emit(output, document, columns=columns, rows=rows, title=title)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        raise HostError(f"standard output: {error.strerror}", hint="make room where the output goes, and run it again") from error


def _emit(output: Output, document: object, *, columns: Sequence[str], rows: Sequence[Sequence[str]], title: str) -> None:
    if output is Output.JSON:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(document, order="deterministic"), indent=2).decode() + "\n")
        return
    table = Table(title=title or None, box=None, pad_edge=False, header_style="bold", title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(printable(cell, newline="\\n") for cell in row))
    console = Console(soft_wrap=not sys.stdout.isatty(), markup=False, highlight=False)
    if not sys.stdout.isatty():
        console = Console(width=200, markup=False, highlight=False)
    console.print(table)


def say(line: str) -> None:
    """Print one line for people to stderr; a terminal that is gone is no reason to stop."""
    with contextlib.suppress(OSError):
        print(printable(line), file=sys.stderr, flush=True)


class Lines:
    """Progress as plain lines, at most one every five seconds and one at each end."""

    def __init__(self) -> None:
        """Begin with no step."""
        self._lock = threading.Lock()
        self._step = ""
        self._total: int | None = None
        self._done = 0
        self._unit = "B"
        self._began = self._said = 0.0

    def start(self, step: str, *, total: int | None = None, unit: str = "B") -> None:
        """Begin `step`."""
        self.finish()
        with self._lock:
            self._step, self._total, self._unit, self._done = step, total, unit, 0
            self._began = self._said = time.monotonic()

    def _text(self) -> str:
        if self._unit == "B":
            done, total = size_text(self._done), size_text(self._total or 0)
        else:
            done, total = f"{self._done} {self._unit}", f"{self._total} {self._unit}"
        return f"{self._step}: {done} of {total}" if self._total else f"{self._step}: {done}"

    def advance(self, amount: int) -> None:
        """Count, and say so every five seconds."""
        with self._lock:
            self._done += amount
            now = time.monotonic()
            if now - self._said >= _LINE_EVERY_SECONDS:
                self._said = now
                say(self._text())

    def note(self, line: str) -> None:
        """Say a finished fact."""
        say(line)

    def finish(self) -> None:
        """Say how the step ended."""
        with self._lock:
            if self._step:
                seconds = time.monotonic() - self._began
                say(f"{self._text() if self._done else self._step} ({seconds:.1f} s)")
            self._step = ""


class Bars:
    """Progress as bars on a terminal."""

    def __init__(self) -> None:
        """Open no bar yet."""
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._unit = "B"
        self._console = Console(stderr=True, markup=False, highlight=False)

    def start(self, step: str, *, total: int | None = None, unit: str = "B") -> None:
        """Begin a new bar."""
        self.finish()
        self._unit = unit
        columns = [TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeRemainingColumn()]
        self._progress = Progress(*columns, console=self._console)
        self._progress.start()
        self._task = self._progress.add_task(step, total=total)

    def advance(self, amount: int) -> None:
        """Move the bar."""
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, amount)

    def note(self, line: str) -> None:
        """Print a fact above the bar."""
        self._console.print(printable(line))

    def finish(self) -> None:
        """Close the bar."""
        if self._progress is not None:
            self._progress.stop()
        self._progress = self._task = None


def observer() -> Observer:
    """Return what draws progress here: bars on a terminal, plain lines elsewhere."""
    return Bars() if sys.stderr.isatty() else Lines()
