# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Every released vector has its verdict for ever: what was accepted still is, what was refused still is, with its exit code."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest

from appliance.bundle.contents import Contents, check_contents
from appliance.bundle.documents import decode
from appliance.bundle.media import HEADER_BYTES, TRAILER_BYTES, check_trailer, parse_header, parse_table, part_length
from appliance.bundle.safetensors import read_header
from appliance.bundle.weights import parse_statement
from appliance.errors import ApplianceError
from appliance.trust.client import verify_metadata
from appliance.trust.clock import parse_instant
from appliance.trust.state import SeenVersions

FOLDER = Path(__file__).resolve().parents[1] / "vectors"
VECTORS = sorted(path.stem for path in FOLDER.glob("*.json"))


def load(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / f"{name}.json").read_text(encoding="ascii"))
    return found


def files_of(vector: dict[str, Any]) -> dict[str, bytes]:
    files = files_of(load(vector["base"])) if "base" in vector else {}
    files |= {path: base64.b64decode(data) for path, data in vector["files"].items() if data is not None}
    return {path: data for path, data in files.items() if vector["files"].get(path, "") is not None}


def judge(vector: dict[str, Any]) -> None:
    kind = vector["kind"]
    if kind == "metadata":
        pin = files_of(load("metadata-valid"))[vector["pin"]]
        seen = decode(base64.b64decode(vector["seen"]), SeenVersions, what="seen") if "seen" in vector else None
        verify_metadata(files_of(vector), pinned_root=pin, seen=seen, now=parse_instant(vector["now"], what="now"))
        return
    data = base64.b64decode(vector["data"])
    if kind == "contents":
        check_contents(decode(data, Contents, what=kind))
    elif kind == "weights":
        parse_statement(data, what=kind)
    elif kind == "safetensors":
        read_header(io.BytesIO(data), size=len(data), what=kind)
    elif kind == "part":
        length, digest = parse_header(data[:HEADER_BYTES], what=kind)
        head = data[: HEADER_BYTES + length]
        table = parse_table(head[HEADER_BYTES:], digest, what=kind)
        check_trailer(data[-TRAILER_BYTES:], head=data[:-TRAILER_BYTES], length=part_length(table), what=kind)
    else:
        raise AssertionError(kind)


@pytest.mark.parametrize("name", VECTORS)
def test_a_released_vector_keeps_its_verdict(name: str) -> None:
    vector = load(name)
    if vector.get("accept"):
        judge(vector)
        return
    with pytest.raises(ApplianceError) as caught:
        judge(vector)
    assert caught.value.exit_code == vector["exit"], caught.value.message
    assert caught.value.hint


def test_every_kind_has_a_valid_vector_and_faults() -> None:
    kinds = {name.partition("-")[0] for name in VECTORS}
    assert kinds == {"metadata", "contents", "weights", "part", "safetensors"}
    assert all(f"{kind}-valid" in VECTORS for kind in kinds)
    assert len(VECTORS) > 60
