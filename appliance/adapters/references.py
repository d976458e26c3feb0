# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Image references `host/name:tag[@sha256:...]`, spelled in full.

Source: the grammar of distribution's `reference` package. A name without host is refused and not guessed: the same
text would mean another image on another machine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from appliance.digests import Digest, parse_digest
from appliance.errors import UsageError

_HOST = re.compile(r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?\.)*[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?::[0-9]{1,5})?")
_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}")
_MAX_NAME = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """`host` with its port, `name` below it, `tag`, and the digest it is pinned to or None."""

    host: str
    name: str
    tag: str
    digest: Digest | None = None

    def __str__(self) -> str:
        """The reference with its tag, without digest: the name it has in a bundle."""
        return f"{self.host}/{self.name}:{self.tag}"


def parse_reference(text: str) -> Reference:
    """Return `text` in its parts.

    Raises:
        UsageError: no host, no tag, or characters a reference cannot have.
        FormatError: a malformed digest.
    """
    plain, at, digest = text.partition("@")
    host, slash, rest = plain.partition("/")
    name, colon, tag = rest.rpartition(":")
    if not slash or not ("." in host or ":" in host or host == "localhost"):
        raise UsageError(f"image {text[:200]!r}: no registry host", hint="write it in full, such as docker.io/library/busybox:1.36")
    if not colon or "/" in tag:
        raise UsageError(f"image {text[:200]!r}: no tag", hint="name the version as a tag, such as registry.k8s.io/pause:3.10")
    if not _HOST.fullmatch(host) or not _NAME.fullmatch(name) or len(name) > _MAX_NAME or not _TAG.fullmatch(tag):
        raise UsageError(f"image {text[:200]!r}: not an image reference", hint="write host/name:tag, the name in lower case")
    return Reference(host=host, name=name, tag=tag, digest=parse_digest(digest) if at else None)
