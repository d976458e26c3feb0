# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The weights manifest: which bytes a model is, under which names (docs/bundle-format.md section 5.4).

An in-toto Statement v1 in RFC 8785 form. Its subjects are the model's files; its predicate gives size and chunks. The
model's identity is the SHA-256 of these bytes, so a renamed file is another model. Contents of class `models` pin it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import msgspec

from appliance.bundle import formats
from appliance.bundle.contents import Artifact, Blob, check_relative
from appliance.bundle.documents import JSON_ERRORS, MAX_DOCUMENT_BYTES, Record, Sha256, Size, encode, reason_of
from appliance.digests import Digest, chunk_count, hex_of
from appliance.errors import FormatError, VerificationError

FORMAT: Final = "weights/1"
_Hex = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$", max_length=64)]
_AGAIN: Final = "create the bundle again; if it was carried, carry it again"


class WeightsFile(Record, frozen=True, kw_only=True):
    """One file: POSIX path in the model's folder, bytes, digest, and chunks where there is more than one."""

    path: str
    size: Size
    digest: Sha256
    chunks: tuple[Sha256, ...] = ()


class _Subject(Record, frozen=True, kw_only=True):
    name: str
    digest: dict[str, _Hex]


class _Predicate(Record, frozen=True, kw_only=True):
    format: str
    name: str
    version: str
    files: tuple[WeightsFile, ...]


class _Statement(Record, frozen=True, kw_only=True, rename={"type_": "_type", "predicate_type": "predicateType"}):
    type_: str
    predicate_type: str
    subject: tuple[_Subject, ...]
    predicate: _Predicate


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """A parsed weights manifest: the model's name and version, and its files in the order of their paths."""

    name: str
    version: str
    files: tuple[WeightsFile, ...]


def build_statement(name: str, version: str, files: Sequence[WeightsFile]) -> bytes:
    """Return the weights manifest of a model.

    Raises:
        FormatError: no file, a path twice or not plain, a wrong number of chunks.
    """
    ordered = tuple(sorted(files, key=lambda file: file.path))
    _check_files(ordered, what=f"weights of {name}")
    statement = _Statement(
        type_=formats.STATEMENT,
        predicate_type=formats.PREDICATE_WEIGHTS,
        subject=tuple(_Subject(name=file.path, digest={"sha256": hex_of(file.digest)}) for file in ordered),
        predicate=_Predicate(format=FORMAT, name=name, version=version, files=ordered),
    )
    return encode(statement)


def parse_statement(data: bytes, *, what: str) -> Weights:
    """Return the weights manifest in `data`; `what` names it in errors.

    Raises:
        FormatError: malformed, not canonical, of another predicate, made by a newer appliance, or subjects and files differ.
    """
    if len(data) > MAX_DOCUMENT_BYTES:
        raise FormatError(f"{what}: {len(data)} bytes is more than a document may have ({MAX_DOCUMENT_BYTES})", hint=_AGAIN)
    try:
        statement = msgspec.json.decode(data, type=_Statement)
    except JSON_ERRORS as error:
        raise FormatError(f"{what}: not a weights manifest: {reason_of(error)}", hint=_AGAIN) from error
    if encode(statement) != data:
        raise FormatError(f"{what}: not in canonical form (RFC 8785)", hint=_AGAIN)
    if statement.type_ != formats.STATEMENT or statement.predicate_type != formats.PREDICATE_WEIGHTS:
        raise FormatError(f"{what}: {statement.predicate_type!r} is not a weights manifest", hint="check which file was given")
    predicate = statement.predicate
    if predicate.format != FORMAT:
        raise FormatError(
            f"{what}: format {predicate.format!r} is made by a newer appliance; this one reads {FORMAT!r}",
            hint="carry the installer of that release and verify it as its paper sheet says",
        )
    _check_files(predicate.files, what=what)
    named = [(subject.name, subject.digest) for subject in statement.subject]
    if named != [(file.path, {"sha256": hex_of(file.digest)}) for file in predicate.files]:
        raise FormatError(f"{what}: subjects and files differ", hint=_AGAIN)
    return Weights(name=predicate.name, version=predicate.version, files=predicate.files)


def _check_files(files: Sequence[WeightsFile], *, what: str) -> None:
    if not files:
        raise FormatError(f"{what}: it lists no file", hint="check the model's folder")
    for before, file in zip((None, *files), files, strict=False):
        check_relative(file.path, what=what)
        if before is not None and before.path >= file.path:
            raise FormatError(f"{what}: {file.path!r} is listed twice or not in order", hint=_AGAIN)
        expected = chunk_count(file.size)
        if len(file.chunks) != (expected if expected > 1 else 0):
            raise FormatError(f"{what}: {file.path} of {file.size} bytes lists {len(file.chunks)} chunks", hint=_AGAIN)


def check_agreement(weights: Weights, artifact: Artifact, blobs: Mapping[Digest, Blob]) -> None:
    """Check that `weights` and the models contents say the same about `artifact`.

    Raises:
        VerificationError: another name or version, or a file whose blob has another size or chunk list, or is not carried.
    """
    what = f"model {artifact.name}"
    if (weights.name, weights.version) != (artifact.name, artifact.version):
        raise VerificationError(
            f"{what}: its weights manifest is of {weights.name} {weights.version}, contents of {artifact.version}",
            hint="do not use this bundle: the publisher's documents disagree",
        )
    for file in weights.files:
        blob = blobs.get(file.digest)
        if file.digest not in artifact.blobs or blob is None or (blob.size, blob.chunks) != (file.size, file.chunks):
            raise VerificationError(
                f"{what}: weights manifest and contents disagree about {file.path}",
                hint="do not use this bundle: the publisher's documents disagree",
            )
