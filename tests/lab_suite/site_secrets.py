# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The real secrets of an installed lab, and where on its machines they stand besides the places that are theirs."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import yaml
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA65PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

from tests.lab.journey import Journey
from tests.lab.machines import Lab
from tests.lab.world import registry
from tests.lab_suite.cluster_watch import MACHINES
from tests.support import observe
from tests.support.observe import leaks

SEARCHED = ("/var/log", "/tmp", "/var/lib/appliance", "/root", "/run/appliance", "/etc")
PUBLISHED = ("var/lib/appliance/store", "var/lib/appliance/releases", "var/lib/appliance/site/for-nodes", "root" + "/.shiv")
"""Large trees that hold what was published, byte by byte or in tar archives: searched by grep for the same forms."""
HOMES = {
    "bastion": re.compile(r"/var/lib/appliance/site/(keys/|certificates/|kubeconfig$)|/root/\.ssh/id_ed25519$"),
    "cp1": re.compile(r"/etc/kubernetes/(pki/.*\.key|[a-z-]+\.conf)$"),
    "gpu1": re.compile(r"(?!)"),
}
"""Where private keys are meant to be, each 0600 below folders of root."""
TOKEN = re.compile(rb"(?<![\w.])[a-z0-9]{6}\.[a-z0-9]{16}(?!\w|\.\w)")
NOT_TEXT = re.compile(r"\.(pyc|so|mo|journal|db|gz)$|/(apt|dpkg)/|/etc/(ssl|alternatives|ld\.so\.cache)")


def core(key: object) -> bytes:
    """The part of a private key that makes it private: it stands as it is in every encoding of the key."""
    if isinstance(key, RSAPrivateKey):
        return key.private_numbers().d.to_bytes(key.key_size // 8, "big")[64:112]
    if isinstance(key, EllipticCurvePrivateKey):
        return key.private_numbers().private_value.to_bytes(32, "big")
    assert isinstance(key, Ed25519PrivateKey | MLDSA44PrivateKey | MLDSA65PrivateKey), key
    return key.private_bytes_raw()


def secrets_of(lab: Lab, journey: Journey) -> dict[str, bytes]:
    """Every secret that this lab's site has, by name."""
    found: dict[str, bytes] = {}
    for machine, place in (
        ("bastion", "/var/lib/appliance/site/keys/*.key /var/lib/appliance/site/certificates/*.key"),
        ("cp1", "/etc/kubernetes/pki/*.key /etc/kubernetes/pki/etcd/*.key"),
    ):
        for path, text in _read(lab, machine, place):
            found[f"{machine} {path}"] = core(load_pem_private_key(text, None))
    for machine, place in (("bastion", "/var/lib/appliance/site/kubeconfig"), ("cp1", "/etc/kubernetes/*.conf")):
        for path, text in _read(lab, machine, place):
            for user in yaml.safe_load(text)["users"]:
                if "client-key-data" in user["user"]:
                    pem = base64.b64decode(user["user"]["client-key-data"])
                    found[f"key in {machine} {path}"] = core(load_pem_private_key(pem, None))
                    found[f"{machine} {path} as PEM"] = pem.strip()[-200:-40]
    ((path, text),) = _read(lab, "bastion", "~/.ssh/id_ed25519")
    found[f"bastion {path}"] = core(load_ssh_private_key(text, None))
    found["passphrase of the publication"] = (journey.folder / "passphrase").read_bytes().strip()
    found["password of the upstream registry"] = registry.PASSWORD.encode()
    found["login of the upstream registry"] = base64.b64encode(f"{registry.USER}:{registry.PASSWORD}".encode())
    return found


def _read(lab: Lab, machine: str, pattern: str) -> Iterator[tuple[str, bytes]]:
    for path in lab.exec(machine, ["sh", "-c", f"ls {pattern}"]).stdout.split():
        yield path, lab.exec(machine, ["cat", path]).stdout.encode()


def copy_out(lab: Lab, target: Path) -> None:
    """The searched places of all machines and their whole journals, each file once."""
    for machine in MACHINES:
        for place in SEARCHED:
            if not lab.exec(machine, ["test", "-e", place], check=False).returncode:
                folder = target / machine / Path(place).parent.relative_to("/")
                folder.mkdir(parents=True, exist_ok=True)
                lab.copy_from(machine, place, folder)
        journal = lab.exec(machine, ["journalctl", "--no-pager", "-o", "short-iso", "--all"], timeout=120).stdout
        (target / machine / "journal.txt").write_bytes(journal.encode("utf-8", "surrogateescape"))


def found_outside(lab: Lab, secrets: Mapping[str, bytes], target: Path) -> list[str]:
    """Copy everything out into `target` and give each place where a secret stands that is not its home.

    Each key must also be found at home: a search that finds nothing there would find nothing anywhere.
    """
    shutil.rmtree(target, ignore_errors=True)
    copy_out(lab, target)
    found: list[str] = []
    at_home: set[str] = set()
    for machine in MACHINES:
        own = target / machine
        published = target / f"{machine}-published"
        for number, place in enumerate(PUBLISHED):
            if (own / place).exists():
                published.mkdir(exist_ok=True)
                (own / place).rename(published / str(number))
        for leak in (leak for path in _suspects(secrets, own) for leak in leaks(secrets, path)):
            path = f"/{leak.path.relative_to(own)}"
            if HOMES[machine].match(path):
                at_home.add(leak.secret)
            else:
                found.append(f"{machine}:{path}: {leak.secret} ({leak.form})")
        found += [f"{machine}: published {line}" for line in _grep(secrets, published)]
        found += [f"{machine}:/{path.relative_to(own)}: a join token {token!r}" for path, token in _tokens(own)]
    shutil.rmtree(target)
    missed = {name for name in secrets if name.startswith(MACHINES)} - at_home
    assert not missed, f"the search does not find these where they are: {missed}"
    return found


def _suspects(secrets: Mapping[str, bytes], folder: Path) -> list[Path]:
    """Files below `folder` that `leaks` would find something in. One pass of grep over what it looks at, since it takes each form by itself."""
    scratch = folder.with_name(f"{folder.name}-layers")
    scratch.mkdir()
    paths = sorted(path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    for number, path in enumerate(paths):
        layers = [os.fsencode(path.readlink())] if path.is_symlink() else [data for data, _ in observe._layers(path.read_bytes())]
        joined = [re.sub(rb"(?:\\r|\\n|\s)+", b"", data) for data in layers]
        (scratch / str(number)).write_bytes(b"\n".join([os.fsencode(path.name), *layers, *joined]))
    return [paths[int(number)] for number in _grep(secrets, scratch)]


def _grep(secrets: Mapping[str, bytes], folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    needles = folder.with_name(f"{folder.name}.needles")
    # grep takes a line for a pattern: of a form with a line break in it the longest line is sought
    values = {max(value.split(b"\n"), key=len) for secret in secrets.values() for value in observe.forms(secret).values()}
    needles.write_bytes(b"\n".join(sorted(values)) + b"\n")
    words = ["grep", "--recursive", "--text", "--fixed-strings", "--files-with-matches", f"--file={needles}", str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, env=os.environ | {"LC_ALL": "C"})
    assert done.returncode in {0, 1}, done.stderr
    return sorted(Path(line).relative_to(folder).as_posix() for line in done.stdout.splitlines())


def _tokens(folder: Path) -> Iterator[tuple[Path, bytes]]:
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()):
        if not NOT_TEXT.search(str(path)):
            yield from ((path, token) for token in TOKEN.findall(path.read_bytes()))


def join_tokens(lab: Lab) -> Iterable[str]:
    """The join tokens that the cluster admits at this moment."""
    words = ["kubectl", "--kubeconfig=/etc/kubernetes/admin.conf", "get", "secrets", "-n", "kube-system", "-o", "json"]
    done = lab.exec("cp1", [*words, "--request-timeout=5s"], check=False)
    if done.returncode:
        return
    for item in json.loads(done.stdout)["items"]:
        if item["type"] == "bootstrap.kubernetes.io/token":
            yield ".".join(base64.b64decode(item["data"][part]).decode() for part in ("token-id", "token-secret"))
