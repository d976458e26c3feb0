# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Writes the vectors of released formats: one valid of each, and one for each fault.

    python -m tests.vectors.generate

A vector that exists is never written again: what was released stays. Keys are made from names that everybody knows
(tests/support/simulator.py) and sign nothing else. Form of a vector, for other implementations:

* `kind`: `metadata`, `contents`, `weights`, `part` or `safetensors`; `says`: what is wrong with it, in words
* `accept`, or `exit`, the exit code of the refusal (docs/bundle-format.md, appliance/errors.py)
* `data`: base64 of the bytes; for `part`: header and table, then the trailer
* of kind `metadata` instead: `now`, `pin` (a path among the files, or base64), `seen` (base64 of a seen/1, or none), and
  `files`: base64 by path below `metadata/`. With `base`, the files of that vector changed by these; null removes one.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec

from appliance.bundle import formats
from appliance.bundle.contents import ContentClass
from appliance.bundle.documents import encode
from appliance.bundle.layout import ModelLayer, build_model
from appliance.bundle.media import ChunkEntry, MetadataEntry, PartTable, encode_head, encode_trailer, part_length, with_offsets
from appliance.bundle.weights import WeightsFile, build_statement
from appliance.digests import CHUNK_BYTES, Digest, digest_of
from appliance.trust.clock import format_instant
from appliance.trust.envelope import seal
from tests.support.simulator import Files, Line, blob_of, bytes_of, contents_of, file_artifact, path_of, person, sample_files

FOLDER = Path(__file__).resolve().parent
Vector = dict[str, Any]


def text(data: bytes) -> str:
    """Bytes as a vector holds them."""
    return base64.b64encode(data).decode()


def safetensors(header: object, size: int) -> bytes:
    """A safetensors file of `size` zero bytes of data."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(head).to_bytes(8, "little") + head + bytes(size)


def world() -> tuple[Line, Files]:
    """A release with files and a model, under the second root of its line."""
    line = Line()
    line.replace_keys(["bob"])
    data = safetensors({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}, 4)
    blob = blob_of(data)
    statement = build_statement("tiny", "1", [WeightsFile(path="model.safetensors", size=blob.size, digest=blob.digest)])
    layers = [ModelLayer(path="model.safetensors", media_type=formats.MODEL_WEIGHT_RAW, blob=blob)]
    built = build_model("tiny", "1", layers, statement=statement, license_="Apache-2.0")
    contents, _ = sample_files()
    contents[ContentClass.MODELS] = contents_of(ContentClass.MODELS, [built.artifact], built.blobs)
    return line, line.publish(contents, statements=[statement])


def changed(files: Files, other: Mapping[str, bytes | None]) -> dict[str, str | None]:
    """What makes `other` of `files`."""
    found: dict[str, str | None] = {path: None for path in files if path not in other}
    found |= {path: text(data) for path, data in other.items() if data is not None and files.get(path) != data}
    return found


class Metadata:
    """Collects vectors of kind `metadata` around one valid release."""

    def __init__(self) -> None:
        self.line, self.files = world()
        self.now = format_instant(self.line.now)
        self.seen = self.line.verify(self.files).seen
        common = {"kind": "metadata", "accept": True, "now": self.now, "pin": "1.root.json"}
        whole = {path: text(data) for path, data in self.files.items()}
        again = {"says": "the same release a second time", "seen": text(encode(self.seen)), "base": "valid", "files": {}}
        self.vectors: dict[str, Vector] = {
            "valid": {**common, "says": "a valid release", "files": whole},
            "valid-again": {**common, **again},
        }

    def add(self, name: str, says: str, other: Mapping[str, bytes | None], *, exit_code: int = 3, **more: object) -> None:
        """Add a fault: the files of `other` instead of the valid ones."""
        fault = {"kind": "metadata", "says": says, "exit": exit_code, "now": self.now, "pin": "1.root.json", "base": "valid"}
        self.vectors[name] = {**fault, "files": changed(self.files, other), **more}

    def edit(self, role: str, change: Callable[[dict[str, Any]], object], *, sign: Any = True) -> Files:  # noqa: ANN401
        """The valid files with `role` changed and signed again, or not."""
        return self.line.edit(self.files, path_of(self.files, role), change, sign=sign)

    def without(self, path: str) -> Files:
        """The valid files without one."""
        return {name: data for name, data in self.files.items() if name != path}

    def flip(self, path: str) -> Files:
        """The valid files with one bit of one flipped."""
        data = bytearray(self.files[path])
        data[len(data) // 2] ^= 1
        return {**self.files, path: bytes(data)}

    def respell(self, old: bytes, new: bytes) -> Files:
        """The valid files with the timestamp in another spelling."""
        return {**self.files, "timestamp.json": self.files["timestamp.json"].replace(old, new)}

    def twin(self) -> Line:
        """A line of the same keys and roots with counters of its own."""
        twin = Line()
        twin.roots, twin.signers = self.line.roots, self.line.signers
        return twin


def metadata_vectors() -> dict[str, Vector]:
    """The valid release, and one vector for each thing that can be wrong with one."""
    of = Metadata()
    _root_and_time(of)
    _signatures(of)
    _spellings(of)
    _delegations(of)
    _history(of)
    return of.vectors


def _root_and_time(of: Metadata) -> None:
    of.add("stranger", "a complete release of a stranger under the same line name", Line(people=("mallory",)).publish())
    of.add("other-line", "a release of another line", Line("other").publish())
    of.add("root-gap", "root 1 is missing", of.without("1.root.json"))
    of.add("root-unlinked", "root 2 is not signed by root 1", {**of.files, "2.root.json": _unlinked()})
    of.add("expired", "the timestamp expired a day ago", of.files, now=format_instant(of.line.now + timedelta(days=91)))
    behind = format_instant(of.line.now - timedelta(seconds=1))
    of.add("clock-behind", "the clock is behind x-issued", of.files, exit_code=5, now=behind)


def _signatures(of: Metadata) -> None:
    for role in ("timestamp", "snapshot", "targets", "files"):
        of.add(f"one-family-{role}", f"{role} is signed by one family only", of.edit(role, _same, sign=of.line.signers[-2:][:1]))
        later = of.edit(role, lambda signed: signed.update(expires="2030-01-01T00:00:00Z"), sign=False)
        of.add(f"changed-{role}", f"{role} was changed and not signed again", later)
        of.add(f"foreign-{role}", f"{role} is signed by a stranger", of.edit(role, _same, sign=person("mallory")))
        of.add(f"missing-{role}", f"{role} is missing", of.without(path_of(of.files, role)))


def _spellings(of: Metadata) -> None:
    contents = next(path for path in of.files if path.endswith(".files.json") and "/" in path)
    of.add("extra-file", "a file that no role names", {**of.files, "extra.json": b"{}"})
    of.add("flipped-contents", "one bit of contents is flipped", of.flip(contents))
    of.add("flipped-root", "one bit of root 2 is flipped", of.flip("2.root.json"))
    twice = of.respell(b'"version":1}', b'"version":1,"version":1}')
    of.add("duplicate-key", "a key stands twice in the timestamp", twice, exit_code=4)
    of.add("float-version", "a version is written as a float", of.respell(b'"version":1}', b'"version":1.0}'), exit_code=4)
    truth = of.edit("timestamp", lambda signed: signed.update(version=True))
    of.add("boolean-version", "a version is true, and signed", truth, exit_code=4)
    of.add("no-issued", "the timestamp has no x-issued", of.edit("timestamp", lambda signed: signed.pop("x-issued")), exit_code=4)


def _delegations(of: Metadata) -> None:
    low = of.edit("targets", lambda signed: signed["delegations"]["roles"][0].update(threshold=1))
    of.add("low-threshold", "one family alone could meet a delegation's threshold", low)
    wide = of.edit("targets", lambda signed: signed["delegations"]["roles"][1].update(paths=["contents/*"]))
    of.add("wide-delegation", "a class may sign the path of another", wide)
    of.add("missing-delegation", "a class is not delegated", of.edit("targets", lambda signed: signed["delegations"]["roles"].pop()))
    weights = next(path for path in of.files if path.startswith("weights/"))
    of.add("missing-weights", "the weights manifest is missing", of.without(weights))
    other = build_statement("tiny", "2", [WeightsFile(path="x", size=1, digest=digest_of(b"x"))])
    sealed = seal(formats.STATEMENT_PAYLOAD, other, person("bob"))
    of.add("swapped-weights", "another weights manifest, signed by the right keys", {**of.files, weights: sealed})
    of.add("chunk-lie", "two classes give one digest other chunks", _chunk_lie(of.twin()))


def _history(of: Metadata) -> None:
    replace = msgspec.structs.replace
    rolled = replace(of.seen, timestamp=of.seen.timestamp + 1)
    of.add("rollback", "older than what was seen", of.files, seen=text(encode(rolled)))
    other = replace(of.seen, release=digest_of(b"another release"))
    of.add("equivocation", "another release was seen under the same version", of.files, seen=text(encode(other)))
    newer = encode(of.line.release()).replace(b"release/1", b"release/2")
    of.add("newer-format", "release.json is of a newer major", of.twin().publish(release=newer), exit_code=4)
    minimum = of.twin().publish(release=of.line.release(minimum_appliance="999.0.0"))
    of.add("newer-minimum", "the release needs a newer appliance", minimum, exit_code=4)


def _same(signed: dict[str, Any]) -> None:
    """Leave the signed part as it is."""


def _unlinked() -> bytes:
    forger = Line(people=("mallory",))
    forger.replace_keys(["bob"])
    return forger.roots[1]


def _chunk_lie(liar: Line) -> Files:
    """Contents whose classes files and policy disagree about the chunks of one blob."""
    artifact, blobs = file_artifact("layer", b"payload")
    payload = artifact.payload or artifact.root
    listed = [blob_of(data) for digest, data in blobs.items() if digest != payload]
    chunks = (digest_of(b"one"), digest_of(b"two"))
    honest = msgspec.structs.replace(blob_of(b"payload"), size=CHUNK_BYTES + 1, chunks=chunks)
    lie = msgspec.structs.replace(honest, chunks=chunks[::-1])
    return liar.publish(
        {
            ContentClass.FILES: contents_of(ContentClass.FILES, [artifact], [*listed, honest]),
            ContentClass.POLICY: contents_of(ContentClass.POLICY, [artifact], [*listed, lie]),
        }
    )


class Bytes:
    """Collects vectors that are one byte string."""

    def __init__(self) -> None:
        self.vectors: dict[str, Vector] = {}

    def __call__(self, kind: str, name: str, says: str, data: bytes, *, exit_code: int | None = 4) -> None:
        """Add one; without `exit_code` it is valid."""
        verdict: Vector = {"accept": True} if exit_code is None else {"exit": exit_code}
        self.vectors[f"{kind}-{name}"] = {"kind": kind, "says": says, **verdict, "data": text(data)}


def byte_vectors() -> dict[str, Vector]:
    """Contents, weights manifests, parts and safetensors headers: one valid of each and one for each fault."""
    add = Bytes()
    _contents(add)
    _weights_and_parts(add)
    _safetensors(add)
    return add.vectors


def _contents(add: Bytes) -> None:
    contents = encode(sample_files()[0][ContentClass.FILES])
    add("contents", "valid", "valid contents", contents, exit_code=None)
    add("contents", "newer", "of a newer major", contents.replace(b"contents/1", b"contents/2"))
    add("contents", "spaced", "with white space", contents.replace(b",", b", ", 1))
    add(
        "contents", "duplicate-key", "with a key twice", contents.replace(b'"content_class"', b'"content_class":"files","content_class"', 1)
    )
    add("contents", "unknown-field", "with an unknown field", contents[:-1] + b',"x":1}')
    document = json.loads(contents)
    changes: tuple[tuple[str, str, Callable[[Any], object]], ...] = (
        ("unsorted", "blobs out of order", lambda found: found["blobs"].reverse()),
        ("unlisted", "a blob is not listed", lambda found: found["blobs"].pop()),
        ("unused", "a blob belongs to no artifact", lambda found: found["artifacts"].pop()),
        ("needless-chunks", "a small blob lists chunks", lambda found: found["blobs"][0].update(chunks=[found["blobs"][0]["digest"]])),
        ("short-digest", "a digest is too short", lambda found: found["artifacts"][0].update(root="sha256:00")),
    )
    for name, says, change in changes:
        copy = json.loads(json.dumps(document))
        change(copy)
        add("contents", name, says, json.dumps(copy, sort_keys=True, separators=(",", ":")).encode())


def _weights_and_parts(add: Bytes) -> None:
    files = [WeightsFile(path=path, size=2, digest=digest_of(path.encode())) for path in ("a.json", "b.json")]
    statement = build_statement("tiny", "1", files)
    add("weights", "valid", "a valid weights manifest", statement, exit_code=None)
    add("weights", "newer", "of a newer major", statement.replace(b"weights/1", b"weights/2"))
    add("weights", "other-predicate", "of another predicate", statement.replace(b"weights-manifest/v1", b"import-receipt/v1"))
    add("weights", "subjects-differ", "subjects and files differ", statement.replace(b'"name":"a.json"', b'"name":"c.json"'))
    add("weights", "climbing", "a path climbs", statement.replace(b"a.json", b"../a.j"))

    table = with_offsets(_table())
    head, length = encode_head(table), part_length(table)
    add("part", "valid", "header, table and trailer of a part", head + encode_trailer(head, length), exit_code=None)
    for name, says, place in (
        ("magic", "another magic", 0),
        ("length", "another length of the table", 15),
        ("digest", "another digest of the table", 16),
        ("padding", "padding that is not zero", 63),
        ("table", "a bit of the table is flipped", 100),
        ("end-magic", "another magic at the end", len(head)),
        ("end-length", "another length of the part", len(head) + 15),
        ("end-digest", "another digest at the end", len(head) + 47),
    ):
        data = bytearray(head + encode_trailer(head, length))
        data[place] ^= 1
        add("part", name, says, bytes(data))


def _safetensors(add: Bytes) -> None:
    one = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}
    add("safetensors", "valid", "two tensors", safetensors({"a": one, "b": {**one, "data_offsets": [4, 8]}}, 8), exit_code=None)
    add("safetensors", "overlap", "two tensors overlap", safetensors({"a": one, "b": {**one, "data_offsets": [2, 6]}}, 6))
    add("safetensors", "gap", "a gap between tensors", safetensors({"a": one, "b": {**one, "data_offsets": [5, 9]}}, 9))
    add("safetensors", "trailing", "bytes behind the last tensor", safetensors({"a": one}, 5))
    add("safetensors", "cut", "the data is cut", safetensors({"a": one}, 3))
    add(
        "safetensors",
        "duplicate-key",
        "a tensor stands twice",
        safetensors(b'{"a":' + json.dumps(one).encode() + b',"a":' + json.dumps(one).encode() + b"}", 4),
    )
    add("safetensors", "wrong-length", "shape and length differ", safetensors({"a": {**one, "shape": [5]}}, 4))
    add("safetensors", "huge-header", "a header longer than the file", (2**40).to_bytes(8, "little") + b"{}")


def _table() -> PartTable:
    zero = Digest("sha256:" + "0" * 64)
    return PartTable(
        format=PartTable.FORMAT,
        set=zero,
        name="tiny",
        version="1",
        platform="debian-12-amd64",
        index=1,
        count=1,
        metadata=(MetadataEntry(path="timestamp.json", offset=0, size=2, digest=digest_of(b"{}")),),
        chunks=(ChunkEntry(digest=digest_of(bytes_of("chunk", 10)), offset=0, size=10),),
    )


def main() -> None:
    """Write the vectors that are not there yet."""
    for name, vector in {**{f"metadata-{name}": each for name, each in metadata_vectors().items()}, **byte_vectors()}.items():
        path = FOLDER / f"{name}.json"
        if not path.exists():
            if "base" in vector:
                vector["base"] = f"metadata-{vector['base']}"
            path.write_text(json.dumps(vector, indent=1, sort_keys=True, ensure_ascii=True) + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
