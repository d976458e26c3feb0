# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The nodes' own program that pulls and pins images, run with a containerd client and a systemctl that play their part."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PROGRAM = ROOT / "playbooks/roles/images/files/ensure_images.py"
WANTED = [{"reference": "registry.k8s.io/pause:3.10", "index": "sha256:" + "1" * 64}]
CTR = """\
#!/bin/sh
echo "ctr $*" >> log
case "$*" in
  *list) [ -e healthy ] || { echo "unknown service containerd.services.images.v1.Images" >&2; exit 1; }; echo REF ;;
esac
"""


def ensure(folder: Path, *, systemctl: str) -> subprocess.CompletedProcess[str]:
    for name, text in (("ctr", CTR), ("systemctl", f'#!/bin/sh\necho "systemctl $*" >> log\n{systemctl}\n')):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return subprocess.run(
        [sys.executable, str(PROGRAM), "ctr", "2"],
        input=json.dumps(WANTED),
        cwd=folder,
        env={"PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_images_are_pulled_named_and_pinned(tmp_path: Path) -> None:
    (tmp_path / "healthy").touch()
    done = ensure(tmp_path, systemctl="exit 1")
    assert (done.returncode, done.stdout.split()) == (0, ["registry.k8s.io/pause:3.10", "changed"])
    words = [line.split()[4] for line in (tmp_path / "log").read_text().splitlines()]
    assert words == ["list", "list", "pull", "tag", "label"]


def test_a_containerd_that_started_without_its_store_is_started_again(tmp_path: Path) -> None:
    done = ensure(tmp_path, systemctl="touch healthy")
    assert done.returncode == 0, done.stderr
    assert "systemctl restart containerd.service" in (tmp_path / "log").read_text()


def test_a_containerd_that_stays_without_its_store_is_told_in_its_own_words(tmp_path: Path) -> None:
    done = ensure(tmp_path, systemctl="true")
    assert done.returncode == 1
    assert done.stderr.strip() == "ctr images list: unknown service containerd.services.images.v1.Images"
