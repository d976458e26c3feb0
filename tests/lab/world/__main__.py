# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.lab.world build | serve --dir DIR | list | prune`."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

from appliance.errors import ApplianceError
from tests.lab.world import building, cache
from tests.lab.world.serving import upstream


def main() -> int:
    """Run one command; gives the exit code of design's error classes."""
    arguments = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that Go's processes end with this one
    try:
        match arguments.command:
            case "serve":
                _serve(arguments.dir)
            case "prune":
                print(*cache.prune(building.entries()), sep="\n")
            case "list":
                _list(building.build())
            case _:
                print(building.build().binaries)
    except ApplianceError as error:
        print(f"{error.message}\n{error.hint or ''}".strip(), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.lab.world", description="The connected side of the lab.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="compile, write images and release files into the cache; prints the folder of programs")
    commands.add_parser("list", help="every image with its digests and every file with its address")
    commands.add_parser("prune", help="remove cache entries that today's recipes do not use")
    serve = commands.add_parser("serve", help="serve it on loopback until SIGTERM")
    serve.add_argument("--dir", type=Path, required=True, help="where mirrors.toml, ca and the registries' trees go")
    return parser


def _serve(directory: Path) -> None:
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with upstream(directory.resolve()) as up:
        for host, address in up.registries.items():
            print(f"{host} at {address}")
        print(f"files at {up.files}\nmirrors {up.mirrors}\ndocker configuration {up.docker_config}", flush=True)
        stop.wait()


def _list(world: building.World) -> None:
    for image in world.images:
        print(image.reference, image.index, image.manifest)
    for file in world.files:
        print(file.url, file.path.stat().st_size)


if __name__ == "__main__":
    sys.exit(main())
