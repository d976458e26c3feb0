# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The command `appliance`: its groups, loaded when asked for, and the boundary where errors become exit codes.

A group lives in `appliance/cli/<group>.py` as `app = typer.Typer(...)`; only the group that is used is imported, so
`bundle verify` never loads Ansible or a cluster client.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from pathlib import Path

import typer
from typer._click import core as click_core
from typer._click import exceptions as click_exceptions
from typer._click.formatting import HelpFormatter
from typer.core import TyperGroup

import appliance
from appliance.cli.render import say
from appliance.errors import ApplianceError, HostError

BUG = 1
INTERRUPTED = 130
PIPE = 141
"""What a shell says of a program whose reader went away."""
GROUPS = {
    "keys": "make, show, add and use the keys of a publication",
    "bundle": "lock, create, inspect, verify and compare signed bundles",
    "media": "write a bundle to sticks or discs, read it back from them",
    "store": "list and verify what this site holds",
    "site": "from bare machines to a cluster, and back",
    "node": "what a node does for itself: place and list weights",
}


def report(error: ApplianceError) -> None:
    """Print `error` and its hint to stderr, a line each."""
    say(f"appliance: error: {error.message}")
    if error.hint:
        say(f"appliance: hint: {error.hint}")


class BoundaryGroup(TyperGroup):
    """The one place of the command line where every exception ends."""

    def list_commands(self, ctx: click_core.Context) -> list[str]:
        """Return the groups in the order a person meets them."""
        return [*GROUPS, *super().list_commands(ctx)]

    def get_command(self, ctx: click_core.Context, cmd_name: str) -> click_core.Command | None:
        """Return the group `cmd_name`, importing its module only now."""
        if cmd_name not in GROUPS:
            return super().get_command(ctx, cmd_name)
        module = importlib.import_module(f"appliance.cli.{cmd_name}")
        group = typer.main.get_command(module.app)
        group.name = cmd_name
        return group

    def format_commands(self, ctx: click_core.Context, formatter: HelpFormatter) -> None:  # noqa: ARG002 - the base's signature
        """Write the list of groups without importing them."""
        with formatter.section("Groups"):
            formatter.write_dl(list(GROUPS.items()))

    def invoke(self, ctx: click_core.Context) -> object:
        """Run the command; expected errors become two lines and an exit code, anything else a traceback and 1."""
        os.umask((os.umask(0o022) | 0o022) & 0o077)  # nobody else writes to what is made, its owner reads it
        try:
            return super().invoke(ctx)
        except ApplianceError as error:
            report(error)
            raise typer.Exit(error.exit_code) from error
        except (typer.Exit, typer.Abort, click_exceptions.ClickException):
            raise
        except BrokenPipeError as error:
            raise typer.Exit(PIPE) from error
        except KeyboardInterrupt as error:
            print("appliance: stopped; run the same command again to go on", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from error
        except Exception as error:
            traceback.print_exc()
            print("appliance: error: this is a bug in appliance, not something you did", file=sys.stderr)
            print("appliance: hint: report the lines above, without secrets; SECURITY.md says where", file=sys.stderr)
            raise typer.Exit(BUG) from error


app = typer.Typer(
    cls=BoundaryGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 2 usage, 3 refused by verification, 4 malformed, 5 machine unfit, 6 outside tool failed, 1 a bug.",
)


def _version(value: bool) -> None:  # noqa: FBT001 - typer calls it with the flag's value
    if value:
        print(f"appliance {appliance.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    *,
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version and exit."),
) -> None:
    """Signed offline bundles of models, images and charts: made here, carried over, installed as a cluster there."""


def main() -> None:
    """Run the command line, also with closed streams and with a reader that goes away."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode))  # noqa: SIM115 - it lives as long as the process
    status: object = 0
    try:
        status = app(standalone_mode=False)
        sys.stdout.flush()
    except SystemExit as error:  # what typer makes of a broken pipe
        status = PIPE if isinstance(error.__context__, BrokenPipeError) else error.code
    except typer.Exit as error:
        status = error.exit_code
    except click_exceptions.ClickException as error:
        with contextlib.suppress(OSError):
            error.show()
        status = error.exit_code
    except typer.Abort:
        say("appliance: stopped")
        status = INTERRUPTED
    except BrokenPipeError:
        status = PIPE
    except OSError as error:
        say(f"appliance: error: standard output: {error.strerror}")
        status = HostError.exit_code
    _quiet_end(status if isinstance(status, int) else 0)


def _quiet_end(status: int) -> None:
    """Exit with `status`; what a stream could not take must not become another failure at exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(status)
