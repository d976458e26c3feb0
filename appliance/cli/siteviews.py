# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""How `appliance site` shows what it found. Rows and columns only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from appliance.cli.options import Output
from appliance.cli.render import emit, say, size_text
from appliance.install.checks import Check, State
from appliance.install.initialise import Offer

if TYPE_CHECKING:  # these load Ansible or much else, which a command that does not need them should not pay for
    from appliance.install.plan import InstallPlan
    from appliance.install.reset import ResetResult
    from appliance.install.run import InstallResult
    from appliance.install.status import MachineStatus, SiteStatus


def show_offer(found: Offer) -> None:
    """Show the root and the host keys that are about to be accepted (stderr: people read it, programs need not)."""
    state = "pinned already" if found.pinned else "to be pinned"
    say(f"root of line {found.root.line}, version {found.root.version}, {state}:")
    say(f"  {found.root.fingerprint}")
    for one in found.new:
        best = one.keys[0]
        say(f"{one.machine.name} ({one.machine.address}) {best.kind} {best.fingerprint}")


def show_checks(output: Output, checks: Sequence[Check]) -> None:
    """Show what is not as it should be, with what to do; JSON has every check."""
    counts = Counter(found.state for found in checks)
    document = {
        "failures": [f"{found.machine}: {found.name}" for found in checks if found.state is State.FAIL],
        "checks": [asdict(found) for found in checks],
    }
    rows = [
        [found.state.value, found.machine, found.name, found.measured, found.expected, f"{found.fix} ({found.why})"]
        for found in checks
        if found.state is not State.PASS
    ]
    if rows or output is Output.JSON:
        emit(output, document, columns=["", "machine", "check", "measured", "expected", "what to do (why)"], rows=rows)
    say(f"{counts[State.PASS]} checks passed, {counts[State.WARN]} warnings, {counts[State.FAIL]} failed")


def show_plan(output: Output, found: InstallPlan) -> None:
    """Show what an installation would do, machine by machine."""
    say(f"release {found.name} {found.version} ({found.release}), Kubernetes {found.kubernetes}")
    for chart in found.charts:
        say(f"chart {chart}")
    rows = [
        [
            machine.machine,
            ", ".join(machine.roles),
            ", ".join(machine.files),
            str(machine.packages),
            str(machine.images),
            ", ".join(machine.models) or "-",
            size_text(machine.bytes),
            ", ".join(unit.removesuffix(".service") for unit in machine.units),
        ]
        for machine in found.machines
    ]
    columns = ["machine", "roles", "files", "packages", "images", "models", "bytes", "units"]
    emit(output, asdict(found), columns=columns, rows=rows)


def show_result(output: Output, done: InstallResult) -> None:
    """Show what changed on each machine, and how long each phase took."""
    for warning in done.warnings:
        say(f"warning: {warning.machine}: {warning.name}: {warning.measured}; {warning.fix}")
    for phase, seconds in done.phases.items():
        say(f"{phase:32} {seconds:6.1f} s")
    release = done.release.bundle.release
    say(f"Finished in {sum(done.phases.values()):.1f} s: {release.name} {release.version}, {done.pods} pods run")
    document = {
        "release": done.release.digest,
        "changed": dict(done.changed),
        "charts": done.charts,
        "phases": {phase: round(seconds, 1) for phase, seconds in done.phases.items()},
        "pods": done.pods,
    }
    rows = [[machine, str(count)] for machine, count in done.changed.items()] + [[f"chart {chart}", "1"] for chart in done.charts]
    emit(output, document, columns=["machine", "changed"], rows=rows)


def show_reset(output: Output, done: ResetResult) -> None:
    """Show which machines are bare, and say of each that was not reached what is still on it."""
    rows = [[machine, str(done.changed.get(machine, 0))] for machine in done.machines]
    emit(output, asdict(done), columns=["bare again", "changes"], rows=rows)
    for machine, reason in done.unreached.items():
        say(f"warning: {machine} was not reached ({reason}): it is not bare, though the site no longer counts on it")
        say("  left on it: packages, units, images, models, the cluster's files and its keys to the cluster")
        say(f"  run site reset {machine} when it answers, or install it anew")


def show_status(output: Output, found: SiteStatus) -> None:
    """Show the whole site in one screen."""
    installed = found.installed
    if installed is not None:
        say(f"site {found.site}: {installed.name} {installed.version}, Kubernetes {installed.kubernetes}")
        say(f"installed {installed.at} by {installed.by}")
    else:
        say(f"site {found.site}: nothing is installed")
    rows = [_machine_row(machine) for machine in found.machines]
    emit(output, asdict(found), columns=["machine", "address", "roles", "ready", "version", "units", "problem"], rows=rows)
    say(f"pods: {found.pods - len(found.not_running)} of {found.pods} run")
    for pod in found.not_running:
        say(f"  {pod.namespace}/{pod.name} on {pod.node or 'no node'}: {pod.reason}, {pod.restarts} restarts")
    for model in found.models:
        say(f"model {model.name} {model.version} on {model.machine}: {model.looks}")
    for title, days in (("certificates", found.certificates), ("metadata", found.metadata)):
        if days:
            first = min(days, key=lambda name: days[name])
            say(f"{title}: {len(days)}, the first to end is {first} in {days[first]} days")
    for line in (*(f"warning: {warning}" for warning in found.warnings), *(f"problem: {problem}" for problem in found.problems)):
        say(line)


def _machine_row(machine: MachineStatus) -> list[str]:
    ready = {True: "yes", False: "no", None: "-"}[machine.ready]
    down = [f"{unit.removesuffix('.service')} {state}" for unit, state in machine.units.items() if state != "active"]
    units = ", ".join(down) or f"{len(machine.units)} active"
    return [machine.name, machine.address, ", ".join(machine.roles), ready, machine.version or "-", units, machine.problem]
