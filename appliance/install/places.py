# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Where a site keeps things below its state folder, and how they are written: whole or not at all."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import HostError

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
    try:
        directory.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)
        directory.chmod(PRIVATE_DIRECTORY)
    except OSError as error:
        raise HostError(f"{directory}: {error.strerror}", hint="run it as root, or name another folder with --state") from error


def write_whole(path: Path, data: bytes, *, mode: int = PUBLIC_FILE) -> None:
    """Write `data` to `path` so that after a crash either the old or the new bytes are there; flushed to disk.

    Raises:
        HostError: the disk is full or the folder cannot be written.
    """
    pending = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        handle = os.open(pending, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
        with os.fdopen(handle, "wb") as stream:
            os.fchmod(handle, mode)
            stream.write(data)
            stream.flush()
            os.fsync(handle)
        pending.replace(path)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        pending.unlink(missing_ok=True)
        raise HostError(f"{path}: {error.strerror}", hint="make room or correct its permissions, then run it again") from error


def write_if_changed(path: Path, data: bytes, *, mode: int = PUBLIC_FILE) -> bool:
    """As `write_whole`, but leaves equal bytes alone; returns whether it wrote.

    Raises:
        HostError: as `write_whole`.
    """
    try:
        if path.read_bytes() == data:
            return False
    except FileNotFoundError:
        pass
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}", hint="correct its permissions, then run it again") from error
    write_whole(path, data, mode=mode)
    return True
