# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Run an `appliance` command under a sampling profiler of all its threads: `python -m benchmarks.profiled media read DIR`.

Every 5 ms the innermost line of every thread is counted; what is printed is the share of samples per line. A thread
inside a hash or a system call is counted at the line that calls it, since those run outside the interpreter.
"""

from __future__ import annotations

import collections
import sys
import threading
from pathlib import Path

from appliance.cli import app

_EVERY_SECONDS = 0.005
_SHOWN = 14
_WAITING = {"wait", "get", "join", "_wait_for_tstate_lock", "result", "_worker"}


def main() -> None:
    counts: collections.Counter[str] = collections.Counter()
    stop = threading.Event()

    def sample() -> None:
        me = threading.get_ident()
        while not stop.wait(_EVERY_SECONDS):
            for thread, frame in sys._current_frames().items():  # noqa: SLF001 - the only way to see other threads
                if thread == me:
                    continue
                code = frame.f_code
                name = "waiting" if code.co_name in _WAITING else f"{Path(code.co_filename).stem}.{code.co_name}:{frame.f_lineno}"
                counts[name] += 1

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        app(sys.argv[1:], standalone_mode=False)
    finally:
        stop.set()
        sampler.join()
        total = sum(count for name, count in counts.items() if name != "waiting") or 1
        for name, count in counts.most_common(_SHOWN):
            if name != "waiting":
                print(f"{100 * count / total:5.1f} %  {name}")


if __name__ == "__main__":
    main()
