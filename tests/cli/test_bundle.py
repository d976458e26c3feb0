# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`appliance bundle` as a person runs it: what it prints, how it ends, what it asks of the kernel, what it never shows."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from unittest import mock

import pytest
from typer.testing import CliRunner

from appliance.cli import app
from appliance.verify import load_trust, pin_root, save_seen
from appliance.verify.metadata import verify_bundle_metadata
from tests.support.building import Bench, safetensors
from tests.support.faults import flip_byte
from tests.support.observe import NETWORK, WRITING, leaks, plant, trace, unchanged
from tests.support.registry import PASSWORD, TOKEN, serving
from tests.support.signing import private_secrets
from tests.unit.build.conftest import WORLD

PASSPHRASE = "planted-passphrase-2d6f"
ROOT = Path(__file__).resolve().parents[2]


class Shell:
    """Runs the command line in `bench.folder`."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.folder = bench.folder
        self.environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(bench.folder),
            "XDG_CACHE_HOME": str(bench.folder / "xdg"),
            "DOCKER_CONFIG": str(bench.folder / "docker"),
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "LANG": "C.UTF-8",
        }
        self.said = ""

    def run(self, *arguments: str, code: int = 0, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        command = [*before, sys.executable, "-m", "appliance", *arguments]
        done = subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False)
        self.said += done.stdout + done.stderr
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def lock(self, code: int = 0, *more: str) -> subprocess.CompletedProcess[str]:
        return self.run("bundle", "lock", "core.toml", "--mirrors", "mirrors.toml", *more, code=code)

    def create(self, to: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        options = ("--publication", "pub", "--passphrase-file", "passphrase", "--mirrors", "mirrors.toml")
        return self.run("bundle", "create", "core.lock.json", "--to", to, *options, code=code)


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A registry with a token login, a publication, a lock and a bundle `one`, made by commands alone."""
    folder = tmp_path_factory.mktemp("cli")
    with serving(folder / "tls", login="token") as upstream:
        upstream.put_image("team/app", "1.0", (b"layer" * 1000,))
        upstream.files["/files/tool"] = b"tool" * 5000
        bench = Bench(folder=folder / "bench", upstream=upstream)
        bench.folder.mkdir()
        bench.model()
        bench.chart("registry.test/team/app:1.0")
        bench.profile(WORLD)
        bench.mirrors  # noqa: B018 - writes mirrors.toml
        made = Shell(bench)
        (bench.folder / "passphrase").write_text(f"{PASSPHRASE}\n")
        (bench.folder / "docker").mkdir()
        auth = base64.b64encode(f"reader:{PASSWORD}".encode()).decode()
        (bench.folder / "docker" / "config.json").write_text(json.dumps({"auths": {upstream.address: {"auth": auth}}}))
        made.run("keys", "init", "pub", "--line", "test", "--passphrase-file", "passphrase")
        made.lock()
        made.create("one")
        yield made


def test_lock_prints_a_table_and_what_changed(shell: Shell) -> None:
    again = shell.lock()
    lines = [line.split() for line in again.stdout.splitlines()]
    assert lines[0] == ["kind", "name", "version", "size", "licence", "change"]
    assert ["file", "tool", "2.0", "19.5", "KiB", "MIT"] in lines
    assert ["model", "tiny", "1", "9.1", "KiB", "Apache-2.0"] in lines
    assert "nothing changed" in again.stderr
    profile = shell.folder / "other.toml"
    profile.write_text((shell.folder / "core.toml").read_text().replace('version = "2.0"', 'version = "2.1"'))
    options = ("--mirrors", "mirrors.toml", "--output-lock", "other.json", "-o", "json")
    shutil.copy(shell.folder / "core.lock.json", shell.folder / "other.json")
    document = json.loads(shell.run("bundle", "lock", "other.toml", *options).stdout)
    changes = {item["name"]: item["change"] for item in document["items"]}
    assert (changes["registry.test/team/app"], changes["tool"]) == ("", "changed from 2.0")
    assert document["size"] > 0


def test_inspect_shows_artifacts_days_and_signatures_by_family(shell: Shell) -> None:
    shown = shell.run("bundle", "inspect", "one", "--publication", "pub").stdout
    assert re.search(r"^images +registry\.test/team/app:1\.0 +1\.0 ", shown, re.MULTILINE)
    assert re.search(r"^timestamp +1 +(89|90) +1 classical \+ 1 ml-dsa, 2 needed", shown, re.MULTILINE)
    document = json.loads(shell.run("bundle", "inspect", "one", "--publication", "pub", "-o", "json").stdout)
    assert {role["role"] for role in document["roles"]} >= {"root", "timestamp", "snapshot", "targets", "images", "models", "code"}
    assert all(role["signatures"] == {"classical": 1, "ml-dsa": 1} for role in document["roles"])


def test_verify_says_verified_and_a_flipped_byte_is_exit_3_with_its_place(shell: Shell) -> None:
    assert "verified" in shell.run("bundle", "verify", "one", "--publication", "pub").stdout
    shutil.copytree(shell.folder / "one", shell.folder / "bad")
    victim = max((shell.folder / "bad" / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    flip_byte(victim, 100)
    with unchanged(shell.folder / "bad"):
        refused = shell.run("bundle", "verify", "bad", "--publication", "pub", code=3)
    assert victim.name in refused.stderr
    assert "hint:" in refused.stderr


@pytest.fixture(scope="module")
def installed(shell: Shell) -> dict[str, str]:
    """The environment of a person whose appliance pip installed: compiled when it was, bytecode not forbidden."""
    site = shell.folder / "site-packages"
    shutil.copytree(ROOT / "appliance", site / "appliance", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(site)], check=True)
    environment = {**shell.environment, "PYTHONPATH": str(site)}
    del environment["PYTHONDONTWRITEBYTECODE"]
    return environment


@pytest.fixture(scope="module")
def pinned(shell: Shell) -> Path:
    """A site's state with the publication's root pinned and a release seen before."""
    state = shell.folder / "state"
    (line,) = (shell.folder / "pub" / "roots").glob("1.root.json")
    pin_root(state / "trust", line.read_bytes())
    folder = state / "trust" / "test"
    save_seen(folder, verify_bundle_metadata(shell.folder / "one", load_trust(folder), now=datetime.now(UTC)))
    return state


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("by", ["publication", "trust", "state", "a damaged blob"])
def test_verify_asks_nothing_of_a_network_and_changes_nothing(shell: Shell, installed: dict[str, str], pinned: Path, by: str) -> None:
    bundle = shell.folder / "one"
    if by == "a damaged blob":
        bundle = shutil.copytree(bundle, shell.folder / "traced")
        flip_byte(max((bundle / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size), 100)
    trusting = {"trust": ("--trust", str(pinned / "trust" / "test")), "state": ("--state", str(pinned))}
    options = trusting.get(by, ("--publication", "pub"))
    with unchanged(shell.folder, times=True):
        seen = trace([sys.executable, "-m", "appliance", "bundle", "verify", str(bundle), *options], env=installed, cwd=shell.folder)
    assert seen.status == (3 if by == "a damaged blob" else 0), seen.output
    assert ("verified" in seen.output) is (by != "a damaged blob")
    assert any(str(bundle / "blobs") in call.rest for call in seen.calls)
    assert [call for call in seen.calls if call.name in NETWORK] == []
    assert seen.changes == []
    assert [call for call in seen.calls if call.name in WRITING and not call.rest.startswith(("1<", "2<"))] == []


def test_verify_loads_no_http_client_no_ansible_and_no_yaml(shell: Shell) -> None:
    code = (
        "import sys; sys.argv = ['appliance', 'bundle', 'verify', 'one', '--publication', 'pub']\n"
        "from appliance.cli import app\n"
        "try: app()\nexcept SystemExit as end: code = end.code\n"
        "found = {'httpx', 'ansible', 'kubernetes', 'yaml', 'appliance.build'} & set(sys.modules)\n"
        "sys.exit(f'{code} {found}' if code or found else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=shell.folder, env=shell.environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_diff_names_what_changed_and_counts_bytes(shell: Shell) -> None:
    bench = shell.bench
    weights = bench.folder / "tiny" / "model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(safetensors(9000, 100, seed="other"))
    lock = (bench.folder / "core.lock.json").read_bytes()
    try:
        changed = shell.lock()
        assert "1 changed" in changed.stderr
        shell.create("two")
    finally:
        weights.write_bytes(before)
        (bench.folder / "core.lock.json").write_bytes(lock)
    shown = shell.run("bundle", "diff", "one", "two", "--publication", "pub", "-o", "json")
    document = json.loads(shown.stdout)
    assert [(each["change"], each["class"], each["name"]) for each in document["changes"]] == [("changed", "models", "tiny")]
    assert 9100 < document["added_bytes"] < 20_000
    assert document["shared_bytes"] > 20_000
    assert "1 artifacts differ" in shown.stderr


Spoil = Callable[[Path], object]
SPOILED: dict[str, tuple[Spoil, int, str]] = {
    "an extra file": (lambda tiny: (tiny / "more.json").write_text("{}"), 0, r"changed since lock: tiny/more\.json"),
    "a pickle by name": (lambda tiny: (tiny / "weights.pkl").write_text("x"), 3, r"weights\.pkl: pickle and other formats that run code"),
    "a pickle by content": (
        lambda tiny: (tiny / "vocab.txt").write_bytes(pickle.dumps([1])),
        3,
        r"vocab\.txt: by its content it is a pickle",
    ),
    "code": (lambda tiny: (tiny / "modeling_tiny.py").write_text("x = 1"), 3, r"modeling_tiny\.py: code is refused in a model"),
    "a symbolic link to a file": (
        lambda tiny: (tiny / "README.md").symlink_to("config.json"),
        3,
        r"tiny/README\.md: 'README\.md' is a symbolic link",
    ),
    "a symbolic link out": (lambda tiny: (tiny / "sub").symlink_to("/etc"), 3, r"tiny/sub: 'sub' is a symbolic link"),
    "a pipe": (lambda tiny: os.mkfifo(tiny / "x.json"), 4, r"tiny/x\.json: expected a regular file"),
}
"""What is done to the model's folder; the exit code of `bundle lock`, 0 where a new lock may take it; what is said."""


def refused(shell: Shell, code: int, said: str, *arguments: str) -> None:
    """The command ends with `code`, one error and one hint, makes no bundle, and changes neither lock nor publication."""
    with (
        mock.patch.dict(os.environ, shell.environment),
        contextlib.chdir(shell.folder),
        unchanged(shell.folder / "core.lock.json", shell.folder / "pub", shell.folder / "one"),
    ):
        done = CliRunner().invoke(app, arguments)
    assert done.exit_code == code, done.output
    assert re.search(f"^appliance: error: .*{said}", done.stderr, re.MULTILINE), done.stderr
    assert len(re.findall("^appliance: hint: .", done.stderr, re.MULTILINE)) == 1
    assert done.stdout == ""
    assert not (shell.folder / "never").exists()


CREATE = ("bundle", "create", "core.lock.json", "--to", "never", "--publication", "pub")
WITH = ("--passphrase-file", "passphrase", "--mirrors", "mirrors.toml")


@pytest.mark.parametrize("what", SPOILED)
def test_a_model_with_what_does_not_belong_there_is_refused_and_nothing_is_changed(shell: Shell, what: str) -> None:
    spoil, code, said = SPOILED[what]
    whole, tiny = shell.folder / "tiny", shell.folder / "aside"
    whole.rename(tiny)
    shutil.copytree(tiny, whole)
    try:
        spoil(whole)
        refused(shell, code or 3, said, *CREATE, *WITH)
        if code:
            refused(shell, code, said, "bundle", "lock", "core.toml", "--mirrors", "mirrors.toml")
    finally:
        shutil.rmtree(whole)
        tiny.rename(whole)


@pytest.mark.parametrize("path", ["../x.json", "sub/../../x.json", "/etc/passwd"])
def test_a_lock_with_a_path_that_leaves_the_model_is_refused_and_nothing_is_changed(shell: Shell, path: str) -> None:
    lock = shell.folder / "core.lock.json"
    before = lock.read_bytes()
    assert before.count(b'"path":"config.json"') == 1
    lock.write_bytes(before.replace(b'"path":"config.json"', f'"path":"{path}"'.encode()))
    try:
        refused(shell, 4, f"path '{re.escape(path)}' is not a plain relative path", *CREATE, *WITH)
    finally:
        lock.write_bytes(before)


def test_without_trust_the_options_are_named(shell: Shell) -> None:
    for command in (("inspect", "one"), ("verify", "one"), ("diff", "one", "one")):
        refused = shell.run("bundle", *command, "--state", str(shell.folder / "nowhere"), code=2)
        assert "--publication DIR" in refused.stderr


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (("verify", "one"), ("publication", "trust")),
        (("verify", "one"), ("publication", "state")),
        (("verify", "one"), ("trust", "state")),
        (("inspect", "one"), ("publication", "state")),
        (("diff", "one", "one"), ("trust", "state")),
    ],
)
def test_two_options_that_name_a_root_are_refused(shell: Shell, pinned: Path, command: tuple[str, ...], options: tuple[str, ...]) -> None:
    places = {"publication": "pub", "trust": str(pinned / "trust" / "test"), "state": str(pinned)}
    both = [word for option in options for word in (f"--{option}", places[option])]
    refused = shell.run("bundle", *command, *both, code=2)
    assert f"{' and '.join(f'--{option}' for option in options)} exclude each other" in refused.stderr
    assert "hint: give the one whose root you mean" in refused.stderr
    assert refused.stdout == ""


def test_a_state_that_the_environment_names_stands_behind_an_option(shell: Shell, pinned: Path) -> None:
    shell.environment["APPLIANCE_STATE"] = str(pinned)
    try:
        assert "verified" in shell.run("bundle", "verify", "one").stdout
        shell.environment["APPLIANCE_STATE"] = str(shell.folder / "nowhere")
        assert "verified" in shell.run("bundle", "verify", "one", "--publication", "pub").stdout
    finally:
        del shell.environment["APPLIANCE_STATE"]


def test_another_publications_root_is_refused(shell: Shell) -> None:
    shell.run("keys", "init", "foreign", "--line", "test", "--passphrase-file", "passphrase")
    assert "hint:" in shell.run("bundle", "verify", "one", "--publication", "foreign", code=3).stderr


def test_a_wrong_passphrase_ends_before_anything_is_fetched(shell: Shell) -> None:
    (shell.folder / "wrong").write_text("not the passphrase\n")
    shell.bench.upstream.requests.clear()
    options = ("--publication", "pub", "--passphrase-file", "wrong", "--mirrors", "mirrors.toml")
    shell.run("bundle", "create", "core.lock.json", "--to", "three", *options, code=2)
    assert shell.bench.upstream.requests == []
    assert not (shell.folder / "three").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("lock", "nowhere.toml"),
        ("inspect", "nowhere", "--publication", "pub"),
        ("verify", "one", "--publication", "nowhere"),
        ("diff", "one", "nowhere", "--publication", "pub"),
        ("create", "nowhere.json", "--publication", "pub", "--to", "x", "--passphrase-file", "passphrase"),
        ("create", "core.lock.json", "--publication", "pub", "--to", "x", "--passphrase-file", "nowhere"),
        ("create", "core.lock.json", "--publication", "pub", "--to", "x", "--passphrase-file", "passphrase", "--keys", "nowhere"),
    ],
)
def test_what_is_not_there_is_named(shell: Shell, arguments: tuple[str, ...]) -> None:
    assert "nowhere" in shell.run("bundle", *arguments, code=2).stderr


def test_the_printed_command_lets_the_other_person_sign(shell: Shell) -> None:
    shell.run("keys", "init", "given", "--line", "given", "--passphrase-file", "passphrase")
    shell.run("keys", "init", "theirs", "--line", "theirs", "--passphrase-file", "passphrase")
    shell.run("keys", "add", "given", "theirs/public.pem", "--role", "models")
    options = ("--publication", "given", "--passphrase-file", "passphrase", "--mirrors", "mirrors.toml")
    made = shell.run("bundle", "create", "core.lock.json", "--to", "half", *options)
    assert "enough: models. " in made.stderr
    command = next(line.split() for line in made.stderr.splitlines() if line.strip().startswith("appliance keys sign"))
    assert command[-2:] == ["--keys", "DIR"]
    shell.run(*command[1:-1], "theirs/private", "--passphrase-file", "passphrase")
    assert "verified" in shell.run("bundle", "verify", "half", "--publication", "given").stdout


def test_planted_secrets_are_in_no_lock_bundle_cache_or_word(shell: Shell) -> None:
    (shell.folder / "docker" / "config.json").rename(shell.folder / "config.json.aside")
    wrong = plant("wrong")
    try:
        auth = base64.b64encode(f"reader:{wrong}".encode()).decode()
        config = {"auths": {shell.bench.upstream.address: {"auth": auth}}}
        (shell.folder / "docker" / "config.json").write_text(json.dumps(config))
        shell.lock(code=6)
    finally:
        (shell.folder / "config.json.aside").replace(shell.folder / "docker" / "config.json")
    shell.create("secret")
    shell.run("bundle", "verify", "secret", "--publication", "pub")
    shell.run("bundle", "inspect", "secret", "--publication", "pub", "-o", "json")
    shell.run("media", "write", "secret", "--to", "secret-media", "--written-by", "ann")
    pin_root(shell.folder / "secret-state" / "trust", (shell.folder / "pub" / "roots" / "1.root.json").read_bytes())
    shell.run("media", "read", "secret-media", "--state", "secret-state")
    (shell.folder / "said").mkdir(exist_ok=True)
    (shell.folder / "said" / "everything.txt").write_text(shell.said)
    planted: dict[str, str | bytes] = {"password": PASSWORD, "token": TOKEN, "passphrase": PASSPHRASE, "wrong": wrong}
    planted |= private_secrets(shell.folder / "pub" / "private", PASSPHRASE.encode())
    assert len(planted) == 8
    names = ("said", "one", "secret", "secret-media", "secret-state", "xdg", "core.lock.json", "pub")
    assert leaks(planted, *(shell.folder / name for name in names)) == []
    assert len(list((shell.folder / "secret-media").glob("*.part"))) == 1
    assert len(list((shell.folder / "secret-media").glob("*.sheet.txt"))) == 1
