# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Pinned trust, publications and metadata as they lie on disk; a refusal leaves every byte of them as it was."""

from __future__ import annotations

import os
from datetime import timedelta
from pathlib import Path

import pytest

from appliance.adapters.publication import create_publication, load_publication, load_signers, save_publication
from appliance.bundle.documents import encode
from appliance.errors import FormatError, HostError, UsageError, VerificationError
from appliance.trust.publication import new_publication
from appliance.verify import Trust, load_trust, metadata, pin_root, save_seen, trust_publication
from appliance.verify.metadata import read_metadata, verify_bundle_metadata
from tests.support.signing import DOUBLES, doubled_root
from tests.support.simulator import NOW, Files, Line, person, sample_files, write_bundle
from tests.unit.trust.refusals import without

PASSPHRASE = b"five plain words in a row"


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def pinned(tmp_path: Path, line: Line) -> Path:
    assert pin_root(tmp_path / "trust", line.pin) == line.name
    return tmp_path / "trust" / line.name


def bundle(tmp_path: Path, name: str, files: Files) -> Path:
    return write_bundle(tmp_path / name, files, sample_files()[1])


def test_a_pinned_root_and_two_releases_on_disk(tmp_path: Path) -> None:
    line = Line()
    folder = pinned(tmp_path, line)
    assert load_trust(folder) == Trust(directory=folder, line="acme", pin=line.pin, seen=None)
    first = verify_bundle_metadata(bundle(tmp_path, "one", line.publish()), load_trust(folder), now=line.now)
    save_seen(folder, first)
    line.replace_keys(["bob"])
    second = verify_bundle_metadata(bundle(tmp_path, "two", line.publish()), load_trust(folder), now=line.now)
    save_seen(folder, second)
    trust = load_trust(folder)
    assert (trust.pin, trust.seen) == (line.roots[1], second.seen)
    assert (folder / "root.json").read_bytes() == line.pin
    third = verify_bundle_metadata(bundle(tmp_path, "three", line.publish()), trust, now=line.now)
    assert third.seen.timestamp == 3


@pytest.mark.parametrize("fault", ["older", "other line", "stranger", "expired", "clock", "flipped", "extra file", "missing file"])
def test_a_refused_bundle_changes_no_byte_on_disk(tmp_path: Path, fault: str) -> None:
    line = Line()
    folder = pinned(tmp_path, line)
    old, new = line.publish(), line.publish()
    save_seen(folder, verify_bundle_metadata(bundle(tmp_path, "good", new), load_trust(folder), now=line.now))
    flipped = bytearray(new["timestamp.json"])
    flipped[-3] ^= 1
    files, now, kind, said = {
        "older": (old, NOW, VerificationError, "timestamp went back from version 2 to 1"),
        "other line": (Line("other").publish(), NOW, VerificationError, "this bundle is of line 'other'; this side trusts line 'acme'"),
        "stranger": (Line(people=("mallory",)).publish(), NOW, VerificationError, "is not the root 1 that this side pinned"),
        "expired": (new, NOW + timedelta(days=91), VerificationError, "timestamp expired on .*, 1 days ago"),
        "clock": (new, NOW - timedelta(days=1), HostError, "clock says .* has already passed"),
        "flipped": ({**new, "timestamp.json": bytes(flipped)}, NOW, FormatError, "metadata/timestamp.json"),
        "extra file": ({**new, "targets/extra": b"x"}, NOW, VerificationError, "metadata/targets/extra is named by no role"),
        "missing file": (without(new, "1.root.json"), NOW, VerificationError, "metadata holds no root file"),
    }[fault]
    bad = bundle(tmp_path, "bad", files)
    before = tree(tmp_path)
    with pytest.raises(kind, match=said) as caught:
        verify_bundle_metadata(bad, load_trust(folder), now=now)
    assert caught.value.hint
    assert tree(tmp_path) == before


@pytest.mark.parametrize("double", DOUBLES)
def test_a_root_in_which_one_key_counts_twice_is_not_pinned(tmp_path: Path, double: str) -> None:
    files = doubled_root(Line(), DOUBLES[double], ("root", "timestamp", "snapshot", "targets"))
    with pytest.raises(VerificationError, match="one public key stands under two identifiers") as caught:
        pin_root(tmp_path / "trust", files["2.root.json"])
    assert caught.value.hint
    assert not (tmp_path / "trust").exists()


def test_a_second_root_for_a_pinned_line_is_refused(tmp_path: Path) -> None:
    line = Line()
    folder = pinned(tmp_path, line)
    assert pin_root(tmp_path / "trust", line.pin) == "acme"
    before = tree(tmp_path)
    with pytest.raises(UsageError, match="has another root pinned"):
        pin_root(tmp_path / "trust", Line(people=("mallory",)).pin)
    assert tree(tmp_path) == before
    assert load_trust(folder).pin == line.pin


def test_a_root_that_is_none_is_not_pinned(tmp_path: Path) -> None:
    line = Line()
    broken = bytearray(line.pin)
    broken[len(broken) // 2] ^= 1
    for data in (bytes(broken), b"{}", b"", line.publish()["timestamp.json"]):
        with pytest.raises((FormatError, VerificationError)) as caught:
            pin_root(tmp_path / "trust", data)
        assert caught.value.hint
    assert not (tmp_path / "trust").exists()


def test_a_tampered_trust_folder_is_refused(tmp_path: Path) -> None:
    line, forger = Line(), Line(people=("mallory",))
    folder = pinned(tmp_path, line)
    with pytest.raises(HostError, match="no root is pinned"):
        load_trust(tmp_path / "trust" / "other")
    forger.replace_keys(["mallory", "eve"])
    (folder / "roots" / "2.root.json").write_bytes(forger.roots[1])
    with pytest.raises(VerificationError, match=r"2.root.json"):
        load_trust(folder)
    (folder / "roots" / "2.root.json").unlink()
    (folder / "seen.json").write_bytes(b"{}")
    with pytest.raises(FormatError, match="not a document"):
        load_trust(folder)


def test_a_kept_root_of_another_version_than_its_name_is_refused(tmp_path: Path) -> None:
    line = Line()
    folder = pinned(tmp_path, line)
    (folder / "roots" / "2.root.json").write_bytes(line.new_root(lambda root: setattr(root, "version", 3)))
    with pytest.raises(FormatError, match="it says it is version 3"):
        load_trust(folder)


def test_too_many_or_too_large_files_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = bundle(tmp_path, "b", Line().publish())
    monkeypatch.setattr(metadata, "MAX_METADATA_BYTES", 1000)
    with pytest.raises(FormatError, match=r"more than .* files or 1000 bytes"):
        read_metadata(folder)
    monkeypatch.undo()
    monkeypatch.setattr(metadata, "MAX_FILES", 5)
    with pytest.raises(FormatError, match="more than 5 files"):
        read_metadata(folder)


def test_a_publication_folder_is_made_read_and_saved(tmp_path: Path) -> None:
    folder, signers = create_publication(tmp_path / "pub", line="acme", keys=None, passphrase=PASSPHRASE, with_spare=True, now=NOW)
    loaded = load_publication(tmp_path / "pub")
    assert (loaded.publication, loaded.roots) == (new_publication("acme"), folder.roots)
    again = load_signers(tmp_path / "pub" / "private", PASSPHRASE)
    assert {signer.public_key.keyid for signer in again} == {signer.public_key.keyid for signer in signers}
    assert len(again) == 4
    for path in (tmp_path / "pub" / "private").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "pub" / "private").stat().st_mode & 0o777 == 0o700
    assert trust_publication(tmp_path / "pub").pin == folder.pin
    line = Line()
    line.publish()
    save_publication(tmp_path / "pub", line.publication)
    assert load_publication(tmp_path / "pub").publication == line.publication


def test_a_publication_is_made_once(tmp_path: Path) -> None:
    create_publication(tmp_path / "pub", line="acme", keys=None, passphrase=PASSPHRASE, with_spare=False, now=NOW)
    before = tree(tmp_path)
    with pytest.raises(UsageError, match="has a publication already"):
        create_publication(tmp_path / "pub", line="acme", keys=None, passphrase=PASSPHRASE, with_spare=False, now=NOW)
    with pytest.raises(UsageError, match="has keys already"):
        create_publication(tmp_path / "two", line="b", keys=tmp_path / "pub" / "private", passphrase=PASSPHRASE, with_spare=False, now=NOW)
    assert tree(tmp_path) == before


def test_a_short_passphrase_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fewer than 8"):
        create_publication(tmp_path / "pub", line="acme", keys=None, passphrase=b"short", with_spare=False, now=NOW)
    assert not (tmp_path / "pub").exists()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_a_key_file_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    create_publication(tmp_path / "pub", line="acme", keys=None, passphrase=PASSPHRASE, with_spare=False, now=NOW)
    path = tmp_path / "pub" / "private" / "classical-1.pem"
    path.chmod(mode)
    with pytest.raises(HostError, match="other users may read this private key"):
        load_signers(tmp_path / "pub" / "private", PASSPHRASE)


def test_missing_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no publication there"):
        load_publication(tmp_path)
    (tmp_path / "publication.json").write_bytes(encode(new_publication("acme")))
    with pytest.raises(FormatError, match=r"1.root.json is missing"):
        load_publication(tmp_path)
    with pytest.raises(UsageError, match="no private key"):
        load_signers(tmp_path, PASSPHRASE)
    with pytest.raises(HostError, match="no bundle there"):
        read_metadata(tmp_path)


def test_links_and_depth_in_metadata_are_refused(tmp_path: Path) -> None:
    folder = bundle(tmp_path, "b", Line().publish())
    (folder / "metadata" / "link").symlink_to("timestamp.json")
    with pytest.raises(FormatError, match="a link or device"):
        read_metadata(folder)
    (folder / "metadata" / "link").unlink()
    os.mkfifo(folder / "metadata" / "pipe")
    with pytest.raises(FormatError, match="a link or device"):
        read_metadata(folder)
    (folder / "metadata" / "pipe").unlink()
    (folder / "metadata" / "a" / "b" / "c").mkdir(parents=True)
    with pytest.raises(FormatError, match="nested too deep"):
        read_metadata(folder)


def test_persons_of_the_simulator_differ() -> None:
    assert person("alice")[0].public_key.keyid != person("bob")[0].public_key.keyid
