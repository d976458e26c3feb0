# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Attacks on the client workflow: each breaks one thing of a valid world."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest
from securesystemslib.signer import SSlibKey
from tuf.api.metadata import Role, Root

from appliance.bundle.contents import ContentClass
from appliance.bundle.documents import encode
from appliance.digests import digest_of
from appliance.errors import FormatError, HostError, VerificationError
from tests.support.simulator import Line, path_of, person, sample_files
from tests.unit.trust.refusals import refused, without


def test_a_valid_release_is_accepted_again_and_followed_by_the_next() -> None:
    line = Line()
    files = line.publish()
    first = line.verify(files)
    assert first.line == "acme"
    assert first.metadata == files
    assert first.digest == digest_of(encode(first.release))
    assert line.verify(files, seen=first.seen).seen == first.seen
    second = line.verify(line.publish(), seen=first.seen)
    assert second.seen.timestamp == first.seen.timestamp + 1


def test_metadata_alone_needs_no_blob() -> None:
    line = Line()
    bundle = line.verify(line.publish())
    assert set(bundle.blobs) == set(sample_files()[1])
    assert bundle.expires.keys() == {"root", "timestamp", "snapshot", "targets", *(each.value for each in ContentClass)}


def test_a_root_taken_from_the_bundle_is_impossible() -> None:
    """A stranger's complete, self-consistent bundle of the same line name is refused: its roots are not the pinned one."""
    ours, theirs = Line(), Line(people=("mallory",))
    files = theirs.publish()
    theirs.verify(files)
    refused(ours, files, "is not the root 1 that this side pinned")


def test_a_strangers_second_root_is_refused() -> None:
    ours, theirs = Line(), Line(people=("mallory",))
    ours.publish()
    theirs.replace_keys(["mallory", "eve"])
    files = {**theirs.publish(), "1.root.json": ours.pin}
    refused(ours, files, "2.root.json by root 1: 0 of 2 needed signatures")


def test_another_line_is_refused_by_name() -> None:
    refused(Line(), Line("other").publish(), "this bundle is of line 'other'; this side trusts line 'acme'")


def test_another_line_with_the_same_keys_is_refused_even_mixed() -> None:
    ours, other = Line(), Line("other")
    mine, theirs = ours.publish(), other.publish()
    for role in ("timestamp", "snapshot", "targets", "models"):
        refused(ours, {**mine, path_of(mine, role): theirs[path_of(theirs, role)]}, "is of line 'other'")


def test_what_was_seen_of_another_line_is_refused() -> None:
    line = Line()
    files = line.publish()
    seen = msgspec.structs.replace(line.verify(files).seen, line="other")
    refused(line, files, "this bundle is of line 'acme'; seen.json is of line 'other'", seen=seen)


def test_a_release_of_another_line_is_refused() -> None:
    line = Line()
    files = line.publish(release=Line("other").release())
    refused(line, files, "this release is of line 'other'")


def test_a_rotated_root_is_followed_and_a_gap_is_not() -> None:
    line = Line()
    line.replace_keys(["alice", "bob"])
    line.replace_keys(["bob", "carol"])
    files = line.publish()
    assert line.verify(files).seen.root == 3
    refused(line, without(files, "2.root.json"), "2.root.json is missing: the root chain has a gap")
    refused(line, without(files, "1.root.json"), "1.root.json is missing: the root chain has a gap")
    refused(line, {name: data for name, data in files.items() if not name.endswith("root.json")}, "no root file")


def test_a_side_that_pinned_a_later_root_accepts_the_chain() -> None:
    line = Line()
    line.replace_keys(["bob"])
    files = line.publish()
    assert line.verify(files, pin=line.roots[1]).seen.root == 2


def test_an_older_root_that_is_not_of_the_chain_is_refused() -> None:
    """Roots before the pinned one travel for older sites; a forged one is not passed on."""
    line, forger = Line(), Line(people=("mallory",))
    line.replace_keys(["bob"])
    files = {**line.publish(), "1.root.json": forger.pin}
    with pytest.raises(VerificationError, match=r"2.root.json"):
        line.verify(files, pin=line.roots[1])


def test_a_root_signed_by_old_or_new_keys_alone_is_refused() -> None:
    for signers in (person("alice"), person("bob")):
        line = Line()
        keys = {signer.public_key.keyid: signer.public_key for signer in person("bob")}

        def change(root: Root, keys: dict[str, SSlibKey] = keys) -> None:
            root.keys = dict(keys)
            root.roles = {name: Role(sorted(keys), 2) for name in root.roles}

        line.new_root(change, signers=signers)
        line.signers = list(person("bob"))
        refused(line, line.publish(), "0 of 2 needed signatures")


def test_a_root_with_a_skipped_or_repeated_version_is_refused() -> None:
    line = Line()
    line.new_root(lambda root: setattr(root, "version", 3))
    files = line.publish()
    refused(line, files, "the root chain has a gap")
    refused(line, {**without(files, "3.root.json"), "2.root.json": files["3.root.json"]}, "it says it is version 3")


def test_an_older_root_chain_than_pinned_or_seen_is_refused() -> None:
    line = Line()
    old = line.publish()
    line.new_root()
    seen = line.verify(line.publish()).seen
    with pytest.raises(VerificationError, match="knows only root 1; this side already trusts root 2"):
        line.verify(old, pin=line.roots[1])
    refused(line, old, "root went back from version 2 to 1", seen=seen)


def test_an_expired_root_is_refused_with_its_days() -> None:
    line = Line()
    line.now += timedelta(days=730, hours=1)
    line.roots = line.roots[:1]
    refused(line, line.publish(), r"root expired on 2028-11-22T06:31:00Z, 0 days ago")


def test_an_expired_root_in_the_middle_of_the_chain_is_followed() -> None:
    line = Line()
    line.pass_days(731)
    line.new_root()
    assert line.verify(line.publish()).seen.root == 2


@pytest.mark.parametrize("threshold", [1, 3])
def test_a_root_whose_threshold_breaks_the_rule_is_refused(threshold: int) -> None:
    line = Line()
    files = line.publish()
    line.new_root(lambda root: root.roles.update(targets=Role(root.roles["targets"].keyids, threshold)))
    files["2.root.json"] = line.roots[1]
    refused(line, files, "alone could meet|of only 2")


def test_a_root_without_consistent_snapshot_is_refused() -> None:
    line = Line()
    line.new_root(lambda root: setattr(root, "consistent_snapshot", False))
    refused(line, line.publish(), "consistent_snapshot is not true", kind=FormatError)


def test_a_thief_who_raised_all_versions_is_recovered_from_by_new_keys() -> None:
    line = Line()
    line.publish()
    far = {"timestamp": 2**40, "snapshot": 2**40, "targets": 2**40, "classes": {each.value: 2**40 for each in ContentClass}}
    honest = line.publication
    line.publication = msgspec.structs.replace(honest, **far)
    stolen_moment = line.now + timedelta(days=3000)
    files = line.edit(line.publish(), "timestamp.json", lambda signed: signed.update({"expires": "2050-01-01T00:00:00Z"}))
    seen = msgspec.structs.replace(line.verify(files).seen, issued=stolen_moment.strftime("%Y-%m-%dT%H:%M:%SZ"))
    line.publication = honest
    line.now += timedelta(days=1)
    refused(line, line.publish(), "has already passed", seen=seen, kind=HostError)
    line.replace_keys(["bob"])
    recovered = line.verify(line.publish(), seen=seen).seen
    assert recovered.timestamp < 10
    assert recovered.issued < seen.issued


def test_adding_a_key_is_no_recovery() -> None:
    line = Line()
    seen = msgspec.structs.replace(line.verify(line.publish()).seen, timestamp=99)
    line.replace_keys(["alice", "bob"])
    refused(line, line.publish(), "timestamp went back from version 99", seen=seen)
