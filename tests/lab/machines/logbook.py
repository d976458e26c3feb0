# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What the lab writes down about a machine: packages and files before its first start and after its use, and its journal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tests.lab.machines.processes import run

if TYPE_CHECKING:
    from tests.lab.machines.lab import Lab
    from tests.lab.machines.plan import Machine


def before(lab: Lab, machine: Machine) -> None:
    """Once per machine: the lists of a machine nobody has used yet."""
    if not (lab.log / f"{machine.name}.files.before").exists():
        _lists(lab, machine.name, "before")


def after(lab: Lab) -> None:
    """The lists of every machine as it is now, and the journals of those that run."""
    for machine in lab.machines:
        if (lab.state / "machines" / machine.name / "root/var/lib/dpkg").is_dir():
            _lists(lab, machine.name, "after")
        if lab.leader(machine.name) is not None:
            journal = lab.exec(machine.name, ["journalctl", "--no-pager", "-o", "short-iso-precise"], check=False, timeout=60).stdout
            (lab.log / f"{machine.name}.journal").write_text(journal, errors="surrogateescape")


def _lists(lab: Lab, name: str, when: str) -> None:
    root = lab.state / "machines" / name / "root"
    packages = run(["dpkg-query", f"--admindir={root}/var/lib/dpkg", "-l"], lab=lab.name, env={"COLUMNS": "160"}).stdout
    (lab.log / f"{name}.packages.{when}").write_text(packages)
    # Path, type, mode, owner and size of everything on the machine's own disk.
    files = run(["find", ".", "-xdev", "-printf", r"%p\t%y\t%m\t%U:%G\t%s\n"], lab=lab.name, cwd=root).stdout
    listing = "\n".join(sorted(files.splitlines())) + "\n"
    _write(lab.log / f"{name}.files.{when}", listing)


def _write(path: Path, text: str) -> None:
    pending = path.with_name(f".{path.name}")
    pending.write_text(text, errors="surrogateescape")
    pending.replace(path)
