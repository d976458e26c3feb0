# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Our charts under the compiled helm: they render, are pinned by digest, and refuse values they do not know."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.lab.world import build

CHARTS = Path(__file__).resolve().parents[2] / "charts"
DIGEST = "sha256:" + "a" * 64
SITE = {"flannel": "podCidr=10.9.0.0/16", "coredns": "clusterIP=10.8.0.10"}


@pytest.fixture(scope="module")
def helm() -> Path:
    return build().binaries / "helm" / "helm"


def template(helm: Path, chart: str, *settings: str) -> subprocess.CompletedProcess[str]:
    words = [word for setting in settings for word in ("--set", setting)]
    return subprocess.run(
        [helm, "template", chart, CHARTS / chart, "--namespace", "kube-system", *words], capture_output=True, text=True, check=False
    )


def objects(helm: Path, chart: str) -> list[dict[str, Any]]:
    done = template(helm, chart, f"image.digest={DIGEST}", SITE[chart])
    assert done.returncode == 0, done.stderr
    return [found for found in yaml.safe_load_all(done.stdout) if found]


@pytest.mark.parametrize("chart", SITE)
def test_helm_finds_nothing_to_complain_about(helm: Path, chart: str) -> None:
    done = subprocess.run([helm, "lint", "--strict", CHARTS / chart], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("chart", SITE)
def test_two_renderings_are_equal(helm: Path, chart: str) -> None:
    assert objects(helm, chart) == objects(helm, chart)


@pytest.mark.parametrize("chart", SITE)
def test_every_container_runs_the_image_by_its_digest(helm: Path, chart: str) -> None:
    images = [
        container["image"]
        for found in objects(helm, chart)
        if found["kind"] in {"DaemonSet", "Deployment"}
        for container in found["spec"]["template"]["spec"]["containers"]
    ]
    assert images
    assert all(image.endswith(f"@{DIGEST}") for image in images)


@pytest.mark.parametrize("chart", SITE)
@pytest.mark.parametrize("setting", ["image.digset=x", "surprise=1", "image.digest=latest"])
def test_a_value_it_does_not_know_is_refused(helm: Path, chart: str, setting: str) -> None:
    done = template(helm, chart, setting)
    assert done.returncode != 0
    assert "values don't meet the specifications of the schema" in done.stderr


def test_the_sites_ranges_reach_the_objects(helm: Path) -> None:
    flannel = next(found for found in objects(helm, "flannel") if found["kind"] == "ConfigMap")
    assert '"Network": "10.9.0.0/16"' in flannel["data"]["net-conf.json"]
    service = next(found for found in objects(helm, "coredns") if found["kind"] == "Service")
    assert (service["metadata"]["name"], service["spec"]["clusterIP"]) == ("kube-dns", "10.8.0.10")
