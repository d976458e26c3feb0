# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`appliance node`: what it prints, and the exit code and hint of every refusal."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from appliance.adapters import depot
from appliance.cli import app
from appliance.digests import digest_of, hex_of
from tests.lab.world.tls import issue
from tests.support.carried import small_chunks
from tests.support.depot import TINY, Fault, Placement, Served, json_of, serving
from tests.support.simulator import Line

importlib.import_module("appliance.cli.node")


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Placement]:
    """As elsewhere, but at the time of this machine's clock, which the command reads."""
    monkeypatch.setattr(depot, "PAUSES_SECONDS", ())
    with small_chunks():
        yield Placement(tmp_path, line=Line(now=datetime.now(UTC).replace(microsecond=0)))


@pytest.fixture
def served(world: Placement, tmp_path: Path) -> Iterator[Served]:
    with serving(world.tree, tmp_path / "tls") as running:
        yield running


def run(world: Placement, served: Served, *more: str, **changes: str) -> tuple[int, str, str]:
    options = {
        "--depot": str(served.address),
        "--ca": str(served.certificates.ca),
        "--release": hex_of(world.release),
        "--root": str(world.pinned),
        "--state": str(world.places.state),
        **{f"--{name}": value for name, value in changes.items()},
    }
    words = [word for pair in options.items() for word in pair]
    done = CliRunner().invoke(app, ["node", "place", *words, *more])
    return done.exit_code, done.stdout, done.stderr


def test_json_is_one_document_that_says_whether_anything_changed(world: Placement, served: Served) -> None:
    code, out, _ = run(world, served, "-o", "json", "--plan")
    assert (code, json_of(out)["changed"], json_of(out)["plan"], world.nothing_is_visible()) == (0, True, True, True)
    code, out, err = run(world, served, "-o", "json")
    document = json_of(out)
    size = sum(len(data) for data in TINY.values())
    assert (code, document["changed"], document["release"]) == (0, True, hex_of(world.release))
    assert document["models"] == [
        {
            "name": "tiny",
            "version": "1.0",
            "weights": world.weights(),
            "folder": str(world.folder()),
            "state": "placed",
            "changed": True,
            "size": size,
            "fetched": size,
        }
    ]
    assert "place tiny" in err
    code, out, _ = run(world, served, "-o", "json")
    assert (code, json_of(out)["changed"], json_of(out)["models"][0]["state"]) == (0, False, "in place")


def test_the_table_has_a_line_for_each_model(world: Placement, served: Served) -> None:
    code, out, _ = run(world, served)
    assert code == 0
    assert out.split("\n")[0].split() == ["model", "version", "state", "size", "fetched", "folder"]
    assert out.split("\n")[1].split()[:3] == ["tiny", "1.0", "placed"]
    listed = CliRunner().invoke(app, ["node", "list", "--state", str(world.places.state)])
    assert listed.stdout.split("\n")[1].split()[0] == "tiny"
    assert "as placed" in listed.stdout
    as_json = CliRunner().invoke(app, ["node", "list", "--state", str(world.places.state), "-o", "json"])
    (model,) = json_of(as_json.stdout)["models"]
    assert (model["name"], model["names"], model["release"], model["files"]) == ("tiny", ["tiny"], hex_of(world.release), len(TINY))


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"depot": "nowhere"}, 2, "is not HOST:PORT"),
        ({"release": "abc"}, 2, "is not a release"),
        ({"release": 64 * "0"}, 6, "the depot does not offer it"),
        ({"model": "other"}, 2, "the release has no model 'other'; it has tiny"),
        ({"ca": "/nowhere/ca.crt"}, 5, "no such file"),
        ({"root": "/nowhere/root.json"}, 5, "no root is pinned on this node"),
    ],
)
def test_a_refusal_has_its_exit_code_and_a_hint(world: Placement, served: Served, changes: dict[str, str], code: int, says: str) -> None:
    found, out, err = run(world, served, **changes)
    assert (found, out) == (code, "")
    assert says in err
    assert "appliance: hint: " in err
    assert world.nothing_is_visible()


def test_a_wrong_certificate_a_wrong_chunk_and_a_depot_away_have_their_codes(world: Placement, served: Served, tmp_path: Path) -> None:
    assert run(world, served, ca=str(issue(tmp_path / "other").ca))[0] == 3
    served.faults.append(Fault("flip", hex_of(digest_of(TINY["config.json"]))))
    code, _, err = run(world, served)
    assert (code, "config.json, chunk 0 (byte 0): the depot" in err) == (3, True)
    served.faults.clear()
    assert run(world, served, depot="127.0.0.1:1")[0] == 6
    assert world.nothing_is_visible()


def test_a_changed_model_is_refused_with_what_to_do(world: Placement, served: Served) -> None:
    run(world, served)
    path = world.folder() / "config.json"
    path.chmod(0o644)
    path.write_bytes(b"[]")
    code, out, err = run(world, served)
    assert (code, out) == (3, "")
    assert "config.json, chunk 0 at byte 0: bytes: expected sha256:" in err
    assert "move that folder away" in err


def test_a_plan_that_should_also_read_every_byte_is_refused(world: Placement, served: Served) -> None:
    code, _, err = run(world, served, "--plan", "--verify")
    assert code == 2
    assert "--plan and --verify together" in err
    assert "appliance: hint: give one of them" in err
    assert world.nothing_is_visible()
