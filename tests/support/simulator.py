# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A simulator of the connected side: valid publications, releases and bundles in memory.

A test takes a valid world, breaks one thing (and signs it again, or does not), and asserts the refusal:

    line = Line("acme")
    files = line.publish()                                   # valid metadata of one release, by path
    verify_metadata(files, pinned_root=line.pin, seen=None, now=line.now)
    files = line.edit(files, "timestamp.json", lambda signed: signed.update(version=1), sign=True)
"""

from __future__ import annotations

import functools
import hashlib
import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ed25519, mldsa
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, Role, Root

from appliance.bundle import formats
from appliance.bundle.contents import Artifact, Blob, ContentClass, Contents
from appliance.bundle.documents import encode
from appliance.bundle.release import Release
from appliance.digests import CHUNK_BYTES, Digest, digest_of, hex_of
from appliance.trust.client import VerifiedBundle, verify_metadata
from appliance.trust.keys import least_threshold
from appliance.trust.metadata import add_signatures, new_root, sign_release
from appliance.trust.publication import Publication, new_publication
from appliance.trust.state import SeenVersions

NOW = datetime(2026, 11, 23, 6, 31, tzinfo=UTC)
Files = dict[str, bytes]


@functools.cache
def person(name: str) -> tuple[CryptoSigner, CryptoSigner]:
    """The two keys of `name`: made from the name, so everybody knows them and every run has the same ones."""
    classical = ed25519.Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"test key of {name}, classical".encode()).digest())
    post_quantum = mldsa.MLDSA65PrivateKey.from_seed_bytes(hashlib.sha256(f"test key of {name}, ML-DSA".encode()).digest())
    return CryptoSigner(classical), CryptoSigner(post_quantum)


def bytes_of(seed: str, size: int) -> bytes:
    """`size` bytes that depend on `seed` alone and do not repeat every chunk."""
    return random.Random(seed).randbytes(size)


def blob_of(data: bytes) -> Blob:
    """The contents entry of `data`."""
    chunks = [digest_of(data[start : start + CHUNK_BYTES]) for start in range(0, len(data), CHUNK_BYTES)]
    return Blob(digest=digest_of(data), size=len(data), chunks=tuple(chunks) if len(chunks) > 1 else ())


def contents_of(content_class: ContentClass, artifacts: Iterable[Artifact], blobs: Iterable[Blob]) -> Contents:
    """Contents in order."""
    return Contents(
        format=Contents.FORMAT,
        content_class=content_class,
        artifacts=tuple(sorted(artifacts, key=lambda artifact: artifact.name)),
        blobs=tuple(sorted({blob.digest: blob for blob in blobs}.values(), key=lambda blob: blob.digest)),
    )


def file_artifact(name: str, payload: bytes, *, version: str = "1") -> tuple[Artifact, Mapping[Digest, bytes]]:
    """A file as an OCI artifact: its manifest, the empty config and the payload."""
    empty = b"{}"

    def descriptor(media_type: str, data: bytes) -> dict[str, object]:
        return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}

    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": formats.OCI_MANIFEST,
            "artifactType": formats.FILE_ARTIFACT,
            "config": descriptor(formats.OCI_EMPTY, empty),
            "layers": [{**descriptor(formats.FILE_LAYER, payload), "annotations": {formats.OCI_TITLE: name}}],
        },
        sort_keys=True,
        separators=(",", ":"),
    ).encode()
    blobs = {digest_of(data): data for data in (empty, manifest, payload)}
    artifact = Artifact(
        name=name,
        version=version,
        media_type=formats.OCI_MANIFEST,
        root=digest_of(manifest),
        blobs=tuple(sorted(blobs)),
        payload=digest_of(payload),
        source=f"https://files.example/{name}",
    )
    return artifact, blobs


def sample_files(sizes: Mapping[str, int] | None = None) -> tuple[dict[ContentClass, Contents], dict[Digest, bytes]]:
    """Contents of class `files` with one file of each of `sizes` (bytes by name), and all blobs."""
    artifacts: list[Artifact] = []
    blobs: dict[Digest, bytes] = {}
    for name, size in (sizes or {"kubeadm": 4096, "helm": 1000}).items():
        artifact, more = file_artifact(name, bytes_of(name, size))
        artifacts.append(artifact)
        blobs |= more
    return {ContentClass.FILES: contents_of(ContentClass.FILES, artifacts, map(blob_of, blobs.values()))}, blobs


@dataclass
class Line:
    """A publication in memory: keys, roots, counters, and a clock that tests move."""

    name: str = "acme"
    people: tuple[str, ...] = ("alice",)
    now: datetime = NOW
    publication: Publication = field(init=False)
    roots: list[bytes] = field(init=False)
    signers: list[CryptoSigner] = field(init=False)

    def __post_init__(self) -> None:
        self.signers = [signer for who in self.people for signer in person(who)]
        self.publication = new_publication(self.name)
        self.roots = [new_root(line=self.name, signers=self.signers, now=self.now)]

    @property
    def pin(self) -> bytes:
        """The first root: what a site pins."""
        return self.roots[0]

    def pass_days(self, days: float) -> None:
        """Let time pass."""
        self.now += timedelta(days=days)

    def release(self, version: str = "1.0.0", **changes: object) -> Release:
        """A release document of this line."""
        values: dict[str, Any] = {
            "format": Release.FORMAT,
            "name": "tiny",
            "line": self.name,
            "version": version,
            "lock": digest_of(b"lock"),
            "platform": "debian-12-amd64",
            "kubernetes": "v1.36.4",
            "charts": (),
            "minimum_appliance": "0.1.0",
        }
        return Release(**{**values, **changes})

    def publish(
        self,
        contents: Mapping[ContentClass, Contents] | None = None,
        *,
        release: Release | bytes | None = None,
        raw: Mapping[ContentClass, bytes] | None = None,
        signers: Sequence[CryptoSigner] | None = None,
        statements: Sequence[bytes] = (),
    ) -> Files:
        """Metadata of a new release, counters raised. `raw` replaces a class's bytes; `signers` signs instead of all."""
        document = release if isinstance(release, bytes) else encode(release or self.release())
        chosen = contents if contents is not None else sample_files()[0]
        data = {each: encode(one) for each, one in chosen.items()} | dict(raw or {})
        self.publication, files = sign_release(
            publication=self.publication,
            roots=self.roots,
            signers=self.signers if signers is None else signers,
            release=document,
            contents=data,
            now=self.now,
            statements=statements,
        )
        return files

    def edit(
        self, files: Files, path: str, change: Callable[[dict[str, Any]], object], *, sign: bool | Sequence[CryptoSigner] = True
    ) -> Files:
        """`files` with the signed part of `path` changed; signed again by all, by those given, or left as it was."""
        document = json.loads(files[path])
        change(document["signed"])
        signers: Sequence[CryptoSigner] = self.signers if sign is True else (sign or ())
        if sign is not False:
            document["signatures"] = []
        metadata: Metadata[Any] = Metadata.from_dict(document)
        keyids = sorted({signer.public_key.keyid for signer in signers})
        if keyids:
            metadata = add_signatures(metadata, Role(keyids, 1), signers)
        return {**files, path: metadata.to_bytes()}

    def new_root(self, change: Callable[[Root], object] | None = None, *, signers: Sequence[CryptoSigner] | None = None) -> bytes:
        """Append and return root N+1: as the last one, changed, signed by all given (default: all of this line)."""
        metadata: Metadata[Root] = Metadata.from_bytes(self.roots[-1])
        metadata.signatures.clear()
        metadata.signed.version += 1
        metadata.signed.expires = self.now + timedelta(days=730)
        if change is not None:
            change(metadata.signed)
        chosen = self.signers if signers is None else signers
        keyids = sorted({signer.public_key.keyid for signer in chosen})
        self.roots.append(add_signatures(metadata, Role(keyids, 1), chosen).to_bytes())
        return self.roots[-1]

    def replace_keys(self, people: Sequence[str], roles: Sequence[str] = ("root", "timestamp", "snapshot", "targets")) -> bytes:
        """Append root N+1 in which `people` hold `roles`; signed by old and new keys."""
        fresh = [signer for who in people for signer in person(who)]
        keys = {signer.public_key.keyid: signer.public_key for signer in fresh}

        def change(root: Root) -> None:
            root.keys.update(keys)
            for role in roles:
                root.roles[role] = Role(sorted(keys), least_threshold(list(keys.values())))
            used = {keyid for role in root.roles.values() for keyid in role.keyids}
            root.keys = {keyid: key for keyid, key in root.keys.items() if keyid in used}

        old = Metadata[Root].from_bytes(self.roots[-1]).signed.roles["root"].keyids
        both = {signer.public_key.keyid: signer for signer in [*self.signers, *fresh]}
        root_keys = set(old) | (set(keys) if "root" in roles else set())
        data = self.new_root(change, signers=[signer for keyid, signer in both.items() if keyid in root_keys])
        used = Metadata[Root].from_bytes(data).signed.keys
        self.signers = [signer for keyid, signer in both.items() if keyid in used]
        return data

    def verify(self, files: Mapping[str, bytes], *, seen: SeenVersions | None = None, pin: bytes | None = None) -> VerifiedBundle:
        """What this line's site says about `files` now."""
        return verify_metadata(files, pinned_root=pin or self.pin, seen=seen, now=self.now)


def path_of(files: Mapping[str, bytes], role: str) -> str:
    """The path of `role`'s newest file: `timestamp.json` or `N.role.json`."""
    if role == "timestamp":
        return "timestamp.json"
    return max((path for path in files if path.endswith(f".{role}.json") and "/" not in path), key=lambda path: int(path.partition(".")[0]))


def write_bundle(directory: Path, files: Mapping[str, bytes], blobs: Mapping[Digest, bytes]) -> Path:
    """Write metadata and blobs as a bundle directory; return it."""
    for path, data in files.items():
        target = directory / "metadata" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    store = directory / "blobs" / "sha256"
    store.mkdir(parents=True, exist_ok=True)
    for digest, data in blobs.items():
        (store / hex_of(digest)).write_bytes(data)
    (directory / "oci-layout").write_bytes(b'{"imageLayoutVersion":"1.0.0"}')
    return directory
