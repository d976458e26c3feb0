# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The images kubeadm 1.36.4 and flannel want, under the upstreams' names, with binaries where the upstreams put them."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import HostError
from tests.lab.world import cache, compiling
from tests.lab.world.archive import Item
from tests.lab.world.debian import ACCOUNTS, PACKAGES, debian_layer
from tests.lab.world.image import DOCKER, BuiltImage, Image, Layer, read_image, write_image
from tests.lab.world.recipes import COREDNS, ETCD, FLANNEL, KUBERNETES, RECIPES

OURS = Path(__file__).resolve().parents[3] / "images"
PAUSE = "3.10.2"
PROTECTED = "nvcr.io/lab/protected:1.0"
"""An image only a registry user with a password gets; it is the pause image under another name."""

_WRITER = "images/5"  # rises whenever the same inputs give other bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """An image before it is built: the upstreams whose binaries it needs, and how it is put together."""

    reference: str
    upstreams: tuple[str, ...]
    files: tuple[Path, ...]
    needs_debian: bool
    make: Callable[[Path], Image]
    """Given a scratch folder, the image."""

    def key(self) -> str:
        """The hash of all its inputs."""
        recipes = {recipe.name: recipe for recipe in RECIPES}
        return cache.key(
            _WRITER,
            self.reference,
            json.dumps(PACKAGES if self.needs_debian else ()),
            *(recipes[name].key() for name in self.upstreams),
            *(path.read_bytes() for path in self.files),
        )

    def build(self) -> BuiltImage:
        """The image from the cache, or written now from binaries that are compiled already or now."""
        name = self.reference.rpartition("/")[2].replace(":", "-")
        entry = cache.obtain(f"image-{name}", self.key(), self._write)
        return read_image(entry / "layout")

    def _write(self, folder: Path) -> None:
        scratch = folder / "scratch"
        scratch.mkdir()
        write_image(self.make(scratch), folder / "layout")
        shutil.rmtree(scratch)


def binary(upstream: str, name: str) -> Path:
    """A compiled binary's path in the cache, compiled now unless it is there."""
    recipe = next(recipe for recipe in RECIPES if recipe.name == upstream)
    return compiling.compiled(recipe) / "bin" / name


def wanted() -> tuple[Wanted, ...]:
    """All images of the lab's upstream world."""
    control = ("kube-apiserver", "kube-controller-manager", "kube-scheduler")
    return (
        *(_kubernetes(name) for name in control),
        _kube_proxy(),
        _static("registry.k8s.io/etcd", f"{ETCD}-0", "etcd", ("etcd", "etcdctl", "etcdutl")),
        _coredns(),
        _pause(f"registry.k8s.io/pause:{PAUSE}"),
        _flannel(),
        _pause(PROTECTED),
    )


def _source(upstream: str) -> dict[str, str]:
    recipe = next(recipe for recipe in RECIPES if recipe.name == upstream)
    return {
        "org.opencontainers.image.source": recipe.module,
        "org.opencontainers.image.version": f"v{recipe.version}",
        "org.opencontainers.image.description": "compiled from the upstream's published Go module; not the upstream's own image",
    }


def _static(repository: str, tag: str, upstream: str, names: tuple[str, ...]) -> Wanted:
    """Static binaries in /usr/local/bin over nothing but accounts, as kubeadm's static pods call them."""

    def make(_: Path) -> Image:
        binaries = tuple(Item(path=f"usr/local/bin/{name}", content=binary(upstream, name)) for name in names)
        return Image(
            reference=f"{repository}:{tag}",
            layers=(
                Layer(items=ACCOUNTS, made_by="accounts", compression="none"),
                Layer(items=binaries, made_by=f"compiled {upstream}: {' '.join(names)}"),
            ),
            entrypoint=(f"/usr/local/bin/{names[0]}",),
            labels=_source(upstream),
        )

    return Wanted(reference=f"{repository}:{tag}", upstreams=(upstream,), files=(), needs_debian=False, make=make)


def _kubernetes(name: str) -> Wanted:
    return _static(f"registry.k8s.io/{name}", f"v{KUBERNETES}", "kubernetes", (name,))


def _kube_proxy() -> Wanted:
    reference = f"registry.k8s.io/kube-proxy:v{KUBERNETES}"

    def make(_: Path) -> Image:
        items = (Item(path="usr/local/bin/kube-proxy", content=binary("kubernetes", "kube-proxy")),)
        return Image(
            reference=reference,
            layers=(debian_layer(), Layer(items=items, made_by="compiled kubernetes: kube-proxy")),
            entrypoint=("/usr/local/bin/kube-proxy",),
            labels=_source("kubernetes"),
        )

    return Wanted(reference=reference, upstreams=("kubernetes",), files=(), needs_debian=True, make=make)


def _coredns() -> Wanted:
    reference = f"registry.k8s.io/coredns/coredns:v{COREDNS}"

    def make(_: Path) -> Image:
        items = (*ACCOUNTS, Item(path="coredns", content=binary("coredns", "coredns")))
        return Image(
            reference=reference,
            layers=(Layer(items=items, made_by="compiled coredns"),),
            entrypoint=("/coredns",),
            user="65532:65532",
            labels=_source("coredns"),
        )

    return Wanted(reference=reference, upstreams=("coredns",), files=(), needs_debian=False, make=make)


def _flannel() -> Wanted:
    reference = f"ghcr.io/flannel-io/flannel:v{FLANNEL}"
    writer = OURS / "flannel" / "gen-conflist"

    def make(_: Path) -> Image:
        ours = Layer(items=(Item(path="opt/bin/gen-conflist", content=writer),), made_by="the appliance's writer of a CNI configuration")
        flanneld = (Item(path="opt/bin/flanneld", content=binary("flannel", "flanneld")),)
        return Image(
            reference=reference,
            layers=(debian_layer(), Layer(items=flanneld, made_by="compiled flannel: flanneld"), ours),
            entrypoint=("/opt/bin/flanneld",),
            labels=_source("flannel") | {"appliance.conflist-writer": "/opt/bin/gen-conflist"},
        )

    return Wanted(reference=reference, upstreams=("flannel",), files=(writer,), needs_debian=True, make=make)


def _pause(reference: str) -> Wanted:
    source = OURS / "pause" / "pause.c"

    def make(scratch: Path) -> Image:
        items = (Item(path="pause", content=_compile_pause(source, scratch)),)
        return Image(
            reference=reference,
            layers=(Layer(items=items, made_by="compiled images/pause"),),
            entrypoint=("/pause",),
            user="65535:65535",
            dialect=DOCKER,
        )

    return Wanted(reference=reference, upstreams=(), files=(source,), needs_debian=False, make=make)


def _compile_pause(source: Path, scratch: Path) -> Path:
    """One static binary.

    Raises:
        HostError: there is no C compiler, or no static C library.
    """
    target = scratch / "pause"
    flags = ["-Os", "-static", "-s", "-Wl,--build-id=none", f'-DVERSION="{PAUSE}"']
    command = ["gcc", *flags, "-o", str(target), source.name]
    try:
        done = subprocess.run(command, cwd=source.parent, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise HostError("expected a C compiler for images/pause, found no gcc", hint="Install the packages gcc and libc6-dev.") from None
    if done.returncode != 0:
        raise HostError(f"gcc could not compile images/pause: {done.stderr.strip()}", hint="Install the package libc6-dev.")
    return target
