# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec
import pytest

from appliance.bundle.profile import Profile
from tests.lab.world.images import PROTECTED, wanted
from tests.lab.world.recipes import KUBERNETES
from tests.lab.world.releases import releases

CORE = Path(__file__).resolve().parents[3] / "bundles" / "core.toml"


@pytest.fixture
def core() -> Profile:
    return msgspec.convert(tomllib.loads(CORE.read_text()), Profile)


def test_the_core_profile_asks_for_just_the_images_and_files_the_lab_serves(core: Profile) -> None:
    assert sorted(image.reference for image in core.images) == sorted(image.reference for image in wanted() if image.reference != PROTECTED)
    assert sorted(file.url for file in core.files) == sorted(f"https://{release.url}" for release in releases())


def test_the_core_profile_and_the_lab_agree_on_versions(core: Profile) -> None:
    assert core.kubernetes == KUBERNETES
    served = {f"https://{release.url}": release.recipe.version for release in releases()}
    assert {file.url: file.version for file in core.files} == served
