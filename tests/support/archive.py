# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A small Debian archive: real packages by dpkg-deb, a Release file really signed by gpg, served by `tests.support.registry`."""

from __future__ import annotations

import email.utils
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.registry import Upstream


@dataclass(frozen=True, slots=True, kw_only=True)
class Deb:
    """A package to make; `fields` are further lines of its control file."""

    name: str
    version: str = "1.0"
    architecture: str = "amd64"
    fields: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        plain = self.version.partition(":")[2] or self.version
        return f"pool/main/{self.name[0]}/{self.name}_{plain}_{self.architecture}.deb"


@dataclass(slots=True)
class Archive:
    """An archive below `/<prefix>` of `upstream`, signed by a key of its own."""

    upstream: Upstream
    folder: Path
    gnupg: Path
    prefix: str = "debian"
    origin: str = "Debian"
    debs: dict[str, bytes] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"{self.upstream.url}/{self.prefix}"

    @property
    def keyring(self) -> Path:
        return self.folder / f"{self.prefix}.gpg"

    def publish(self, *debs: Deb, suite: str = "bookworm") -> None:
        """Build `debs` and put them with a signed index under the upstream."""
        stanzas = []
        for deb in debs:
            data = _build(deb, self.folder)
            self.debs[deb.name] = data
            self.upstream.files[f"/{self.prefix}/{deb.path}"] = data
            control = _control(deb)
            stanzas.append(f"{control}Filename: {deb.path}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n")
        self.index("\n".join(stanzas).encode(), suite=suite)

    def index(self, packages: bytes, *, suite: str = "bookworm") -> None:
        """Put `packages` as the index of `suite`, signed."""
        place = "main/binary-amd64/Packages"
        release = (
            f"Origin: {self.origin}\nSuite: oldstable\nCodename: {suite}\nDate: {email.utils.formatdate(usegmt=True)}\n"
            f"Architectures: amd64\nComponents: main\nSHA256:\n {hashlib.sha256(packages).hexdigest()} {len(packages)} {place}\n"
        )
        top = f"/{self.prefix}/dists/{suite}"
        self.upstream.files[f"{top}/{place}"] = packages
        self.upstream.files[f"{top}/InRelease"] = self._gpg(["--clearsign"], release.encode())

    def source(self, *suites: str, extra: str = "") -> str:
        """A stanza of a `.sources` file for it."""
        names = " ".join(suites or ("bookworm",))
        return f"Types: deb\nURIs: {self.url}/\nSuites: {names}\nComponents: main\nSigned-By: {self.keyring}\n{extra}\n"

    def _gpg(self, arguments: Sequence[str], data: bytes = b"") -> bytes:
        command = ["gpg", "--homedir", str(self.gnupg), "--batch", "--quiet", "--no-tty", *arguments]
        return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def _control(deb: Deb) -> str:
    lines = [f"Package: {deb.name}", f"Version: {deb.version}", f"Architecture: {deb.architecture}", "Maintainer: Nobody <n@example.org>"]
    return "\n".join([*lines, *deb.fields, f"Description: {deb.name}"]) + "\n"


def _build(deb: Deb, folder: Path) -> bytes:
    root = folder / f"{deb.name}-root"
    shutil.rmtree(root, ignore_errors=True)
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(_control(deb))
    (root / "usr").mkdir()
    (root / "usr" / deb.name).write_text(f"{deb.name} {deb.version}\n")
    target = folder / "made.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", str(root), str(target)], check=True, capture_output=True)
    return target.read_bytes()


@contextmanager
def archive(upstream: Upstream, folder: Path, *, prefix: str = "debian", origin: str = "Debian") -> Iterator[Archive]:
    """An empty archive with a fresh key. gpg's sockets need a short path, so its folder is not below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpg-", dir="/tmp", ignore_cleanup_errors=True) as gnupg:
        made = Archive(upstream, folder, Path(gnupg), prefix, origin)
        made._gpg(["--passphrase", "", "--quick-generate-key", f"{prefix} archive", "ed25519", "sign", "never"])
        made.keyring.write_bytes(made._gpg(["--export"]))
        try:
            yield made
        finally:
            subprocess.run(["gpgconf", "--homedir", gnupg, "--kill", "all"], check=False, capture_output=True)
