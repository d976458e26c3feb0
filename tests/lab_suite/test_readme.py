# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The README's connected side, typed as it stands there, in an empty folder beside upstream's stand-in.

Its depot side is what tests/lab_suite/test_install_cluster.py types on the bastion.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.lab import world
from tests.support.readme import blocks

ROOT = Path(__file__).resolve().parents[2]


def test_the_commands_of_the_connected_side_work_as_the_readme_has_them(tmp_path: Path) -> None:
    home = tmp_path / "here"
    home.mkdir()
    for folder in ("bundles", "charts"):
        shutil.copytree(ROOT / folder, home / folder)
    passphrase = tmp_path / "passphrase"
    passphrase.write_text("as long as a sentence should be\n")
    passphrase.chmod(0o600)
    stick = tmp_path / "stick"
    stick.mkdir()
    connected = next(block for block in blocks() if block[0][0] == "appliance")
    with world.upstream(tmp_path / "upstream") as up:
        environment = os.environ | {
            "APPLIANCE_MIRRORS": str(up.mirrors),
            "APPLIANCE_PASSPHRASE_FILE": str(passphrase),
            "DOCKER_CONFIG": str(up.docker_config.parent),
            "PATH": f"{up.world.binaries / 'helm'}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }
        for words in connected:
            typed = [sys.executable, "-m", *(word.replace("/media/stick", str(stick)) for word in words)]
            done = subprocess.run(typed, cwd=home, env=environment, capture_output=True, text=True, check=False, timeout=600)
            assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
    assert (stick / "install.pyz").is_file()
    assert list(stick.glob("*.part"))
    assert list(stick.glob("*.sheet.txt"))
