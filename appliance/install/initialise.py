# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`site init`: look first, show, and only what a person accepted is written. A second time changes nothing.

`offer` reads and asks and writes nothing; the command line shows what it found; `accept` writes, last of all the site
file itself, so that an interrupted run is simply not accepted yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from appliance.adapters import host
from appliance.adapters.disk import at, locked, read_small
from appliance.adapters.host import HostKey
from appliance.errors import HostError, UsageError, VerificationError
from appliance.install import hostkeys
from appliance.install.authority import ensure_authority, site_id
from appliance.install.checks import OS
from appliance.install.firsttrust import OfferedRoot, check_pin, pin
from appliance.install.hostkeys import Offered, Scan
from appliance.install.places import PRIVATE_FILE, SitePlaces, ensure_private, write_if_changed
from appliance.install.policy import ensure_policy, open_policy
from appliance.install.sitefile import MAX_SITE_BYTES, SiteFile, load_site, parse_site
from appliance.install.sitekeys import make_site_keys
from appliance.install.siterules import PLAIN_PATH, check_done, check_site
from appliance.install.standing import refuse_edits

LOCK_WHAT = "the site"
_ARCHITECTURE = "x86_64"


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What `site init` would accept: the site file, the root (already pinned or not), the machines that are new."""

    site: SiteFile
    data: bytes
    root: OfferedRoot
    pinned: bool
    known: Mapping[str, HostKey]
    new: tuple[Offered, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Initialised:
    """What `site init` wrote (empty the second time) and the policy's serial."""

    changed: tuple[str, ...]
    serial: int


def offer(path: Path, places: SitePlaces, root: OfferedRoot, *, scan: Scan = hostkeys.scan) -> Offer:
    """Return what there is to accept. Writes nothing.

    Raises:
        FormatError: the site file is malformed or breaks a rule.
        UsageError: it names something that this version does not do, or what the standing cluster cannot follow.
        HostError: this machine runs a system that no depot runs, or the state folder belongs to another site.
        VerificationError: another root is pinned, or two machines show one host key.
        ToolError: a machine does not answer.
    """
    _refuse_other_system()
    site, data = load_site(path)
    check_site(site)
    check_done(site)
    _refuse_odd_state(places.state)
    _refuse_other_site(site, places)
    pinned = check_pin(root, places, line=site.line)
    names = {hostkeys.host_name(machine) for machine in site.machines}
    known = {name: key for name, key in hostkeys.read_known(places.known_hosts).items() if name in names}
    new = hostkeys.unknown_machines(site, known, scan=scan)
    return Offer(site=site, data=data, root=root, pinned=pinned, known=known, new=new)


def accept(found: Offer, chosen: Mapping[str, HostKey], places: SitePlaces, *, now: datetime) -> Initialised:
    """Write what was accepted: pin, keys, CA, known_hosts, policy and the site file.

    `chosen` has the accepted key of every new machine by its known_hosts name.

    Raises:
        UsageError: a new machine's key was not accepted.
        HostError: the state folder cannot be written, or another command holds the site.
    """
    if missing := [one.machine.name for one in found.new if hostkeys.host_name(one.machine) not in chosen]:
        raise UsageError(
            f"{missing[0]}: its host key was not accepted", hint="accept every machine's key, or take the machine out of the site file"
        )
    ensure_private(places.site)
    with locked(places.lock, what=LOCK_WHAT):
        changed = [f"root of line {found.site.line}"] if pin(found.root, places) else []
        changed += [f"key {name}" for name in make_site_keys(places)]
        changed += ["site CA certificate"] if ensure_authority(found.site, places, now=now) else []
        changed += ["known_hosts"] if hostkeys.save_known(places, {**found.known, **chosen}) else []
        serial, signed = ensure_policy(found.site, found.data, places, site_id=site_id(places), now=now)
        changed += [f"site policy, serial {serial}"] if signed else []
        changed += ["site file"] if write_if_changed(places.accepted, found.data, mode=PRIVATE_FILE) else []
    return Initialised(changed=tuple(changed), serial=serial)


def load_accepted(places: SitePlaces, *, written: Path | None = None) -> SiteFile:
    """Return the accepted site file, after checking that the site key signed exactly these bytes.

    `written` is the file that people edit: if it says something else, nothing goes on before it is accepted.

    Raises:
        HostError: `site init` was not run yet.
        UsageError: the written file differs from the accepted one.
        VerificationError: the accepted file is not what the site policy was signed for.
    """
    if not _is_accepted(places):
        raise HostError(f"{places.site}: no site here yet", hint="run site init SITE.toml first")
    data = read_small(places.accepted, limit=MAX_SITE_BYTES)
    policy = open_policy(places, data)
    site = parse_site(data, what=str(places.accepted))
    if (policy.site, policy.line) != (site.name, site.line):
        raise VerificationError("the site policy is of another site", hint="run site init with the site file again")
    check_site(site)
    check_done(site)
    if written is not None and read_small(written, limit=MAX_SITE_BYTES) != data:
        raise UsageError(f"{written} has changed since it was accepted", hint=f"run site init {written} to accept it, or restore it")
    return site


def _refuse_other_system() -> None:
    """Refuse a depot that preflight would refuse later, before keys are made on it."""
    found = host.own_system()
    if found != (*OS, _ARCHITECTURE):
        raise HostError(
            f"this machine runs {' '.join(filter(None, found)) or 'an unknown system'}, expected {' '.join(OS)} {_ARCHITECTURE}",
            hint="make a machine with Debian 12 (amd64) the depot and run site init there",
        )


def _is_accepted(places: SitePlaces) -> bool:
    with at(places.accepted):  # the folder is root's: whoever forgot sudo is told so
        return places.accepted.is_file()


def _refuse_other_site(site: SiteFile, places: SitePlaces) -> None:
    if not _is_accepted(places):
        return
    there = parse_site(read_small(places.accepted, limit=MAX_SITE_BYTES), what=str(places.accepted))
    if (there.name, there.line) != (site.name, site.line):
        raise HostError(
            f"{places.state} holds the state of site {there.name!r} (line {there.line!r}), not of {site.name!r} (line {site.line!r})",
            hint="name this site's own state folder with --state, or correct the site file",
        )
    refuse_edits(site, places, there)


def _refuse_odd_state(state: Path) -> None:
    """Refuse a state folder whose name ssh and others would take for several words or something to expand."""
    if PLAIN_PATH.fullmatch(str(state.absolute())) is None:
        raise UsageError(
            f"{str(state)!r}: not a state folder, expected a path of letters, digits and . _ + @ = , -",
            hint="name another one with --state",
        )
