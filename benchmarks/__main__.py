# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Measure create, write, read and verify in pairs with their floors and append the ratios to docs/benchmarks.md.

    python -m benchmarks [--size 600MB] [--files 6000] [--runs 5] [--workers 2,8] [--only write,read] [--work DIR]

Two kinds of content: `one` large file and `many` small ones, of the same size in all. In each pair the floor and the
command read data that was dropped from the page cache before.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from appliance.carry.layout import parse_part_size
from benchmarks.measuring import Series, Taken, drop_from_cache, files_below, take, taken_with_cpu

ROOT = Path(__file__).resolve().parents[1]
BUDGETS = {"create": 1.15, "write": 1.15, "read": 1.15, "verify": 1.10}
PEAK_BUDGET = 300 * 1024 * 1024
MIB = 1024 * 1024
_SETTLE_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One kind of content and number of workers, with its folders."""

    content: str
    workers: int
    size: int
    place: Path

    @property
    def source(self) -> Path:
        return self.place / "source"

    @property
    def bundle(self) -> Path:
        return self.place / "bundle"

    @property
    def media(self) -> Path:
        return self.place / "media"

    @property
    def state(self) -> Path:
        return self.place / "state"

    @property
    def scratch(self) -> Path:
        return self.place / "scratch"


def appliance(*arguments: object, profiled: bool = False) -> list[str]:
    module = "benchmarks.profiled" if profiled else "appliance"
    return [sys.executable, "-m", module, *map(str, arguments)]


def run(command: list[str]) -> Taken:
    return taken_with_cpu(command, env={**os.environ, "PYTHONPATH": str(ROOT)})


def shell(line: str) -> Taken:
    return take(["/bin/bash", "-euo", "pipefail", "-c", line])


def hash_floor(folder: Path) -> str:
    return f"find {folder} -type f -print0 | xargs -0 -n 100 -P$(nproc) openssl dgst -sha256 >/dev/null"


def copy_floor(folder: Path, scratch: Path) -> str:
    return f"cp -r {folder} {scratch} && sync -f {scratch}"


def make_content(folder: Path, *, content: str, size: int, files: int) -> None:
    """Write safetensors files: one, or many; no two blocks of 1 MiB are equal."""
    folder.mkdir(parents=True)
    count = 1 if content == "one" else files
    each = max(8192, size // count)
    noise = os.urandom(MIB)
    for number in range(count):
        name = f"w{number:05d}"
        data = each - 4096
        header = json.dumps({name: {"dtype": "U8", "shape": [data], "data_offsets": [0, data]}}, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        with (folder / f"{name}.safetensors").open("wb") as stream:
            stream.write(len(header).to_bytes(8, "little") + header)
            for start in range(0, data, MIB):
                block = (number.to_bytes(8, "big") + start.to_bytes(8, "big") + noise)[: min(MIB, data - start)]
                stream.write(block)


def prepare(case: Case, *, files: int) -> None:
    """Make content, a publication and a lock."""
    make_content(case.source, content=case.content, size=case.size, files=files)
    secret = case.place / "passphrase"
    secret.write_text("benchmark\n", encoding="ascii")
    run(appliance("keys", "init", case.place / "publication", "--line", "bench", "--passphrase-file", secret))
    (case.place / "bench.toml").write_text(
        'format = "profile/1"\nname = "bench"\nversion = "1"\nplatform = "debian-12-amd64"\nkubernetes = "1.36.4"\ninstaller = false\n'
        f'[[models]]\nname = "bench"\nversion = "1"\npath = "{case.source}"\nlicense = "CC0-1.0"\n',
        encoding="ascii",
    )
    run(appliance("bundle", "lock", case.place / "bench.toml"))


def create_command(case: Case) -> list[object]:
    publication = case.place / "publication"
    return [
        *("bundle", "create", case.place / "bench.lock.json", "--publication", publication, "--keys", publication / "private"),
        *("--to", case.bundle, "--link", "-j", case.workers, "--passphrase-file", case.place / "passphrase"),
    ]


def clean(*folders: Path) -> None:
    """Remove folders and let the disk finish with that (a journal's commit, discards) before anything is timed."""
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    os.sync()
    time.sleep(_SETTLE_SECONDS)


def pin(case: Case) -> None:
    clean(case.state)
    (case.state / "trust" / "bench").mkdir(parents=True)
    shutil.copy(case.place / "publication" / "roots" / "1.root.json", case.state / "trust" / "bench" / "root.json")


def pair_create(case: Case) -> tuple[Taken, Taken]:
    drop_from_cache(files_below(case.source))
    one = shell(hash_floor(case.source))
    drop_from_cache(files_below(case.source))
    two = shell(hash_floor(case.source))
    floor = Taken(wall=one.wall + two.wall, cpu=0, peak=0, written=0, output="")
    clean(case.bundle, case.place / "bundle.partial")
    drop_from_cache(files_below(case.source))
    return floor, run(appliance(*create_command(case)))


def pair_verify(case: Case) -> tuple[Taken, Taken]:
    drop_from_cache(files_below(case.bundle))
    floor = shell(hash_floor(case.bundle / "blobs"))
    drop_from_cache(files_below(case.bundle))
    return floor, run(appliance("bundle", "verify", case.bundle, "--publication", case.place / "publication", "-j", case.workers))


def pair_write(case: Case) -> tuple[Taken, Taken]:
    clean(case.scratch, case.media)
    drop_from_cache(files_below(case.bundle))
    floor = shell(copy_floor(case.bundle / "blobs", case.scratch))
    clean(case.scratch)
    drop_from_cache(files_below(case.bundle))
    return floor, run(appliance("media", "write", case.bundle, "--to", case.media, "-j", case.workers))


def pair_read(case: Case) -> tuple[Taken, Taken]:
    pin(case)
    clean(case.scratch)
    drop_from_cache(files_below(case.media))
    hashed = shell(hash_floor(case.media))
    drop_from_cache(files_below(case.media))
    copied = shell(copy_floor(case.media, case.scratch))
    clean(case.scratch)
    drop_from_cache(files_below(case.media))
    return max(hashed, copied, key=lambda taken: taken.wall), run(
        appliance("media", "read", case.media, "--state", case.state, "-j", case.workers)
    )


PAIRS: dict[str, Callable[[Case], tuple[Taken, Taken]]] = {
    "create": pair_create,
    "verify": pair_verify,
    "write": pair_write,
    "read": pair_read,
}


def profile_of(case: Case, work: str) -> str:
    commands: dict[str, list[object]] = {
        "create": create_command(case),
        "verify": ["bundle", "verify", case.bundle, "--publication", case.place / "publication", "-j", case.workers],
        "write": ["media", "write", case.bundle, "--to", case.media, "-j", case.workers],
        "read": ["media", "read", case.media, "--state", case.state, "-j", case.workers],
    }
    if work == "create":
        clean(case.bundle)
    if work == "write":
        clean(case.media)
    if work == "read":
        pin(case)
    output = run(appliance(*commands[work], profiled=True)).output
    return "\n".join(line for line in output.splitlines() if " %  " in line)


def measure(case: Case, work: str, runs: int) -> tuple[str, str]:
    """Return a row of the table and the profile of one more run."""
    pairs = [PAIRS[work](case) for _ in range(runs)]
    floor, ours = Series(runs=tuple(pair[0] for pair in pairs)), Series(runs=tuple(pair[1] for pair in pairs))
    ratio = ours.median / floor.median
    budget = BUDGETS[work]
    written = f"{ours.written / case.size:.2f}" if work in {"write", "read", "create"} else "0"
    row = (
        f"| {work} | {case.content} | {case.workers} | {floor.spread} | {ours.spread} | {ratio:.2f} | {budget} | "
        f"{'yes' if ratio <= budget and ours.peak <= PEAK_BUDGET else 'NO'} | {ours.peak // MIB} MiB | {ours.cpu:.1f} s | {written} |"
    )
    print(row, flush=True)
    return row, profile_of(case, work)


def machine() -> str:
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "?")
    load = os.getloadavg()
    return (
        f"{model}, {os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}, load {load[0]:.1f} at the start"
    )


def append(report: list[str]) -> None:
    path = ROOT / "docs" / "benchmarks.md"
    with path.open("a", encoding="utf-8") as stream:
        stream.write("\n".join(report) + "\n")
    print(f"appended to {path}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="600MB")
    parser.add_argument("--files", type=int, default=6000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--workers", default="2,8")
    parser.add_argument("--only", default=",".join(PAIRS))
    parser.add_argument("--content", default="one,many")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--no-append", action="store_true")
    options = parser.parse_args()
    wanted = options.only.split(",")
    command = "python -m benchmarks " + " ".join(sys.argv[1:])
    report = [f"## {datetime.now(UTC):%Y-%m-%d %H:%M} UTC: `{command.strip()}`", "", machine(), ""]
    report += ["| work | content | workers | floor | appliance | ratio | budget | within | VmHWM | CPU | bytes written per byte |"]
    report += ["| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    profiles: list[str] = []
    for content in options.content.split(","):
        with tempfile.TemporaryDirectory(dir=options.work, prefix="appliance-bench-") as place:
            prepared = False
            for workers in map(int, options.workers.split(",")):
                case = Case(content=content, workers=workers, size=parse_part_size(options.size), place=Path(place))
                if not prepared:
                    prepare(case, files=options.files)
                    prepared = True
                for work in PAIRS:
                    if work in wanted or work in {"create", "write"}:
                        row, profile = measure(case, work, options.runs if work in wanted else 1)
                        if work in wanted:
                            report.append(row)
                            profiles += [f"{work}, {content}, {workers} workers:", "```", profile, "```", ""]
    report += ["", "<details><summary>Profiles (share of samples of working threads)</summary>", "", *profiles, "</details>", ""]
    if not options.no_append:
        append(report)


if __name__ == "__main__":
    main()
