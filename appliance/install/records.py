# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What an installation leaves behind for later commands: which release stands here, since when, by whom."""

from __future__ import annotations

from typing import ClassVar

from appliance.adapters.disk import at, read_small
from appliance.bundle.documents import Document, Sha256, decode, encode
from appliance.install.places import PRIVATE_FILE, SitePlaces, write_if_changed

_MAX_BYTES = 64 * 1024


class Installed(Document, frozen=True, kw_only=True):
    """`site/installed.json`: written when an installation has ended well, and again only for another release."""

    FORMAT: ClassVar[str] = "installed/1"

    site: str
    release: Sha256
    name: str
    version: str
    kubernetes: str
    at: str
    by: str


def read_installed(places: SitePlaces) -> Installed | None:
    """Return what was installed, None before the first time and after a reset.

    Raises:
        FormatError: the file is not what was written.
        HostError: it cannot be read.
    """
    with at(places.installed):
        if not places.installed.is_file():
            return None
    return decode(read_small(places.installed, limit=_MAX_BYTES), Installed, what=str(places.installed))


def write_installed(places: SitePlaces, record: Installed) -> bool:
    """Write `record`, unless the same release is recorded already; returns whether it wrote.

    Raises:
        HostError: it cannot be written.
    """
    before = read_installed(places)
    if before is not None and before.release == record.release:
        return False
    return write_if_changed(places.installed, encode(record), mode=PRIVATE_FILE)
