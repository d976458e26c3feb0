# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Metadata that must not be believed, given to `media read` and `bundle verify`: exit code, one hint, and nothing changed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from appliance.cli import app
from tests.support.carried import ONE, World, rewrite, small_chunks
from tests.support.observe import unchanged
from tests.support.signing import DOUBLES, FAULTS, ROLES, doubled_delegation, doubled_root, published
from tests.support.simulator import Files, Line, blob_of, write_bundle
from tests.support.twosigners import LIES, TwoSigners, shared_line


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def line_now() -> Line:
    return Line(now=datetime.now(UTC).replace(microsecond=0))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with small_chunks():
        yield World(tmp_path, line=line_now())


def refused_everywhere(world: World, files: Files, code: int, says: str, *, shown: bool = True) -> None:
    """A part and a bundle with these metadata are refused by who reads or verifies (or has them shown), and all is as before."""
    part = world.parts()[0]
    rewrite(part, files)
    bundle = write_bundle(world.root / "refused", files, world.blobs)
    trust = world.state / "trust" / "acme"
    reading: list[tuple[object, ...]] = [
        ("media", "read", part.parent, "--state", world.state),
        ("bundle", "verify", bundle, "--trust", trust),
    ]
    showing: list[tuple[object, ...]] = [
        ("bundle", "verify", bundle, "--state", world.state),
        ("bundle", "inspect", bundle, "--trust", trust),
        ("bundle", "diff", world.bundle, bundle, "--trust", trust),
    ]
    for command in reading + (showing if shown else []):
        with unchanged(world.state, world.root / "media", bundle, besides=["store.lock"], times=False):
            done = run(*command)
        assert done.exit_code == code, f"{command}: {done.exit_code}\n{done.output}"
        assert re.search(f"^appliance: error: .*{says}", done.stderr, re.MULTILINE)
        assert len(re.findall("^appliance: hint: .", done.stderr, re.MULTILINE)) == 1
        assert done.stdout == ""


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("role", ROLES)
def test_a_role_without_the_signatures_it_needs_is_refused_with_3(world: World, role: str, fault: str) -> None:
    world.write(room=ONE)
    files = published(world.line)
    refused_everywhere(world, FAULTS[fault].make(world.line, files, role), 3, FAULTS[fault].says, shown=role == "models")


@pytest.mark.parametrize("double", DOUBLES)
@pytest.mark.parametrize("where", ["root", "timestamp", "models"])
def test_a_key_that_counts_twice_is_refused_with_3(world: World, where: str, double: str) -> None:
    world.write(room=ONE)
    doubled = DOUBLES[double]
    files = doubled_delegation(world.line, doubled, where) if where == "models" else doubled_root(world.line, doubled, (where,))
    refused_everywhere(world, files, 3, "one public key stands under two identifiers")


@pytest.mark.parametrize("lie", LIES)
def test_a_models_key_that_lists_an_image_blob_otherwise_is_refused_with_3(tmp_path: Path, lie: str) -> None:
    with small_chunks():
        world = World(tmp_path, line=shared_line(line_now()))
        signers = TwoSigners(world.line)
        world.number += 1
        world.contents, world.files, world.blobs = signers.release(blob_of(signers.weights))
        write_bundle(world.bundle, world.files, world.blobs)
        world.write(room=ONE)
        _, files, _ = signers.release(LIES[lie](signers.honest))
        refused_everywhere(world, files, 3, f"{signers.honest.digest}: class images and class models disagree")
