# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Put a folder of this host into a running machine, as if a stick were plugged in.

A process clones the folder's mount, makes the clone read-only, enters the machine's mount namespace and attaches it there: the host's own
mount table never changes, so nothing is left to undo if anything dies. Run as `python -m tests.lab.machines.media PID SOURCE POINT MODE`.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
# Numbers from the kernel's <asm/unistd.h>, <linux/mount.h>, <linux/fcntl.h> and <linux/sched.h>; the first three are equal on all architectures.
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 4
_AT_FDCWD, _AT_EMPTY_PATH = -100, 0x1000
_RDONLY, _NOSUID, _NODEV = 1, 2, 4
_CLONE_NEWNS = 0x00020000


def _checked(result: int, what: str) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), what)
    return result


def attach(pid: int, source: Path, point: Path, *, writable: bool) -> None:
    """Attach `source` at `point` in the mount namespace of `pid`. This process stays in that namespace: it must end afterwards."""
    tree = _checked(_LIBC.syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(source), _OPEN_TREE_CLONE | os.O_CLOEXEC), f"clone {source}")
    wanted = _NOSUID | _NODEV | (0 if writable else _RDONLY)
    attributes = struct.pack("QQQQ", wanted, 0, 0, 0)
    _checked(_LIBC.syscall(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, attributes, len(attributes)), "make it read-only")
    with Path(f"/proc/{pid}/ns/mnt").open() as namespace:
        _checked(_LIBC.setns(namespace.fileno(), _CLONE_NEWNS), f"enter the mount namespace of {pid}")
    point.mkdir(parents=True, exist_ok=True)
    _checked(_LIBC.syscall(_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(point), _MOVE_MOUNT_F_EMPTY_PATH), f"attach at {point}")


if __name__ == "__main__":
    attach(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), writable=sys.argv[4] == "writable")
