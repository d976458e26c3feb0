# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import msgspec
import pytest

from appliance.bundle.documents import MAX_DOCUMENT_BYTES, MAX_INTEGER, check_format, decode, encode
from appliance.bundle.media import ChunkEntry
from appliance.bundle.release import Release
from appliance.digests import digest_of
from appliance.errors import FormatError
from tests.support.simulator import Line

VALID = encode(Line().release())


def refused(data: bytes, match: str) -> None:
    with pytest.raises(FormatError, match=match):
        decode(data, Release, what="release.json")


def test_a_document_survives_its_bytes() -> None:
    assert encode(decode(VALID, Release, what="release.json")) == VALID


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "not a document"),
        (b"\xff", "not a document"),
        (b"null", "not a document"),
        (b"[]", "not a document"),
        (b"{}", "not a document"),
        (b"[" * 200_000, "not a document"),
        (b'{"a":' * 100_000, "not a document"),
        (VALID + b"\n", "not in canonical form|not a document"),
        (b" " + VALID, "not in canonical form"),
        (VALID.replace(b'"line":"acme"', b'"line":"acme","line":"acme"'), "not in canonical form"),
        (VALID.replace(b'"line":"acme"', b'"line":"\\u0061cme"'), "not in canonical form"),
        (VALID.replace(b'"line":"acme"', b'"line":1'), "Expected `str`"),
        (VALID.replace(b'"line":"acme",', b""), "missing required field"),
        (VALID.replace(b'"line":"acme"', b'"line":"acme","more":1'), "unknown field"),
        (VALID.replace(b"sha256:", b"sha512:"), "Expected `str` matching regex"),
        (VALID.replace(b'"platform"', b'"platform":"x","platform"'), "not in canonical form"),
        (VALID.replace(b"release/1", b"contents/1"), "expected format 'release/1', got 'contents/1'"),
        (VALID.replace(b"release/1", b"release/2"), "made by a newer appliance; this one reads 'release/1'"),
        (VALID.replace(b"release/1", b"release/01"), "made by a newer appliance"),
        (VALID.replace(b"release/1", b"release"), "made by a newer appliance"),
    ],
)
def test_another_spelling_or_shape_is_refused(data: bytes, match: str) -> None:
    refused(data, match)


def test_a_default_that_is_written_out_is_another_spelling() -> None:
    refused(VALID.replace(b'"format"', b'"engine":"","format"'), "not in canonical form")


def test_a_document_that_is_too_long_is_refused_unread() -> None:
    with pytest.raises(FormatError, match="more than a document may have"):
        check_format(b" " * (MAX_DOCUMENT_BYTES + 1), "release/1", what="release.json")


@pytest.mark.parametrize("value", [b"-1", b"1.0", b"1e3", b"true", str(MAX_INTEGER + 1).encode(), b"9" * 400, b'"1"'])
def test_a_size_that_is_no_plain_number_is_refused(value: bytes) -> None:
    data = b'{"digest":"' + digest_of(b"").encode() + b'","offset":0,"size":' + value + b"}"
    with pytest.raises(msgspec.MsgspecError):
        msgspec.json.decode(data, type=ChunkEntry)
