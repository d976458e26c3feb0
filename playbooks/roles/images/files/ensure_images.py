# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: INP001, TID251 - a program of its own, run on nodes
"""Pulls, names and pins images in containerd, several at once; runs on a node with Python's standard library alone.

Arguments: containerd's client, how many at once. Input: JSON list of {"reference", "index"}. Prints a line for each image that it had to
fetch or mend and `changed` at the end if there was one. Exit 1 and the reason on stderr when one could not be had.
"""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

PINNED = "io.cri-containerd.pinned=pinned"


def ctr(*words: str) -> str:
    """Run containerd's client in the kubelet's namespace; gives its output."""
    done = subprocess.run([sys.argv[1], "--namespace", "k8s.io", "images", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise SystemExit(f"ctr images {words[0]} {words[-1] if len(words) > 1 else ''}".strip() + f": {reason}")
    return done.stdout


def brought_back() -> bool:
    """Start a containerd again that met a full disk as it started and goes on without its store; gives whether that was so."""
    try:
        ctr("list")
    except SystemExit as refusal:
        if "unknown service" not in str(refusal):
            raise
        subprocess.run(["systemctl", "restart", "containerd.service"], check=False)
        return True
    return False


def present() -> dict[str, tuple[str, bool]]:
    """Every name containerd knows: the digest it points at, and whether it is pinned."""
    rows = (line.split() for line in ctr("list").splitlines()[1:])
    return {row[0]: (row[2], PINNED in row[-1].split(",")) for row in rows}


def ensure(reference: str, digest: str, known: dict[str, tuple[str, bool]]) -> bool:
    """Make `reference` and its name by digest point at `digest`, pinned; gives whether anything had to be done."""
    by_digest = f"{reference.rpartition(':')[0]}@{digest}"
    wanted = (digest, True)
    if known.get(reference) == wanted and known.get(by_digest) == wanted:
        return False
    ctr("pull", "--hosts-dir", "/etc/containerd/certs.d", "--label", PINNED, by_digest)
    ctr("tag", "--force", by_digest, reference)
    ctr("label", reference, PINNED)
    return True


def main() -> None:
    """Do all of them; the first failure ends the program when the others have ended."""
    images = json.load(sys.stdin)
    restarted = brought_back()
    known = present()
    with ThreadPoolExecutor(max_workers=int(sys.argv[2])) as pool:
        futures = [(image["reference"], pool.submit(ensure, image["reference"], image["index"], known)) for image in images]
    changed = [reference for reference, future in futures if future.result()]
    print("\n".join([*changed, "changed" if changed or restarted else "unchanged"]))


main()
