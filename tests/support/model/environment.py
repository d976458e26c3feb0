# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The trainer's own Python environment, kept in the cache under the digest of its pinned requirements.

Why jax: Debian's own python3-torch (1.13) brings 184 packages, 152 MB to fetch and 652 MB on disk, needs root and
changes the machine. The eight wheels pinned here are 142 MB to fetch, are installed in about 20 seconds by any user
into a folder of their own, and train on two cores without further tools.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from appliance.errors import ToolError
from tests.support.model.cache import HERE, locked

REQUIREMENTS = HERE / "requirements.txt"
READY = ".done"


def interpreter(cache: Path) -> Path:
    """The environment's python; made at the first call.

    Raises:
        ToolError: the environment could not be made.
    """
    name = hashlib.sha256(REQUIREMENTS.read_bytes() + sys.version.encode()).hexdigest()[:16]
    folder = cache / f"tiny-model-venv-{name}"
    python = folder / "bin" / "python"
    with locked(folder):
        if not (folder / READY).exists():
            shutil.rmtree(folder, ignore_errors=True)
            _run("making the trainer's environment", [sys.executable, "-m", "venv", str(folder)])
            pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            strict = ["--no-deps", "--require-hashes", "--only-binary", ":all:", "-r", str(REQUIREMENTS)]
            _run("installing what trains the tiny model", [*pip, *strict])
            (folder / READY).touch()
    return python


def _run(step: str, command: list[str]) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise ToolError(f"{step} failed: {done.stderr.strip()[-2000:]}", step=step, hint="Mend what it names and run it again.")
