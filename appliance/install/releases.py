# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The release that a site would install: the one its store imported last."""

from __future__ import annotations

from appliance.install.places import SitePlaces
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
