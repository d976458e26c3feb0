# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Trusted time: a clock is believed only if it is not behind what is already proven (docs/bundle-format.md section 4.6).

The floor is the latest signed moment this site has seen: the highest `x-issued` of a verified timestamp.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from appliance.errors import FormatError, HostError

_INSTANT = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z", re.ASCII)


def format_instant(moment: datetime) -> str:
    """Return `moment` as `YYYY-MM-DDTHH:MM:SSZ` (UTC, whole seconds)."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def parse_instant(text: object, *, what: str) -> datetime:
    """Return the moment that `text` writes as `YYYY-MM-DDTHH:MM:SSZ`; `what` names it in errors.

    Raises:
        FormatError: any other form.
    """
    try:
        if isinstance(text, str) and _INSTANT.fullmatch(text):
            return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        pass
    raise FormatError(f"{what}: expected a time such as 2026-11-23T06:31:00Z, got {str(text)[:40]!r}", hint="carry the bundle again")


def trusted_now(clock: datetime, *, floor: datetime | None) -> datetime:
    """Return `clock` if it is not behind `floor`.

    Raises:
        HostError: the clock is behind a moment that a signature proves to have passed.
    """
    if floor is not None and clock < floor:
        raise HostError(
            f"this machine's clock says {format_instant(clock)}, but {format_instant(floor)} has already passed by a signed statement",
            hint="set this machine's clock (timedatectl set-time), then run the same command again; "
            "if it is right, the publisher's clock was wrong: ask them",
        )
    return clock
