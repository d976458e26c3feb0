# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: INP001, TID251 - a program of its own, run on machines
"""Says whether a unit runs on what is written; runs on a machine with Python's standard library alone and changes nothing.

Arguments: the unit, then the files its process read when it started. Prints `absent` (there is no such unit), `reload` (systemd read an
older unit file) and `restart` (the process is older than one of the files), each on a line of its own, or nothing. It looks at what
is, not at what this run did, so a run that was cut off between writing a file and restarting is made good by the next.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path


def judge(properties: str, files: Sequence[Path], now: float) -> list[str]:
    """Return the words for what `systemctl show --timestamp=us+utc` printed at the time `now`."""
    shown = dict(line.split("=", 1) for line in properties.splitlines() if "=" in line)
    if shown["LoadState"] == "not-found":
        return ["absent"]
    found = ["reload"] if shown["NeedDaemonReload"] == "yes" else []
    if shown["ActiveState"] in {"active", "activating", "reloading"} and shown["ExecMainStartTimestamp"]:
        started = datetime.strptime(shown["ExecMainStartTimestamp"], "%a %Y-%m-%d %H:%M:%S.%f %Z").replace(tzinfo=UTC)
        written = [path.stat().st_mtime for path in files]
        # A start that lies in the future says nothing of what was written since: the clock was ahead then, or was set back.
        if started.timestamp() > now or any(moment > started.timestamp() for moment in written):
            found.append("restart")
    return found


def main() -> None:
    """Ask systemd and print the words."""
    wanted = "--property=LoadState,ActiveState,NeedDaemonReload,ExecMainStartTimestamp"
    done = subprocess.run(["systemctl", "show", "--timestamp=us+utc", wanted, sys.argv[1]], capture_output=True, text=True, check=True)
    print("\n".join(judge(done.stdout, [Path(name) for name in sys.argv[2:]], time.time())))


if __name__ == "__main__":
    main()
