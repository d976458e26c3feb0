# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The release's charts become Helm releases of the site, in the order of `release.json`; unchanged ones are left alone."""

from __future__ import annotations

from appliance.errors import UsageError
from appliance.install.places import SitePlaces
from appliance.install.sitefile import SiteFile
from appliance.progress import Progress
from appliance.store import Store, StoredRelease


def ensure_charts(site: SiteFile, places: SitePlaces, store: Store, stored: StoredRelease, *, progress: Progress) -> tuple[str, ...]:
    """Install or upgrade what differs; return the names of the Helm releases that changed."""
    del site, places, store, progress
    if stored.bundle.release.charts:
        raise UsageError("charts are not done by this version", hint="use a release without charts")
    return ()
