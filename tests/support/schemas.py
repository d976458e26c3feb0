# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Writes the JSON schemas of every document to docs/schemas; with --check, says whether they are up to date.

python -m tests.support.schemas [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgspec

from appliance.bundle.contents import Contents
from appliance.bundle.documents import Document
from appliance.bundle.lock import Lock
from appliance.bundle.media import PartTable
from appliance.bundle.profile import Profile
from appliance.bundle.release import Release
from appliance.trust.publication import Publication
from appliance.trust.state import SeenVersions

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "schemas"
DOCUMENTS: tuple[type[Document], ...] = (Contents, Lock, PartTable, Profile, Publication, Release, SeenVersions)


def _anything(kind: type) -> dict[str, Any]:
    """A field of type `object` may be any JSON."""
    if kind is not object:
        raise NotImplementedError(kind)
    return {"description": "any value"}


def schema_bytes(kind: type[Document]) -> bytes:
    """The schema of `kind` (JSON Schema 2020-12): the record's fields, with `format` fixed to its own."""
    schema: dict[str, Any] = msgspec.json.schema(kind, schema_hook=_anything)
    schema["$defs"][kind.__name__]["properties"]["format"] = {"const": kind.FORMAT}
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    return msgspec.json.format(msgspec.json.encode(schema, order="sorted"), indent=2) + b"\n"


def schemas() -> dict[str, bytes]:
    """All schemas by file name, such as `contents-1.json`."""
    return {f"{kind.FORMAT.replace('/', '-')}.json": schema_bytes(kind) for kind in DOCUMENTS}


def main() -> int:
    """Write, or compare with --check; 1 where they differ."""
    found = {path.name: path.read_bytes() for path in FOLDER.glob("*.json")} if FOLDER.is_dir() else {}
    if "--check" in sys.argv[1:]:
        stale = sorted(name for name in schemas() if found.get(name) != schemas()[name])
        for name in stale:
            print(f"docs/schemas/{name} is not up to date: run python -m tests.support.schemas", file=sys.stderr)
        return 1 if stale else 0
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, data in schemas().items():
        (FOLDER / name).write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
