# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Where a site keeps things below its state folder, and how they are written: whole or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from appliance.adapters.disk import at, make_directory, write_atomic

PRIVATE_DIRECTORY = 0o700
PRIVATE_FILE = 0o600
PUBLIC_FILE = 0o644


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePlaces:
    """Paths of one site. `state` is `/var/lib/appliance` unless the operator chose another."""

    state: Path

    @property
    def site(self) -> Path:
        """Folder of everything that belongs to the site itself (0700)."""
        return self.state / "site"

    @property
    def accepted(self) -> Path:
        """The site file as it was accepted by `site init`, byte for byte."""
        return self.site / "site.toml"

    @property
    def policy(self) -> Path:
        """The signed site policy (DSSE)."""
        return self.site / "site-policy.json"

    @property
    def known_hosts(self) -> Path:
        """The ssh host keys that were accepted."""
        return self.site / "known_hosts"

    @property
    def keys(self) -> Path:
        """Private keys and their public halves."""
        return self.site / "keys"

    @property
    def authority(self) -> Path:
        """Certificate of the site's own CA (PEM)."""
        return self.site / "ca.crt"

    @property
    def authority_key(self) -> Path:
        """Private key of the site's own CA (PEM, 0600)."""
        return self.keys / "ca.key"

    def certificate(self, name: str) -> Path:
        """Certificate of the service `name` (PEM)."""
        return self.site / "certificates" / f"{name}.crt"

    def certificate_key(self, name: str) -> Path:
        """Private key of the service `name` (PEM, 0600)."""
        return self.site / "certificates" / f"{name}.key"

    @property
    def kubeconfig(self) -> Path:
        """The operator's way into the cluster (0600)."""
        return self.site / "kubeconfig"

    @property
    def installed(self) -> Path:
        """Which release was installed, when and by whom."""
        return self.site / "installed.json"

    @property
    def standing(self) -> Path:
        """What stands on the machines, or may: written before the first change."""
        return self.site / "standing.json"

    @property
    def archives(self) -> Path:
        """What goes to other machines in one piece, made of the store."""
        return self.site / "for-nodes"

    @property
    def lock(self) -> Path:
        """The lock that one command at a time holds."""
        return self.state / "site.lock"

    @property
    def runs(self) -> Path:
        """One private folder for each run of a playbook."""
        return self.site / "runs"

    def trust(self, line: str) -> Path:
        """Folder of the pinned root and the versions last seen of `line`."""
        return self.state / "trust" / line

    def pinned_root(self, line: str) -> Path:
        """The root that a person compared with the paper sheet."""
        return self.trust(line) / "root.json"


def ensure_private(directory: Path) -> None:
    """Make `directory` and those above it, itself readable by its owner only.

    Raises:
        HostError: it cannot be made.
    """
    make_directory(directory, mode=PRIVATE_DIRECTORY)
    with at(directory):
        if directory.stat().st_mode & 0o777 != PRIVATE_DIRECTORY:
            directory.chmod(PRIVATE_DIRECTORY)


def write_if_changed(path: Path, data: bytes, *, mode: int = PUBLIC_FILE) -> bool:
    """Write `data` whole or not at all, unless it is there already; returns whether it wrote.

    Raises:
        HostError: the disk is full or the folder cannot be written.
    """
    with at(path):
        if path.exists() and path.read_bytes() == data:
            return False
    write_atomic(path, data, mode=mode)
    return True
