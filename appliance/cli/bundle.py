# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`appliance bundle`: lock, create, inspect, verify and compare signed bundles.

What fetches is imported inside `lock` and `create` only: `inspect`, `verify` and `diff` load no HTTP client.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from appliance.adapters.parallel import default_workers
from appliance.adapters.publication import PRIVATE, load_signers
from appliance.cli import bundleviews
from appliance.cli.keys import read_passphrase
from appliance.cli.options import STATE_DEFAULT, Output, OutputOption, PassphraseFileOption, StateOption, WorkersOption, existing
from appliance.cli.render import observer, say
from appliance.errors import UsageError
from appliance.verify import Trust, load_trust, trust_publication
from appliance.verify.blobs import refuse, verify_bundle_blobs
from appliance.verify.metadata import verify_bundle_metadata

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Lock, create, inspect, verify and compare signed bundles.")
BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle directory.")]
PublicationOption = Annotated[Path | None, typer.Option("--publication", metavar="DIR", help="Trust the first root of this publication.")]
TrustOption = Annotated[
    Path | None, typer.Option("--trust", metavar="DIR", help="Trust the root pinned in this folder (STATE/trust/LINE).")
]
MirrorsOption = Annotated[
    Path | None, typer.Option("--mirrors", metavar="FILE", envvar="APPLIANCE_MIRRORS", help="Where upstreams are really asked.")
]


@app.command("lock")
def lock_command(
    *,
    profile: Annotated[Path, typer.Argument(metavar="PROFILE", help="What the bundle should hold, such as bundles/core.toml.")],
    mirrors: MirrorsOption = None,
    output_lock: Annotated[Path | None, typer.Option("--output-lock", metavar="PATH", help="Write the lock here.")] = None,
    helm: Annotated[Path | None, typer.Option("--helm", metavar="PATH", help="The helm that renders charts (default: on PATH).")] = None,
    workers: WorkersOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Resolve every digest, size and licence of PROFILE into PROFILE's lock, and show what changed."""
    existing(profile, "PROFILE")
    from appliance.adapters.rendering import find_helm  # noqa: PLC0415 - only what fetches loads this
    from appliance.build.collecting import tools  # noqa: PLC0415
    from appliance.build.locking import lock_profile  # noqa: PLC0415
    from appliance.build.profiles import read_mirrors  # noqa: PLC0415

    with tools(mirrors=read_mirrors(mirrors), wait=time.sleep) as ready:
        locked = lock_profile(
            profile, tools=ready, target=output_lock, helm=find_helm(helm), workers=workers or default_workers(), progress=observer()
        )
    bundleviews.show_lock(locked.path, locked.lock, locked.previous, locked.licenses, output)
    for note in locked.notes:
        say(f"note: {note}")


@app.command("create")
def create_command(
    *,
    lock: Annotated[Path, typer.Argument(metavar="LOCK", help="The lock, such as bundles/core.lock.json.")],
    publication: Annotated[Path, typer.Option("--publication", metavar="DIR", help="The publication folder; its counters rise.")],
    keys: Annotated[Path | None, typer.Option("--keys", metavar="DIR", help="Private keys (default: publication/private).")] = None,
    to: Annotated[Path, typer.Option("--to", metavar="BUNDLE", help="The bundle directory to make; it must not exist.")],
    mirrors: MirrorsOption = None,
    link: Annotated[bool, typer.Option("--link", help="Hard-link model files instead of cloning or copying them.")] = False,
    workers: WorkersOption = None,
    passphrase_file: PassphraseFileOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Fetch, verify and sign everything in LOCK as one bundle directory. Run again after an interruption to go on."""
    from appliance.build.collecting import tools  # noqa: PLC0415
    from appliance.build.creating import create_bundle, installer_builder  # noqa: PLC0415
    from appliance.build.profiles import read_mirrors  # noqa: PLC0415

    existing(lock, "LOCK")
    signers = load_signers(keys or publication / PRIVATE, read_passphrase(passphrase_file))
    with tools(mirrors=read_mirrors(mirrors), wait=time.sleep) as ready:
        created = create_bundle(
            lock, tools=ready, publication=publication, signers=signers, target=to, installer=installer_builder(ready.folder),
            now=lambda: datetime.now(UTC), link=link, workers=workers or default_workers(), progress=observer(),
        )  # fmt: skip
    bundleviews.show_created(created, publication, output)
    for note in created.notes:
        say(f"note: {note}")


@app.command("inspect")
def inspect_command(
    context: typer.Context,
    bundle: BundleArgument,
    *,
    publication: PublicationOption = None,
    trust: TrustOption = None,
    state: StateOption = STATE_DEFAULT,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show what BUNDLE holds, who signed it and for how long; its signatures are verified, its blobs are not read."""
    existing(bundle / "metadata", "BUNDLE")
    trusted = _trust(context, publication, trust, state)
    now = datetime.now(UTC)
    verified = verify_bundle_metadata(bundle, trusted, now=now)
    bundleviews.show_bundle(verified, trusted.pin, now, output)


@app.command("verify")
def verify_command(
    context: typer.Context,
    bundle: BundleArgument,
    *,
    publication: PublicationOption = None,
    trust: TrustOption = None,
    state: StateOption = STATE_DEFAULT,
    workers: WorkersOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Verify every signature and every byte of BUNDLE; nothing is written, nothing asked of a network."""
    existing(bundle / "metadata", "BUNDLE")
    verified = verify_bundle_metadata(bundle, _trust(context, publication, trust, state), now=datetime.now(UTC))
    found = verify_bundle_blobs(
        bundle, verified.blobs, contents=verified.contents, workers=workers or default_workers(), progress=observer()
    )
    refuse(found, what=f"{bundle}", hint="create it again, or carry it again; do not write these bytes to media")
    bundleviews.show_verified(verified, output)


@app.command("diff")
def diff_command(
    context: typer.Context,
    before: Annotated[Path, typer.Argument(metavar="A", help="A bundle directory.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="Another one.")],
    *,
    publication: PublicationOption = None,
    trust: TrustOption = None,
    state: StateOption = STATE_DEFAULT,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show what B has that A has not, in artifacts and bytes; both are verified, but for the order of their versions."""
    existing(before / "metadata", "A")
    existing(after / "metadata", "B")
    trusted = _trust(context, publication, trust, state, ordered=False)
    now = datetime.now(UTC)
    one, other = (verify_bundle_metadata(bundle, trusted, now=now) for bundle in (before, after))
    bundleviews.show_difference(one, other, output)


def _trust(context: typer.Context, publication: Path | None, trust: Path | None, state: Path, *, ordered: bool = True) -> Trust:
    """Return the trust to judge by; with `ordered` false what was seen before does not count.

    A state that the environment names is this machine's default; one given as an option is asked for, so never ignored.
    """
    source = context.get_parameter_source("state")
    asked = source is not None and source.name == "COMMANDLINE"
    given = [name for name, there in (("--publication", publication), ("--trust", trust), ("--state", asked)) if there]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} exclude each other", hint="give the one whose root you mean")
    if publication is not None:
        return trust_publication(publication)
    folder = trust or _only_line(state / "trust")
    found = load_trust(folder)
    return found if ordered else Trust(directory=found.directory, line=found.line, pin=found.pin, seen=None)


def _only_line(folder: Path) -> Path:
    lines = sorted(path for path in folder.iterdir() if (path / "root.json").is_file()) if folder.is_dir() else []
    if len(lines) != 1:
        what = f"{len(lines)} lines are" if lines else "nothing is"
        raise UsageError(f"{what} pinned under {folder}", hint="give --publication DIR, or --trust DIR with the pinned root of the line")
    return lines[0]
