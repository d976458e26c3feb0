# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`site install`: from a complete release in the store to a cluster that is well. Running it again resumes, or changes nothing.

The order is the guarantee: (1) every byte that will be needed is hashed in the store, (2) every machine is looked at,
and only then (3) the first change is made. Nothing is fetched from anywhere but the depot.
"""

from __future__ import annotations

import getpass
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

from appliance.adapters.disk import locked
from appliance.adapters.nodearchives import archive_variables
from appliance.adapters.parallel import default_workers
from appliance.adapters.playbook import run_playbook
from appliance.errors import HostError, VerificationError
from appliance.install import charting, preflight, readiness, standing
from appliance.install.authority import ensure_authority, ensure_certificate, site_id
from appliance.install.checks import Check, State
from appliance.install.cluster import cluster_of, own_namespaces, wait_until_well
from appliance.install.initialise import LOCK_WHAT
from appliance.install.inventory import ReleaseInputs, inventory, variables
from appliance.install.operator import give_kubeconfig
from appliance.install.places import SitePlaces
from appliance.install.plan import check_release, release_inputs
from appliance.install.records import Installed, write_installed
from appliance.install.runs import new_run
from appliance.install.sitefile import SiteFile
from appliance.install.steps import StepReporter
from appliance.progress import SILENT, Progress
from appliance.store import Store, StoredRelease
from appliance.store.packages import package_repository
from appliance.store.registry import registry_tree
from appliance.trust.clock import format_instant, parse_instant, trusted_now
from appliance.verify import load_trust
from appliance.verify.blobs import verify_blobs

WELL_SECONDS = 180.0
"""How long nodes and pods may take to be well after the last change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallResult:
    """What an installation did: tasks that changed something by machine, Helm releases that changed, seconds by phase."""

    release: StoredRelease
    changed: Mapping[str, int]
    charts: tuple[str, ...]
    phases: Mapping[str, float]
    warnings: tuple[Check, ...]
    pods: int


@dataclass(slots=True, kw_only=True)
class _Phases:
    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.progress.finish()
            self.seconds[name] = time.monotonic() - began


def install(site: SiteFile, places: SitePlaces, *, now: datetime, progress: Progress = SILENT) -> InstallResult:
    """Make the cluster of `site` from the release imported last.

    Raises:
        VerificationError: a blob is missing or damaged, a machine shows another host key; nothing was changed.
        HostError: a machine is unfit, the clock is behind, the store is empty, another command holds the site.
        FormatError: the release cannot make a cluster.
        UsageError: the release has another Kubernetes than the cluster that stands, or what this version does not do.
        ToolError: a step failed; the message has machine, step and cause; running again resumes.
    """
    with locked(places.lock, what=LOCK_WHAT):
        phases = _Phases(progress=progress)
        store = Store(places.state)
        with phases.phase("verify the release in the store"):
            standing.refuse_other_kubernetes(places, site, store.release().bundle.release.kubernetes)
            stored = verified_release(store, site, now=now, progress=progress)
            wanted = charting.charts_wanted(site, store, stored)
        with phases.phase("look at the machines"):
            outlook = readiness.outlook(site, places, now=now, bundle=stored.bundle)
            checks = preflight.look(site, places, outlook, progress=progress)
            preflight.refuse_failed(checks)
        with phases.phase("link registry and packages"):
            inputs = release_inputs(
                store, stored, registry_tree=registry_tree(store, stored), packages_repo=package_repository(store, stored)
            )
            ensure_authority(site, places, now=now)
            ensure_certificate("registry", site, places, addresses=[site.depot.address], now=now)
        standing.begin(site, places, kubernetes=stored.bundle.release.kubernetes, release=stored.digest)
        with phases.phase("machines"):
            changed = _run(site, places, inputs, progress)
        with phases.phase("charts"):
            progress.start("charts", unit="charts")
            charts = charting.ensure(wanted, places)
        with phases.phase("wait until all is well"):
            progress.start("wait until all is well", unit="pods")
            ours = own_namespaces(stored.bundle.release.charts)
            pods = wait_until_well(site, cluster_of(places), namespaces=ours, seconds=WELL_SECONDS, progress=progress)
        give_kubeconfig(places)
        write_installed(places, _record(site, stored, now))
    warnings = tuple(check for check in checks if check.state is not State.PASS)
    return InstallResult(release=stored, changed=changed, charts=charts, phases=phases.seconds, warnings=warnings, pods=len(pods))


def verified_release(store: Store, site: SiteFile, *, now: datetime, progress: Progress) -> StoredRelease:
    """Return the release imported last, after every byte of it was hashed again. Changes nothing.

    Raises:
        HostError: the store is empty, or the clock is behind what was signed.
        VerificationError: it is of another line, incomplete or damaged.
        FormatError: it cannot make a cluster.
    """
    stored = store.release()
    if stored.bundle.line != site.line:
        raise VerificationError(
            f"the release in the store is of line {stored.bundle.line!r}, the site follows {site.line!r}",
            hint="read media of the site's line",
        )
    seen = load_trust(store.trust_of(site.line)).seen
    floor = parse_instant(seen.issued, what="seen.json") if seen is not None else None
    trusted_now(now, floor=max(filter(None, (floor, stored.bundle.issued))))
    check_release(stored)
    findings = verify_blobs(store.blobs, stored.bundle.blobs, workers=default_workers(), strangers=False, progress=progress)
    if findings:
        more = f" and {len(findings) - 1} more" if len(findings) > 1 else ""
        raise VerificationError(
            f"{findings[0]}{more}; nothing was changed", hint="run store verify: it names every such blob and what to do"
        )
    return stored


def _run(site: SiteFile, places: SitePlaces, inputs: ReleaseInputs, progress: Progress) -> Mapping[str, int]:
    reporter = StepReporter(progress=progress, width=max(len(machine.name) for machine in site.machines))
    progress.start("machines", unit="tasks")
    given = variables(site, places, site_id(places), inputs)
    archives = archive_variables(given, places.archives)
    try:
        done = run_playbook(
            "site",
            inventory=inventory(site, places),
            variables={**given, **archives},
            private_data_dir=new_run(places, "install"),
            on_event=reporter,
        )
    finally:
        reporter.finish()
    if not places.kubeconfig.is_file():
        raise HostError(f"{places.kubeconfig}: the installation left no kubeconfig", hint="run site install again")
    return done.changed


def _record(site: SiteFile, stored: StoredRelease, now: datetime) -> Installed:
    release = stored.bundle.release
    return Installed(
        format=Installed.FORMAT,
        site=site.name,
        release=stored.digest,
        name=release.name,
        version=release.version,
        kubernetes=release.kubernetes,
        at=format_instant(now),
        by=getpass.getuser(),
    )
