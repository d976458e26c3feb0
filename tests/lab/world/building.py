# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Builds the whole upstream world into the cache, stage by stage; what is there already costs a look."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.lab.world import cache, compiling
from tests.lab.world.debian import debian_layer
from tests.lab.world.image import BuiltImage
from tests.lab.world.images import wanted
from tests.lab.world.recipes import RECIPES, Recipe
from tests.lab.world.releases import ReleaseFile, releases


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """Everything upstream offers. `binaries` holds a folder per upstream with its programs, for use by hand."""

    binaries: Path
    images: tuple[BuiltImage, ...]
    files: tuple[ReleaseFile, ...]


def build() -> World:
    """The world, from the cache or made now; progress goes to stderr, and is silent when nothing is to do.

    Raises:
        HostError: this machine cannot compile what is missing.
        ToolError: Go, gcc or apt failed; running again resumes.
    """
    if wanting := missing():
        minutes = sum(recipe.expected_seconds for recipe in wanting) / 60
        _say(f"compiling {len(wanting)} upstreams, about {minutes:.0f} minutes on two cores")
    for recipe in RECIPES:
        with _timed(f"compile {recipe.name} {recipe.version}"):
            compiling.compiled(recipe)
    with _timed("lay out Debian packages"):
        debian_layer()
    images = []
    for image in wanted():
        with _timed(f"write image {image.reference}"):
            images.append(image.build())
    files = []
    for release in releases():
        with _timed(f"write file {release.url}"):
            files.append(release.build())
    return World(binaries=_binaries(), images=tuple(images), files=tuple(files))


def missing() -> tuple[Recipe, ...]:
    """What has still to be compiled."""
    return tuple(recipe for recipe in RECIPES if not cache.is_whole(compiling.entry(recipe)))


def entries() -> set[Path]:
    """The cache entries the world now consists of."""
    world = build()
    made = {compiling.entry(recipe) for recipe in RECIPES} | {debian_layer().path.parent.parent, world.binaries}
    return made | {image.layout.parent for image in world.images} | {file.path.parent for file in world.files}


def _binaries() -> Path:
    """One folder of hard links to all programs, `<upstream>/<program>`."""

    def gather(folder: Path) -> None:
        for recipe in RECIPES:
            for name, _ in recipe.commands:
                cache.link(compiling.entry(recipe) / "bin" / name, folder / recipe.name / name)

    return cache.obtain("binaries", cache.key("binaries/1", *(recipe.key() for recipe in RECIPES)), gather)


@contextmanager
def _timed(what: str) -> Iterator[None]:
    """Say how long a stage took, when it took long enough to be noticed."""
    began = time.monotonic()
    yield
    if (seconds := time.monotonic() - began) > 0.2:
        _say(f"{seconds:7.1f} s  {what}")


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
