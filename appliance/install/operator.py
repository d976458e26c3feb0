# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The operator's way in: `kubectl` on the depot finds the site's kubeconfig without being told."""

from __future__ import annotations

from pathlib import Path

from appliance.adapters.disk import at
from appliance.install.places import PRIVATE_FILE, SitePlaces, ensure_private


def give_kubeconfig(places: SitePlaces, *, home: Path | None = None) -> bool:
    """Link `~/.kube/config` to the site's kubeconfig, unless something is there; returns whether it linked.

    Raises:
        HostError: the link cannot be made.
    """
    link = (home or Path.home()) / ".kube" / "config"
    with at(places.kubeconfig):
        if places.kubeconfig.stat().st_mode & 0o777 != PRIVATE_FILE:
            places.kubeconfig.chmod(PRIVATE_FILE)
    if link.exists() or link.is_symlink():
        return False
    if not link.parent.is_dir():
        ensure_private(link.parent)
    with at(link):
        link.symlink_to(places.kubeconfig)
    return True


def take_kubeconfig(places: SitePlaces, *, home: Path | None = None) -> bool:
    """Remove the link that `give_kubeconfig` made, and nothing else; returns whether it did.

    Raises:
        HostError: the link cannot be removed.
    """
    link = (home or Path.home()) / ".kube" / "config"
    with at(link):
        if not link.is_symlink() or link.readlink() != places.kubeconfig:
            return False
        link.unlink()
    return True
