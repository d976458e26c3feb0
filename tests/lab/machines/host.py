# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Settings of the host that the lab needs, all kernel-wide: raised with the first lab, given back with the last.

kubelet itself sets the first group (and would leave it set); the second is what more than one kubelet and containerd need.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

from tests.lab.machines import places
from tests.lab.machines.processes import run

WRITTEN_BY_KUBELET = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)
AT_LEAST = {"fs/inotify/max_user_instances": 1024, "fs/inotify/max_user_watches": 524288}
# Built in on some kernels; where they are modules a machine cannot load them itself.
MODULES = ("br_netfilter", "overlay", "nf_tables", "nft_masq", "vxlan", "veth", "loop")
SYSCTL = Path("/proc/sys")


def _memory() -> Path:
    return places.REGISTRATIONS / ".settings.json"


def prepare(*, lab: str) -> None:
    with places.locked(places.REGISTRATIONS / ".settings.lock"):
        if not _memory().exists():
            before = {name: (SYSCTL / name).read_text() for name in (*WRITTEN_BY_KUBELET, *AT_LEAST) if (SYSCTL / name).exists()}
            pending = _memory().with_suffix(".new")
            pending.write_text(json.dumps(before))
            pending.replace(_memory())
        for name, least in AT_LEAST.items():
            if int((SYSCTL / name).read_text()) < least:
                (SYSCTL / name).write_text(str(least))
        if shutil.which("modprobe"):
            run(["modprobe", "--all", "--quiet", *MODULES], lab=lab, check=False)


def give_back_settings(*, lab: str) -> None:
    """Restore the settings if `lab` was the last one."""
    if not places.REGISTRATIONS.is_dir():
        return
    with places.locked(places.REGISTRATIONS / ".settings.lock"):
        if any(other != lab for other in places.all_registered()) or not _memory().exists():
            return
        for name, value in json.loads(_memory().read_text()).items():
            if (SYSCTL / name).read_text() != value:
                (SYSCTL / name).write_text(value)
        _memory().unlink()
    with contextlib.suppress(OSError):
        (places.REGISTRATIONS / ".settings.lock").unlink()
        places.REGISTRATIONS.rmdir()
