# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What every test of the client workflow does: break one thing of a valid world, expect the refusal that names it."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.bundle.documents import encode
from appliance.errors import ApplianceError, VerificationError
from appliance.trust.state import SeenVersions
from tests.support.simulator import Files, Line

Signed = dict[str, Any]


def refused(
    line: Line, files: Files, match: str, *, seen: SeenVersions | None = None, kind: type[ApplianceError] = VerificationError
) -> None:
    """The refusal has its class and a hint, and the same call without the fault still stands alone (nothing is kept)."""
    before = encode(seen) if seen else None
    with pytest.raises(kind, match=match) as caught:
        line.verify(files, seen=seen)
    assert caught.value.hint
    assert (encode(seen) if seen else None) == before


def unchanged(signed: Signed) -> None:
    """An edit that leaves the signed part as it is; only signatures are made again."""


def without(files: Files, path: str) -> Files:
    return {name: data for name, data in files.items() if name != path}
