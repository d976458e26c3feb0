# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The root of every machine: a fresh Debian 12 with Python and OpenSSH, built by debootstrap from this machine's own apt sources.

It is cached as a folder whose name is the digest of everything that describes it: this recipe and the files under `node/`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
from pathlib import Path

from tests.lab.machines import places
from tests.lab.machines.errors import LabError
from tests.lab.machines.processes import run

RELEASE = "bookworm"
PACKAGES = ("systemd-sysv", "dbus", "openssh-server", "python3", "iproute2", "sudo")
OVERLAY = Path(__file__).parent / "node"
UNITS = {"lab-boot.service": "sysinit.target.wants", "lab-network.service": "multi-user.target.wants"}
# A getty on the console has nobody to talk to and would write a login prompt into the console's log.
MASKED = ("console-getty.service",)
REVISION = 1  # raise it when the code below changes what comes out


def key() -> str:
    """Digest of all that decides the content, 16 hexadecimal digits."""
    digest = hashlib.sha256(repr((RELEASE, PACKAGES, UNITS, MASKED, REVISION)).encode())
    for path in sorted(p for p in OVERLAY.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(OVERLAY)} {path.stat().st_mode & 0o111:o}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def path() -> Path:
    return places.cache() / f"node-root-{key()}"


def ensure(*, lab: str, log: Path) -> Path:
    """Give the folder with the node root, after building it if there is none yet. One process builds, others wait."""
    final = path()
    with places.locked(places.cache() / "node-root.lock"):
        if not final.is_dir():
            for stale in places.cache().glob("node-root-*.building"):
                shutil.rmtree(stale)
            pending = final.with_name(final.name + ".building")
            _debootstrap(pending, lab=lab, log=log)
            _finish(pending)
            pending.rename(final)
    return final


def _debootstrap(target: Path, *, lab: str, log: Path) -> None:
    """Run debootstrap in its own mount and PID namespace, which take its mounts and children with them if this process is killed."""
    wrapper: list[str | Path] = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command: list[str | Path] = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", RELEASE, target, _mirror(lab=lab)]
    done = run([*wrapper, *command], lab=lab, timeout=1200, check=False, env=_proxy(lab=lab))
    (log / "debootstrap.log").write_text(done.stdout + done.stderr, errors="surrogateescape")
    if done.returncode:
        raise LabError(f"debootstrap failed with {done.returncode}: {done.stdout.strip()[-500:]}", hint=f"read {log / 'debootstrap.log'}")


def _mirror(*, lab: str) -> str:
    """Where this machine itself gets Debian 12 from."""
    shape = "$(REPO_URI)\t$(RELEASE)\t$(ORIGIN)\t$(COMPONENT)"
    lines = run(["apt-get", "indextargets", "--format", shape, "Created-By: Packages"], lab=lab).stdout.splitlines()
    for line in lines:
        uri, release, origin, component = [*line.split("\t"), "", "", ""][:4]
        if (release, component) == (RELEASE, "main") and origin in {"Debian", ""}:
            return uri
    raise LabError(
        f"this machine's apt knows no source of Debian {RELEASE}, which the lab's machines are made from",
        hint=f"add a Debian source with suite {RELEASE}, component main, and run apt-get update",
    )


def _proxy(*, lab: str) -> dict[str, str]:
    """Debootstrap does not read apt's settings: hand it the proxy, if there is one."""
    words = run(["apt-config", "dump", "--format", "%v", "Acquire::http::Proxy"], lab=lab, check=False).stdout.strip()
    return {"http_proxy": words} if words else {}


def _finish(root: Path) -> None:
    for source in sorted(OVERLAY.rglob("*")):
        target = root / source.relative_to(OVERLAY)
        if source.is_dir():
            target.mkdir(exist_ok=True)
        else:
            shutil.copyfile(source, target)
            target.chmod(0o755 if source.stat().st_mode & stat.S_IXUSR else 0o644)
    system = root / "etc/systemd/system"
    for unit, wanted_by in UNITS.items():
        (system / wanted_by).mkdir(exist_ok=True)
        (system / wanted_by / unit).symlink_to(f"/etc/systemd/system/{unit}")
    for unit in MASKED:
        (system / unit).symlink_to("/dev/null")
    for deb in (root / "var/cache/apt/archives").glob("*.deb"):
        deb.unlink()
    # What makes a machine itself is made with the machine.
    for identity in [*(root / "etc/ssh").glob("ssh_host_*"), root / "etc/machine-id", root / "var/lib/dbus/machine-id"]:
        identity.unlink(missing_ok=True)
    (root / "etc/hostname").unlink(missing_ok=True)
    (root / "etc/resolv.conf").write_text("# no name server: this machine has no network to the outside\n")
    os.sync()
