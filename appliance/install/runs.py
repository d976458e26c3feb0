# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A private folder for each run of a playbook; the last ones are kept for reading, older ones removed."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

from appliance.adapters.disk import at
from appliance.adapters.leftovers import end_leftovers
from appliance.adapters.playbook import scrub_run
from appliance.install.places import SitePlaces, ensure_private

KEPT = 20


def new_run(places: SitePlaces, name: str) -> Path:
    """Return a new private folder `site/runs/<time>-<name>`; all but the last twenty are removed.

    Called under the site's lock: processes that a killed run left behind are ended first, so that two runs never meet, and
    what such a run could not remove any more (variables, copies of secrets) is removed, as a run that ends does.

    Raises:
        HostError: it cannot be made.
    """
    ensure_private(places.runs)
    end_leftovers(places.runs)
    with at(places.runs):
        earlier = sorted(path for path in places.runs.iterdir() if path.is_dir())
        for old in earlier[: -KEPT + 1]:
            shutil.rmtree(old, ignore_errors=True)
        for old in earlier[-KEPT + 1 :]:
            scrub_run(old)
    folder = places.runs / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{name}"
    ensure_private(folder)
    return folder
