# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Worker threads over a list of jobs. Hashing and file I/O release the interpreter lock, so threads use every core."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


AHEAD = 4
"""How many items beyond the running ones are prepared."""


MAX_WORKERS = 64
"""Beyond this many threads nothing gets faster, and a mistyped number must not exhaust the machine."""


def default_workers() -> int:
    """Return one worker per core this process may use."""
    return max(1, len(os.sched_getaffinity(0)))


def for_each(
    items: Iterable[ItemT], work: Callable[[ItemT], ResultT], *, workers: int, prepare: Callable[[ItemT], object] | None = None
) -> list[ResultT]:
    """Call `work` on every item in up to `workers` threads; return the results in the order of the items.

    After the first exception no further item is begun; when the running ones have ended, it is raised. The same holds
    for Ctrl-C. Items are taken in order, so put the largest first. `prepare` is called on each item a few jobs before
    its turn: to have the disk fetch what will be needed. More than `MAX_WORKERS` threads are never started.
    """
    workers = min(workers, MAX_WORKERS)
    jobs = iter(enumerate(_prepared(items, prepare, AHEAD + workers) if prepare else items))
    lock = threading.Lock()
    stop = threading.Event()
    results: dict[int, ResultT] = {}

    def loop() -> None:
        finished = False
        try:
            while not stop.is_set():
                with lock:
                    job = next(jobs, None)
                if job is None:
                    break
                results[job[0]] = work(job[1])
            finished = True
        finally:
            if not finished:
                stop.set()

    if workers <= 1:
        loop()
    else:
        with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="worker") as pool:
            running = [pool.submit(loop) for _ in range(workers)]
            try:
                for future in running:
                    future.result()
            finally:
                stop.set()
    return [results[index] for index in range(len(results))]


def _prepared(items: Iterable[ItemT], prepare: Callable[[ItemT], object], ahead: int) -> Iterator[ItemT]:
    waiting: deque[ItemT] = deque()
    for item in items:
        prepare(item)
        waiting.append(item)
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting
