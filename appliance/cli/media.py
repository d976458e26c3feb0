# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`appliance media`: a bundle to sticks and discs, and back into a site's store."""

from __future__ import annotations

import getpass
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from appliance.adapters.parallel import default_workers
from appliance.carry.layout import parse_part_size
from appliance.carry.read import ReadResult, read_media
from appliance.carry.status import MediaStatus, media_status
from appliance.carry.write import WrittenSet, write_media
from appliance.cli.options import STATE_DEFAULT, Output, OutputOption, StateOption, WorkersOption
from appliance.cli.render import emit, observer, say, size_text
from appliance.errors import UsageError
from appliance.store import Store

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Write a bundle to sticks or discs, read it back from them.")
FoldersArgument = Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders that hold parts, in any order.")]


def person() -> str:
    """Return who runs this command: the user behind sudo, else the user."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


@app.command("write")
def write_command(
    *,
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle folder.")],
    to: Annotated[list[Path], typer.Option("--to", metavar="DIR", help="The folder to write the parts into.")],
    part_size: Annotated[str, typer.Option("--part-size", help="fat32, dvd, dvd-dl, bd25, or a size such as 700MB or 4GiB.")] = "fat32",
    written_by: Annotated[str | None, typer.Option("--written-by", help="The name on the paper sheet (default: you).")] = None,
    workers: WorkersOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Lay BUNDLE out as parts, each with all metadata first. Run again after an interruption to go on."""
    if len(to) > 1:
        raise UsageError("writing to several targets at once is not done by this version", hint="run the command once for each target")
    written = write_media(
        bundle,
        to[0],
        part_size=parse_part_size(part_size),
        workers=workers or default_workers(),
        written_by=written_by or person(),
        progress=observer(),
    )
    show_written(written, output)


def show_written(written: WrittenSet, output: Output) -> None:
    """Print the parts, then where the sheet is."""
    document = {
        "set": written.tables[0].set,
        "parts": [{"name": name, "size": size} for name, size in written.parts],
        "sheet": str(written.sheet),
        "installer": str(written.installer) if written.installer else None,
        "bytes_copied": written.bytes_copied,
    }
    emit(output, document, columns=("part", "size"), rows=[(name, size_text(size)) for name, size in written.parts])
    say(f"print the paper sheet and carry it apart: {written.sheet}")


@app.command("read")
def read_command(
    folders: FoldersArgument,
    state: StateOption = STATE_DEFAULT,
    workers: WorkersOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Read parts into this site's store, every chunk checked before anybody can see it. Any order, any number of visits."""
    result = read_media(
        folders, Store(state), workers=workers or default_workers(), who=person(), clock=datetime.now(UTC), progress=observer()
    )
    show_read(result, output)


def show_read(result: ReadResult, output: Output) -> None:
    """Print what the visit came to."""
    for note in result.notes:
        say(note)
    document = {
        "release": result.bundle.digest,
        "name": result.bundle.release.name,
        "version": result.bundle.release.version,
        "line": result.bundle.line,
        "set": result.set_name,
        "complete": result.complete,
        "new": result.new,
        "parts_read": result.parts_read,
        "missing_parts": result.missing_parts,
        "bytes_written": result.bytes_written,
    }
    state = "complete" if result.complete else f"parts still missing: {numbers(result.missing_parts)} of {result.count}"
    if result.complete and not result.new:
        state = "complete, was imported before"
        say("nothing was copied: the store has these blobs by name and size; appliance store verify reads their bytes again")
    rows = [(result.bundle.release.name, result.bundle.release.version, state, size_text(result.bytes_written))]
    emit(output, document, columns=("release", "version", "state", "written"), rows=rows)


def numbers(indices: tuple[int, ...]) -> str:
    """Return indices as people write them: `2, 5-7`."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][-1] == index - 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs) or "none"


@app.command("status")
def status_command(folders: FoldersArgument, state: StateOption = STATE_DEFAULT, output: OutputOption = Output.TABLE) -> None:
    """Say which parts of which set are here, and which this site still lacks. Nothing is verified or changed."""
    store = Store(state)
    show_status(media_status(folders, store if store.staging.is_dir() and os.access(store.staging, os.R_OK) else None), output)


def show_status(status: MediaStatus, output: Output) -> None:
    """Print a line for each set, and a line for each file that is no usable part."""
    document = {
        "sets": [
            {
                "set": each.set_name,
                "name": each.name,
                "version": each.version,
                "platform": each.platform,
                "count": each.count,
                "here": {str(index): str(path) for index, path in sorted(each.here.items())},
                "read_before": each.read,
                "missing": each.missing,
                "size": each.size,
            }
            for each in status.sets
        ],
        "unusable": status.bad,
    }
    rows = [
        (
            f"{each.name} {each.version}",
            f"{numbers(tuple(sorted(each.here)))} of {each.count}",
            numbers(each.read),
            numbers(each.missing),
            size_text(each.size),
        )
        for each in status.sets
    ]
    emit(output, document, columns=("set", "here", "read before", "missing", "size"), rows=rows)
    for line in status.bad:
        say(f"not usable: {line}")
