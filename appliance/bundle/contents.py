# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Contents: the signed list of artifacts, blobs and chunks of one class (docs/bundle-format.md section 5).

Rules:

* One digest has one (size, chunk list) over all classes and releases (`merge_blobs` refuses anything else).
* A blob of at most one chunk lists no chunks: its only chunk is the blob, so its digest is its chunk's digest.
* A larger blob lists exactly `chunk_count(size)` chunk digests.
* Every blob that an artifact names is listed, every listed blob is named by an artifact; both lists are sorted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import ClassVar

from appliance.bundle.documents import Document, Record
from appliance.digests import Digest


class ContentClass(StrEnum):
    """The classes of contents; each is one delegated TUF role of the same name."""

    IMAGES = "images"
    MODELS = "models"
    CHARTS = "charts"
    OS = "os"
    FILES = "files"
    INSTALLER = "installer"
    POLICY = "policy"
    CODE = "code"


class Blob(Record, frozen=True, kw_only=True):
    """Content-addressed bytes: `size` in bytes; `chunks` only when there is more than one."""

    digest: Digest
    size: int
    chunks: tuple[Digest, ...] = ()


class ImageBinding(Record, frozen=True, kw_only=True):
    """What binds an image: the reference to the index, the platform's manifest and its config (all digests)."""

    reference: str
    index: Digest
    manifest: Digest
    config: Digest
    platform: str


class PackageEntry(Record, frozen=True, kw_only=True):
    """One Debian package of an `os` artifact: `path` is its name in the repository offered to nodes."""

    name: str
    version: str
    architecture: str
    path: str
    digest: Digest
    size: int


class Artifact(Record, frozen=True, kw_only=True):
    """One thing a release carries.

    `name` is unique in its class: an image's full reference with tag, a chart's, model's or file's name.
    `root` is the digest of its top document (OCI index or manifest) of media type `media_type`; `blobs` are all the
    blobs it needs, the root's included, sorted. `payload` is the one blob of a file, installer or chart.
    """

    name: str
    version: str
    media_type: str
    root: Digest
    blobs: tuple[Digest, ...]
    payload: Digest | None = None
    image: ImageBinding | None = None
    weights: Digest | None = None
    """For a model: digest of the weights manifest's payload (in-toto Statement), itself listed in `blobs`."""
    packages: tuple[PackageEntry, ...] = ()
    license: str = ""
    source: str = ""
    """Where the connected machine took it from: an upstream reference or URL, never a mirror's or a local path."""


class Contents(Document, frozen=True, kw_only=True):
    """All artifacts and blobs of one class."""

    FORMAT: ClassVar[str] = "contents/1"

    content_class: ContentClass
    artifacts: tuple[Artifact, ...]
    blobs: tuple[Blob, ...]


def check_contents(contents: Contents) -> None:
    """Check the rules above for one class.

    Raises:
        FormatError: unsorted, duplicated, unlisted or unused entries, wrong number of chunks.
    """
    raise NotImplementedError(contents)


def merge_blobs(contents: Iterable[Contents]) -> Mapping[Digest, Blob]:
    """Return all blobs of `contents` by digest.

    Raises:
        VerificationError: two classes give one digest another size or another chunk list.
    """
    raise NotImplementedError(contents)
