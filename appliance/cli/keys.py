# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`appliance keys`: make a publication, show it, give a class to another person, add a second person's signature."""

from __future__ import annotations

import getpass
import stat
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from appliance.adapters.disk import at, read_small, write_atomic
from appliance.adapters.publication import (
    PRIVATE,
    create_publication,
    load_publication,
    load_signers,
    lock_publication,
    save_publication,
)
from appliance.bundle.contents import ContentClass
from appliance.cli.options import Output, OutputOption, PassphraseFileOption, existing
from appliance.cli.render import emit, say
from appliance.errors import UsageError
from appliance.trust.countersign import RoleState, countersign, signature_states
from appliance.trust.keys import family, load_public_keys
from appliance.trust.publication import delegate
from appliance.trust.summary import describe
from appliance.verify import trust_publication
from appliance.verify.metadata import read_metadata

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Make, show, add and use the keys of a publication.")
PublicationArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The publication folder.")]
KeysOption = Annotated[Path | None, typer.Option("--keys", help="The folder of private keys (default: DIR/private).")]
_MAX_PEM = 64 * 1024
_MAX_PASSPHRASE_FILE = 4096


def read_passphrase(file: Path | None, *, confirm: bool = False) -> bytes:
    """Return the passphrase: the first line of `file`, else what a person types (twice with `confirm`).

    Raises:
        UsageError: no such file, no file and no terminal, or the two differ.
        HostError: the file cannot be read.
    """
    if file is not None:
        data = read_small(existing(file, "--passphrase-file"), limit=_MAX_PASSPHRASE_FILE)
        with at(file):
            mode = stat.S_IMODE(file.stat().st_mode)
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            say(f"note: other users may use the passphrase file {file} (mode {mode:04o}); run: chmod 600 {file}")
        return (data.splitlines() or [b""])[0]
    if sys.stdin is None or not sys.stdin.isatty():
        raise UsageError("no terminal to ask for the passphrase", hint="give --passphrase-file FILE")
    typed = _typed("Passphrase: ")
    if confirm and _typed("The same again: ") != typed:
        raise UsageError("the two passphrases differ", hint="run the command again")
    return typed.encode()


def _typed(question: str) -> str:
    try:
        return getpass.getpass(question)
    except EOFError as error:
        raise UsageError("no passphrase was typed; nothing was changed", hint="run the command again") from error


@app.command("init")
def init_command(
    directory: PublicationArgument,
    *,
    line: Annotated[str, typer.Option("--line", help="Name of the line, such as acme-models.")],
    with_spare: Annotated[bool, typer.Option("--with-spare", help="Make a spare pair: 3 of 4 keys sign instead of 2 of 2.")] = False,
    keys: KeysOption = None,
    passphrase_file: PassphraseFileOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Make a publication: one classical and one ML-DSA key, the first root, counters at zero."""
    passphrase = read_passphrase(passphrase_file, confirm=True)
    now = datetime.now(UTC)
    folder, _ = create_publication(directory, line=line, keys=keys, passphrase=passphrase, with_spare=with_spare, now=now)
    rows = describe(folder.publication, folder.roots)
    emit(output, rows.document, columns=("what", "value"), rows=rows.rows, title=f"publication {line}")
    say(f"Private keys are in {keys or directory / PRIVATE}: copy them to a second place, offline. Without them no newer root can be made.")


@app.command("show")
def show_command(directory: PublicationArgument, *, output: OutputOption = Output.TABLE) -> None:
    """Show line, fingerprints, keys, counters and delegations; nothing secret."""
    folder = load_publication(directory)
    rows = describe(folder.publication, folder.roots)
    emit(output, rows.document, columns=("what", "value"), rows=rows.rows, title=f"publication {folder.publication.line}")


@app.command("add")
def add_command(
    directory: PublicationArgument,
    public_key: Annotated[Path, typer.Argument(metavar="PUBKEY", help="The other person's public.pem.")],
    *,
    role: Annotated[ContentClass, typer.Option("--role", help="The class that these keys shall sign.")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Give a class to another person's keys, from the next bundle on."""
    keys = load_public_keys(read_small(existing(public_key, "PUBKEY"), limit=_MAX_PEM), what=str(public_key))
    with lock_publication(directory):
        publication = delegate(load_publication(directory).publication, role, keys)
        save_publication(directory, publication)
    delegation = publication.delegations[role]
    document = {"role": role.value, "keys": sorted(delegation.keys), "threshold": delegation.threshold}
    rows = [(role.value, str(family(key)), key.keyid) for key in keys]
    emit(output, document, columns=("role", "family", "key"), rows=rows)
    say(f"Class {role}: {delegation.threshold} of {len(delegation.keys)} keys must sign. It takes effect with the next bundle create.")


@app.command("sign")
def sign_command(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle directory, or a folder holding a copy of its metadata/.")],
    *,
    publication: Annotated[Path, typer.Option("--publication", help="Folder of the publication: its first root is trusted.")],
    keys: KeysOption = None,
    role: Annotated[list[str] | None, typer.Option("--role", help="Sign only this role (may be repeated).")] = None,
    passphrase_file: PassphraseFileOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Add these keys' signatures to the metadata that still lacks some."""
    existing(bundle / "metadata", "BUNDLE")
    files, pin = read_metadata(bundle), trust_publication(publication).pin
    for state in signature_states(files, pinned_root=pin):
        say(f"{state.role} version {state.version}: {state.says}; {state.lacking or 'no'} signatures lacking")
    signers = load_signers(keys or publication / PRIVATE, read_passphrase(passphrase_file))
    changed, states = countersign(files, pinned_root=pin, signers=signers, roles=role or ())
    for path, data in changed.items():
        write_atomic(bundle / "metadata" / path, data)
    held = {signer.public_key.keyid for signer in signers}
    rows = [_signed_row(state, held) for state in states]
    document = [{"role": row[0], "version": state.version, "lacking": int(row[3])} for row, state in zip(rows, states, strict=True)]
    emit(
        output,
        document,
        columns=("role", "says", "signed with", "still lacking"),
        rows=rows,
    )


def _signed_row(state: RoleState, held: set[str]) -> tuple[str, str, str, str]:
    added = held & set(state.unsigned)
    return state.role, state.says, f"{len(added)} keys", str(max(0, state.lacking - len(added)))
