# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`make demo`: from nothing to a cluster that is Ready with the model in place, each stage with its time."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from appliance.errors import ApplianceError
from tests.lab import journey as steps
from tests.lab.journey import Journey, StepFailedError
from tests.lab.machines import Lab, LabError, places

NAME = "demo"
NEXT = """
The lab stays up. Try:
  make lab-shell                                        a shell on the depot
    kubectl get nodes,pods -A                           the cluster (kubeconfig is in place)
    python3 /media/usb0/install.pyz site status         one screen
    python3 /media/usb0/install.pyz store list          what this site holds
    python3 /media/usb0/install.pyz site install        a second time: nothing changes
  python3.11 -m tests.lab power-cut --name demo         pull every plug; then power-on, and wait
  make lab-down                                         remove all of it"""


def demo(folder: Path, *, keep: bool) -> Journey:
    """Walk the whole way once; with `keep` the machines of an earlier demo are used again."""
    journey = Journey(folder=folder, name=NAME)
    steps.prepare(journey)
    steps.publish(journey)
    if not keep:
        Lab.down(NAME)
    lab = steps.machines(journey)
    steps.compare(journey, lab)
    steps.initialise(journey, lab)
    steps.install(journey, lab)
    lab.assert_sealed()
    return journey


def main() -> int:
    """Run the demo, print the table of times and what to try next."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab.demo", description=__doc__)
    parser.add_argument("--folder", type=Path, help="what the connected side makes (default: in the cache)")
    parser.add_argument("--keep", action="store_true", help="use the machines that are up")
    given = parser.parse_args()
    begin = time.monotonic()
    try:
        journey = demo((given.folder or places.cache() / "demo").resolve(), keep=given.keep)
    except (StepFailedError, LabError, ApplianceError) as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    width = max(map(len, journey.times))
    print("\n" + "\n".join(f"{title:{width}}  {seconds:7.1f} s" for title, seconds in journey.times.items()))
    print(f"{'in all':{width}}  {time.monotonic() - begin:7.1f} s\n{NEXT}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
