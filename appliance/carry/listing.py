# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What a bundle folder holds, as its own documents say. Not verified: whoever carries it has no keys and decides nothing.

`write` needs to know which bytes to carry; that they are the signed ones is for `bundle verify` and `media read`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance.bundle.contents import Blob, ContentClass, Contents, check_contents, merge_blobs
from appliance.bundle.documents import decode
from appliance.bundle.release import Release
from appliance.digests import Digest, digest_of, hex_of
from appliance.errors import FormatError, UsageError, VerificationError
from appliance.verify.metadata import read_metadata

_RELEASE = re.compile(r"targets/[0-9a-f]{64}\.release\.json")
_CONTENTS = re.compile(r"targets/contents/[0-9a-f]{64}\.[a-z]+\.json")
_ROOT = re.compile(r"([1-9][0-9]{0,8})\.root\.json", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A bundle folder: `metadata` by path below `metadata/`, and what its documents list."""

    bundle: Path
    release: Release
    contents: Mapping[ContentClass, Contents]
    blobs: Mapping[Digest, Blob]
    metadata: Mapping[str, bytes]

    @property
    def installer(self) -> Blob | None:
        """The blob of `install.pyz`, if the bundle carries it."""
        found = self.contents.get(ContentClass.INSTALLER)
        payloads = [artifact.payload for artifact in found.artifacts if artifact.payload] if found else []
        return self.blobs[payloads[0]] if payloads else None

    @property
    def root(self) -> tuple[int, Digest]:
        """Version and digest of the first root that travels: the one inside the installer, which `site init` shows."""
        found = {int(match[1]): data for path, data in self.metadata.items() if (match := _ROOT.fullmatch(path))}
        if not found:
            raise FormatError(f"{self.bundle}: metadata holds no root", hint="create the bundle again")
        return min(found), digest_of(found[min(found)])

    def blob_path(self, digest: Digest) -> Path:
        """Where the bytes of `digest` lie."""
        return self.bundle / "blobs" / "sha256" / hex_of(digest)


def read_listing(bundle: Path) -> Listing:
    """Return what the bundle folder `bundle` says it holds.

    Raises:
        UsageError: `bundle` is no bundle.
        FormatError: its documents are malformed, or there are two of one kind.
        VerificationError: two classes disagree on a blob.
    """
    if not (bundle / "metadata").is_dir():
        raise UsageError(f"{bundle} is not a bundle: it has no metadata folder", hint="give the folder that 'bundle create --to' made")
    metadata = read_metadata(bundle)
    releases = [path for path in metadata if _RELEASE.fullmatch(path)]
    if len(releases) != 1:
        raise FormatError(f"{bundle}: expected one release.json, found {len(releases)}", hint="create the bundle again")
    release = decode(metadata[releases[0]], Release, what=releases[0])
    contents: dict[ContentClass, Contents] = {}
    for path in sorted(filter(_CONTENTS.fullmatch, metadata)):
        found = decode(metadata[path], Contents, what=path)
        check_contents(found)
        if found.content_class in contents:
            raise FormatError(f"{bundle}: two contents of class {found.content_class}", hint="create the bundle again")
        contents[found.content_class] = found
    return Listing(bundle=bundle, release=release, contents=contents, blobs=merge_blobs(contents.values()), metadata=metadata)


def check_sizes(listing: Listing) -> None:
    """Check that every listed blob is there with its size, before anything is written.

    Raises:
        VerificationError: one is missing or has another size.
    """
    for blob in listing.blobs.values():
        path = listing.blob_path(blob.digest)
        try:
            size = path.lstat().st_size
        except OSError as error:
            raise VerificationError(f"{path}: missing from the bundle", hint="create the bundle again from its lock") from error
        if size != blob.size:
            raise VerificationError(
                f"changed since create: {path} has {size} bytes, expected {blob.size}", hint="create the bundle again from its lock"
            )
