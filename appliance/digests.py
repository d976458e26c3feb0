# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""SHA-256 digests in their OCI spelling, and hashing while reading.

Source: OCI image specification, descriptor.md section "Digests"; docs/bundle-format.md section 1.
"""

from __future__ import annotations

import hashlib
import re
from typing import NewType

from appliance.errors import FormatError

Digest = NewType("Digest", str)
"""`sha256:` and 64 lower-case hexadecimal digits."""

CHUNK_BYTES = 64 * 1024 * 1024
"""A chunk is this slice of a blob; the last one of a blob may be shorter."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def parse_digest(text: str) -> Digest:
    """Return `text` as a `Digest`.

    Raises:
        FormatError: `text` is not `sha256:` and 64 lower-case hexadecimal digits.
    """
    if _DIGEST.fullmatch(text) is None:
        raise FormatError(
            f"expected sha256: and 64 lower-case hexadecimal digits, got {text[:80]!r}",
            hint="write the digest as sha256sum prints it, after 'sha256:'",
        )
    return Digest(text)


def digest_of(data: bytes | bytearray | memoryview) -> Digest:
    """Return the digest of `data`."""
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def hex_of(digest: Digest) -> str:
    """Return the 64 hexadecimal digits of `digest`."""
    return digest.removeprefix("sha256:")


def chunk_count(size: int) -> int:
    """Return how many chunks a blob of `size` bytes has; an empty blob has one empty chunk."""
    return max(1, -(-size // CHUNK_BYTES))


def chunk_size(size: int, index: int) -> int:
    """Return the length in bytes of chunk `index` of a blob of `size` bytes."""
    return min(CHUNK_BYTES, size - index * CHUNK_BYTES)
