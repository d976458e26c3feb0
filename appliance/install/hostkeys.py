# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""ssh host keys of a site: shown, accepted once, kept in the site's own known_hosts; checking is never off.

`site/known_hosts` has one line for each machine but the depot: `ADDRESS KIND BASE64`, or `[ADDRESS]:PORT` for another
port than 22, as ssh reads it (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance.adapters import host
from appliance.adapters.disk import read_small
from appliance.adapters.host import HostKey, Login
from appliance.errors import FormatError, HostError, UsageError, VerificationError
from appliance.install.inventory import ssh_options
from appliance.install.places import PRIVATE_FILE, SitePlaces, ensure_private, write_if_changed
from appliance.install.sitefile import Machine, Role, SiteFile

_SSH_PORT = 22
_MAX_EXPECTED = 1024 * 1024
_FINGERPRINT = re.compile(r"SHA256:[A-Za-z0-9+/]{43}")
_CONSOLE = "compare at the machine's own console: ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub"

Scan = Callable[[Machine], Sequence[HostKey]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """A machine that is not known yet and the best key its ssh server shows."""

    machine: Machine
    keys: tuple[HostKey, ...]


def host_name(machine: Machine) -> str:
    """Return the machine's name as known_hosts spells it."""
    return machine.address if machine.ssh_port == _SSH_PORT else f"[{machine.address}]:{machine.ssh_port}"


def logins(site: SiteFile, places: SitePlaces) -> dict[str, Login]:
    """Return how to reach each machine by name; the depot is this machine."""
    options = ssh_options(site, places)
    return {
        machine.name: Login(name=machine.name)
        if Role.DEPOT in machine.roles
        else Login(name=machine.name, address=machine.address, port=machine.ssh_port, user=machine.ssh_user, options=options)
        for machine in site.machines
    }


def read_known(path: Path) -> dict[str, HostKey]:
    """Return the accepted key by known_hosts name; empty when nothing was accepted yet.

    Raises:
        FormatError: a line that `site init` did not write.
        HostError: it cannot be read.
    """
    try:
        text = path.read_text(encoding="ascii")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise HostError(f"{path}: {error}", hint="run it as root, or restore the file") from error
    known: dict[str, HostKey] = {}
    for line in text.splitlines():
        words = line.split()
        key = host.parse_host_key(words[1], words[2]) if len(words) == 3 else None  # noqa: PLR2004 - name, kind, key
        if key is None or words[0] in known:
            raise FormatError(f"{path}: not a line of this file: {line[:60]!r}", hint="restore it, or move it away and run site init again")
        known[words[0]] = key
    return known


def read_expected(path: Path) -> dict[str, frozenset[str]]:
    """Return the expected fingerprints by machine name: lines `NAME SHA256:...`, `#` begins a comment.

    Raises:
        HostError: it cannot be read.
        FormatError: another kind of line.
    """
    try:
        text = read_small(path, limit=_MAX_EXPECTED).decode()
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not text", hint="name a file of lines NAME SHA256:FINGERPRINT") from error
    expected: dict[str, set[str]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 2 or _FINGERPRINT.fullmatch(words[1]) is None:  # noqa: PLR2004 - name, fingerprint
            raise FormatError(f"{path}: line {number} is not NAME SHA256:FINGERPRINT", hint="write it as ssh-keygen -l prints fingerprints")
        expected.setdefault(words[0], set()).add(words[1])
    return {name: frozenset(fingerprints) for name, fingerprints in expected.items()}


def scan(machine: Machine) -> tuple[HostKey, ...]:
    """Ask the machine's ssh server for its keys."""
    return host.scan_host_keys(machine.name, machine.address, machine.ssh_port)


def unknown_machines(site: SiteFile, known: Mapping[str, HostKey], *, scan: Scan = scan) -> tuple[Offered, ...]:
    """Return the machines without an accepted key and what each of them shows, asked at the same time.

    Raises:
        ToolError: one of them does not answer.
        VerificationError: two machines show the same key.
    """
    new = [machine for machine in site.machines if Role.DEPOT not in machine.roles and host_name(machine) not in known]
    with ThreadPoolExecutor(max_workers=max(1, len(new))) as pool:
        found = tuple(Offered(machine=m, keys=tuple(keys)) for m, keys in zip(new, pool.map(scan, new), strict=True))
    owners = {key: name for name, key in known.items()}
    for offered in found:
        for key in offered.keys:
            if key in owners:
                raise VerificationError(
                    f"{offered.machine.name} shows the same host key as {owners[key]} ({key.fingerprint})",
                    hint="one of them is a copy, or both addresses are one machine: give each its own host keys",
                )
            owners[key] = offered.machine.name
    return found


def choose(offered: Sequence[Offered], expected: Mapping[str, frozenset[str]]) -> dict[str, HostKey]:
    """Return the key to accept for each machine: the best of those whose fingerprint was expected.

    Raises:
        UsageError: nothing is expected of a machine.
        VerificationError: a machine shows none of the expected keys.
    """
    chosen = {}
    for one in offered:
        name = one.machine.name
        if name not in expected:
            raise UsageError(f"{name}: no fingerprint is given for it", hint=f"add a line '{name} SHA256:...'; {_CONSOLE}")
        fitting = [key for key in one.keys if key.fingerprint in expected[name]]
        if not fitting:
            raise VerificationError(_mismatch(one.machine, sorted(expected[name]), one.keys), hint=_CONSOLE)
        chosen[host_name(one.machine)] = fitting[0]
    return chosen


def check_expected(site: SiteFile, known: Mapping[str, HostKey], expected: Mapping[str, frozenset[str]]) -> None:
    """Check that every line of a file of fingerprints is about a machine of the site, and agrees with what was accepted before.

    Raises:
        UsageError: a name that is no machine of the site.
        VerificationError: another key than the expected one was accepted for a machine.
    """
    for name, fingerprints in expected.items():
        machine = site.machine(name)
        if machine is None:
            raise UsageError(f"{name}: no machine of the site file", hint="correct its line in the file of fingerprints, or remove it")
        accepted = known.get(host_name(machine))  # None for the depot: no key of this very machine is ever accepted
        if accepted is not None and accepted.fingerprint not in fingerprints:
            raise VerificationError(
                f"{name} ({machine.address}): another ssh host key was accepted before: expected {' or '.join(sorted(fingerprints))}, "
                f"got {accepted.fingerprint} ({accepted.kind})",
                hint=f"{_CONSOLE}; correct the line, or for a machine you rebuilt yourself remove its line from known_hosts",
            )


def check_shown(machine: Machine, known: Mapping[str, HostKey], *, scan: Scan = scan) -> None:
    """After ssh refused a host key: say which was accepted and which is shown now.

    Raises:
        VerificationError: always, unless the machine shows the accepted key by now.
        ToolError: it no longer answers.
    """
    accepted = known.get(host_name(machine))
    if accepted is None:
        raise UsageError(f"{machine.name}: no host key was accepted for it", hint="run site init again; it asks for machines that are new")
    shown = scan(machine)
    if accepted not in shown:
        hint = f"find out who changed it before anything else; {_CONSOLE}"
        raise VerificationError(_mismatch(machine, [accepted.fingerprint], shown), hint=hint)


@contextmanager
def naming_both(machine: Machine, places: SitePlaces) -> Iterator[None]:
    """Where ssh to `machine` refuses a host key in the block, say which was accepted and which is shown now.

    Raises:
        VerificationError: it does, with both fingerprints if the machine still shows another one.
    """
    try:
        yield
    except VerificationError:
        check_shown(machine, read_known(places.known_hosts))
        raise


def _mismatch(machine: Machine, expected: Sequence[str], shown: Sequence[HostKey]) -> str:
    got = ", ".join(f"{key.fingerprint} ({key.kind})" for key in shown)
    return f"{machine.name} ({machine.address}): wrong ssh host key: expected {' or '.join(expected)}, got {got}"


def save_known(places: SitePlaces, known: Mapping[str, HostKey]) -> bool:
    """Write known_hosts, sorted; returns whether that changed anything.

    Raises:
        HostError: it cannot be written.
    """
    ensure_private(places.site)
    text = "".join(f"{name} {key.kind} {key.blob}\n" for name, key in sorted(known.items()))
    return write_if_changed(places.known_hosts, text.encode(), mode=PRIVATE_FILE)
