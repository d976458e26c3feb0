# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`appliance node`: what a node does for itself. The playbooks run it on each GPU node; a person may run it too."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from appliance.adapters.depot import parse_address
from appliance.cli.options import STATE_DEFAULT, Output, OutputOption, StateOption, WorkersOption
from appliance.cli.render import emit, observer, size_text
from appliance.digests import Digest, hex_of, parse_digest
from appliance.errors import FormatError, UsageError
from appliance.place.listing import ListedModel, list_models
from appliance.place.places import PINNED_ROOT, NodePlaces
from appliance.place.placing import PlacedModel, PlaceReport, PlaceRequest, place_models

app = typer.Typer(no_args_is_help=True, add_completion=False, help="What a node does for itself: place and list weights.")
_DIGITS = 12


def parse_release(text: str) -> Digest:
    """Return the release that `text` (64 hexadecimal digits) names.

    Raises:
        UsageError: it does not.
    """
    try:
        return parse_digest("sha256:" + text.removeprefix("sha256:"))
    except FormatError as error:
        raise UsageError(
            f"{text[:80]!r} is not a release", hint="give the 64 digits that appliance store list -o json shows on the depot"
        ) from error


@app.command("place")
def place_command(
    *,
    depot: Annotated[str, typer.Option("--depot", metavar="HOST:PORT", help="Where the depot's registry listens.")],
    ca: Annotated[Path, typer.Option("--ca", metavar="FILE", help="The site's CA (PEM); no other is trusted.")],
    release: Annotated[str, typer.Option("--release", metavar="HEX", help="The release, 64 hexadecimal digits.")],
    model: Annotated[list[str] | None, typer.Option("--model", metavar="NAME", help="Only this model (may be repeated).")] = None,
    root: Annotated[Path, typer.Option("--root", metavar="FILE", help="The root that was pinned on this node.")] = PINNED_ROOT,
    verify: Annotated[bool, typer.Option("--verify", help="Read every byte of what is in place already.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be done; write nothing.")] = False,
    state: StateOption = STATE_DEFAULT,
    workers: WorkersOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Fetch the models of a release from the depot, verified from this node's own pinned root; what is in place is left alone."""
    if plan and verify:
        raise UsageError("--plan and --verify together: a plan reads no byte of what is in place", hint="give one of them")
    request = PlaceRequest(
        depot=parse_address(depot),
        ca=ca,
        release=parse_release(release),
        places=NodePlaces(state=state),
        pinned=root,
        models=tuple(model or ()),
        workers=workers,
        verify=verify,
        plan=plan,
    )
    show_report(place_models(request, now=datetime.now(UTC), progress=observer()), plan=plan, output=output)


def show_report(report: PlaceReport, *, plan: bool, output: Output) -> None:
    """Print a line for each model."""
    document = {
        "release": hex_of(report.release),
        "plan": plan,
        "changed": report.changed,
        "models": [_model_document(model) for model in report.models],
    }
    rows = [
        (model.name, model.version, model.state.value, size_text(model.size), size_text(model.fetched), str(model.folder))
        for model in report.models
    ]
    columns = ("model", "version", "would be" if plan else "state", "size", "fetched", "folder")
    emit(output, document, columns=columns, rows=rows)


def _model_document(model: PlacedModel) -> dict[str, object]:
    return {
        "name": model.name,
        "version": model.version,
        "weights": model.weights,
        "folder": str(model.folder),
        "state": model.state.value,
        "changed": model.changed,
        "size": model.size,
        "fetched": model.fetched,
    }


@app.command("list")
def list_command(state: StateOption = STATE_DEFAULT, output: OutputOption = Output.TABLE) -> None:
    """List the models placed on this node, as noted when they were placed. No byte is read: place --verify does that."""
    models = list_models(NodePlaces(state=state))
    columns = ("model", "version", "weights", "size", "release", "placed", "looks")
    emit(output, {"models": [_listed_document(each) for each in models]}, columns=columns, rows=[_listed_row(each) for each in models])


def _listed_document(model: ListedModel) -> dict[str, object]:
    record = model.record
    return {
        "weights": model.weights,
        "folder": str(model.folder),
        "names": model.names,
        "looks": model.looks.value,
        "name": record.name if record else None,
        "version": record.version if record else None,
        "release": hex_of(record.release) if record else None,
        "placed": record.when if record else None,
        "files": len(record.files) if record else None,
        "size": sum(file.size for file in record.files) if record else None,
    }


def _listed_row(model: ListedModel) -> tuple[str, ...]:
    record, digits = model.record, hex_of(model.weights)[:_DIGITS]
    if record is None:
        return (", ".join(model.names), "", digits, "", "", "", model.looks.value)
    size = size_text(sum(file.size for file in record.files))
    return (record.name, record.version, digits, size, hex_of(record.release)[:_DIGITS], record.when, model.looks.value)
