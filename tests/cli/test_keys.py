# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The keys commands as a person runs them: what they print, write, refuse, and never say."""

from __future__ import annotations

import base64
import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from appliance.adapters.publication import load_publication, load_signers
from appliance.bundle.contents import ContentClass
from appliance.bundle.documents import encode
from appliance.cli import GROUPS, app
from appliance.cli.keys import read_passphrase
from appliance.errors import HostError, UsageError, VerificationError
from appliance.trust.client import verify_metadata
from appliance.trust.metadata import sign_release
from appliance.verify.metadata import read_metadata
from tests.support.observe import leaks
from tests.support.signing import private_secrets
from tests.support.simulator import Line, sample_files, write_bundle

SECRET = "a passphrase nobody should see"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


@pytest.fixture
def passphrase(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.write_text(SECRET + "\n")
    return path


def init(folder: Path, passphrase: Path, *more: str) -> Result:
    return run("keys", "init", folder, "--line", "acme", "--passphrase-file", passphrase, *more)


def test_init_and_show_agree(tmp_path: Path, passphrase: Path) -> None:
    made = init(tmp_path / "pub", passphrase, "-o", "json")
    assert made.exit_code == 0, made.output
    shown = run("keys", "show", tmp_path / "pub", "-o", "json")
    assert json.loads(shown.stdout) == json.loads(made.stdout)
    assert json.loads(shown.stdout)["thresholds"] == dict.fromkeys(("root", "timestamp", "snapshot", "targets"), "2 of 2")
    table = run("keys", "show", tmp_path / "pub")
    assert re.search(r"fingerprint of root 1( +[0-9a-f]{8}){8}", table.stdout)


def test_a_spare_pair_makes_three_of_four(tmp_path: Path, passphrase: Path) -> None:
    made = init(tmp_path / "pub", passphrase, "--with-spare", "-o", "json")
    assert json.loads(made.stdout)["thresholds"]["root"] == "3 of 4"


def test_a_second_init_is_refused_and_changes_nothing(tmp_path: Path, passphrase: Path) -> None:
    init(tmp_path / "pub", passphrase)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    again = init(tmp_path / "pub", passphrase)
    assert again.exit_code == 2
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("line", "code"), [("Acme", 2), ("../x", 2)])
def test_an_odd_line_is_a_usage_error(tmp_path: Path, passphrase: Path, line: str, code: int) -> None:
    done = run("keys", "init", tmp_path / "pub", "--line", line, "--passphrase-file", passphrase)
    assert done.exit_code == code
    assert not (tmp_path / "pub").exists()


def test_a_class_is_given_away_and_signed_by_its_new_owner(tmp_path: Path, passphrase: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    init(ours, passphrase)
    init(theirs, passphrase)
    added = run("keys", "add", ours, theirs / "public.pem", "--role", "files", "-o", "json")
    assert added.exit_code == 0, added.output
    assert json.loads(added.stdout)["threshold"] == 2
    folder = load_publication(ours)
    now = datetime.now(UTC)
    contents, blobs = sample_files()
    _, files = sign_release(
        publication=folder.publication,
        roots=folder.roots,
        signers=load_signers(ours / "private", SECRET.encode()),
        release=encode(Line().release()),
        contents={ContentClass.FILES: encode(contents[ContentClass.FILES])},
        now=now,
    )
    bundle = write_bundle(tmp_path / "bundle", files, blobs)
    with pytest.raises(VerificationError, match="0 of 2"):
        verify_metadata(files, pinned_root=folder.pin, seen=None, now=now)
    sign = ("keys", "sign", bundle, "--publication", ours, "--passphrase-file", passphrase)
    mine = run(*sign)
    assert mine.exit_code == 2
    assert "files" in mine.output
    done = run(*sign, "--keys", theirs / "private", "-o", "json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == [{"role": "files", "version": 1, "lacking": 0}]
    assert verify_metadata(read_metadata(bundle), pinned_root=folder.pin, seen=None, now=now).line == "acme"


def test_half_a_person_is_not_given_a_class(tmp_path: Path, passphrase: Path) -> None:
    init(tmp_path / "ours", passphrase)
    init(tmp_path / "theirs", passphrase)
    half = tmp_path / "half.pem"
    half.write_bytes(
        (tmp_path / "theirs" / "public.pem").read_bytes().split(b"-----END PUBLIC KEY-----\n")[0] + b"-----END PUBLIC KEY-----\n"
    )
    before = (tmp_path / "ours" / "publication.json").read_bytes()
    done = run("keys", "add", tmp_path / "ours", half, "--role", "models")
    assert done.exit_code == 2
    assert (tmp_path / "ours" / "publication.json").read_bytes() == before


def test_no_command_prints_a_secret(tmp_path: Path, passphrase: Path) -> None:
    folder = tmp_path / "pub"
    wrong = tmp_path / "wrong"
    wrong.write_text("another passphrase nobody should see")
    outputs = [
        init(folder, passphrase),
        init(folder, passphrase),
        run("keys", "show", folder),
        run("keys", "show", folder, "-o", "json"),
        run("keys", "add", folder, folder / "public.pem", "--role", "code"),
        run("keys", "sign", tmp_path, "--publication", folder, "--passphrase-file", passphrase),
        run("keys", "sign", write_bundle(tmp_path / "b", Line().publish(), {}), "--publication", folder, "--passphrase-file", wrong),
    ]
    said = "".join(result.output + result.stdout + repr(result.exception) for result in outputs)
    private = [line for path in (folder / "private").iterdir() for line in path.read_text().splitlines() if not line.startswith("-")]
    for secret in (SECRET, "another passphrase", *private):
        assert secret not in said
    (tmp_path / "said").write_text(said)
    keys = private_secrets(folder / "private", SECRET.encode())
    planted: dict[str, str | bytes] = {"passphrase": SECRET, "another": "another passphrase nobody", **keys}
    assert len(planted) == 6
    assert leaks(planted, tmp_path / "said", folder, tmp_path / "b") == []
    (tmp_path / "said").write_text(said + base64.b64encode(b"x" + keys["key 1, seed"]).decode())
    assert {leak.secret for leak in leaks(planted, tmp_path / "said")} == {"key 1, seed"}


def test_without_a_terminal_the_passphrase_is_asked_for_by_option(tmp_path: Path) -> None:
    done = run("keys", "init", tmp_path / "pub", "--line", "acme")
    assert done.exit_code == 2
    assert "--passphrase-file" in done.output


def test_a_closed_stdin_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(UsageError, match="no terminal"):
        read_passphrase(None)


def test_a_passphrase_file_that_others_may_read_is_named(tmp_path: Path, passphrase: Path) -> None:
    passphrase.chmod(0o644)
    assert f"chmod 600 {passphrase}" in init(tmp_path / "one", passphrase).stderr
    passphrase.chmod(0o600)
    assert "chmod" not in init(tmp_path / "two", passphrase).stderr


def test_a_key_folder_that_others_may_use_is_refused(tmp_path: Path, passphrase: Path) -> None:
    init(tmp_path / "pub", passphrase)
    (tmp_path / "pub" / "private").chmod(0o755)
    with pytest.raises(HostError, match="other users may use this folder"):
        load_signers(tmp_path / "pub" / "private", SECRET.encode())


def test_a_damaged_publication_is_restored_from_its_backup(tmp_path: Path, passphrase: Path) -> None:
    init(tmp_path / "pub", passphrase)
    (tmp_path / "pub" / "publication.json").write_text("{")
    done = run("keys", "show", tmp_path / "pub")
    assert done.exit_code == 4
    assert "backup" in done.output


@pytest.mark.parametrize("group", GROUPS)
def test_no_group_offers_completion(group: str) -> None:
    assert "completion" not in run(group, "--help").output
