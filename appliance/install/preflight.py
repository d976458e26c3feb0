# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Preflight: look at all machines at the same time before any change, and change nothing while looking.

On every machine one process runs from a pipe (`nodeprobe`), so nothing is written there. It tells its facts, listens
for a moment on the ports that the cluster will use, and tries the others' ports; then its input ends and it is gone.
"""

from __future__ import annotations

import base64
import importlib.resources
import json
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime

from appliance.adapters.host import Login, Talk, clock_offset, talk
from appliance.errors import HostError, ToolError, VerificationError
from appliance.install import hostkeys
from appliance.install.checks import ROOT, VAR, Check, Seen, State, check, judge, ports_of, targets_of
from appliance.install.facts import Busy, Facts, Reached, check_facts, decode_answer
from appliance.install.places import SitePlaces
from appliance.install.sitefile import Machine, SiteFile
from appliance.progress import SILENT, Progress
from appliance.trust.clock import format_instant

_BOOT = "import base64,sys;exec(compile(base64.b64decode(sys.stdin.readline()),'probe','exec'))"
_FACTS_SECONDS, _CONNECT_SECONDS, _ANSWER_SECONDS = 60.0, 3.0, 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What preflight needs to know beside the site file.

    `site_id` is the id of this site (digest of its CA certificate); `floor` the latest signed moment the site has
    seen; `disk_needed` the bytes each machine must have free when it is bare, `disk_grows` when it is a node already.
    """

    site_id: str
    now: datetime
    floor: datetime | None
    disk_needed: Mapping[str, int]
    disk_grows: Mapping[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Probed:
    machine: Machine
    talk: Talk | None = None
    facts: Facts | None = None
    clock_ahead: float = 0.0
    busy: tuple[str, ...] = ()
    failure: ToolError | None = None


def look(site: SiteFile, places: SitePlaces, outlook: Outlook, *, progress: Progress = SILENT) -> tuple[Check, ...]:
    """Return every check of every machine; one that cannot be asked has one failed check: `login`, `root` or `python`.

    Raises:
        VerificationError: a machine shows another host key than the accepted one.
        UsageError: a machine is new and was not accepted yet.
    """
    logins = hostkeys.logins(site, places)
    _require_accepted(site, places)
    progress.start("look at the machines", total=len(site.machines) * 3, unit="answers")
    with ExitStack() as stack:
        probed = [_Probed(machine=machine) for machine in site.machines]
        for one in probed:
            one.talk = stack.enter_context(talk(logins[one.machine.name], _command(logins[one.machine.name])))
        _each(probed, lambda one: _ask_facts(one, places), progress)
        _name_wrong_keys(places, probed)
        _each(probed, _ask_listen, progress)
        targets = {one.machine.name: _targets(one, site, probed) for one in probed}
        reached: dict[str, Mapping[str, str]] = {}
        _each(probed, lambda one: reached.__setitem__(one.machine.name, _ask_connect(one, targets[one.machine.name])), progress)
    progress.finish()
    seen = [_seen(one, site, reached[one.machine.name], outlook) for one in probed if one.failure is None]
    lost = [_lost(one) for one in probed if one.failure is not None]
    return (*lost, _clock_floor(site, outlook), *judge(site, seen, site_id=outlook.site_id))


def failed(checks: Sequence[Check]) -> tuple[Check, ...]:
    """Return the checks that stop an installation."""
    return tuple(found for found in checks if found.state is State.FAIL)


def refuse_failed(checks: Sequence[Check]) -> None:
    """Stop when any check failed.

    Raises:
        HostError: with the first failure and how many there are.
    """
    bad = failed(checks)
    if not bad:
        return
    first = bad[0]
    more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
    raise HostError(
        f"{first.machine}: {first.name}: expected {first.expected}, got {first.measured}{more}; nothing was changed",
        hint=f"{first.fix}; site check shows every check",
    )


def _require_accepted(site: SiteFile, places: SitePlaces) -> None:
    known = hostkeys.read_known(places.known_hosts)
    for offered in site.machines:
        if offered is not site.depot and hostkeys.host_name(offered) not in known:
            hostkeys.check_shown(offered, known)


def _command(login: Login) -> tuple[str, ...]:
    words = ("/usr/bin/python3", "-I", "-S", "-B", "-c", _BOOT)
    return words if login.user == "root" else ("sudo", "-n", *words)


def _script() -> bytes:
    return base64.b64encode(importlib.resources.files("appliance.install").joinpath("nodeprobe.py").read_bytes())


def _each(probed: Sequence[_Probed], work: Callable[[_Probed], object], progress: Progress) -> None:
    """Do `work` for every machine that still answers, all at the same time."""

    def attempt(one: _Probed) -> None:
        try:
            work(one)
        except ToolError as error:
            one.failure = error
        progress.advance(1)

    with ThreadPoolExecutor(max_workers=len(probed)) as pool:
        list(pool.map(attempt, [one for one in probed if one.failure is None]))


def _ask(one: _Probed, request: Mapping[str, object], *, seconds: float = _ANSWER_SECONDS) -> bytes:
    if one.talk is None:
        raise ToolError(f"{one.machine.name}: no connection", step=f"look at {one.machine.name}", hint="run it again")
    return one.talk.ask(json.dumps(request).encode(), seconds=seconds)


def _ask_facts(one: _Probed, places: SitePlaces) -> None:
    paths = [ROOT, VAR, str(places.state)]
    request = {"do": "facts", "address": one.machine.address, "paths": paths}
    line = _script() + b"\n" + json.dumps(request).encode()
    if one.talk is None:
        raise ToolError(f"{one.machine.name}: no connection", step=f"look at {one.machine.name}", hint="run it again")
    try:
        answer = one.talk.ask(line, seconds=_FACTS_SECONDS)
    except VerificationError as error:
        # Named with both fingerprints when every machine has answered; the thread only notes it.
        one.failure = ToolError(error.message, step="host key", hint=error.hint)
        return
    facts = decode_answer(answer, Facts, machine=one.machine.name)
    check_facts(facts, paths, machine=one.machine.name)
    one.facts = facts
    one.clock_ahead = clock_offset(one.talk, json.dumps({"do": "clock"}).encode())


def _name_wrong_keys(places: SitePlaces, probed: Sequence[_Probed]) -> None:
    known = hostkeys.read_known(places.known_hosts)
    for one in probed:
        if one.failure is not None and one.failure.step == "host key":
            hostkeys.check_shown(one.machine, known)
            raise VerificationError(one.failure.message, hint=one.failure.hint)


def _ask_listen(one: _Probed) -> None:
    answer = _ask(one, {"do": "listen", "address": one.machine.address, "ports": ports_of(one.machine)})
    one.busy = decode_answer(answer, Busy, machine=one.machine.name).busy


def _targets(one: _Probed, site: SiteFile, probed: Sequence[_Probed]) -> tuple[str, ...]:
    """Return what to try: ports of the peers that answer, no UDP port that is in use there, and what lies outside."""
    silent = {other.machine.address for other in probed if other.failure is not None}
    deaf = {f"udp/{other.machine.address}:{port.partition('/')[2]}" for other in probed for port in other.busy if port.startswith("udp/")}
    wanted = [t for t in targets_of(one.machine, site) if t not in deaf and t.partition("/")[2].rpartition(":")[0] not in silent]
    return (*wanted, *(f"tcp/{target}" for target in site.outside))


def _ask_connect(one: _Probed, targets: Sequence[str]) -> Mapping[str, str]:
    answer = _ask(one, {"do": "connect", "seconds": _CONNECT_SECONDS, "targets": list(targets)})
    return decode_answer(answer, Reached, machine=one.machine.name).results


def _seen(one: _Probed, site: SiteFile, reached: Mapping[str, str], outlook: Outlook) -> Seen:
    if one.facts is None:
        raise ToolError(f"{one.machine.name}: no facts", step=f"look at {one.machine.name}", hint="run it again")
    beyond = {f"tcp/{target}" for target in site.outside}
    return Seen(
        machine=one.machine,
        facts=one.facts,
        clock_ahead=one.clock_ahead,
        reached={target: why for target, why in reached.items() if target not in beyond},
        outside={target: why for target, why in reached.items() if target in beyond},
        disk_needed=outlook.disk_needed.get(one.machine.name, 0),
        disk_grows=outlook.disk_grows.get(one.machine.name, 0),
    )


_NO_PYTHON = re.compile(r"python3\S*: (command )?not found|python3\S*: No such file", re.IGNORECASE)
_NO_ROOT = re.compile(r"sudo: ")


def _lost(one: _Probed) -> Check:
    """Return the one check of a machine that could not be asked, by what it said instead."""
    failure = one.failure
    reason = failure.message if failure is not None else ""
    if _NO_PYTHON.search(reason):
        return check(one.machine.name, "python", False, reason, "3.7 or newer")
    if _NO_ROOT.search(reason):
        return check(one.machine.name, "root", False, reason, "root, or sudo without a password")
    lost = check(one.machine.name, "login", False, reason, "a login that needs no password and says nothing of its own")
    return replace(lost, fix=failure.hint) if failure is not None and failure.hint else lost


def _clock_floor(site: SiteFile, outlook: Outlook) -> Check:
    measured = format_instant(outlook.now)
    if outlook.floor is None:
        return check(site.depot.name, "clock-floor", True, measured, "no signed moment seen yet")
    return check(site.depot.name, "clock-floor", outlook.now >= outlook.floor, measured, f"not before {format_instant(outlook.floor)}")
