# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Release files under the upstreams' own addresses and in their forms: plain binaries, tarballs, `.sha256` files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.lab.world import cache, compiling
from tests.lab.world.archive import Item, files, write_archive
from tests.lab.world.recipes import CNI_PLUGINS, CONTAINERD, CRI_TOOLS, DISTRIBUTION, ETCD, HELM, KUBERNETES, RECIPES, Recipe

_FORM = "releases/1"  # rises whenever the same inputs give other bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """One downloadable file: `url` is its upstream address without the scheme."""

    url: str
    upstream: str
    folder: str = ""
    """The folder of the archive that its members lie in."""
    names: tuple[str, ...] = ()
    """The binaries in it; all of the upstream's when empty."""
    plain: bool = False
    """The binary itself instead of an archive; its checksum file then holds the digits alone."""
    checksum: str = ".sha256"
    """What the upstream appends to the address for the file's checksum."""

    @property
    def recipe(self) -> Recipe:
        """The recipe of its binaries."""
        return next(recipe for recipe in RECIPES if recipe.name == self.upstream)

    def key(self) -> str:
        """The hash of all its inputs."""
        return cache.key(_FORM, repr(self), self.recipe.key())

    def build(self) -> ReleaseFile:
        """The file from the cache, or written now."""
        name = self.url.rpartition("/")[2]
        entry = cache.obtain(f"file-{name}", self.key(), lambda folder: self._write(folder / name))
        return ReleaseFile(url=f"https://{self.url}", path=entry / name, checksum=entry / f"{name}.sum", checksum_url=self.checksum)

    def _write(self, target: Path) -> None:
        source = compiling.compiled(self.recipe)
        if self.plain:
            cache.link(source / "bin" / self.names[0], target)
        else:
            write_archive(target, self._members(source), "gzip")
        digits = cache.sha256(target)
        target.with_name(f"{target.name}.sum").write_text(digits if self.plain else f"{digits}  {target.name}\n")

    def _members(self, source: Path) -> tuple[Item, ...]:
        binaries = tuple(
            item for item in files(source / "bin", self.folder) if not self.names or item.path.rpartition("/")[2] in self.names
        )
        licence = source / "LICENSE"
        if not licence.exists() or self.folder == "bin":
            return binaries
        return (*binaries, Item(path=f"{self.folder}/LICENSE".lstrip("/"), mode=0o644, content=licence))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseFile:
    """A file and its upstream address; `checksum` is its `sha256sum` line, at `url + checksum_url`."""

    url: str
    path: Path
    checksum: Path
    checksum_url: str


def releases() -> tuple[Release, ...]:
    """All release files of the lab's upstream world."""
    github = "github.com/{}/releases/download/v{}/{}"
    return (
        *(
            Release(url=f"dl.k8s.io/v{KUBERNETES}/bin/linux/amd64/{name}", upstream="kubernetes", names=(name,), plain=True)
            for name in ("kubeadm", "kubelet", "kubectl")
        ),
        Release(
            url=github.format("containerd/containerd", CONTAINERD, f"containerd-{CONTAINERD}-linux-amd64.tar.gz"),
            upstream="containerd",
            folder="bin",
            checksum=".sha256sum",
        ),
        Release(
            url=github.format("containernetworking/plugins", CNI_PLUGINS, f"cni-plugins-linux-amd64-v{CNI_PLUGINS}.tgz"),
            upstream="cni-plugins",
        ),
        Release(
            url=github.format("kubernetes-sigs/cri-tools", CRI_TOOLS, f"crictl-v{CRI_TOOLS}-linux-amd64.tar.gz"),
            upstream="cri-tools",
            names=("crictl",),
        ),
        Release(
            url=github.format("distribution/distribution", DISTRIBUTION, f"registry_{DISTRIBUTION}_linux_amd64.tar.gz"),
            upstream="distribution",
        ),
        Release(
            url=github.format("etcd-io/etcd", ETCD, f"etcd-v{ETCD}-linux-amd64.tar.gz"),
            upstream="etcd",
            folder=f"etcd-v{ETCD}-linux-amd64",
        ),
        Release(url=f"get.helm.sh/helm-v{HELM}-linux-amd64.tar.gz", upstream="helm", folder="linux-amd64", checksum=".sha256sum"),
    )
