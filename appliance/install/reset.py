# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`site reset [NODE]`: back to bare machines, or one node out of the cluster. Confirmed by the site's own name.

A single node is drained and forgotten by the cluster first (`playbooks/reset.yml`). What stays: the store, the pinned
root, the site's keys, its known_hosts and policy. `site install` makes it all again.

A machine that does not answer (lost, dead, away) keeps nothing of this up: the cluster forgets it, and the result names it,
for everything is still on its disk. One that shows another host key is refused before anything changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from appliance.adapters import host
from appliance.adapters.disk import at, locked
from appliance.adapters.playbook import PlaybookResult, run_playbook
from appliance.errors import UsageError
from appliance.install import hostkeys, standing
from appliance.install.authority import site_id
from appliance.install.initialise import LOCK_WHAT
from appliance.install.inventory import inventory, site_variables
from appliance.install.operator import take_kubeconfig
from appliance.install.places import SitePlaces
from appliance.install.runs import new_run
from appliance.install.sitefile import Machine, Role, SiteFile
from appliance.install.steps import StepReporter
from appliance.progress import SILENT, Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class ResetResult:
    """Which machines are bare now and what changed on each (tasks); `unreached` are those that are not, and why."""

    machines: tuple[str, ...]
    unreached: dict[str, str]
    changed: dict[str, int]
    seconds: float


def reset(site: SiteFile, places: SitePlaces, *, node: str | None, confirmed: str, progress: Progress = SILENT) -> ResetResult:
    """Make `node`, or without one every machine of the site, bare again.

    Raises:
        UsageError: the confirmation is not the site's name, or the node cannot be reset alone.
        HostError: another command holds the site.
        VerificationError: a machine shows another host key than the accepted one; nothing was changed.
        ToolError: a machine refuses the login, or a step failed; running again resumes.
    """
    if confirmed != site.name:
        raise UsageError(
            f"expected the site's name {site.name!r}, got {confirmed!r}; nothing was changed", hint=f"type {site.name} to confirm"
        )
    machines = _machines(site, node)
    with locked(places.lock, what=LOCK_WHAT):
        unreached = _unreached(site, places, machines)
        bare = tuple(machine.name for machine in machines if machine.name not in unreached)
        lost = tuple(dict.fromkeys((*unreached, *_gone(site, places))))
        done = _run(site, places, bare=bare, lost=[name for name in lost if name not in bare], progress=progress)
        _forget(site, places, node)
    return ResetResult(machines=bare, unreached=unreached, changed=dict(done.changed), seconds=done.seconds)


def _unreached(site: SiteFile, places: SitePlaces, machines: Sequence[Machine]) -> dict[str, str]:
    """Return which of `machines` do not answer, and why, before anything changes."""
    logins = hostkeys.logins(site, places)

    def ask(machine: Machine) -> str:
        with hostkeys.naming_both(machine, places):
            return host.why_silent(logins[machine.name])

    with ThreadPoolExecutor(max_workers=len(machines)) as pool:
        answers = zip(machines, pool.map(ask, machines), strict=True)
        return {machine.name: reason for machine, reason in answers if reason}


def _gone(site: SiteFile, places: SitePlaces) -> tuple[str, ...]:
    """Return the control planes when no cluster is there any more (a machine that was away is made bare later): nobody asks them."""
    with at(places.kubeconfig):
        there = places.kubeconfig.is_file()
    return () if there else tuple(machine.name for machine in site.with_role(Role.CONTROL_PLANE))


def _run(site: SiteFile, places: SitePlaces, *, bare: Sequence[str], lost: Sequence[str], progress: Progress) -> PlaybookResult:
    reporter = StepReporter(progress=progress, width=max(len(machine.name) for machine in site.machines))
    progress.start("reset", unit="tasks")
    try:
        return run_playbook(
            "reset",
            inventory=inventory(site, places),
            variables={**site_variables(site, places, site_id(places)), "reset_machines": list(bare), "reset_lost": list(lost)},
            private_data_dir=new_run(places, "reset"),
            on_event=reporter,
        )
    finally:
        reporter.finish()
        progress.finish()


def _forget(site: SiteFile, places: SitePlaces, node: str | None) -> None:
    if node is not None:
        standing.leave(site, places, node)
        return
    take_kubeconfig(places)
    for path in (places.installed, places.kubeconfig, places.standing):
        with at(path):
            path.unlink(missing_ok=True)


def _machines(site: SiteFile, node: str | None) -> tuple[Machine, ...]:
    if node is None:
        return site.machines
    machine = site.machine(node)
    if machine is None:
        names = ", ".join(found.name for found in site.machines)
        raise UsageError(f"{node}: no machine of this site (it has {names})", hint="name one of them, or none to reset the whole site")
    if Role.DEPOT in machine.roles:
        raise UsageError(f"{node}: the depot is not reset alone", hint="reset the whole site: site reset")
    if Role.CONTROL_PLANE in machine.roles and len(site.with_role(Role.CONTROL_PLANE)) == 1:
        raise UsageError(f"{node}: the only control plane holds the cluster", hint="reset the whole site: site reset")
    return (machine,)
