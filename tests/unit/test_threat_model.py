# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Every test that the threat model names exists, and every rule it cites is a section of the format."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODEL = (ROOT / "docs" / "threat-model.md").read_text(encoding="utf-8")


def test_every_named_test_exists() -> None:
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    missing = [name for name in sorted(set(re.findall(r"`(test_\w+)`", MODEL))) if f"def {name}(" not in source]
    assert not missing


def test_every_attack_row_names_a_test() -> None:
    rows = [line for line in MODEL.split("## Attacks")[1].split("## What")[0].splitlines() if line.startswith("|")][2:]
    assert len(rows) > 40
    assert not [row for row in rows if "`test_" not in row]


def test_every_cited_section_exists() -> None:
    text = (ROOT / "docs" / "bundle-format.md").read_text(encoding="utf-8")
    sections = set(re.findall(r"^#{2,3} (\d+(?:\.\d+)?)", text, re.MULTILINE))
    cited: set[str] = set()
    for path in (ROOT / "appliance").rglob("*.py"):
        for found in re.findall(r"bundle-format\.md,? sections? ([0-9.]+(?: and [0-9.]+)?)", path.read_text(encoding="utf-8")):
            cited.update(each.rstrip(".") for each in found.split(" and "))
    assert cited
    assert not cited - sections
