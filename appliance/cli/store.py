# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`appliance store`: what this site holds, and whether it is still what was signed."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import typer

from appliance.adapters.parallel import default_workers
from appliance.cli.options import STATE_DEFAULT, Output, OutputOption, StateOption, WorkersOption
from appliance.cli.render import emit, observer, say, size_text
from appliance.errors import HostError
from appliance.store import CURRENT, DamagedRelease, Store, StoredRelease
from appliance.store.checking import StoreReport, verify_store
from appliance.verify.blobs import refuse

app = typer.Typer(no_args_is_help=True, add_completion=False, help="List and verify what this site holds.")
_DIGITS = 12


@app.command("list")
def list_command(state: StateOption = STATE_DEFAULT, output: OutputOption = Output.TABLE) -> None:
    """List the releases in the store, the newest first."""
    store = _existing(state)
    current = store.releases_folder / CURRENT
    name = current.readlink().name if current.is_symlink() else ""
    whole, damaged = store.survey()
    show_releases(whole, name, output, damaged=damaged)


def _existing(state: Path) -> Store:
    """Return the store in `state`.

    Raises:
        HostError: there is none.
    """
    store = Store(state)
    if not any(os.path.lexists(path) for path in (store.blobs, store.releases_folder, store.trust_folder)):
        raise HostError(f"{state}: no store there", hint="check --state, or begin a site: appliance site init SITE.toml")
    return store


def show_releases(releases: tuple[StoredRelease, ...], current: str, output: Output, *, damaged: tuple[DamagedRelease, ...] = ()) -> None:
    """Print a line for each release, then one for each folder that is not what was imported."""
    now = datetime.now(UTC)
    documents, rows = [], []
    for release in releases:
        bundle = release.bundle
        first = min(bundle.expires.items(), key=lambda item: item[1])
        size = sum(blob.size for blob in bundle.blobs.values())
        documents.append(
            {
                "release": release.digest,
                "name": bundle.release.name,
                "version": bundle.release.version,
                "line": bundle.line,
                "current": release.path.name == current,
                "complete": release.complete,
                "missing": release.missing,
                "blobs": len(bundle.blobs),
                "size": size,
                "expires": {"role": first[0], "at": first[1]},
            }
        )
        state = "complete" if release.complete else f"{len(release.missing)} blobs missing"
        days = (first[1] - now).days
        fresh = f"{first[0]}: {days} days left" if days >= 0 else f"{first[0]}: expired {-days} days ago"
        mark = "*" if release.path.name == current else ""
        rows.append(
            (mark, bundle.release.name, bundle.release.version, bundle.line, release.path.name[:_DIGITS], state, size_text(size), fresh)
        )
    columns = ("", "name", "version", "line", "release", "state", "size", "first to expire")
    broken = [{"path": str(each.path), "error": each.error.message, "hint": each.error.hint} for each in damaged]
    emit(output, {"releases": documents, "damaged": broken}, columns=columns, rows=rows)
    for each in damaged:
        say(f"damaged: {each.error.message}; {each.error.hint or 'read its media again'}")


@app.command("verify")
def verify_command(state: StateOption = STATE_DEFAULT, workers: WorkersOption = None, output: OutputOption = Output.TABLE) -> None:
    """Read every byte of the store again and compare it with what was signed."""
    report = verify_store(_existing(state), workers=workers or default_workers(), progress=observer())
    show_report(report, output)
    refuse(
        report.findings,
        what=f"store {state}",
        hint="remove the files that are named, then read the media of the release again: appliance media read DIR...",
    )


def show_report(report: StoreReport, output: Output) -> None:
    """Print one line of totals."""
    document = {
        "releases": [release.digest for release in report.releases],
        "blobs": report.blobs,
        "size": report.size,
        "unneeded": report.unneeded,
        "findings": [
            {"path": str(each.path), "wrong": each.wrong.value, "offset": each.offset, "detail": each.detail} for each in report.findings
        ],
    }
    row = (str(len(report.releases)), str(report.blobs), size_text(report.size), str(report.unneeded), str(len(report.findings)))
    emit(output, document, columns=("releases", "blobs", "read", "unneeded", "wrong"), rows=[row])
