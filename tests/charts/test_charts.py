# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Rules of our charts that need no helm; the lab renders and installs them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

CHARTS = sorted(path.parent for path in (Path(__file__).resolve().parents[2] / "charts").glob("*/Chart.yaml"))
chart_of = pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: chart.name)


def values(chart: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((chart / "values.yaml").read_text())
    return found


def schema(chart: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((chart / "values.schema.json").read_text())
    return found


def test_there_are_charts() -> None:
    assert [chart.name for chart in CHARTS] == ["coredns", "flannel"]


@chart_of
def test_the_charts_own_values_fit_its_schema(chart: Path) -> None:
    jsonschema.Draft7Validator.check_schema(schema(chart))
    jsonschema.validate(values(chart), schema(chart))


@chart_of
@pytest.mark.parametrize("where", [(), ("image",)], ids=["top", "image"])
def test_a_value_nobody_knows_is_refused(chart: Path, where: tuple[str, ...]) -> None:
    changed = values(chart)
    target = changed
    for key in where:
        target = target[key]
    target["digset"] = "sha256:" + "0" * 64
    with pytest.raises(jsonschema.ValidationError, match="digset"):
        jsonschema.validate(changed, schema(chart))


@chart_of
@pytest.mark.parametrize("digest", ["latest", "sha256:abc", "sha1:" + "0" * 40])
def test_what_is_no_digest_is_refused(chart: Path, digest: str) -> None:
    changed = values(chart)
    changed["image"]["digest"] = digest
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(changed, schema(chart))


@chart_of
def test_each_template_makes_one_object_and_is_called_as_its_kind(chart: Path) -> None:
    for path in (chart / "templates").glob("*.yaml"):
        kinds = re.findall(r"^kind: (\w+)$", path.read_text(), re.MULTILINE)
        assert [kind.lower() for kind in kinds] == [path.stem], path


@chart_of
def test_every_image_comes_from_the_helper_that_pins_it(chart: Path) -> None:
    for path in (chart / "templates").glob("*.yaml"):
        for image in re.findall(r"^ *image: (.*)$", path.read_text(), re.MULTILINE):
            assert image == f'{{{{ include "{chart.name}.image" . }}}}'
        assert "imagePullPolicy: Always" not in path.read_text()


@chart_of
def test_every_container_is_confined(chart: Path) -> None:
    for path in (chart / "templates").glob("*.yaml"):
        text = path.read_text()
        containers = len(re.findall(r"^ *image: ", text, re.MULTILINE))
        for needed in (
            "allowPrivilegeEscalation: false",
            "readOnlyRootFilesystem: true",
            "drop: [ALL]",
            "seccompProfile: {type: RuntimeDefault}",
        ):
            assert text.count(needed) == containers, (path, needed)


@chart_of
def test_the_table_of_the_readme_has_every_value(chart: Path) -> None:
    table = set(re.findall(r"`([a-zA-Z.]+)`", "\n".join(re.findall(r"^\| (`.*?) \|", (chart / "README.md").read_text(), re.MULTILINE))))

    def names(found: dict[str, Any], above: str = "") -> set[str]:
        out: set[str] = set()
        for key, value in found.items():
            nested = isinstance(value, dict) and key != "resources"
            out |= names(value, f"{above}{key}.") if nested else {f"{above}{key}"}
        return out

    assert table == names(values(chart))


def test_dns_asks_nobody() -> None:
    corefile = (CHARTS[0] / "templates/configmap.yaml").read_text()
    assert not re.search(r"^\s*(forward|proxy)\b", corefile, re.MULTILINE)
    assert "rcode NXDOMAIN" in corefile
