# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A release as the CNCF distribution registry stores it on disk: hard links, no copy, no push.

Layout: distribution's `registry/storage/paths.go` (v3.1). Repositories:

* images under their upstream host, `registry.k8s.io/pause:3.10.2`, so that one registry serves every host without two
  names meeting; containerd asks for `/v2/<host>/<name>` (`override_path` in `hosts.toml`);
* `charts/<name>:<version>`, `models/<name>:<version>`, `files/<name>:<version>`;
* `appliance/metadata:<release>`, the files below `metadata/`, linked from the release's folder, so that a node can verify
  what it takes from its own pinned root.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from appliance.bundle.contents import Artifact, Blob, ContentClass
from appliance.bundle.formats import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from appliance.bundle.metadata_artifact import METADATA_REPOSITORY, MetadataArtifact, metadata_artifact
from appliance.digests import Digest, digest_of, hex_of
from appliance.errors import FormatError
from appliance.store import Store, StoredRelease
from appliance.store.trees import contents_digest, ensure_tree, link_blob, link_file, put_text, require_one_filesystem

SERVED = (ContentClass.IMAGES, ContentClass.MODELS, ContentClass.CHARTS, ContentClass.FILES)
_MANIFESTS = {OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST}
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", re.ASCII)
_NOT_IN_TAGS = re.compile(r"[^A-Za-z0-9._-]")


def registry_tree(store: Store, release: StoredRelease) -> Path:
    """Return the registry tree of `release` (`docker/registry/v2/...` below it), making what is missing of it.

    Raises:
        HostError: a blob is not in the store, or links cannot be made (two file systems).
        FormatError: a name that no registry can serve.
    """
    place = release.path / "registry"
    require_one_filesystem(store, release.path)
    contents = [release.bundle.contents[each] for each in SERVED if each in release.bundle.contents]
    metadata = metadata_artifact(release.bundle.metadata)

    def fill(folder: Path) -> None:
        for each in contents:
            for artifact in each.artifacts:
                _link_artifact(store, folder, each.content_class, artifact, release.bundle.blobs)
        _link_metadata(folder, release, metadata)

    ensure_tree(place, digest_of(f"{contents_digest(contents)}\n{digest_of(metadata.manifest)}".encode("ascii")), fill)
    return place


def repository_of(content_class: ContentClass, artifact: Artifact) -> tuple[str, str]:
    """Return repository and tag under which `artifact` is served.

    Raises:
        FormatError: a name that no registry can serve.
    """
    if content_class is ContentClass.IMAGES:
        name, _, tag = artifact.name.partition("@")[0].rpartition(":")
        if "/" in tag or not name:
            name, tag = artifact.name.partition("@")[0], "latest"
    else:
        name, tag = f"{content_class.value}/{artifact.name.lower()}", _NOT_IN_TAGS.sub("_", artifact.version)
    if _REPOSITORY.fullmatch(name) is None or _TAG.fullmatch(tag) is None:
        raise FormatError(
            f"{artifact.name} {artifact.version} cannot be served by a registry as {name}:{tag}",
            hint="use lower-case letters, digits, dots and dashes in names, and images from hosts without a port",
        )
    return name, tag


def manifests_of(content_class: ContentClass, artifact: Artifact) -> set[Digest]:
    """Return those blobs of `artifact` that a registry serves as manifests; all others are served as layers."""
    found = {artifact.root} if artifact.media_type in _MANIFESTS else set()
    if content_class is ContentClass.IMAGES and artifact.image is not None:
        found |= {artifact.image.index, artifact.image.manifest}
    return found


def _link_artifact(store: Store, folder: Path, content_class: ContentClass, artifact: Artifact, blobs: Mapping[Digest, Blob]) -> None:
    top = folder / "docker" / "registry" / "v2"
    repository, tag = repository_of(content_class, artifact)
    place = top / "repositories" / repository
    manifests = manifests_of(content_class, artifact)
    for digest in artifact.blobs:
        digits = hex_of(blobs[digest].digest)
        link_blob(store, digest, _data(top, digest))
        kind = Path("_manifests", "revisions") if digest in manifests else Path("_layers")
        put_text(place / kind / "sha256" / digits / "link", digest)
    tags = place / "_manifests" / "tags" / tag
    put_text(tags / "index" / "sha256" / hex_of(artifact.root) / "link", artifact.root)
    put_text(tags / "current" / "link", artifact.root)


def _link_metadata(folder: Path, release: StoredRelease, metadata: MetadataArtifact) -> None:
    """Serve the release's metadata. When it is exchanged for newer, the tag moves; what was served before stays."""
    top = folder / "docker" / "registry" / "v2"
    place = top / "repositories" / METADATA_REPOSITORY
    manifest, config = digest_of(metadata.manifest), digest_of(metadata.config)
    for digest, path in metadata.layers.items():
        link_file(release.path / "metadata" / path, digest, _data(top, digest))
    for digest, data in ((manifest, metadata.manifest), (config, metadata.config)):
        put_text(_data(top, digest), data.decode("utf-8"))
    for digest in (*metadata.layers, config):
        put_text(place / "_layers" / "sha256" / hex_of(digest) / "link", digest)
    put_text(place / "_manifests" / "revisions" / "sha256" / hex_of(manifest) / "link", manifest)
    tags = place / "_manifests" / "tags" / hex_of(release.digest)
    put_text(tags / "index" / "sha256" / hex_of(manifest) / "link", manifest)
    put_text(tags / "current" / "link", manifest)


def _data(top: Path, digest: Digest) -> Path:
    return top / "blobs" / "sha256" / hex_of(digest)[:2] / hex_of(digest) / "data"
