# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Compiles a recipe with this machine's Go into a cache entry: `bin/`, `LICENSE` and `made.json` (time, memory)."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from appliance.errors import HostError, ToolError
from tests.lab.world import cache
from tests.lab.world.recipes import Recipe

GO_VERSION = (1, 26)
_TAIL = 3000


def entry(recipe: Recipe) -> Path:
    """Where the recipe's binaries lie, or would lie."""
    return cache.place(f"go-{recipe.name}", recipe.key())


def compiled(recipe: Recipe) -> Path:
    """The entry with the recipe's binaries, compiled now unless they are there.

    Raises:
        HostError: there is no Go of the version the lab needs.
        ToolError: Go failed; what is already compiled stays in Go's own cache, so running again resumes.
    """
    return cache.obtain(f"go-{recipe.name}", recipe.key(), lambda folder: _compile(recipe, folder))


def _compile(recipe: Recipe, folder: Path) -> None:
    go, version = find_go()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="out-", dir=folder) as out:
        peak = _run([go, "build", *_flags(recipe), "-o", f"{out}/", *(package for _, package in recipe.commands)], recipe)
        for name, package in recipe.commands:
            target = folder / "bin" / name
            target.parent.mkdir(exist_ok=True)
            (Path(out) / _built_name(package)).rename(target)
    _copy_licence(go, recipe, folder)
    made = {
        "go": version,
        "seconds": round(time.monotonic() - began, 1),
        "largest_process_kib": peak,
        "sha256": {name: cache.sha256(folder / "bin" / name) for name, _ in recipe.commands},
    }
    (folder / "made.json").write_text(json.dumps(made, indent=1) + "\n")


def _flags(recipe: Recipe) -> list[str]:
    return ["-trimpath", "-buildvcs=false", f"-tags={','.join(recipe.tags)}", "-ldflags", recipe.ldflags]


def _built_name(package: str) -> str:
    """How `go build` names a binary: the last element of the package, but not a major version's."""
    elements = package.split("/")
    return elements[-2] if re.fullmatch(r"v\d+", elements[-1]) else elements[-1]


def find_go() -> tuple[str, str]:
    """This machine's Go and its version, such as `go1.26.8`.

    Raises:
        HostError: there is none, or it is too old.
    """
    wanted = ".".join(map(str, GO_VERSION))
    go = shutil.which("go")
    hint = f"Put Go {wanted} or newer on PATH; only the lab needs it, and only until its cache is filled."
    if go is None:
        raise HostError(f"expected Go {wanted} to compile the lab's upstream binaries, found none on PATH", hint=hint)
    text = subprocess.run([go, "env", "GOVERSION"], check=True, capture_output=True, text=True, env=_environment()).stdout.strip()
    match = re.match(r"go(\d+)\.(\d+)", text)
    if match is None or (int(match[1]), int(match[2])) < GO_VERSION:
        raise HostError(f"expected Go {wanted} or newer, found {text} at {go}", hint=hint)
    return go, text


def _environment(recipe: Recipe | None = None) -> dict[str, str]:
    """The caller's environment with everything fixed that would change the bytes.

    A fifth of a cold build goes into collecting the garbage of short-lived compiler processes (measured: 64 against 50
    CPU seconds), so the collector only runs near the limit of one process; two of them run at once.
    """
    fixed = {
        "CGO_ENABLED": "1" if recipe is not None and recipe.cgo else "0",
        "GOAMD64": "v1",
        "GOARCH": "amd64",
        "GOFLAGS": "-mod=readonly",
        "GOOS": "linux",
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
        "GOEXPERIMENT": "",
        "GODEBUG": "",
        "GOGC": "off",
        "GOMEMLIMIT": "3GiB",
    }
    return os.environ | fixed


def _run(command: list[str], recipe: Recipe) -> int:
    """Run Go at low priority in its own process group, which ends when this is interrupted; gives its largest process in KiB."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "nice", "-n", "5", *command],
            cwd=recipe.folder,
            env=_environment(recipe),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
            code = process.returncode = os.waitstatus_to_exitcode(status)
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise
        if code != 0:
            log.seek(max(0, log.tell() - _TAIL))
            said = log.read().decode(errors="replace").strip()
            raise ToolError(
                f"go build of {recipe.name} {recipe.version} gave {code}:\n{said}",
                step=f"compile {recipe.name}",
                hint="Run the same command again: packages already compiled are kept.",
            )
    return usage.ru_maxrss


def _copy_licence(go: str, recipe: Recipe, folder: Path) -> None:
    command = [go, "list", "-m", "-f", "{{.Dir}}", recipe.module]
    where = subprocess.run(command, check=True, capture_output=True, text=True, cwd=recipe.folder, env=_environment()).stdout.strip()
    found = next((path for name in ("LICENSE", "LICENSE.md", "COPYING") if (path := Path(where) / name).is_file()), None)
    if found is not None:
        shutil.copyfile(found, folder / "LICENSE")
