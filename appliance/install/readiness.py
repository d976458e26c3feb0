# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What preflight measures against: the site's id, the floor of trusted time, and how much disk the release needs."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from datetime import datetime

from appliance.bundle.contents import ContentClass
from appliance.digests import Digest
from appliance.errors import ApplianceError
from appliance.install.authority import site_id
from appliance.install.inventory import KEPT_FREE_GIB
from appliance.install.places import SitePlaces
from appliance.install.preflight import Outlook
from appliance.install.records import read_installed
from appliance.install.releases import installed_release
from appliance.install.sitefile import Machine, Role, SiteFile
from appliance.install.standing import read_standing
from appliance.trust.client import VerifiedBundle
from appliance.trust.clock import parse_instant
from appliance.verify import load_trust

_MIB = 1024**2
_FLOOR = {Role.DEPOT: 512 * _MIB, Role.CONTROL_PLANE: 1536 * _MIB, Role.WORKER: 1024 * _MIB}
"""Bytes needed whatever the release: packages, logs, and etcd on a control plane."""
_UNPACKED = 3
"""An image lies on a node once as it came (compressed) and once unpacked, about twice as large."""


def outlook(site: SiteFile, places: SitePlaces, *, now: datetime, bundle: VerifiedBundle | None) -> Outlook:
    """Return what preflight measures against; `bundle` is the release to install, None while the store is empty.

    Raises:
        HostError: the site was not initialised.
        FormatError, VerificationError: the trust that this site keeps is not what it must be.
    """
    seen = load_trust(places.trust(site.line)).seen
    floor = parse_instant(seen.issued, what="seen.json") if seen is not None else None
    needed = {machine.name: disk_needed(machine, bundle) for machine in site.machines}
    before = _known_there(site, places, bundle)
    grows = {machine.name: disk_grows(machine, bundle, before) for machine in site.machines}
    return Outlook(site_id=site_id(places), now=now, floor=floor, disk_needed=needed, disk_grows=grows)


def _known_there(site: SiteFile, places: SitePlaces, bundle: VerifiedBundle | None) -> VerifiedBundle | None:
    """Return the release that the nodes have in full, as far as anybody knows.

    A run of `bundle` that was cut off has put nobody knows how much of it there already. An older release whose metadata is
    damaged says nothing, and is no reason not to install another.
    """
    begun, installed = read_standing(places, site), read_installed(places)
    if bundle is not None and begun is not None and begun.release == bundle.digest:
        return bundle
    with suppress(ApplianceError):
        return installed_release(places, installed, bundle)
    return None


def disk_needed(machine: Machine, bundle: VerifiedBundle | None) -> int:
    """Return the bytes that an installation puts on `machine`, below /var (on the depot: below the state folder).

    The depot's registry is hard links into the store, so a release costs it nothing again.
    """
    least = max((_FLOOR[role] for role in machine.roles if role in _FLOOR), default=0)
    if not machine.in_cluster:
        return least
    content = _content(machine, bundle, frozenset()) if bundle is not None else 0
    return least + KEPT_FREE_GIB * 1024 * _MIB + content


def disk_grows(machine: Machine, bundle: VerifiedBundle | None, before: VerifiedBundle | None) -> int:
    """Return the bytes that `bundle` puts on `machine`, a node that has all of `before`; what stays of it is not counted.

    Without `before` nobody knows how much is there: 0.
    """
    if bundle is None or before is None or not machine.in_cluster:
        return 0
    grows = _content(machine, bundle, frozenset(blob.digest for part in before.contents.values() for blob in part.blobs))
    return grows + KEPT_FREE_GIB * 1024 * _MIB if grows else 0


def _content(machine: Machine, bundle: VerifiedBundle, there: Collection[Digest]) -> int:
    models = _size(bundle, ContentClass.MODELS, there) if Role.WORKER in machine.roles else 0
    return _UNPACKED * _size(bundle, ContentClass.IMAGES, there) + models


def _size(bundle: VerifiedBundle, content_class: ContentClass, there: Collection[Digest]) -> int:
    return sum(blob.size for blob in bundle.contents[content_class].blobs if blob.digest not in there)
