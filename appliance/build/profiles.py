# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Reading what people write: `bundles/<name>.toml` and `mirrors.toml` (docs/bundle-format.md section 8).

A profile names upstreams only. Where a machine really asks is its own business and stands in `mirrors.toml`, which is
in no profile, no lock and no bundle:

```toml
format = "mirrors/1"
[registries."registry.k8s.io"]          # upstream host
location = "registry.example:5000/k8s"  # host[:port][/prefix], https unless it begins with http://
ca = "ca.pem"                           # one more trusted authority; relative to this file
[files."https://dl.k8s.io/"]            # prefix of upstream URLs
location = "https://files.example/dl.k8s.io/"
```
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, TypeVar
from urllib.parse import urlsplit

import msgspec

from appliance.adapters.disk import read_small
from appliance.adapters.download import Location
from appliance.adapters.references import parse_reference
from appliance.bundle.documents import Document, Record
from appliance.bundle.profile import FileWanted, Profile
from appliance.errors import FormatError, UsageError

PLATFORMS = {"debian-12-amd64": ("linux", "amd64", "bookworm")}
"""What this version resolves: platform of a release to OCI operating system, OCI architecture and Debian suite."""

_MAX_TOML = 4 * 1024 * 1024
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,126}[a-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._+~-]{0,126}[A-Za-z0-9])?")
_KUBERNETES = re.compile(r"v?1\.[0-9]{1,3}\.[0-9]{1,3}")
_LICENSE_NAME = re.compile(r"(DocumentRef-[A-Za-z0-9.-]+:)?[A-Za-z0-9][A-Za-z0-9.-]*\+?")
_MAX_NAME = 128
_KINDS = {"git": "git repositories", "rpm": "rpm packages", "helm": "charts from repositories"}
DocumentT = TypeVar("DocumentT", bound=Document)


def _read_toml(path: Path, kind: type[DocumentT]) -> tuple[DocumentT, bytes]:
    data = read_small(path, limit=_MAX_TOML)
    try:
        table = tomllib.loads(data.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise FormatError(f"{path}: not TOML: {error}", hint="correct the line it names") from error
    found = table.get("format")
    if found != kind.FORMAT:
        name = kind.FORMAT.partition("/")[0]
        newer = isinstance(found, str) and found.partition("/")[0] == name
        raise FormatError(
            f"{path}: expected format = {kind.FORMAT!r}, got {found!r}{', made by a newer appliance' if newer else ''}",
            hint=f"write format = {kind.FORMAT!r} as the first line, and what that format has",
        )
    for key in table.keys() & _KINDS.keys():
        raise UsageError(f"{path}: {_KINDS[key]} are not done by this version", hint=f"remove the table {key!r}")
    try:
        return msgspec.convert(table, type=kind), data
    except msgspec.ValidationError as error:
        text = str(error)
        if "unknown field" in text:
            raise UsageError(f"{path}: {text}; this version does not do that", hint="remove it, or correct its name") from error
        raise FormatError(f"{path}: {text}", hint="see docs/bundle-format.md section 8 for what a profile has") from error


def read_profile(path: Path) -> tuple[Profile, bytes]:
    """Return the profile at `path` and its bytes, its own rules checked.

    Raises:
        FormatError: not TOML, another format, a field of another type.
        UsageError: something this version does not do, by name; a duplicate; a name that is not plain.
    """
    profile, data = _read_toml(path, Profile)
    if profile.platform not in PLATFORMS:
        raise UsageError(
            f"{path}: platform {profile.platform!r} is not done by this version", hint=f"write one of: {', '.join(sorted(PLATFORMS))}"
        )
    _check_plain(path, "name", profile.name, _NAME)
    _check_plain(path, "version", profile.version, _VERSION)
    _check_plain(path, "kubernetes", profile.kubernetes, _KUBERNETES)
    if profile.packages and profile.packages.suite != PLATFORMS[profile.platform][2]:
        raise UsageError(
            f"{path}: packages of {profile.packages.suite!r} do not fit platform {profile.platform}",
            hint=f"write suite = {PLATFORMS[profile.platform][2]!r}",
        )
    if not (profile.images or profile.charts or profile.models or profile.files or profile.packages):
        raise UsageError(f"{path}: it names nothing to carry", hint="add [[images]], [[charts]], [[models]], [[files]] or [packages]")
    for kind, names in (
        ("image", [str(parse_reference(image.reference)) for image in profile.images]),
        ("chart", [chart.name for chart in profile.charts]),
        ("model", [model.name for model in profile.models]),
        ("file", [file.name for file in profile.files]),
        ("package", list(profile.packages.names) if profile.packages else []),
    ):
        if twice := {name for name in names if names.count(name) > 1}:
            raise UsageError(f"{path}: {kind} {min(twice)!r} is named twice", hint="keep one of them")
    for name in (*(chart.name for chart in profile.charts), *(model.name for model in profile.models)):
        _check_plain(path, "name", name, _NAME)
    for model in profile.models:
        _check_plain(path, f"version of model {model.name}", model.version, _VERSION)
        _check_license(path, f"model {model.name}", model.license)
        if "://" in model.path:
            raise UsageError(
                f"{path}: model {model.name}: a model from {model.path.partition(':')[0]} is not done by this version",
                hint="fetch it with the publisher's own tool, and name its folder",
            )
    for file in profile.files:
        _check_file(path, file)
    for chart in profile.charts:
        if "://" in chart.path:
            raise UsageError(
                f"{path}: chart {chart.name}: a chart from {chart.path.partition(':')[0]} is not done by this version",
                hint="pull and unpack it, and name its folder",
            )
    return profile, data


def _check_plain(path: Path, what: str, value: str, form: re.Pattern[str]) -> None:
    if len(value) > _MAX_NAME:
        raise UsageError(f"{path}: {what} {value[:40]!r}... has {len(value)} characters", hint=f"use at most {_MAX_NAME}")
    if not form.fullmatch(value):
        raise UsageError(
            f"{path}: {what} {value[:80]!r} is not plain", hint="use letters, digits, dots and hyphens, such as tiny-llama or 1.0.2"
        )


def _check_license(path: Path, what: str, expression: str) -> None:
    """Check the shape of an SPDX licence expression (SPDX specification, annex "SPDX license expressions"), not its names."""
    words = re.findall(r"[()]|[^\s()]+", expression)
    depth, wants_name = 0, True
    for word in words:
        if word == "(" and wants_name:
            depth += 1
        elif word == ")" and not wants_name and depth:
            depth -= 1
        elif word in {"AND", "OR", "WITH"} and not wants_name:
            wants_name = True
        elif wants_name and _LICENSE_NAME.fullmatch(word) and word not in {"AND", "OR", "WITH"}:
            wants_name = False
        else:
            break
    else:
        if not wants_name and depth == 0:
            return
    raise UsageError(
        f"{path}: {what}: license {expression[:80]!r} is not an SPDX expression",
        hint="write one such as Apache-2.0, MIT OR Apache-2.0, or LicenseRef-llama3",
    )


def _check_file(path: Path, file: FileWanted) -> None:
    if file.license:
        _check_license(path, f"file {file.name}", file.license)
    _check_plain(path, "name", file.name, _NAME)
    _check_plain(path, f"version of file {file.name}", file.version, _VERSION)
    parts = urlsplit(file.url)
    if parts.scheme not in {"https", "http", "file"}:
        raise UsageError(f"{path}: file {file.name}: {parts.scheme or 'no'} URLs are not done by this version", hint="write an https URL")
    if parts.username or parts.password or parts.query:
        raise UsageError(
            f"{path}: file {file.name}: its URL holds a login or a query, and locks are not secret", hint="write the plain URL"
        )
    if file.sha256 and not re.fullmatch(r"[0-9a-f]{64}", file.sha256):
        raise UsageError(
            f"{path}: file {file.name}: sha256 is not 64 lower-case hexadecimal digits", hint="write it as sha256sum prints it"
        )
    if parts.scheme == "http" and not file.sha256:
        raise UsageError(f"{path}: file {file.name}: plain http needs sha256", hint="pin the file, or use https")


class _Mirror(Record, frozen=True, kw_only=True):
    location: str
    ca: str = ""


class _Mirrors(Document, frozen=True, kw_only=True):
    FORMAT: ClassVar[str] = "mirrors/1"

    registries: dict[str, _Mirror] = msgspec.field(default_factory=dict)
    files: dict[str, _Mirror] = msgspec.field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirrors:
    """Where upstreams are really asked; empty: at the upstreams themselves."""

    registries: dict[str, Location] = field(default_factory=dict)
    files: dict[str, Location] = field(default_factory=dict)

    def registry(self, host: str) -> Location | None:
        """Return where `host` is asked, None for itself."""
        return self.registries.get(host)

    def file(self, url: str) -> Location:
        """Return where `url` is asked; the longest prefix wins."""
        for prefix in sorted(self.files, key=len, reverse=True):
            if url.startswith(prefix):
                found = self.files[prefix]
                return Location(url=found.url + url.removeprefix(prefix), ca=found.ca)
        return Location(url=url)


def read_mirrors(path: Path | None) -> Mirrors:
    """Return the mirrors in the file `path`; none for None.

    Raises:
        FormatError: not TOML, or not of this format.
        UsageError: a location that is none.
    """
    if path is None:
        return Mirrors()
    table, _ = _read_toml(path, _Mirrors)
    for prefix in table.files:
        if not prefix.endswith("/"):
            raise UsageError(f"{path}: files {prefix!r} must end with /", hint="write the upstream prefix with its last slash")
    return Mirrors(
        registries={host: _location(path, host, mirror) for host, mirror in table.registries.items()},
        files={prefix: _location(path, prefix, mirror) for prefix, mirror in table.files.items()},
    )


def _location(path: Path, upstream: str, mirror: _Mirror) -> Location:
    url = mirror.location if "://" in mirror.location else f"https://{mirror.location}"
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.netloc or parts.username or parts.query or parts.fragment:
        raise UsageError(
            f"{path}: location of {upstream!r} is not a plain http or https address",
            hint="write host[:port][/prefix]; logins belong into docker's config.json",
        )
    return Location(url=url, ca=(path.parent / mirror.ca) if mirror.ca else None)
