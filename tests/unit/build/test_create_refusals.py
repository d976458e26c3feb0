# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What create refuses or says before it fetches: a publication no site would believe, a wrong clock, wrong keys."""

from __future__ import annotations

from datetime import timedelta

import pytest

from appliance.errors import ApplianceError, FormatError, HostError, UsageError, VerificationError
from tests.support.building import NOW, Bench
from tests.support.observe import unchanged
from tests.support.simulator import person


def nothing_was_done(bench: Bench) -> None:
    """Nothing was asked of the upstream and no folder begun."""
    assert bench.upstream.requests == []
    assert not list(bench.folder.glob("one.bundle*"))


@pytest.fixture
def locked(bench: Bench) -> Bench:
    bench.lock()
    bench.publication  # noqa: B018 - makes it
    bench.upstream.requests.clear()
    return bench


@pytest.mark.parametrize("place", [200, -40])
def test_a_changed_root_is_refused_before_anything_is_fetched(locked: Bench, place: int) -> None:
    path = locked.publication / "roots" / "1.root.json"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with unchanged(locked.publication), pytest.raises((VerificationError, FormatError)) as caught:
        locked.create()
    assert "backup" in str(caught.value.hint)
    nothing_was_done(locked)


def test_an_expired_root_is_refused_before_anything_is_fetched(locked: Bench) -> None:
    with unchanged(locked.publication), pytest.raises(VerificationError, match="root 1 expired"):
        locked.create(now=NOW + timedelta(days=800))
    nothing_was_done(locked)


def test_a_copy_of_an_old_root_under_a_newer_name_is_refused(locked: Bench) -> None:
    roots = locked.publication / "roots"
    (roots / "2.root.json").write_bytes((roots / "1.root.json").read_bytes())
    with unchanged(locked.publication), pytest.raises(ApplianceError, match=r"2\.root\.json: it says it is version 1"):
        locked.create()
    nothing_was_done(locked)


def test_a_clock_behind_the_last_bundle_is_refused(locked: Bench) -> None:
    locked.create("first.bundle")
    locked.upstream.requests.clear()
    with unchanged(locked.publication), pytest.raises(HostError, match="clock"):
        locked.create(now=NOW - timedelta(hours=1))
    nothing_was_done(locked)


def test_a_strangers_keys_are_refused_before_anything_is_fetched(locked: Bench) -> None:
    with unchanged(locked.publication), pytest.raises(UsageError, match="none of the keys given"):
        locked.create(signers=person("bob"))
    nothing_was_done(locked)


def test_a_profile_that_changed_since_it_was_locked_is_named(locked: Bench) -> None:
    assert locked.create("one.bundle").notes == ()
    profile = locked.folder / "core.toml"
    profile.write_text(profile.read_text() + "# a thought\n")
    assert f"{profile} changed since it was locked" in locked.create("two.bundle").notes[0]


@pytest.mark.parametrize("gone", ["chart", "tiny"])
def test_a_folder_of_the_profile_that_is_not_there_is_a_usage_error(locked: Bench, gone: str) -> None:
    (locked.folder / gone).rename(locked.folder / "elsewhere")
    with unchanged(locked.folder / "core.lock.json"), pytest.raises(UsageError, match=f"{gone} is no folder"):
        locked.lock()


def test_a_key_that_signs_nothing_is_named(locked: Bench) -> None:
    created = locked.create(signers=(*person("anna"), *person("bob")))
    assert len(created.notes) == len(person("bob"))
    assert all("signs nothing" in note for note in created.notes)
