# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Contents: the signed list of artifacts, blobs and chunks of one class (docs/bundle-format.md section 5).

Rules:

* One digest has one (size, chunk list) over all classes and releases, a chunk one length (`merge_blobs` refuses else).
* A blob of at most one chunk lists no chunks: its only chunk is the blob, so its digest is its chunk's digest.
* A larger blob lists exactly `chunk_count(size)` chunk digests.
* Every blob that an artifact names is listed, every listed blob is named by an artifact; both lists are sorted.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import ClassVar, Final

from appliance.bundle.documents import Document, Record, Sha256, Size
from appliance.digests import CHUNK_BYTES, Digest, chunk_count
from appliance.errors import FormatError, VerificationError


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
    """Content-addressed bytes: `size` in bytes; `chunks` only when there is more than one.

    `chunks` has no pattern of its own: `check_contents` checks all of them in one pass, twenty times faster.
    """

    digest: Sha256
    size: Size
    chunks: tuple[Digest, ...] = ()


class ImageBinding(Record, frozen=True, kw_only=True):
    """What binds an image: the reference to the index, the platform's manifest and its config (all digests)."""

    reference: str
    index: Sha256
    manifest: Sha256
    config: Sha256
    platform: str


class PackageEntry(Record, frozen=True, kw_only=True):
    """One Debian package of an `os` artifact: `path` is its name in the repository offered to nodes."""

    name: str
    version: str
    architecture: str
    path: str
    digest: Sha256
    size: Size


class Artifact(Record, frozen=True, kw_only=True):
    """One thing a release carries.

    `name` is unique in its class: an image's full reference with tag, a chart's, model's or file's name.
    `root` is the digest of its top document (OCI index or manifest) of media type `media_type`; `blobs` are all the
    blobs it needs, the root's included, sorted. `payload` is the one blob of a file, installer or chart.
    """

    name: str
    version: str
    media_type: str
    root: Sha256
    blobs: tuple[Sha256, ...]
    payload: Sha256 | None = None
    image: ImageBinding | None = None
    weights: Sha256 | None = None
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


_CHUNKS = re.compile(r"(?:sha256:[0-9a-f]{64})*")
_DIGEST_LENGTH = 71
_MAX_REFERENCE = 512
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+~-]{0,254}")
_VERSION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9.+~:_-]{0,254}")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]{0,127}")
_PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/%:+~-]{0,511}")
_REFERENCE = re.compile(
    r"(?=[^/]*[.:]|localhost/)(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?\.)*[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?(?::[0-9]{1,5})?"
    r"(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)+:[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}"
)
"""`host/name:tag`, the grammar of distribution's `reference` package; who makes a bundle reads it by `adapters/references.py`."""
_AGAIN: Final = "create the bundle again; if it was carried, carry it again"


def check_contents(contents: Contents) -> None:
    """Check the rules above for one class.

    Raises:
        FormatError: unsorted, duplicated, unlisted or unused entries, wrong number of chunks, a name or path that is
            not plain, a field of another class.
    """
    what = f"contents of {contents.content_class}"
    _check_blobs(contents.blobs, what=what)
    listed = {blob.digest: blob for blob in contents.blobs}
    _check_order([artifact.name for artifact in contents.artifacts], what=f"{what}: artifacts")
    used: set[Digest] = set()
    for artifact in contents.artifacts:
        _check_artifact(artifact, contents.content_class, listed)
        used.update(artifact.blobs)
    if unused := listed.keys() - used:
        raise FormatError(f"{what}: blob {min(unused)} belongs to no artifact", hint=_AGAIN)


def _check_order(keys: list[str], *, what: str) -> None:
    for before, after in itertools.pairwise(keys):
        if before >= after:
            raise FormatError(f"{what}: {after!r} is listed twice or not in order", hint=_AGAIN)


def _check_blobs(blobs: tuple[Blob, ...], *, what: str) -> None:
    _check_order([blob.digest for blob in blobs], what=f"{what}: blobs")
    for blob in blobs:
        expected = chunk_count(blob.size)
        if len(blob.chunks) != (expected if expected > 1 else 0):
            raise FormatError(
                f"{what}: blob {blob.digest} of {blob.size} bytes lists {len(blob.chunks)} chunks, expected "
                f"{expected if expected > 1 else 'none, since its digest is its only chunk'}",
                hint=_AGAIN,
            )
        joined = "".join(blob.chunks)
        if _CHUNKS.fullmatch(joined) is None or any(len(chunk) != _DIGEST_LENGTH for chunk in blob.chunks):
            raise FormatError(f"{what}: blob {blob.digest} lists a chunk that is not a SHA-256 digest", hint=_AGAIN)


def _check_artifact(artifact: Artifact, content_class: ContentClass, listed: Mapping[Digest, Blob]) -> None:
    what = f"contents of {content_class}: artifact {artifact.name!r}"
    if _NAME.fullmatch(artifact.name) is None or {"", ".", ".."} & set(artifact.name.split("/")):
        raise FormatError(f"{what}: not a plain name", hint=_AGAIN)
    _check_order(list(artifact.blobs), what=f"{what}: blobs")
    named = [artifact.root, *(package.digest for package in artifact.packages)]
    named += [digest for digest in (artifact.payload, artifact.weights) if digest is not None]
    if artifact.image is not None:
        named += [artifact.image.index, artifact.image.manifest, artifact.image.config]
    if stray := set(named) - set(artifact.blobs):
        raise FormatError(f"{what}: names {min(stray)}, which is not among its blobs", hint=_AGAIN)
    if missing := set(artifact.blobs) - listed.keys():
        raise FormatError(f"{what}: blob {min(missing)} is not listed", hint=_AGAIN)
    for field, present, owner in (
        ("image", artifact.image is not None, ContentClass.IMAGES),
        ("weights", artifact.weights is not None, ContentClass.MODELS),
        ("packages", bool(artifact.packages), ContentClass.OS),
    ):
        if present and content_class is not owner:
            raise FormatError(f"{what}: {field} belongs to class {owner}", hint=_AGAIN)
    for package in artifact.packages:
        check_relative(package.path, what=f"{what}: package {package.name}")
        if listed[package.digest].size != package.size:
            raise FormatError(
                f"{what}: package {package.name} has {package.size} bytes, its blob {listed[package.digest].size}", hint=_AGAIN
            )
    _check_words(artifact, what)


def _check_words(artifact: Artifact, what: str) -> None:
    """Check what other programs will read as part of a path, a command or a template: nothing but plain words."""
    if _VERSION.fullmatch(artifact.version) is None:
        raise FormatError(f"{what}: version {artifact.version[:200]!r} is not a plain version", hint=_AGAIN)
    if artifact.image is not None:
        reference = artifact.image.reference
        if reference != artifact.name.partition("@")[0] or len(reference) > _MAX_REFERENCE or _REFERENCE.fullmatch(reference) is None:
            raise FormatError(f"{what}: {reference[:200]!r} is not its reference, host/name:tag", hint=_AGAIN)
    for package in artifact.packages:
        words = ((_PACKAGE, package.name), (_VERSION, package.version), (_PACKAGE, package.architecture), (_PATH, package.path))
        if odd := next((text for pattern, text in words if pattern.fullmatch(text) is None), None):
            raise FormatError(f"{what}: package {package.name[:200]!r}: {odd[:200]!r} is not plain", hint=_AGAIN)


def check_relative(path: str, *, what: str) -> None:
    """Check that `path` is a plain relative POSIX path: no empty, `.` or `..` part, no backslash, no control character.

    Raises:
        FormatError: it is not; `what` names it.
    """
    parts = path.split("/")
    if any(part in {"", ".", ".."} for part in parts) or "\\" in path or not path.isprintable():
        raise FormatError(f"{what}: path {path!r} is not a plain relative path", hint="rename the file, then create again")


def merge_blobs(contents: Iterable[Contents]) -> Mapping[Digest, Blob]:
    """Return all blobs of `contents` by digest.

    Raises:
        VerificationError: two classes give one digest another size or another chunk list, or two blobs give one chunk
            another length.
    """
    merged: dict[Digest, Blob] = {}
    owner: dict[Digest, ContentClass] = {}
    for each in contents:
        for blob in each.blobs:
            known = merged.setdefault(blob.digest, blob)
            if known != blob:
                raise _disagreement(blob.digest, f"class {owner[blob.digest]}", f"class {each.content_class}")
            owner.setdefault(blob.digest, each.content_class)
    _check_chunk_lengths(merged.values())
    return merged


def _check_chunk_lengths(blobs: Iterable[Blob]) -> None:
    """A chunk's digest has one length, wherever it is listed; a blob of one chunk is its own chunk."""
    lengths: dict[Digest, int] = {}
    for blob in blobs:
        last = len(blob.chunks) - 1
        for index, digest in enumerate(blob.chunks or (blob.digest,)):
            length = CHUNK_BYTES if index < last else blob.size - CHUNK_BYTES * max(last, 0)
            if lengths.setdefault(digest, length) != length:
                raise VerificationError(
                    f"chunk {digest} is listed with {lengths[digest]} and with {length} bytes",
                    hint="do not install this bundle: a signer lists bytes of another role; ask the publisher which key signed it",
                )


def check_same_blobs(blobs: Mapping[Digest, Blob], *, known: Mapping[Digest, Blob]) -> None:
    """Check that `blobs` of a new release agree with those that this site already holds.

    Raises:
        VerificationError: a digest has another size or another chunk list than in an earlier release.
    """
    for digest in blobs.keys() & known.keys():
        if blobs[digest] != known[digest]:
            raise _disagreement(digest, "an earlier release", "this one")


def _disagreement(digest: Digest, one: str, other: str) -> VerificationError:
    return VerificationError(
        f"{digest}: {one} and {other} disagree about its size or chunks",
        hint="do not install this bundle: a signer lists bytes of another role; ask the publisher which key signed it",
    )
