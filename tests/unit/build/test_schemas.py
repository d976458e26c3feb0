# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The JSON schemas in docs/schemas accept what the appliance reads and writes, and refuse what it refuses."""

from __future__ import annotations

import copy
import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from jsonschema import Draft202012Validator

from appliance.bundle.contents import ContentClass
from appliance.bundle.documents import Document, decode, encode
from appliance.bundle.lock import Lock
from appliance.bundle.profile import Profile
from appliance.errors import FormatError
from tests.support.building import Bench
from tests.support.simulator import Line

ROOT = Path(__file__).resolve().parents[3]
PROFILES = sorted((ROOT / "bundles").glob("*.toml"))


def validator(name: str) -> Draft202012Validator:
    schema = json.loads((ROOT / "docs" / "schemas" / f"{name}.json").read_bytes())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def faults(name: str, document: object) -> list[str]:
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in validator(name).iter_errors(document)]


def test_there_is_a_profile() -> None:
    assert ROOT / "bundles" / "core.toml" in PROFILES


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.name)
def test_every_profile_of_the_project_is_valid_by_its_schema(path: Path) -> None:
    assert faults("profile-1", tomllib.loads(path.read_text())) == []


def test_a_profile_with_every_kind_and_its_lock_are_valid_by_their_schemas(bench: Bench) -> None:
    assert faults("profile-1", tomllib.loads((bench.folder / "core.toml").read_text())) == []
    lock = json.loads(bench.lock().path.read_bytes())
    assert faults("lock-1", lock) == []
    assert all(lock[kind] for kind in ("images", "charts", "models", "files"))


def test_what_create_signs_and_remembers_is_valid_by_its_schema(bench: Bench) -> None:
    bench.lock()
    bench.create()
    verified, _ = bench.verify()
    assert faults("release-1", json.loads(encode(verified.release))) == []
    assert faults("seen-1", json.loads(encode(verified.seen))) == []
    assert faults("publication-1", json.loads((bench.publication / "publication.json").read_bytes())) == []
    for each in ContentClass:
        assert faults("contents-1", json.loads(encode(verified.contents[each]))) == []


Change = Callable[[dict[str, Any]], object]
WRONG: dict[str, Change] = {
    "another major": lambda each: each.update(format=each["format"].replace("/1", "/2")),
    "no format": lambda each: each.pop("format"),
    "no name": lambda each: each.pop("name"),
    "an unknown field": lambda each: each.update(unknown=1),
    "an unknown field of a file": lambda each: each["files"][0].update(unknown=1),
    "a number for a name": lambda each: each.update(name=5),
    "a text for a list": lambda each: each.update(images="all"),
    "a file without a url": lambda each: each["files"][0].pop("url"),
}
WRONG_LOCK: dict[str, Change] = {
    **WRONG,
    "a short digest": lambda each: each["files"][0].update(digest="sha256:00"),
    "a digest of another kind": lambda each: each.update(profile="md5:" + "0" * 32),
    "a size below nothing": lambda each: each["files"][0].update(size=-1),
    "a model file without its digest": lambda each: each["models"][0]["files"][0].pop("digest"),
}


def refused_by_both(name: str, kind: type[Document], document: dict[str, Any]) -> None:
    """The schema and the code agree that this is no document of `kind`."""
    assert faults(name, document)
    with pytest.raises(FormatError):
        decode(msgspec.json.encode(document, order="sorted"), kind, what=name)


@pytest.mark.parametrize("fault", WRONG_LOCK)
def test_a_wrong_lock_is_refused_by_its_schema_as_by_the_code(bench: Bench, fault: str) -> None:
    document = json.loads(bench.lock().path.read_bytes())
    changed = copy.deepcopy(document)
    WRONG_LOCK[fault](changed)
    refused_by_both("lock-1", Lock, changed)


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_profile_is_refused_by_its_schema_as_by_the_code(bench: Bench, fault: str) -> None:
    changed = tomllib.loads((bench.folder / "core.toml").read_text())
    WRONG[fault](changed)
    refused_by_both("profile-1", Profile, changed)


def test_a_release_of_the_simulator_is_valid_by_its_schema() -> None:
    assert faults("release-1", json.loads(encode(Line().release()))) == []
