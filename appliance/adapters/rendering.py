# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`helm template` on the connected machine: what a chart would put into a cluster, and which images that names."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import yaml

from appliance.errors import FormatError, ToolError, UsageError

_SAID = 1500
_TIMEOUT = 120.0


def find_helm(given: Path | None) -> Path | None:
    """Return the helm to use: the one `given`, else the one on PATH, else None.

    Raises:
        UsageError: the one given is not there.
    """
    if given is not None:
        if not given.is_file():
            raise UsageError(f"{given}: no such file", hint="give the path of a helm binary")
        return given
    found = shutil.which("helm")
    return Path(found) if found else None


def rendered_images(helm: Path, chart: Path, *, release: str, namespace: str, values: str, kubernetes: str) -> tuple[str, ...]:
    """Return the image references in what `helm template` makes of `chart` with `values` (JSON) for `kubernetes`, sorted.

    Raises:
        ToolError: helm cannot render it.
        FormatError: what it rendered is not YAML.
    """
    with tempfile.TemporaryDirectory(prefix="appliance-helm-") as scratch:
        given = Path(scratch) / "values.json"
        given.write_text(values, encoding="utf-8")
        command = [str(helm), "template", release, str(chart), "--namespace", namespace, "--values", str(given), "--include-crds"]
        command += ["--kube-version", kubernetes]
        environment = {"PATH": "/usr/bin:/bin", "HOME": scratch, "HELM_CACHE_HOME": scratch, "HELM_CONFIG_HOME": scratch}
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=_TIMEOUT)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ToolError(f"{helm}: {error}", step=f"render chart {release}", hint="check that this helm runs") from error
    if done.returncode != 0:
        raise ToolError(
            f"chart {release}: helm template failed: {done.stderr.strip()[-_SAID:]}",
            step=f"render chart {release}",
            hint="correct the chart or its values in the profile",
        )
    try:
        documents = list(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))
    except yaml.YAMLError as error:
        raise FormatError(f"chart {release}: what it renders is not YAML: {error}", hint="correct the chart") from error
    return tuple(sorted({image for document in documents for image in _images(document, "")}))


def _images(value: object, inside: str) -> Iterator[str]:
    """Give the references in containers of every kind, in image volumes, and under any other `image` key."""
    if isinstance(value, dict):
        for key, below in value.items():
            if isinstance(below, str) and below and (key == "image" or (key == "reference" and inside == "image")):
                yield below
            else:
                yield from _images(below, str(key))
    elif isinstance(value, list):
        for below in value:
            yield from _images(below, inside)
