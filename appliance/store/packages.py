# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A flat apt repository per release: `Packages`, `Packages.gz`, `Release` and a pool of hard links into the store.

Every package is hashed again against its signed contents before it is offered, and what `Packages` says of name,
version and architecture must be what contents say. Source: Debian policy 5, `deb822(5)`, `sources.list(5)` "flat".
"""

from __future__ import annotations

import gzip
import hashlib
import os
import re
from collections.abc import Sequence
from email.utils import format_datetime
from pathlib import Path

from appliance.adapters import debs, disk, hashing
from appliance.adapters.parallel import default_workers, for_each
from appliance.bundle.contents import ContentClass, PackageEntry
from appliance.digests import hex_of
from appliance.errors import FormatError, HostError, VerificationError
from appliance.store import Store, StoredRelease
from appliance.store.trees import contents_digest, ensure_tree, link_blob, require_one_filesystem

_PATH = re.compile(r"pool/[A-Za-z0-9][A-Za-z0-9.+~%_-]*\.deb", re.ASCII)
_REPLACED = {"filename", "size", "md5sum", "sha1", "sha256", "sha512"}
_HINT = "ask the publisher to create the bundle again; this package is not what its contents say"


def package_repository(store: Store, release: StoredRelease) -> Path:
    """Return the package repository of `release`, making it where it is missing.

    Raises:
        HostError: a package is not in the store, or links cannot be made.
        VerificationError: a package is not the one that was signed.
        FormatError: not a Debian package, or a path that leaves the pool.
    """
    require_one_filesystem(store, release.path)
    contents = release.bundle.contents.get(ContentClass.OS)
    packages = sorted(
        {package.path: package for artifact in (contents.artifacts if contents else ()) for package in artifact.packages}.values(),
        key=lambda package: (package.name, package.version, package.path),
    )
    date = format_datetime(release.bundle.issued, usegmt=True)

    def fill(folder: Path) -> None:
        stanzas = for_each(packages, lambda package: _add(store, folder, package), workers=default_workers())
        _write_index(folder, stanzas, date)

    place = release.path / "packages"
    ensure_tree(place, contents_digest([contents] if contents else []), fill)
    return place


def _add(store: Store, folder: Path, package: PackageEntry) -> str:
    """Check one package, link it into the pool, and return its paragraph for `Packages`."""
    if _PATH.fullmatch(package.path) is None:
        raise FormatError(f"{package.path!r} is no name in a package pool", hint=_HINT)
    blob = store.blob_path(package.digest)
    if not os.path.lexists(blob):
        raise HostError(f"{package.path}: {blob} is not in the store", hint="read the media again: appliance media read DIR...")
    found = hashing.hash_file(blob)
    if (found.digest, found.size) != (package.digest, package.size):
        raise VerificationError(f"{package.path}: {found.digest} of {found.size} bytes, expected {package.digest}", hint=_HINT)
    fields = _fields(debs.control_fields(blob))
    for name, expected in (("package", package.name), ("version", package.version), ("architecture", package.architecture)):
        there = fields.get(name, "").partition(":")[2].strip()
        if there != expected:
            raise VerificationError(f"{package.path}: its {name} is {there!r}, contents say {expected!r}", hint=_HINT)
    link_blob(store, package.digest, folder / package.path)
    kept = [text for name, text in fields.items() if name not in _REPLACED]
    own = [f"Filename: {package.path}", f"Size: {package.size}", f"SHA256: {hex_of(package.digest)}"]
    return "\n".join([*kept, *own]) + "\n"


def _fields(paragraph: str) -> dict[str, str]:
    """Return the fields of a control paragraph by lower-case name, each with its name and folded lines."""
    fields: dict[str, str] = {}
    last = ""
    for line in paragraph.splitlines():
        if line[:1] in {" ", "\t"} and last:
            fields[last] += "\n" + line
        elif ":" in line:
            last = line.partition(":")[0].lower()
            fields[last] = line
        else:
            raise FormatError(f"a control paragraph has the line {line[:80]!r}", hint=_HINT)
    return fields


def _write_index(folder: Path, stanzas: Sequence[str], date: str) -> None:
    plain = "\n".join(stanzas).encode()
    files = {"Packages": plain, "Packages.gz": gzip.compress(plain, mtime=0)}
    lines = ["Origin: appliance", "Suite: site", f"Date: {date}", "SHA256:"]
    lines += [f" {hashlib.sha256(data).hexdigest()} {len(data)} {name}" for name, data in sorted(files.items())]
    files["Release"] = ("\n".join(lines) + "\n").encode("ascii")
    for name, data in files.items():
        disk.write_atomic(folder / name, data)
