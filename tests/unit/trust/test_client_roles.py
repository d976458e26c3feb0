# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Attacks on the client workflow: each breaks one thing of a valid world."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from tuf.api.metadata import Metadata

from appliance.bundle.contents import ContentClass
from appliance.errors import FormatError, HostError
from appliance.trust.client import MAX_FILES
from appliance.trust.state import SeenVersions
from tests.support.signing import DOUBLES, FAULTS, ROLES, doubled_delegation, doubled_root, published
from tests.support.simulator import NOW, Line, path_of, person, sample_files
from tests.support.twosigners import shared_line
from tests.unit.trust.refusals import refused, unchanged, without


@pytest.mark.parametrize("role", ROLES)
def test_one_family_only_is_refused(role: str) -> None:
    line = Line()
    files = published(line)
    line.verify(files)
    for fault in ("classical only", "ml-dsa only"):
        refused(line, FAULTS[fault].make(line, files, role), FAULTS[fault].says)


@pytest.mark.parametrize("role", ROLES)
def test_no_signature_a_wrong_key_and_a_changed_file_are_refused(role: str) -> None:
    line = Line()
    files = published(line)
    for fault in ("none", "a stranger's", "one key and a stranger's", "of other bytes"):
        refused(line, FAULTS[fault].make(line, files, role), FAULTS[fault].says)


def test_the_key_of_one_class_signs_no_other_role() -> None:
    """Bob signs models: his keys are known and valid, and count for nothing else; alice's no longer count for models."""
    line = shared_line(Line())
    files = published(line)
    line.verify(files)
    for role in ROLES:
        wrong = person("alice") if role == "models" else person("bob")
        refused(line, line.edit(files, path_of(files, role), unchanged, sign=wrong), "is not a key of role|needed signatures")


@pytest.mark.parametrize("double", DOUBLES)
@pytest.mark.parametrize("roles", [("root",), ("timestamp",), ("root", "timestamp", "snapshot", "targets")])
def test_a_signed_root_in_which_one_key_counts_twice_is_refused(double: str, roles: tuple[str, ...]) -> None:
    line = Line()
    refused(line, doubled_root(line, DOUBLES[double], roles), "2.root.json: one public key stands under two identifiers")


@pytest.mark.parametrize("double", DOUBLES)
@pytest.mark.parametrize("content_class", ["images", "models", "code"])
def test_a_signed_delegation_in_which_one_key_counts_twice_is_refused(double: str, content_class: str) -> None:
    line = Line()
    refused(line, doubled_delegation(line, DOUBLES[double], content_class), "targets: one public key stands under two identifiers")


def test_a_signature_moved_from_another_file_is_refused() -> None:
    line = Line()
    files = line.publish()
    timestamp, snapshot = json.loads(files["timestamp.json"]), json.loads(files["1.snapshot.json"])
    timestamp["signatures"] = snapshot["signatures"]
    refused(line, {**files, "timestamp.json": Metadata.from_dict(timestamp).to_bytes()}, "does not verify")


def test_a_key_that_signs_twice_counts_once() -> None:
    line = Line()
    files = line.publish()
    document = json.loads(files["timestamp.json"])
    document["signatures"] = [document["signatures"][0]] * 2
    data = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    refused(line, {**files, "timestamp.json": data}, "not TUF metadata", kind=FormatError)


def test_a_valid_extra_signature_by_a_foreign_key_is_refused() -> None:
    line = Line()
    files = line.publish()
    broken = line.edit(files, "timestamp.json", unchanged, sign=[*line.signers, person("mallory")[0]])
    refused(line, broken, "is not a key of role timestamp")


def test_a_lost_spare_key_is_no_loss() -> None:
    line = Line(people=("alice", "spare"))
    for left_out in range(4):
        files = line.publish(signers=[signer for number, signer in enumerate(line.signers) if number != left_out])
        line.verify(files)
    refused(line, line.publish(signers=line.signers[:2]), "2 of 3 needed signatures")


def test_older_after_newer_is_refused_for_every_role() -> None:
    line = Line()
    old = line.publish()
    new = line.publish()
    seen = line.verify(new).seen
    refused(line, old, "timestamp went back from version 2 to 1", seen=seen)
    for role in ("snapshot", "targets", *(each.value for each in ContentClass)):
        turned = msgspec.structs.replace(seen, timestamp=1, **_older_but(role, seen))
        refused(line, old, f"{role} went back from version 2 to 1", seen=turned)


def _older_but(role: str, seen: SeenVersions) -> dict[str, Any]:
    """Seen versions as if only `role` had moved."""
    values: dict[str, Any] = {"snapshot": 1, "targets": 1, "classes": dict.fromkeys(seen.classes, 1)}
    if role in values:
        values[role] = 2
    else:
        values["classes"][role] = 2
    return values


def test_a_newer_timestamp_over_an_older_snapshot_is_refused() -> None:
    line = Line()
    line.publish()
    new = line.publish()
    seen = line.verify(new).seen
    line.publication = msgspec.structs.replace(line.publication, snapshot=0, timestamp=5)
    refused(line, line.publish(), "snapshot went back from version 2 to 1", seen=seen)


def test_the_same_version_with_other_content_is_refused() -> None:
    line = Line()
    seen = line.verify(line.publish()).seen
    twin = Line(name="acme")
    twin.roots = line.roots
    refused(line, twin.publish(release=line.release("1.0.1")), "targets version 1 is not what this side saw", seen=seen)
    twin = Line(name="acme")
    twin.roots = line.roots
    refused(line, twin.publish(sample_files({"other": 10})[0]), "files version 1 is not what this side saw", seen=seen)
    twin = Line(name="acme")
    twin.roots = line.roots
    twin.publication = msgspec.structs.replace(twin.publication, snapshot=3)
    refused(line, twin.publish(), "timestamp version 1 is not what this side saw", seen=seen)


@pytest.mark.parametrize(
    ("role", "days"), [("timestamp", 90), ("snapshot", 365), ("targets", 365), ("images", 365), ("models", 365), ("code", 365)]
)
def test_an_expired_role_is_refused_with_its_name_and_days(role: str, days: int) -> None:
    line = Line()
    files = line.publish()
    path = path_of(files, role)
    later = (NOW + timedelta(days=3000)).strftime("%Y-%m-%dT%H:%M:%SZ")
    line.now = NOW + timedelta(days=days + 3)
    for other in ("timestamp", "snapshot", "targets", *(each.value for each in ContentClass)):
        if other != role:
            files = line.edit(files, path_of(files, other), lambda signed: signed.update(expires=later))
    assert path in files
    refused(line, files, f"{role} expired on .*, 3 days ago")


def test_what_expires_this_second_is_expired() -> None:
    line = Line()
    files = line.publish()
    line.now = NOW + timedelta(days=90) - timedelta(seconds=1)
    line.verify(files)
    line.now += timedelta(seconds=1)
    refused(line, files, "timestamp expired on .*, 0 days ago")


@pytest.mark.parametrize("role", ["snapshot", "targets", "images", "code"])
def test_a_role_of_another_release_is_refused(role: str) -> None:
    """Mix-and-match: one role's file of the last release put in place of this one's, name and all."""
    line = Line()
    old, new = line.publish(), line.publish()
    refused(line, {**new, path_of(new, role): old[path_of(old, role)]}, "is version 1, .* names 2: parts of two releases are mixed")
    refused(line, {**without(new, path_of(new, role)), path_of(old, role): old[path_of(old, role)]}, "is missing")


@pytest.mark.parametrize("name", ["timestamp.json", "1.snapshot.json", "1.targets.json", "1.models.json"])
def test_a_missing_file_is_refused_by_name(name: str) -> None:
    line = Line()
    refused(line, without(line.publish(), name), f"metadata/{name} is missing")


def test_a_missing_or_swapped_target_is_refused() -> None:
    line = Line()
    files = line.publish()
    for target in ("release", "images", "files"):
        path = next(name for name in files if name.startswith("targets/") and name.endswith(f".{target}.json"))
        refused(line, without(files, path), "is missing")
        refused(line, {**files, path: files[path] + b" "}, "is not the file that was signed")
        refused(line, {**files, path: files[path][:-1] + b"]"}, "is not the file that was signed")


def test_a_file_that_no_role_names_is_refused() -> None:
    line = Line()
    files = line.publish()
    for name in ("evil.json", "targets/x.release.json", "2.timestamp.json", "0.root.json", "../up", "weights/x.dsse.json"):
        refused(line, {**files, name: b"{}"}, "is named by no role")


def test_too_many_files_are_refused_unread() -> None:
    line = Line()
    files = {**line.publish(), **{f"{number}.x": b"" for number in range(MAX_FILES)}}
    refused(line, files, "at most", kind=FormatError)


def test_a_clock_behind_the_timestamp_is_unfit() -> None:
    line = Line()
    files = line.publish()
    line.now -= timedelta(seconds=1)
    refused(line, files, "clock says 2026-11-23T06:30:59Z, but 2026-11-23T06:31:00Z has already passed", kind=HostError)


def test_a_clock_behind_what_was_seen_is_unfit_even_for_an_older_bundle() -> None:
    line = Line()
    old = line.publish()
    line.pass_days(10)
    seen = line.verify(line.publish()).seen
    line.pass_days(-5)
    refused(line, old, "has already passed", seen=seen, kind=HostError)


def test_the_floor_of_time_never_sinks() -> None:
    line = Line()
    line.pass_days(10)
    seen = line.verify(line.publish()).seen
    line.pass_days(-5)
    files = line.publish()
    line.pass_days(5)
    assert line.verify(files, seen=seen).seen.issued == seen.issued


@pytest.mark.parametrize("issued", [None, "", "2026-11-23", "2026-11-23T06:31:00", "2026-13-01T00:00:00Z", 5, "\uff12026-11-23T06:31:00Z"])
def test_a_timestamp_without_its_moment_is_refused(issued: object) -> None:
    line = Line()
    files = line.edit(line.publish(), "timestamp.json", lambda signed: signed.update({"x-issued": issued}))
    refused(line, files, "x-issued", kind=FormatError)
