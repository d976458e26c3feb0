# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The whole connected side at once: registries, file server, and the files that point the product at them."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.world import fileserver, registry, tokens
from tests.lab.world.building import World, build
from tests.lab.world.images import PROTECTED
from tests.lab.world.tls import Certificates, issue

TOKEN_HOST = tokens.SERVICE
PASSWORD_HOST = PROTECTED.partition("/")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """A running connected side. Everything it writes lies below `directory`."""

    directory: Path
    world: World
    registries: Mapping[str, str]
    """For each upstream host the `127.0.0.1:PORT` it is served at; repositories are called `<upstream host>/<name>`.
    As upstream: registry.k8s.io is open, ghcr.io wants a bearer token anybody gets, nvcr.io the password of `docker_config`."""
    files: str
    """`https://127.0.0.1:PORT`; paths are `/<upstream host>/<path>`."""
    ca: Path
    """The PEM certificate all of them are signed by."""
    mirrors: Path
    """`mirrors.toml`, format `mirrors/1`."""
    docker_config: Path
    """A docker `config.json`; its folder does as `DOCKER_CONFIG`."""

    @property
    def registry(self) -> str:
        """The address that serves registry.k8s.io."""
        return self.registries["registry.k8s.io"]


@contextmanager
def upstream(directory: Path) -> Iterator[Upstream]:
    """Build what is missing, serve all of it on loopback, and stop it again. `directory` may be used again, not shared.

    Raises:
        HostError: this machine cannot compile what is missing.
        ToolError: Go, apt or a registry failed.
    """
    world = build()
    certificates = issue(directory / "tls")
    server = world.binaries / "distribution" / "registry"
    with ExitStack() as stack:
        files = stack.enter_context(fileserver.serving(fileserver.tree(world.files), directory / "files.log", certificates))
        addresses = {}
        for host in sorted({_host(image.reference) for image in world.images}):
            folder = directory / "registries" / host
            shutil.rmtree(folder, ignore_errors=True)
            registry.seed(folder / "data", tuple(image for image in world.images if _host(image.reference) == host))
            auth = _door(host, folder, files, certificates)
            addresses[host] = stack.enter_context(registry.serving(server, folder, certificates, auth)).address
        mirrors = directory / "mirrors.toml"
        mirrors.write_text(_mirrors(addresses, files, certificates.ca, world))
        yield Upstream(
            directory=directory,
            world=world,
            registries=addresses,
            files=files,
            ca=certificates.ca,
            mirrors=mirrors,
            docker_config=_docker_config(directory / "docker", addresses[PASSWORD_HOST]),
        )


def _host(reference: str) -> str:
    return reference.partition("/")[0]


def _door(host: str, folder: Path, files: str, certificates: Certificates) -> dict[str, object] | None:
    """Who may use the host's registry, in distribution's words."""
    if host == TOKEN_HOST:
        return tokens.registry_settings(files, certificates)
    return registry.password(folder) if host == PASSWORD_HOST else None


def _mirrors(addresses: Mapping[str, str], files: str, ca: Path, world: World) -> str:
    """`mirrors.toml`: one table for each upstream host. JSON strings are TOML strings."""
    lines = ['format = "mirrors/1"']
    for host, address in addresses.items():
        lines += ["", f"[registries.{json.dumps(host)}]", f"location = {json.dumps(f'{address}/{host}')}", f"ca = {json.dumps(str(ca))}"]
    for host in sorted({file.url.split("/")[2] for file in world.files}):
        location = f"{files}/{host}/"
        lines += ["", f"[files.{json.dumps(f'https://{host}/')}]", f"location = {json.dumps(location)}", f"ca = {json.dumps(str(ca))}"]
    return "\n".join(lines) + "\n"


def _docker_config(folder: Path, address: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / "config.json"
    path.touch(mode=0o600)
    login = base64.b64encode(f"{registry.USER}:{registry.PASSWORD}".encode()).decode()
    path.write_text(json.dumps({"auths": {address: {"auth": login}}}, indent=1) + "\n")
    return path
