# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A real registry: the compiled CNCF distribution, TLS, read-only, its storage tree written by hard links instead of pushes."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import ToolError
from tests.lab.world import cache
from tests.lab.world.image import BuiltImage
from tests.lab.world.tls import Certificates

USER = "lab"
PASSWORD = "lab-registry-7f3a91c2"
_HTPASSWD = f"{USER}:$2b$05$EoO5Mhbazs8MXLfvror73.nbR5lWc0TP4F7ITWDVb2E0oWMUoXwhi\n"  # the password's bcrypt hash
_UP_WITHIN = 20.0
_PORTS_TRIED = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """A running registry; `address` is `127.0.0.1:PORT`."""

    address: str
    folder: Path
    pid: int


def seed(storage: Path, images: tuple[BuiltImage, ...]) -> None:
    """Write distribution's storage layout for `images` below `storage`, each under its reference with the host in front."""
    top = storage / "docker" / "registry" / "v2"
    for image in images:
        name, _, tag = image.reference.rpartition(":")
        repository = top / "repositories" / name
        for digest in image.blobs:
            hexadecimal = digest.removeprefix("sha256:")
            data = top / "blobs" / "sha256" / hexadecimal[:2] / hexadecimal / "data"
            if not data.exists():
                cache.link(image.blob(digest), data)
        for digest in (image.config, *image.layers):
            _link(repository / "_layers", digest)
        for digest in (image.index, image.manifest):
            _link(repository / "_manifests" / "revisions", digest)
        current = repository / "_manifests" / "tags" / tag / "current" / "link"
        current.parent.mkdir(parents=True, exist_ok=True)
        current.write_text(image.index)
        _link(repository / "_manifests" / "tags" / tag / "index", image.index)


def _link(folder: Path, digest: str) -> None:
    path = folder / digest.replace(":", "/") / "link"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(digest)


def password(folder: Path) -> dict[str, object]:
    """The `auth` part of a registry that only USER with PASSWORD may use; its file goes into `folder`."""
    htpasswd = folder / "htpasswd"
    htpasswd.write_text(_HTPASSWD)
    return {"htpasswd": {"realm": "lab", "path": str(htpasswd)}}


@contextmanager
def serving(binary: Path, folder: Path, certificates: Certificates, auth: Mapping[str, object] | None = None) -> Iterator[Registry]:
    """Run a registry over `folder/data` on a free loopback port; `auth` is that part of distribution's configuration.

    Raises:
        ToolError: it did not come up; its log's end is in the message.
    """
    process, address = _start(binary, folder, certificates, auth)
    try:
        yield Registry(address=address, folder=folder, pid=process.pid)
    finally:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _start(
    binary: Path, folder: Path, certificates: Certificates, auth: Mapping[str, object] | None
) -> tuple[subprocess.Popen[bytes], str]:
    log = folder / "registry.log"
    for _ in range(_PORTS_TRIED):
        address = f"127.0.0.1:{_free_port()}"
        config = folder / "config.yml"
        config.write_text(json.dumps(_settings(folder, address, certificates, auth), indent=1))
        with log.open("wb") as stream:
            command = ["setpriv", "--pdeathsig", "TERM", str(binary), "serve", str(config)]
            process = subprocess.Popen(command, stdout=stream, stderr=stream, env=os.environ | {"OTEL_TRACES_EXPORTER": "none"})
        if _answers(process, address, certificates):
            return process, address
        if process.poll() is None:
            process.kill()
        process.wait()
        if "address already in use" not in log.read_text(errors="replace"):
            break
    tail = log.read_text(errors="replace")[-1500:]
    raise ToolError(f"the registry did not answer within {_UP_WITHIN:.0f} s: {tail}", step="start the registry", hint=f"Read {log}.")


def _settings(folder: Path, address: str, certificates: Certificates, auth: Mapping[str, object] | None) -> dict[str, object]:
    """distribution's configuration; JSON is YAML."""
    settings: dict[str, object] = {
        "version": 0.1,
        "log": {"level": "warn"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}, "maintenance": {"readonly": {"enabled": True}}},
        "http": {"addr": address, "tls": {"certificate": str(certificates.certificate), "key": str(certificates.key)}},
    }
    return settings | {"auth": auth} if auth else settings


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _answers(process: subprocess.Popen[bytes], address: str, certificates: Certificates) -> bool:
    """Wait until the registry speaks its protocol (200, or 401 where it wants a password); False when it ended or never did."""
    trust = ssl.create_default_context(cafile=str(certificates.ca))
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust))
    until = time.monotonic() + _UP_WITHIN
    while time.monotonic() < until and process.poll() is None:
        try:
            with opener.open(f"https://{address}/v2/", timeout=2):
                return True
        except urllib.error.HTTPError as answer:
            answer.close()
            return answer.code == 401
        except OSError:
            time.sleep(0.02)
    return False
