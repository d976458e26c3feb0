# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`site reset [NODE]`: back to bare machines, or one node out of the cluster. Confirmed by the site's own name.

A single node is drained and forgotten by the cluster first (`playbooks/reset.yml`). What stays: the store, the pinned
root, the site's keys, its known_hosts and policy. `site install` makes it all again.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.adapters.disk import at, locked
from appliance.adapters.playbook import run_playbook
from appliance.errors import UsageError
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
    """Which machines are bare now and what changed on each (tasks)."""

    machines: tuple[str, ...]
    changed: dict[str, int]
    seconds: float


def reset(site: SiteFile, places: SitePlaces, *, node: str | None, confirmed: str, progress: Progress = SILENT) -> ResetResult:
    """Make `node`, or without one every machine of the site, bare again.

    Raises:
        UsageError: the confirmation is not the site's name, or the node cannot be reset alone.
        HostError: another command holds the site.
        ToolError: a machine or a step failed; running again resumes.
    """
    if confirmed != site.name:
        raise UsageError(
            f"expected the site's name {site.name!r}, got {confirmed!r}; nothing was changed", hint=f"type {site.name} to confirm"
        )
    machines = _machines(site, node)
    with locked(places.lock, what=LOCK_WHAT):
        reporter = StepReporter(progress=progress, width=max(len(machine.name) for machine in site.machines))
        progress.start("reset", unit="tasks")
        variables = {**site_variables(site, places, site_id(places)), "reset_machines": [machine.name for machine in machines]}
        try:
            done = run_playbook(
                "reset",
                inventory=inventory(site, places),
                variables=variables,
                private_data_dir=new_run(places, "reset"),
                on_event=reporter,
            )
        finally:
            reporter.finish()
            progress.finish()
        if node is None:
            take_kubeconfig(places)
            for path in (places.installed, places.kubeconfig):
                with at(path):
                    path.unlink(missing_ok=True)
    return ResetResult(machines=tuple(machine.name for machine in machines), changed=dict(done.changed), seconds=done.seconds)


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
