# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What a site has seen of a line: the versions below which nothing is accepted (docs/bundle-format.md section 4.5)."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec

from appliance.bundle.contents import ContentClass
from appliance.bundle.documents import MAX_INTEGER, Document, Sha256

Version = Annotated[int, msgspec.Meta(ge=1, le=MAX_INTEGER)]


class SeenVersions(Document, frozen=True, kw_only=True):
    """The highest verified versions of one line.

    `classes` and `contents` have one entry for each content class: the version of its role and the digest of its
    contents. `issued` is the latest `x-issued` (`YYYY-MM-DDTHH:MM:SSZ`), the floor of trusted time. `release` is the
    digest of `release.json`.
    """

    FORMAT: ClassVar[str] = "seen/1"

    line: str
    root: Version
    timestamp: Version
    snapshot: Version
    targets: Version
    classes: dict[ContentClass, Version]
    contents: dict[ContentClass, Sha256]
    release: Sha256
    issued: str
