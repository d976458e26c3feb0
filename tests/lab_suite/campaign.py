# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Killing installations on the depot, and counting what its registry hands out meanwhile."""

from __future__ import annotations

import json
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from appliance.install.inventory import REGISTRY_PORT
from tests.lab.machines import Lab
from tests.lab.machines.processes import Done
from tests.lab_suite.cluster_watch import until
from tests.lab_suite.operator import APPLIANCE, Site
from tests.lab_suite.site_secrets import TOKEN

METER = "lab_meter"
JOINING = "/run/appliance/init.yaml"


@contextmanager
def counting(lab: Lab) -> Iterator[Callable[[], int]]:
    """Count the bytes that leave the depot's registry, headers and all: gives a function that says how many until now."""
    nft = ["nsenter", f"--net={lab.netns('bastion')}", "nft"]
    chain = f"chain out {{ type filter hook output priority 0; tcp sport {REGISTRY_PORT} counter name served; }}"
    rules = f"table inet {METER} {{\ncounter served {{ packets 0 bytes 0 }}\n{chain}\n}}\n"
    subprocess.run([*nft, "-f", "-"], input=rules, text=True, check=True)

    def served() -> int:
        words = [*nft, "--json", "list", "counter", "inet", METER, "served"]
        listed = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)["nftables"]
        return next(int(one["counter"]["bytes"]) for one in listed if "counter" in one)

    try:
        yield served
    finally:
        subprocess.run([*nft, "delete", "table", "inet", METER], check=True)


def kill_installation(site: Site, after: float, *, everything: bool) -> bool:
    """Start an installation and SIGKILL it `after` seconds: its main process alone, or all that it started too.

    True when systemd says that it was this signal that ended the main process; False when it had come to its end before, and well.
    """
    unit = f"installing-{time.monotonic_ns()}"
    words = ["systemd-run", "--wait", "--collect", f"--unit={unit}", "--property=KillMode=process", "--setenv=HOME=/root"]
    ended: list[Done] = []
    runner = threading.Thread(
        target=lambda: ended.append(site.lab.exec("bastion", [*words, APPLIANCE, "site", "install"], check=False, timeout=900))
    )
    runner.start()
    runner.join(after)
    who = "all" if everything else "main"
    site.lab.exec("bastion", ["systemctl", "kill", f"--kill-who={who}", "--signal=KILL", unit], check=False)
    runner.join()
    (done,) = ended
    if "status=9/KILL" in done.stderr or "status=KILL" in done.stderr:
        return True
    assert done.returncode == 0, done.stdout + done.stderr
    return False


def leftover(site: Site) -> list[str]:
    """Processes of an installation that still run on the depot, long after it; not ssh's own masters, which end by themselves."""
    lines = site.lab.exec("bastion", ["ps", "-eo", "etimes,args"]).stdout.splitlines()
    return [line for line in lines if "/var/lib/appliance/site/runs/" in line and int(line.split()[0]) > 5 and "[mux]" not in line]


def token_at_hand(lab: Lab) -> set[str]:
    """The join token that a killed run has left in memory on the control plane."""
    text = lab.exec("cp1", ["cat", JOINING], check=False).stdout
    return {token.decode() for token in TOKEN.findall(text.encode())}


def one_step_fails(site: Site) -> None:
    """A file stands where gpu1's programs go: the failure says machine, step, cause, what to do, and where all of it is written."""
    site.lab.exec("gpu1", ["sh", "-c", "rm -rf /usr/local/lib/appliance; touch /usr/local/lib/appliance"])
    try:
        done = site.install()
        assert done.code == 6, done.text
        print(f"{done.said('error')}\n{done.said('hint')}")
        assert done.said("error").startswith("gpu1: ")
        log = re.search(r"/var/lib/appliance/site/runs/\S+/run\.log", done.said("hint"))
        assert log
        assert "gpu1" in site.lab.exec("bastion", ["cat", log[0]]).stdout
    finally:
        site.lab.exec("gpu1", ["rm", "-f", "/usr/local/lib/appliance"])


def gathered(site: Site, work: threading.Thread, tokens: Callable[[], set[str]]) -> set[str]:
    """What `tokens` gives at any time while `work` goes on."""
    found: set[str] = set()

    def looked() -> bool:
        found.update(tokens())
        return not work.is_alive()

    work.start()
    until(looked, seconds=600, what=f"the installation on {site.lab.name} ends")
    return found
