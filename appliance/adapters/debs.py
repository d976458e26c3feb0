# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Debian package files, read by the machine's own `dpkg-deb`. Give it only files whose bytes were verified."""

from __future__ import annotations

import subprocess
from pathlib import Path

from appliance.errors import FormatError, HostError

_SECONDS = 60


def control_fields(path: Path) -> str:
    """Return the control paragraph of the package `path`, as it is inside, ended by one line feed.

    Raises:
        HostError: this machine has no dpkg-deb.
        FormatError: not a Debian package.
    """
    try:
        done = subprocess.run(["dpkg-deb", "--field", str(path)], capture_output=True, check=False, timeout=_SECONDS)
    except FileNotFoundError as error:
        raise HostError("dpkg-deb is missing on this machine", hint="run this on Debian 12") from error
    except subprocess.TimeoutExpired as error:
        raise FormatError(f"{path}: dpkg-deb does not come to an end with it", hint="ask the publisher for this package again") from error
    if done.returncode != 0:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise FormatError(f"{path}: not a Debian package: {said[-1] if said else 'no reason given'}", hint="ask the publisher for it again")
    return done.stdout.decode("utf-8", "replace").rstrip("\n") + "\n"
