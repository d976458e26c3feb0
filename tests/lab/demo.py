# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`make demo`: from nothing to a cluster that is Ready with the model in place, each stage with its time."""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from appliance.errors import ApplianceError
from tests.lab import journey as steps
from tests.lab import world
from tests.lab.journey import Journey, StepFailedError
from tests.lab.machines import Lab, LabError, noderoot, places

NAME = "demo"
BENCHMARKS = steps.ROOT / "docs" / "benchmarks.md"
NEXT = """
The lab stays up. Try:
  make lab-shell                                        a shell on the depot
    kubectl get nodes,pods -A                           the cluster (kubeconfig is in place)
    python3 /media/usb0/install.pyz site status         one screen
    python3 /media/usb0/install.pyz store list          what this site holds
    python3 /media/usb0/install.pyz site install        a second time: nothing changes
  python3.11 -m tests.lab power-cut --name demo         pull every plug; then power-on, and wait
  make lab-down                                         remove all of it"""


def demo(folder: Path, *, name: str = NAME, keep: bool = False) -> Journey:
    """Walk the whole way once; with `keep` the machines of an earlier demo are used again."""
    journey = Journey(folder=folder, name=name)
    steps.prepare(journey)
    steps.publish(journey)
    if not keep:
        Lab.down(name)
    lab = steps.machines(journey)
    steps.compare(journey, lab)
    steps.initialise(journey, lab)
    steps.install(journey, lab)
    lab.assert_sealed()
    return journey


def table(times: Mapping[str, float], whole: float) -> str:
    """The stages with their seconds, for a terminal."""
    width = max(map(len, times))
    return "\n".join(f"{title:{width}}  {seconds:7.1f} s" for title, seconds in {**times, "in all": whole}.items())


def record(times: Mapping[str, float], whole: float, *, cold: bool, load: float, to: Path) -> None:
    """Append the stages of this run to the page of benchmarks: when, on what machine, cold or built."""
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "?")
    began = (
        "cold: upstream was compiled and the machines were bootstrapped" if cold else "built: upstream and the machines' root were cached"
    )
    lines = [
        f"## {datetime.now(UTC):%Y-%m-%d %H:%M} UTC: `make demo`, {began}",
        "",
        f"{model}, {os.cpu_count()} cores, Linux {platform.release()}, load {load:.1f} at the start",
        "",
        "| stage | seconds |",
        "| --- | --- |",
        *(f"| {title} | {seconds:.1f} |" for title, seconds in {**times, "in all": whole}.items()),
    ]
    with to.open("a", encoding="utf-8") as page:
        page.write("\n" + "\n".join(lines) + "\n")


def main(words: Sequence[str] | None = None) -> int:
    """Run the demo, print the table of times and what to try next."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab.demo", description=__doc__)
    parser.add_argument("--folder", type=Path, help="what the connected side makes (default: in the cache)")
    parser.add_argument("--name", default=NAME, help="name of the lab")
    parser.add_argument("--keep", action="store_true", help="use the machines that are up")
    parser.add_argument("--record", type=Path, nargs="?", const=BENCHMARKS, metavar="PAGE", help=f"append the times to {BENCHMARKS.name}")
    given = parser.parse_args(words)
    begin, load = time.monotonic(), os.getloadavg()[0]
    cold = bool(world.missing()) or not noderoot.path().is_dir()
    try:
        journey = demo((given.folder or places.cache() / "demo").resolve(), name=given.name, keep=given.keep)
    except (StepFailedError, LabError, ApplianceError) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    whole = time.monotonic() - begin
    print(f"\n{table(journey.times, whole)}\n{NEXT}")
    if given.record:
        record(journey.times, whole, cold=cold, load=load, to=given.record)
    return 0


if __name__ == "__main__":
    sys.exit(main())
