# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The release that a site would install, the one its store imported last; and the one that stands."""

from __future__ import annotations

from appliance.digests import hex_of
from appliance.install.places import SitePlaces
from appliance.install.records import Installed
from appliance.store import CURRENT, Store
from appliance.trust.client import VerifiedBundle


def newest(places: SitePlaces) -> VerifiedBundle | None:
    """Return the release imported last, None while the store has none.

    Raises:
        VerificationError, FormatError, HostError: what lies there was changed since the import.
    """
    store = Store(places.state)
    if not (store.releases_folder / CURRENT).is_dir():
        return None
    return store.release().bundle


def installed_release(places: SitePlaces, installed: Installed | None, newest_one: VerifiedBundle | None) -> VerifiedBundle | None:
    """Return the release that stands, None when nothing is installed or the store no longer has it.

    Raises:
        VerificationError, FormatError, HostError: what lies there was changed since the import.
    """
    if installed is None or newest_one is None or newest_one.digest == installed.release:
        return newest_one if installed is not None else None
    store = Store(places.state)
    if not (store.releases_folder / hex_of(installed.release)).is_dir():
        return None
    return store.release(installed.release).bundle
