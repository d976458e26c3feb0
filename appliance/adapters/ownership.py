# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Whether folders and files that decide what a site believes are this machine's own: no link, and no one else may write."""

from __future__ import annotations

import stat
from collections.abc import Iterable
from pathlib import Path

from appliance.adapters import disk
from appliance.errors import HostError

_OTHERS = 0o022


def require_own(paths: Iterable[Path], *, links: bool = False) -> None:
    """Refuse those of `paths` that group or others may write to, and symbolic links; what is missing is no fault.

    `links` accepts a symbolic link and judges what it leads to.

    Raises:
        HostError: the first such path.
    """
    for path in paths:
        try:
            with disk.at(path):
                status = path.stat() if links else path.lstat()
        except HostError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                continue
            raise
        if stat.S_ISLNK(status.st_mode):
            raise HostError(
                f"{path}: a symbolic link, expected the folder or file itself",
                hint="put the folder itself there; to keep it on another disk, mount that disk there",
            )
        if status.st_mode & _OTHERS:
            raise HostError(
                f"{path}: others may write there (mode {stat.S_IMODE(status.st_mode):04o})",
                hint=f"look who wrote there, then take the right away: chmod go-w {path}",
            )
