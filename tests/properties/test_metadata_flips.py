# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""No byte of what lies below `metadata/` is free: flipped, cut or added, the release is refused."""

from __future__ import annotations

import functools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.bundle import formats
from appliance.bundle.contents import ContentClass
from appliance.bundle.layout import ModelLayer, build_model
from appliance.bundle.weights import WeightsFile, build_statement
from appliance.errors import ApplianceError
from appliance.trust.client import VerifiedBundle
from tests.support.simulator import Files, Line, blob_of, bytes_of, contents_of, sample_files


@functools.cache
def world() -> tuple[Line, Files]:
    line = Line()
    line.replace_keys(["bob"])
    data = bytes_of("weights", 1000)
    blob = blob_of(data)
    statement = build_statement("tiny", "1", [WeightsFile(path="m.gguf", size=blob.size, digest=blob.digest)])
    built = build_model(
        "tiny", "1", [ModelLayer(path="m.gguf", media_type=formats.MODEL_WEIGHT_RAW, blob=blob)], statement=statement, license_="MIT"
    )
    contents, _ = sample_files()
    contents[ContentClass.MODELS] = contents_of(ContentClass.MODELS, [built.artifact], built.blobs)
    return line, line.publish(contents, statements=[statement])


def refused(path: str, data: bytes) -> None:
    line, files = world()
    with pytest.raises(ApplianceError):
        line.verify({**files, path: data})


NAMES = sorted(world()[1])


@pytest.mark.parametrize("path", NAMES)
@settings(max_examples=30)
@given(data=st.data())
def test_a_flipped_bit_anywhere_is_refused(path: str, data: st.DataObject) -> None:
    original = world()[1][path]
    place = data.draw(st.integers(0, len(original) - 1))
    broken = bytearray(original)
    broken[place] ^= 1 << data.draw(st.integers(0, 7))
    refused(path, bytes(broken))


@pytest.mark.parametrize("path", NAMES)
def test_a_cut_or_longer_file_is_refused(path: str) -> None:
    original = world()[1][path]
    for length in (0, 1, len(original) // 2, len(original) - 1):
        refused(path, original[:length])
    for more in (b"\n", b" ", b"\x00", b"{}"):
        refused(path, original + more)
        refused(path, more + original)


ONE_OF_EACH = [
    name for name in NAMES if not name.endswith(tuple(f".{each}.json" for each in ContentClass if each is not ContentClass.FILES))
]


@pytest.mark.slow
@pytest.mark.parametrize("path", ONE_OF_EACH)
def test_every_single_byte_flipped_is_refused(path: str) -> None:
    original = world()[1][path]
    for place in range(len(original)):
        broken = bytearray(original)
        broken[place] ^= 0x01
        refused(path, bytes(broken))


@given(st.permutations(NAMES))
@settings(max_examples=20)
def test_the_order_in_which_files_were_found_never_matters(order: list[str]) -> None:
    line, files = world()

    def facts(bundle: VerifiedBundle) -> object:
        return bundle.seen, bundle.digest, dict(bundle.blobs), dict(bundle.metadata)

    assert facts(line.verify({path: files[path] for path in order})) == facts(line.verify(files))


@settings(max_examples=60)
@given(st.sampled_from(NAMES), st.sampled_from(NAMES))
def test_two_files_that_changed_places_are_refused(one: str, other: str) -> None:
    line, files = world()
    if files[one] == files[other]:
        return
    with pytest.raises(ApplianceError):
        line.verify({**files, one: files[other], other: files[one]})


@settings(max_examples=40)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_arbitrary_json_in_place_of_any_file_is_refused(value: object) -> None:
    for path in ("timestamp.json", "1.targets.json", "2.root.json"):
        refused(path, json.dumps(value, sort_keys=True, separators=(",", ":")).encode())
