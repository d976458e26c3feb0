# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The main job from nothing: compile, train, sign, carry, install. `make demo` shows it, the lab's tests start from it.

Each step is the command a person would type. What a step writes lies below the journey's folder; a step whose result is there is not
done again, so a journey that was stopped goes on where it was.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.lab import world
from tests.lab.machines import Lab, noderoot, places

ROOT = Path(__file__).resolve().parents[2]
LINE = "demo"
SITE = "harbour"
STICK = "/media/usb0"
SITE_FILE = f"""\
format = "site/1"
name = "{SITE}"
line = "{LINE}"
accelerator = "none"
strict_egress = false

[[networks]]
name = "machines"
cidr = "10.77.0.0/24"
class = "admin"

[[networks]]
name = "offices"
cidr = "10.78.0.0/24"
class = "users"

[[machines]]
name = "bastion"
address = "10.77.0.10"
roles = ["depot"]

[[machines]]
name = "cp1"
address = "10.77.0.11"
roles = ["control-plane"]

[[machines]]
name = "gpu1"
address = "10.77.0.21"
roles = ["worker", "gpu"]
"""


class StepFailedError(Exception):
    """A command of the journey did not succeed."""


@dataclass(slots=True, kw_only=True)
class Journey:
    """Where one journey is. `folder` is kept between runs; `times` are the seconds of each stage of this run."""

    folder: Path
    name: str
    shown: bool = True
    times: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of_tests(cls, name: str) -> Journey:
        """The journey that lab tests start from: in the cache, or where APPLIANCE_JOURNEY says (one run at a time may use a folder)."""
        return cls(folder=Path(os.environ.get("APPLIANCE_JOURNEY") or places.cache() / "journey").resolve(), name=name, shown=False)

    @property
    def stick(self) -> Path:
        """The folder that stands for the stick."""
        return self.folder / f"stick-{self.key()}"

    @property
    def publication(self) -> Path:
        """The publication's folder on the connected side."""
        return self.folder / "publication"

    @property
    def bundle(self) -> Path:
        """The signed bundle on the connected side."""
        return self.folder / f"bundle-{self.key()}"

    @property
    def lock(self) -> Path:
        """The lock of the release."""
        return self.folder / "release.lock.json"

    def key(self) -> str:
        """Digest of what decides the bundle: the lock, and the product itself, which travels in it."""
        own = [path for folder in ("appliance", "playbooks") for path in (ROOT / folder).rglob("*") if path.is_file()]
        digest = hashlib.sha256(self.lock.read_bytes())
        for path in sorted(path for path in own if "__pycache__" not in path.parts):
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
        return digest.hexdigest()[:12]

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Time a stage and say how long it took."""
        begin = time.monotonic()
        if self.shown:
            print(f"\n== {title}", flush=True)
        yield
        self.times[title] = time.monotonic() - begin
        if self.shown:
            print(f"== {title}: {self.times[title]:.1f} s", flush=True)

    def run(self, words: Sequence[str | Path], *, say: str = "", env: dict[str, str] | None = None) -> str:
        """Run a command on the connected side; its standard output. Raises StepFailedError with the end of what it printed."""
        if self.shown:
            print(f"$ {say or shlex.join(str(word) for word in words)}", flush=True)
        done = subprocess.run(
            list(words),
            check=False,
            cwd=ROOT,
            env=os.environ | (env or {}),
            stdout=subprocess.PIPE,
            stderr=None if self.shown else subprocess.STDOUT,
            text=True,
        )
        if self.shown:
            print(done.stdout, end="", flush=True)
        if done.returncode:
            raise StepFailedError(f"{shlex.join(str(word) for word in words)}: exit {done.returncode}\n{done.stdout[-4000:]}")
        return done.stdout

    def appliance(self, *words: str | Path, env: dict[str, str] | None = None) -> str:
        """Run `appliance` on the connected side."""
        return self.run([sys.executable, "-m", "appliance", *words], say=shlex.join(["appliance", *map(str, words)]), env=env)

    def depot(self, lab: Lab, *words: str) -> str:
        """Run the installer from the stick on the depot, as the operator would type it; its output if it is not shown as it comes."""
        typed = ["python3", f"{STICK}/install.pyz", *words]
        if self.shown:
            print(f"depot# {shlex.join(typed)}", flush=True)
            status = subprocess.run(lab.ssh("bastion", [shlex.join(typed)]), check=False).returncode
            if status:
                raise StepFailedError(f"{shlex.join(typed)}: exit {status}")
            return ""
        done = lab.exec("bastion", typed, check=False, timeout=900)
        if done.returncode:
            raise StepFailedError(f"{shlex.join(typed)}: exit {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
        return done.stdout


def prepare(journey: Journey) -> None:
    """Make what an organisation would already have: upstream's releases, bare machines, a model."""
    journey.folder.mkdir(parents=True, exist_ok=True)
    jobs: dict[str, Callable[[], object]] = {
        "upstream": world.build,
        "machines": lambda: noderoot.ensure(lab=journey.name, log=places.new_log(journey.name)),
        "model": lambda: journey.run([sys.executable, "-m", "tests.support.model", "--out", journey.folder / "model"]),
    }
    with journey.stage("prepare: compile upstream's releases, bootstrap bare machines, train the model"), ThreadPoolExecutor(3) as pool:
        for future in [pool.submit(job) for job in jobs.values()]:
            future.result()


def publish(journey: Journey) -> None:
    """On the connected machine: keys, lock, create."""
    passphrase = journey.folder / "passphrase"
    if not passphrase.exists():
        passphrase.touch(mode=0o600)
        passphrase.write_text(secrets.token_urlsafe(18) + "\n")
    with journey.stage("keys: a publication of two families"):
        if not journey.publication.exists():
            journey.appliance("keys", "init", journey.publication, "--line", LINE, "--passphrase-file", passphrase)
    profile = journey.folder / "release.toml"
    profile.write_text(_profile(journey))
    with world.upstream(journey.folder / "upstream") as up:
        env = {"DOCKER_CONFIG": str(up.docker_config.parent)}
        with journey.stage("lock: every digest, size and licence"):
            journey.appliance("bundle", "lock", profile, "--mirrors", up.mirrors, "--helm", up.world.binaries / "helm/helm", env=env)
        with journey.stage("create: one signed bundle"):
            if not journey.bundle.exists():
                _forget(journey)
                words: list[str | Path] = [
                    "--publication",
                    journey.publication,
                    "--keys",
                    journey.publication / "private",
                    "--to",
                    journey.bundle,
                ]
                journey.appliance(
                    "bundle", "create", journey.lock, *words, "--mirrors", up.mirrors, "--passphrase-file", passphrase, "--link", env=env
                )
    with journey.stage("write: the stick"):
        journey.stick.mkdir(exist_ok=True)
        journey.appliance("media", "write", journey.bundle, "--to", journey.stick, "--part-size", "fat32")


def _forget(journey: Journey) -> None:
    """Remove the bundles and sticks of earlier keys."""
    for stale in (*journey.folder.glob("bundle-*"), *journey.folder.glob("stick-*")):
        if journey.key() not in stale.name:
            shutil.rmtree(stale)


def _profile(journey: Journey) -> str:
    """`bundles/core.toml` with its charts where they are, and the model that was just trained."""
    text = (ROOT / "bundles/core.toml").read_text().replace('"../charts/', f'"{ROOT}/charts/')
    model = ["[[models]]", 'name = "tiny"', 'version = "1"', f'path = "{journey.folder / "model"}"', 'license = "Apache-2.0"']
    return text.rstrip() + "\n\n" + "\n".join(model) + "\n"


def machines(journey: Journey) -> Lab:
    """Bare machines with no way out, the stick in the first."""
    with journey.stage("machines: three, bare, without an uplink"):
        return Lab.up(journey.name, media=[journey.stick], say=print if journey.shown else lambda _: None)


def compare(journey: Journey, lab: Lab) -> None:
    """What the paper sheet tells a person to type before anything on the stick runs."""
    with journey.stage("compare: the sheet's typed command"):
        printed = lab.exec("bastion", ["sha256sum", f"{STICK}/install.pyz"]).stdout.split()[0]
        expected = hashlib.sha256((journey.stick / "install.pyz").read_bytes()).hexdigest()
        if printed != expected:
            raise StepFailedError(f"install.pyz: expected {expected}, got {printed}")
        if journey.shown:
            print(f"depot# sha256sum {STICK}/install.pyz\n{printed}")


def initialise(journey: Journey, lab: Lab) -> None:
    """`site init`, with the host keys the operator has on paper, and `media read`."""
    lab.exec("bastion", ["mkdir", "-p", "/etc/appliance"])
    lab.put("bastion", SITE_FILE.encode(), "/etc/appliance/site.toml")
    lab.put("bastion", fingerprints(lab).encode(), "/etc/appliance/host-keys")
    with journey.stage("site init: pin the root, pin the host keys, make the site's own keys"):
        journey.depot(lab, "site", "init", "/etc/appliance/site.toml", "--accept-host-keys", "/etc/appliance/host-keys")
    with journey.stage("media read: every chunk checked before it is visible"):
        journey.depot(lab, "media", "read", STICK)


def fingerprints(lab: Lab) -> str:
    """The SHA-256 fingerprints of the machines' host keys, a line each: `name SHA256:...`."""
    lines = []
    for machine in lab.machines:
        shown = subprocess.run(["ssh-keygen", "-lf", "-"], input=lab.host_key(machine.name), capture_output=True, text=True, check=True)
        lines.append(f"{machine.name} {shown.stdout.split()[1]}\n")
    return "".join(lines)


def install(journey: Journey, lab: Lab) -> None:
    """`site check`, `site install`, and a look at the result."""
    with journey.stage("site check: every machine, before any change"):
        journey.depot(lab, "site", "check")
    with journey.stage("site install: from the store alone"):
        journey.depot(lab, "site", "install")
    with journey.stage("site status"):
        journey.depot(lab, "site", "status")
