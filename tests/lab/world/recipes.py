# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What is compiled: one recipe per upstream, each with its own go.mod and go.sum under tests/lab/go.

Tags and version variables are those of the upstreams' own release builds, so that versions, skew checks and default
capabilities read the same. Commit and date are constants: a Go module carries neither.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.lab.world import cache

GO = Path(__file__).resolve().parent.parent / "go"

KUBERNETES = "1.36.4"
CONTAINERD = "2.2.3"
ETCD = "3.6.16"
CNI_PLUGINS = "1.9.1"
COREDNS = "1.14.2"
FLANNEL = "0.28.4"
CRI_TOOLS = "1.36.0"
DISTRIBUTION = "3.1.1"
HELM = "3.21.4"

NO_COMMIT = "0" * 40
NO_DATE = "1970-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One upstream: `commands` maps a binary's name to its main package; `variables` are linker -X settings."""

    name: str
    version: str
    module: str
    """The Go module whose version is `v<version>` and whose licence travels with the binaries."""
    commands: tuple[tuple[str, str], ...]
    variables: tuple[tuple[str, str], ...] = ()
    tags: tuple[str, ...] = ()
    cgo: bool = False
    """Needs a C compiler; linked statically all the same, so that no machine's C library matters."""
    expected_seconds: int
    """Cold on two cores, for the estimate that is printed; no input of the key."""

    @property
    def ldflags(self) -> str:
        """The linker's flags: stripped, no build id, version variables."""
        static = ["-linkmode external", "-extldflags -static"] if self.cgo else []
        return " ".join(["-s", "-w", "-buildid=", *static, *(f"-X {name}={value}" for name, value in self.variables)])

    @property
    def folder(self) -> Path:
        """The folder with go.mod and go.sum."""
        return GO / self.name

    def key(self) -> str:
        """The cache key: everything that decides the bytes, apart from the Go toolchain's own patch version."""
        inputs = {name: value for name, value in asdict(self).items() if name != "expected_seconds"}
        return cache.key(
            "go/1",
            json.dumps(inputs, sort_keys=True),
            self.ldflags,
            (self.folder / "go.mod").read_bytes(),
            (self.folder / "go.sum").read_bytes(),
        )


def _under(prefix: str, *names: str) -> tuple[tuple[str, str], ...]:
    """Commands whose binary is called as the last element of their package."""
    return tuple((name.rsplit("/", 1)[-1], f"{prefix}/{name}") for name in names)


_KUBERNETES_VERSION = {
    "gitVersion": f"v{KUBERNETES}",
    "gitMajor": "1",
    "gitMinor": KUBERNETES.split(".")[1],
    "gitTreeState": "clean",
    "gitCommit": NO_COMMIT,
    "buildDate": NO_DATE,
}

RECIPES: tuple[Recipe, ...] = (
    Recipe(
        name="kubernetes",
        version=KUBERNETES,
        module="k8s.io/kubernetes",
        commands=_under(
            "k8s.io/kubernetes/cmd",
            "kubeadm",
            "kubelet",
            "kubectl",
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
            "kube-proxy",
        ),
        variables=tuple(
            (f"{package}.{name}", value)
            for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
            for name, value in _KUBERNETES_VERSION.items()
        ),
        tags=("selinux", "notest", "grpcnotrace"),
        expected_seconds=340,
    ),
    Recipe(
        name="containerd",
        version=CONTAINERD,
        module="github.com/containerd/containerd/v2",
        commands=_under("github.com/containerd/containerd/v2/cmd", "containerd", "ctr", "containerd-shim-runc-v2"),
        variables=(("github.com/containerd/containerd/v2/version.Version", f"v{CONTAINERD}"),),
        tags=("no_aufs", "no_zfs", "no_btrfs", "no_devmapper"),
        expected_seconds=55,
    ),
    Recipe(
        name="etcd",
        version=ETCD,
        module="go.etcd.io/etcd/server/v3",
        commands=(
            ("etcd", "go.etcd.io/etcd/server/v3"),
            ("etcdctl", "go.etcd.io/etcd/etcdctl/v3"),
            ("etcdutl", "go.etcd.io/etcd/etcdutl/v3"),
        ),
        expected_seconds=30,
    ),
    Recipe(
        name="cni-plugins",
        version=CNI_PLUGINS,
        module="github.com/containernetworking/plugins",
        commands=_under(
            "github.com/containernetworking/plugins/plugins",
            "ipam/dhcp",
            "ipam/host-local",
            "ipam/static",
            "main/bridge",
            "main/dummy",
            "main/host-device",
            "main/ipvlan",
            "main/loopback",
            "main/macvlan",
            "main/ptp",
            "main/tap",
            "main/vlan",
            "meta/bandwidth",
            "meta/firewall",
            "meta/portmap",
            "meta/sbr",
            "meta/tuning",
            "meta/vrf",
        ),
        variables=(("github.com/containernetworking/plugins/pkg/utils/buildversion.BuildVersion", f"v{CNI_PLUGINS}"),),
        expected_seconds=15,
    ),
    Recipe(
        name="coredns",
        version=COREDNS,
        module="github.com/coredns/coredns",
        commands=(("coredns", "github.com/coredns/coredns"),),
        expected_seconds=105,
    ),
    Recipe(
        name="flannel",
        version=FLANNEL,
        module="github.com/flannel-io/flannel",
        commands=(("flanneld", "github.com/flannel-io/flannel"),),
        variables=(("github.com/flannel-io/flannel/pkg/version.Version", f"v{FLANNEL}"),),
        tags=("netgo", "osusergo"),
        cgo=True,  # its udp backend does not compile without
        expected_seconds=65,
    ),
    Recipe(
        name="cri-tools",
        version=CRI_TOOLS,
        module="sigs.k8s.io/cri-tools",
        commands=(("crictl", "sigs.k8s.io/cri-tools/cmd/crictl"),),
        variables=(("sigs.k8s.io/cri-tools/pkg/version.Version", f"v{CRI_TOOLS}"),),
        expected_seconds=30,
    ),
    Recipe(
        name="distribution",
        version=DISTRIBUTION,
        module="github.com/distribution/distribution/v3",
        commands=(("registry", "github.com/distribution/distribution/v3/cmd/registry"),),
        variables=(("github.com/distribution/distribution/v3/version.version", f"v{DISTRIBUTION}"),),
        expected_seconds=75,
    ),
    Recipe(
        name="helm",
        version=HELM,
        module="helm.sh/helm/v3",
        commands=(("helm", "helm.sh/helm/v3/cmd/helm"),),
        variables=(
            ("helm.sh/helm/v3/internal/version.version", f"v{HELM}"),
            ("helm.sh/helm/v3/internal/version.gitTreeState", "clean"),
            # what `helm template` and `helm lint` take for the cluster's version: that of the client-go inside
            *(
                (f"helm.sh/helm/v3/pkg/{package}.k8sVersion{part}", number)
                for package in ("chartutil", "lint/rules")
                for part, number in (("Major", "1"), ("Minor", "36"))
            ),
        ),
        expected_seconds=60,
    ),
)
