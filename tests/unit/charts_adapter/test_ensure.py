# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""When helm is asked to do something, and when it is left alone. A script keeps releases in a file in helm's place; the lab has the real one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.adapters.charts import ChartWanted, HelmPlace, ensure_charts
from appliance.errors import ToolError

HELM = """\
#!/usr/bin/python3
import json, os, pathlib, sys
here = pathlib.Path(__file__).parent
state = here / "state.json"
(here / "environment").write_text(json.dumps(dict(os.environ)))
words = sys.argv[1:]
with (here / "calls").open("a") as calls:
    calls.write(words[0] + "\\n")
if (here / "broken").exists():
    sys.exit("Error: Kubernetes cluster unreachable: connection refused")
if words[0] == "status":
    if not state.exists():
        sys.exit("Error: release: not found")
    print(state.read_text())
elif words[0] == "uninstall":
    state.unlink()
elif words[0] == "upgrade":
    sys.stdin.read()
    description = words[words.index("--description") + 1]
    state.write_text(json.dumps({"info": {"status": "deployed", "description": description}}))
    print(state.read_text())
"""


@pytest.fixture
def place(tmp_path: Path) -> HelmPlace:
    program = tmp_path / "helm"
    program.write_text(HELM)
    program.chmod(0o755)
    (tmp_path / "kubeconfig").touch()
    return HelmPlace(helm=program, kubeconfig=tmp_path / "kubeconfig")


@pytest.fixture
def wanted(tmp_path: Path) -> ChartWanted:
    (tmp_path / "chart").write_bytes(b"packed")
    return ChartWanted(name="flannel", namespace="kube-flannel", chart=tmp_path / "chart", values={"podCidr": "10.1.0.0/16"})


def calls(place: HelmPlace) -> list[str]:
    return (place.helm.parent / "calls").read_text().split()


def test_the_second_time_helm_is_asked_once_and_changes_nothing(place: HelmPlace, wanted: ChartWanted) -> None:
    assert ensure_charts([wanted], place)[wanted.name] is True
    assert ensure_charts([wanted], place)[wanted.name] is False
    assert calls(place) == ["status", "upgrade", "status"]


def test_helm_gets_no_proxy_and_no_setting_of_the_caller(place: HelmPlace, wanted: ChartWanted, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "HELM_NAMESPACE", "HELM_KUBECONTEXT", "KUBECONFIG"):
        monkeypatch.setenv(name, "elsewhere")
    ensure_charts([wanted], place)
    environment = json.loads((place.helm.parent / "environment").read_text())
    assert "elsewhere" not in environment.values()
    assert environment["PATH"]


def test_other_values_are_a_new_revision(place: HelmPlace, wanted: ChartWanted) -> None:
    ensure_charts([wanted], place)
    assert ensure_charts([replace(wanted, values={"podCidr": "10.9.0.0/16"})], place)[wanted.name] is True


def test_another_chart_of_the_same_version_is_a_new_revision(place: HelmPlace, wanted: ChartWanted) -> None:
    ensure_charts([wanted], place)
    wanted.chart.write_bytes(b"packed otherwise")
    assert ensure_charts([wanted], place)[wanted.name] is True


def test_an_installation_that_was_cut_off_is_cleared_first(place: HelmPlace, wanted: ChartWanted) -> None:
    (place.helm.parent / "state.json").write_text(json.dumps({"info": {"status": "pending-install", "description": "x"}}))
    assert ensure_charts([wanted], place)[wanted.name] is True
    assert calls(place) == ["status", "uninstall", "upgrade"]


def test_helms_own_reason_is_told(place: HelmPlace, wanted: ChartWanted) -> None:
    (place.helm.parent / "broken").touch()
    with pytest.raises(ToolError, match="helm could not install flannel: Error: Kubernetes cluster unreachable") as caught:
        ensure_charts([wanted], place)
    assert caught.value.step == "chart flannel"
