# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The site policy: what this site is, signed by the site key with a rising serial (docs/bundle-format.md section 3).

An in-toto Statement v1 in a DSSE envelope. Its subject is the accepted site file by digest; its predicate, of type
`PREDICATE_SITE_POLICY`, repeats what others need to judge: networks, machines, ranges, strictness and epoch. It is
signed again, with the next serial, when and only when the site file changes.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec

from appliance.adapters.disk import read_small
from appliance.bundle.documents import Record, encode
from appliance.bundle.formats import PREDICATE_SITE_POLICY, STATEMENT, STATEMENT_PAYLOAD
from appliance.digests import digest_of, hex_of
from appliance.errors import FormatError, VerificationError
from appliance.install.places import PUBLIC_FILE, SitePlaces, write_if_changed
from appliance.install.sitefile import SiteFile
from appliance.install.sitekeys import site_keys, site_signers
from appliance.trust.clock import format_instant
from appliance.trust.envelope import open_own, seal

FORMAT: Final = "site-policy/1"
EPOCH_SECONDS: Final = 15
"""One observation's interval."""
_MAX_POLICY_BYTES = 4 * 1024 * 1024
_HINT = "run site init with the site file again; it signs what is true now"


class PolicyNetwork(Record, frozen=True, kw_only=True):
    """A network of the site and who is on it."""

    name: str
    cidr: str
    network_class: str = msgspec.field(name="class")


class PolicyMachine(Record, frozen=True, kw_only=True):
    """A machine of the site."""

    name: str
    address: str
    roles: tuple[str, ...]


class SitePolicy(Record, frozen=True, kw_only=True):
    """The predicate. `serial` rises by one with each change; `issued` is when it was signed; `epoch` in seconds."""

    format: str
    serial: int
    issued: str
    site: str
    site_id: str
    line: str
    accelerator: str
    networks: tuple[PolicyNetwork, ...]
    machines: tuple[PolicyMachine, ...]
    pod_cidr: str
    service_cidr: str
    strict_egress: bool
    outside: tuple[str, ...]
    epoch: int


class _Subject(Record, frozen=True, kw_only=True):
    name: str
    digest: dict[str, str]


class _Statement(Record, frozen=True, kw_only=True, rename={"type_": "_type", "predicate_type": "predicateType"}):
    type_: str
    predicate_type: str
    subject: tuple[_Subject, ...]
    predicate: SitePolicy


def ensure_policy(site: SiteFile, data: bytes, places: SitePlaces, *, site_id: str, now: datetime) -> tuple[int, bool]:
    """Sign the policy of the site file in `data` unless it is signed already; return its serial and whether it signed.

    Raises:
        HostError: it cannot be written.
        FormatError, VerificationError: the policy that is there is not this site's.
    """
    before = _open(places) if places.policy.is_file() else None
    if before is not None and before.subject == _subject(data):
        return before.predicate.serial, False
    serial = before.predicate.serial + 1 if before is not None else 1
    predicate = _predicate(site, site_id=site_id, serial=serial, now=now)
    statement = _Statement(type_=STATEMENT, predicate_type=PREDICATE_SITE_POLICY, subject=_subject(data), predicate=predicate)
    envelope = seal(STATEMENT_PAYLOAD, encode(statement), site_signers(places))
    write_if_changed(places.policy, envelope, mode=PUBLIC_FILE)
    return serial, True


def open_policy(places: SitePlaces, data: bytes) -> SitePolicy:
    """Return the policy, signed by both site keys for exactly the site file in `data`.

    Raises:
        VerificationError: it was signed for other bytes, or not by the site key.
        FormatError: it is malformed.
        HostError: it is missing.
    """
    statement = _open(places)
    if statement.subject != _subject(data):
        signed = statement.subject[0].digest.get("sha256", "")
        raise VerificationError(
            f"{places.accepted}: its digest is {hex_of(digest_of(data))}, the site policy was signed for {signed}", hint=_HINT
        )
    return statement.predicate


def _subject(data: bytes) -> tuple[_Subject, ...]:
    return (_Subject(name="site.toml", digest={"sha256": hex_of(digest_of(data))}),)


def _open(places: SitePlaces) -> _Statement:
    what = str(places.policy)
    keys = {key.keyid: key for key in site_keys(places)}
    envelope = read_small(places.policy, limit=_MAX_POLICY_BYTES)
    opened = open_own(envelope, payload_type=STATEMENT_PAYLOAD, keys=keys, threshold=len(keys), what=what)
    try:
        statement = msgspec.json.decode(opened.payload, type=_Statement)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise FormatError(f"{what}: not a site policy: {error}", hint=_HINT) from error
    if (statement.type_, statement.predicate_type) != (STATEMENT, PREDICATE_SITE_POLICY) or not statement.subject:
        raise FormatError(f"{what}: {statement.predicate_type!r} is not a site policy", hint=_HINT)
    if statement.predicate.format != FORMAT:
        raise FormatError(f"{what}: format {statement.predicate.format!r}, expected {FORMAT!r}", hint="use the appliance that signed it")
    return statement


def _predicate(site: SiteFile, *, site_id: str, serial: int, now: datetime) -> SitePolicy:
    return SitePolicy(
        format=FORMAT,
        serial=serial,
        issued=format_instant(now),
        site=site.name,
        site_id=site_id,
        line=site.line,
        accelerator=site.accelerator.value,
        networks=tuple(PolicyNetwork(name=n.name, cidr=n.cidr, network_class=n.network_class.value) for n in site.networks),
        machines=tuple(PolicyMachine(name=m.name, address=m.address, roles=tuple(r.value for r in m.roles)) for m in site.machines),
        pod_cidr=site.network.pod_cidr,
        service_cidr=site.network.service_cidr,
        strict_egress=site.strict_egress,
        outside=site.outside,
        epoch=EPOCH_SECONDS,
    )
