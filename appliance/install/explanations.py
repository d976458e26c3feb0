# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Every preflight check by name: why it is made and what to do when it fails. Text only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a check is made, and what to do (imperative)."""

    why: str
    fix: str


EXPLANATIONS: dict[str, Explanation] = {
    "login": Explanation("everything is done over ssh", "let the ssh user log in with a key of the depot"),
    "root": Explanation("packages, units and kernel settings need root", "set ssh_user to root, or let that user sudo without a password"),
    "python": Explanation("Ansible runs Python on the machine", "install Debian's python3"),
    "os": Explanation("the packages in the release are made for one system", "install Debian 12 on it"),
    "architecture": Explanation("the images and files in the release are amd64", "use an x86-64 machine"),
    "kernel": Explanation("kube-proxy in nftables mode needs Linux 5.13", "run Debian 12's own kernel"),
    "systemd": Explanation("containerd, kubelet and the registry are systemd units", "boot the machine with systemd"),
    "cpu": Explanation("kubeadm refuses less than two CPUs", "give the machine two CPUs or more"),
    "memory": Explanation("kubeadm refuses less than 1700 MB", "give the machine more memory"),
    "swap": Explanation("the kubelet does not start while swap is on", "run swapoff -a and take swap out of /etc/fstab"),
    "cgroups": Explanation("containers are held by these controllers", "enable the controllers on the kernel's command line"),
    "kernel-features": Explanation(
        "pods and their network are made of these", "install the kernel's modules package, or a kernel that has them"
    ),
    "disk": Explanation(
        "images are unpacked and models placed below /var", "enlarge the file system of /var, or remove what is not needed"
    ),
    "inodes": Explanation("unpacked images are many small files", "make the file system of /var with more inodes"),
    "mount-options": Explanation("binaries run from there and state is written there", "mount it without noexec and read-write"),
    "state-disk": Explanation(
        "store, registry and releases are hard links in one file system", "enlarge the file system of the state folder"
    ),
    "clock": Explanation(
        "certificates and etcd need clocks that agree", "set the clock, or let all machines follow one time source inside the site"
    ),
    "clock-floor": Explanation("a clock behind the release's own signing time hides expiry", "set the clock to the true time"),
    "machine-id": Explanation("equal ids make two machines one", "empty /etc/machine-id on the copy and run systemd-machine-id-setup"),
    "hostname": Explanation("equal host names make two machines one", "run hostnamectl set-hostname with a name of its own"),
    "product-uuid": Explanation("equal hardware ids are the mark of a cloned machine", "give the virtual machine its own UUID"),
    "address": Explanation(
        "the cluster uses this address on the machine itself", "configure the address on an interface, or correct the site file"
    ),
    "mtu": Explanation("packets of the pod network must fit on every machine", "set the same MTU on the interface of every machine"),
    "ports": Explanation("the cluster's own services listen there", "stop what listens there"),
    "pod-cidr": Explanation("a route of the machine would lead pods' packets astray", "choose another pod_cidr, or remove the route"),
    "service-cidr": Explanation(
        "a route of the machine would lead services' packets astray", "choose another service_cidr, or remove the route"
    ),
    "default-route": Explanation(
        "without any route the kernel refuses service addresses before they are translated", "add a default route; it may lead nowhere"
    ),
    "leftovers": Explanation("files of another cluster would be mixed with ours", "remove the other cluster from the machine first"),
    "other-cluster": Explanation("a machine belongs to one site only", "reset it from the site it belongs to"),
    "packages": Explanation("half-installed packages stop every package change", "run dpkg --configure -a there"),
    "hosts": Explanation("services on the machine talk to localhost", "add the line '127.0.0.1 localhost' to /etc/hosts"),
    "api-name": Explanation("every machine reaches the API by this name at itself", "remove the name from /etc/hosts"),
    "inotify": Explanation("kubelet and containers watch files", "set fs.inotify.max_user_instances to 512 or more"),
    "open-files": Explanation("containerd and etcd hold many files open", "raise the hard limit of open files"),
    "reach": Explanation("the cluster's services talk over these ports", "open these ports between the machines"),
    "outside": Explanation("data could leave the site this way", "take the route away, or close it at the router"),
}
