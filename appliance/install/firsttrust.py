# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""First trust: the publication's root that a person compared with the paper sheet becomes this site's pin.

The root comes from inside `install.pyz`, which the sheet's typed command verified, or from `--root FILE`; never from a
bundle. Once pinned it is never replaced: later roots come by the chain from N to N+1 alone (docs/bundle-format.md 4.4).
"""

from __future__ import annotations

import importlib.resources
from dataclasses import dataclass
from pathlib import Path

from tuf.api.metadata import Root

from appliance.adapters.disk import read_small
from appliance.errors import UsageError, VerificationError
from appliance.install.places import SitePlaces
from appliance.trust.clock import format_instant
from appliance.trust.roles import MAX_BYTES, line_of
from appliance.trust.summary import fingerprint
from appliance.verify import check_root, pin_root

INSIDE = ("data", "root.json")
"""Where an installer has the publication's root, below the package."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedRoot:
    """A root that could be pinned: `fingerprint` is the SHA-256 of its file, as the paper sheet prints it."""

    data: bytes
    line: str
    version: int
    fingerprint: str
    expires: str
    keys: int


def read_root(data: bytes, *, what: str) -> OfferedRoot:
    """Return what the root in `data` says, after checking that it is whole and signed by its own keys.

    Raises:
        FormatError: not a root.
        VerificationError: not signed by its own threshold, or its keys break the rules.
    """
    root = check_root(data, what=what)
    return OfferedRoot(
        data=data,
        line=line_of(root, what=what),
        version=root.version,
        fingerprint=fingerprint(data),
        expires=format_instant(root.expires),
        keys=len(root.roles["root"].keyids),
    )


def read_root_file(path: Path | None) -> OfferedRoot:
    """Return the root in the file `path`; without one, the root that the installer carries inside itself.

    Raises:
        HostError: it cannot be read.
        UsageError: no file is named and this is not an installer.
        FormatError, VerificationError: as `read_root`.
    """
    if path is not None:
        return read_root(read_small(path, limit=MAX_BYTES[Root]), what=str(path))
    inside = importlib.resources.files("appliance").joinpath(*INSIDE)
    if not inside.is_file():
        raise UsageError(
            "this appliance carries no root inside itself", hint="run the installer from the medium, or name the root: --root root.json"
        )
    return read_root(inside.read_bytes(), what="the installer's root.json")


def check_pin(offered: OfferedRoot, places: SitePlaces, *, line: str) -> bool:
    """Return whether `offered` is pinned already.

    Raises:
        VerificationError: it is of another line, or another root is pinned.
    """
    if offered.line != line:
        raise VerificationError(
            f"the root is of line {offered.line!r}, the site file follows line {line!r}",
            hint="use the installer of the line that the site file names, or correct the site file",
        )
    path = places.pinned_root(line)
    if not path.exists():
        return False
    pinned = read_small(path, limit=MAX_BYTES[Root])
    if pinned != offered.data:
        raise VerificationError(
            f"another root is pinned for line {line!r}: expected {fingerprint(pinned)}, got {offered.fingerprint}",
            hint="a pinned root is never replaced; use the installer that this site began with, newer roots come with its bundles",
        )
    return True


def pin(offered: OfferedRoot, places: SitePlaces) -> bool:
    """Write the root as this site's pin, unless it is; returns whether it wrote.

    Raises:
        VerificationError: another root is pinned.
        HostError: it cannot be written.
    """
    if check_pin(offered, places, line=offered.line):
        return False
    pin_root(places.state / "trust", offered.data)
    return True
