# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`appliance site`: from bare machines to a cluster, and back. Prints and asks; decides nothing."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from appliance.cli import siteviews
from appliance.cli.options import STATE_DEFAULT, Output, OutputOption, StateOption
from appliance.cli.render import emit, observer, say
from appliance.errors import UsageError
from appliance.install import firsttrust, hostkeys, initialise
from appliance.install.places import SitePlaces

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, add_completion=False, help="From bare machines to a cluster, and back.")

SITE_DEFAULT = Path("/etc/appliance/site.toml")
SiteFileOption = Annotated[
    Path | None,
    typer.Option(
        "--site",
        envvar="APPLIANCE_SITE",
        show_default=str(SITE_DEFAULT),
        help="The site file that people edit; it must be the accepted one.",
    ),
]


def _written(site: Path | None) -> Path | None:
    """Return the site file that people edit: the one that is named, else the usual one if it is there."""
    if site is None:
        return SITE_DEFAULT if SITE_DEFAULT.is_file() else None
    if not site.is_file():
        raise UsageError(f"--site {site}: no file there", hint="name the site file that was given to site init, or leave the option out")
    return site


def _answer(question: str) -> str:
    try:
        return input(question).strip()
    except EOFError:
        return ""


def _confirm(new: int) -> None:
    if not sys.stdin.isatty():
        raise UsageError(
            "nobody is here to compare the fingerprints",
            hint="run it on a terminal, or give the expected ones: --accept-host-keys FILE with lines NAME SHA256:...",
        )
    say(f"Compare the root with the paper sheet and {new} host keys with each machine's own console.")
    if _answer("Type yes to accept all of them: ") != "yes":
        raise UsageError("not accepted; nothing was changed", hint="run site init again when the fingerprints have been compared")


def _typed_name(name: str, node: str | None) -> str:
    if not sys.stdin.isatty():
        raise UsageError("nobody is here to confirm", hint=f"run it on a terminal, or confirm with --confirm {name}")
    say(f"This makes {node or 'every machine of the site'} bare: the cluster and all that runs in it there is removed.")
    return _answer("Type the site's name to go on: ")


@app.command()
def init(
    site_file: Annotated[Path, typer.Argument(metavar="SITE.toml", help="What this site is; docs/operate.md shows one.")],
    *,
    accept_host_keys: Annotated[
        str, typer.Option(metavar="FILE|prompt", help="A file of lines NAME SHA256:FINGERPRINT, or prompt: show and ask.")
    ] = "prompt",
    root: Annotated[Path | None, typer.Option(help="The publication's root.json, when not run from install.pyz.")] = None,
    state: StateOption = STATE_DEFAULT,
    output: OutputOption = Output.TABLE,
) -> None:
    """Accept a site file: pin the root and the host keys, make the site's own keys. A second time changes nothing."""
    places = SitePlaces(state=state)
    expected = None if accept_host_keys == "prompt" else hostkeys.read_expected(Path(accept_host_keys))
    found = initialise.offer(site_file, places, firsttrust.read_root_file(root))
    siteviews.show_offer(found)
    if expected is not None:
        hostkeys.check_expected(found.site, found.known, expected)
        chosen = hostkeys.choose(found.new, expected)
    else:
        if found.new or not found.pinned:
            _confirm(len(found.new))
        chosen = {hostkeys.host_name(one.machine): one.keys[0] for one in found.new}
    done = initialise.accept(found, chosen, places, now=datetime.now(UTC))
    rows = [[change] for change in done.changed] or [["nothing"]]
    emit(output, {"site": found.site.name, "serial": done.serial, "changed": done.changed}, columns=["changed"], rows=rows)


@app.command()
def check(*, site: SiteFileOption = None, state: StateOption = STATE_DEFAULT, output: OutputOption = Output.TABLE) -> None:
    """Look at every machine before any change, and change nothing. Exit 5 when one is unfit."""
    from appliance.install import preflight, readiness  # noqa: PLC0415 - each command loads only what it uses
    from appliance.install.releases import newest  # noqa: PLC0415

    places = SitePlaces(state=state)
    accepted = initialise.load_accepted(places, written=_written(site))
    outlook = readiness.outlook(accepted, places, now=datetime.now(UTC), bundle=newest(places))
    checks = preflight.look(accepted, places, outlook, progress=observer())
    siteviews.show_checks(output, checks)
    preflight.refuse_failed(checks)


@app.command()
def install(
    *,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be done, per machine, from the store alone.")] = False,
    site: SiteFileOption = None,
    state: StateOption = STATE_DEFAULT,
    output: OutputOption = Output.TABLE,
) -> None:
    """Make the cluster from the release in the store. Running it again resumes, or changes nothing."""
    from appliance.install import plan as planning  # noqa: PLC0415 - Ansible is loaded by this command alone
    from appliance.install import run, standing  # noqa: PLC0415
    from appliance.store import Store  # noqa: PLC0415

    places = SitePlaces(state=state)
    accepted = initialise.load_accepted(places, written=_written(site))
    if plan:
        stored = Store(state).release()
        planning.check_release(stored)
        standing.refuse_other_kubernetes(places, accepted, stored.bundle.release.kubernetes)
        siteviews.show_plan(output, planning.plan(accepted, stored))
        return
    siteviews.show_result(output, run.install(accepted, places, now=datetime.now(UTC), progress=observer()))


@app.command()
def status(*, site: SiteFileOption = None, state: StateOption = STATE_DEFAULT, output: OutputOption = Output.TABLE) -> None:
    """Say in one screen what is true now. Exit 6 with the first thing that is not as it should be."""
    from appliance.install import status as looking  # noqa: PLC0415 - each command loads only what it uses
    from appliance.install.releases import newest  # noqa: PLC0415

    places = SitePlaces(state=state)
    accepted = initialise.load_accepted(places, written=_written(site))
    found = looking.status(accepted, places, bundle=newest(places), now=datetime.now(UTC))
    siteviews.show_status(output, found)
    looking.refuse_unhealthy(found)


@app.command()
def reset(
    node: Annotated[str | None, typer.Argument(help="One machine; without it, the whole site.")] = None,
    *,
    confirm: Annotated[str | None, typer.Option(metavar="NAME", help="The site's name, instead of typing it when asked.")] = None,
    site: SiteFileOption = None,
    state: StateOption = STATE_DEFAULT,
    output: OutputOption = Output.TABLE,
) -> None:
    """Make the machines, or one of them, bare again. Store, keys and pins stay."""
    from appliance.install import reset as resetting  # noqa: PLC0415 - Ansible is loaded by this command alone

    places = SitePlaces(state=state)
    accepted = initialise.load_accepted(places, written=_written(site))
    typed = confirm if confirm is not None else _typed_name(accepted.name, node)
    done = resetting.reset(accepted, places, node=node, confirmed=typed, progress=observer())
    siteviews.show_reset(output, done)
