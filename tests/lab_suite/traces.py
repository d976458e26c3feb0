# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Everything on this machine that a lab of a given name may leave behind."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.lab import network
from tests.lab.machines import cgroups, launcher, places, processes


def traces(name: str, state: Path) -> set[str]:
    """One line for each thing found; empty if there is no trace of the lab. Logs and the cached node root are not traces."""
    found = {f"process {pid}" for pid in processes.marked(name) | cgroups.members(name)}
    found |= {str(path) for hierarchy in cgroups.hierarchies() for path in [hierarchy.top / name] if path.exists()}
    found |= {str(path) for path in network.FOLDER.glob(f"lab-{name}-*")}
    found |= {line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(state) in line or f"/lab-{name}-" in line}
    found |= {str(path) for path in launcher.RUNTIME.glob(f"*/{name}-*")}
    found |= {str(path) for path in [state, places.REGISTRATIONS / name] if path.exists() or path.is_symlink()}
    loops = subprocess.run(["losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE"], capture_output=True, text=True, check=True)
    found |= {line for line in loops.stdout.splitlines() if str(state) in line}
    links = subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout
    return found | {line for line in links.splitlines() if f"vb-{name}" in line}
