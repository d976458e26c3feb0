# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Canonical JSON documents: one byte string per record, and back.

Rules (docs/bundle-format.md section 2):

* RFC 8785 form: keys sorted, no white space, no floats. A document that does not re-encode to the same bytes is refused,
  so duplicate keys, odd escapes and unknown fields cannot hide.
* Every document has `format: <name>/<major>`. Another major is "made by a newer appliance".
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, TypeVar

import msgspec

from appliance.digests import Digest
from appliance.errors import FormatError

MAX_INTEGER = 2**53 - 1
"""The largest integer that every JSON reader keeps exact (RFC 8785 section 3.2.2.3)."""

Sha256 = Annotated[Digest, msgspec.Meta(pattern="^sha256:[0-9a-f]{64}$", max_length=71)]
"""A digest, checked while a document is decoded (`max_length` because `$` also matches before a last newline)."""

JSON_ERRORS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not the JSON asked for (`UnicodeDecodeError` for a key that is not UTF-8)."""

Size = Annotated[int, msgspec.Meta(ge=0, le=MAX_INTEGER)]
"""A number of bytes, an offset or a count."""

MAX_DOCUMENT_BYTES = 64 * 1024 * 1024
"""Larger documents are refused unread: contents of 1 TB in 64 MiB chunks are about 1.3 MB."""


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of every record inside a document: frozen, keyword-only, unknown fields refused.

    A field at its default is not written. Defaults are empty (`""`, `()`, `{}`, `None`, `False`, `0`), never another
    value: msgspec compares them by identity, so `""` written out is refused as another spelling, `"x"` would not be.
    """


class Document(Record, frozen=True, kw_only=True):
    """Base of every document: names its `FORMAT` and carries it as its first field."""

    FORMAT: ClassVar[str]

    format: str


DocumentT = TypeVar("DocumentT", bound=Document)


def encode(document: Record) -> bytes:
    """Return the RFC 8785 bytes of `document` (integers, ASCII keys; no floats by construction)."""
    return msgspec.json.encode(document, order="sorted")


def reason_of(error: BaseException) -> str:
    """Return why bytes are not the JSON asked for, in words about the bytes and not about the interpreter that read them."""
    if isinstance(error, RecursionError):
        return "nested too deep"
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}"
    if isinstance(error, ValueError) and "int_max_str_digits" in str(error):
        return "a number of too many digits"
    return str(error)


class _Head(msgspec.Struct, frozen=True):
    format: str


def check_format(data: bytes, expected: str, *, what: str) -> None:
    """Check that the `format` field of `data` is `expected`.

    Raises:
        FormatError: not JSON, no `format`, another name, or an unknown major version.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise FormatError(
            f"{what}: {len(data)} bytes is more than a document may have ({MAX_DOCUMENT_BYTES})", hint="check which file was given"
        )
    try:
        found = msgspec.json.decode(data, type=_Head).format
    except JSON_ERRORS as error:
        raise FormatError(f"{what}: not a document: {reason_of(error)}", hint="fetch or carry it again") from error
    if found == expected:
        return
    name, _, _ = expected.partition("/")
    if found.partition("/")[0] == name:
        raise FormatError(
            f"{what}: format {found!r} is made by a newer appliance; this one reads {expected!r}",
            hint="carry the installer of that release and verify it as its paper sheet says",
        )
    raise FormatError(f"{what}: expected format {expected!r}, got {found!r}", hint="check which file was given")


def decode(data: bytes, kind: type[DocumentT], *, what: str) -> DocumentT:
    """Return the `kind` that `data` is the canonical form of; `what` names it in errors.

    Raises:
        FormatError: malformed, not canonical, of another kind, or made by a newer appliance.
    """
    check_format(data, kind.FORMAT, what=what)
    try:
        document = msgspec.json.decode(data, type=kind)
    except JSON_ERRORS as error:
        raise FormatError(f"{what}: {reason_of(error)}", hint="fetch or carry it again") from error
    if encode(document) != data:
        raise FormatError(f"{what}: not in canonical form (RFC 8785)", hint="fetch or carry it again")
    return document
