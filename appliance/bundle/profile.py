# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A profile: what a user writes, upstream names and versions only (docs/bundle-format.md section 8). TOML."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from appliance.bundle.documents import Document, Record


class ImageWanted(Record, frozen=True, kw_only=True):
    """An image by upstream reference with a tag, optionally pinned: `host/name:tag[@sha256:...]`."""

    reference: str


class ChartWanted(Record, frozen=True, kw_only=True):
    """A chart folder beside the profile (`path`), installed as Helm release `name` in `namespace`."""

    name: str
    path: str
    namespace: str
    values: dict[str, object] = msgspec.field(default_factory=dict)


class ModelWanted(Record, frozen=True, kw_only=True):
    """A model folder (`path`, relative to the profile or absolute), its licence as an SPDX expression."""

    name: str
    version: str
    path: str
    license: str


class FileWanted(Record, frozen=True, kw_only=True):
    """A file by URL; `sha256` (64 hexadecimal digits) pins it already in the profile."""

    name: str
    version: str
    url: str
    sha256: str = ""
    license: str = ""


class PackagesWanted(Record, frozen=True, kw_only=True):
    """Named Debian packages of `suite`; their closure is solved against a clean root of that release."""

    suite: str
    names: tuple[str, ...]


class Profile(Document, frozen=True, kw_only=True):
    """Everything a bundle should hold. Kinds this version does not do are unknown fields, hence refused."""

    FORMAT: ClassVar[str] = "profile/1"

    name: str
    version: str
    platform: str
    kubernetes: str
    images: tuple[ImageWanted, ...] = ()
    charts: tuple[ChartWanted, ...] = ()
    models: tuple[ModelWanted, ...] = ()
    files: tuple[FileWanted, ...] = ()
    packages: PackagesWanted | None = None
    installer: bool = True
