# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`release.json`: what the top-level targets role signs (docs/bundle-format.md section 4)."""

from __future__ import annotations

from typing import ClassVar

from appliance.bundle.documents import Document, Record, Sha256


class ChartRelease(Record, frozen=True, kw_only=True):
    """A Helm release the site will have: `chart` names the artifact of class `charts`.

    `values` is canonical JSON; empty: the chart's own values.
    """

    name: str
    chart: str
    namespace: str
    values: str = ""


class Release(Document, frozen=True, kw_only=True):
    """One complete release of a line.

    `version` is the release's own (any string, shown to people); order is decided by TUF versions alone.
    `platform` is `<os>-<release>-<architecture>`, such as `debian-12-amd64`.
    """

    FORMAT: ClassVar[str] = "release/1"

    name: str
    line: str
    version: str
    lock: Sha256
    platform: str
    kubernetes: str
    charts: tuple[ChartRelease, ...]
    engine: str = ""
    """Engine settings as canonical JSON; empty until models are served."""
    minimum_appliance: str
