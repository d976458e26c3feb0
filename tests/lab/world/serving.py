# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The whole connected side at once: registries, file server, and the files that point the product at them."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.world import fileserver, registry
from tests.lab.world.building import World, build
from tests.lab.world.images import PROTECTED
from tests.lab.world.tls import issue


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """A running connected side. Everything it writes lies below `directory`."""

    directory: Path
    world: World
    registry: str
    """`127.0.0.1:PORT`; repositories are called `<upstream host>/<name>`."""
    protected_registry: str
    """The same for nvcr.io, which wants the password of `docker_config`."""
    files: str
    """`https://127.0.0.1:PORT`; paths are `/<upstream host>/<path>`."""
    ca: Path
    """The PEM certificate all of them are signed by."""
    mirrors: Path
    """`mirrors.toml`, format `mirrors/1`."""
    docker_config: Path
    """A docker `config.json`; its folder does as `DOCKER_CONFIG`."""


@contextmanager
def upstream(directory: Path) -> Iterator[Upstream]:
    """Build what is missing, serve all of it on loopback, and stop it again. `directory` may be used again, not shared.

    Raises:
        HostError: this machine cannot compile what is missing.
        ToolError: Go, apt or a registry failed.
    """
    world = build()
    for name in ("registry", "protected"):
        shutil.rmtree(directory / name, ignore_errors=True)
        (directory / name).mkdir(parents=True)
    certificates = issue(directory / "tls")
    guarded = tuple(image for image in world.images if image.reference == PROTECTED)
    registry.seed(directory / "registry" / "data", tuple(image for image in world.images if image not in guarded))
    registry.seed(directory / "protected" / "data", guarded)
    server = world.binaries / "distribution" / "registry"
    with ExitStack() as stack:
        plain = stack.enter_context(registry.serving(server, directory / "registry", certificates, password=False))
        protected = stack.enter_context(registry.serving(server, directory / "protected", certificates, password=True))
        paths = fileserver.tree(world.files)
        files = stack.enter_context(fileserver.serving(paths, directory / "files.log", certificates))
        mirrors = directory / "mirrors.toml"
        mirrors.write_text(_mirrors(plain.address, protected.address, files, certificates.ca, world))
        yield Upstream(
            directory=directory,
            world=world,
            registry=plain.address,
            protected_registry=protected.address,
            files=files,
            ca=certificates.ca,
            mirrors=mirrors,
            docker_config=_docker_config(directory / "docker", protected.address),
        )


def _mirrors(plain: str, protected: str, files: str, ca: Path, world: World) -> str:
    """`mirrors.toml`: one table for each upstream host. JSON strings are TOML strings."""
    lines = ['format = "mirrors/1"']
    for host in sorted({image.reference.partition("/")[0] for image in world.images}):
        address = protected if host == PROTECTED.partition("/")[0] else plain
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
