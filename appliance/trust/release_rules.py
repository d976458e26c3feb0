# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What a release's own documents must say, once their signatures are checked (docs/bundle-format.md sections 4.4 and 5)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from appliance.bundle.contents import ContentClass, Contents, check_contents
from appliance.bundle.documents import decode
from appliance.bundle.release import Release
from appliance.errors import FormatError, VerificationError
from appliance.trust.metadata import RELEASE_TARGET, contents_target
from appliance.trust.state import SeenVersions

_NEWER: Final = "carry the installer of that release and verify it as its paper sheet says"


def read_contents(each: ContentClass, data: bytes) -> Contents:
    """Return the contents of class `each`, its own rules checked.

    Raises:
        FormatError: malformed, or made by a newer appliance.
        VerificationError: contents of another class.
    """
    contents = decode(data, Contents, what=contents_target(each))
    if contents.content_class is not each:
        raise VerificationError(f"{contents_target(each)} says it is of class {contents.content_class}", hint="do not use this bundle")
    check_contents(contents)
    return contents


def check_release(data: bytes, line: str, version: str) -> Release:
    """Return the release of `line`, which this appliance (`version`) is new enough for.

    Raises:
        FormatError: malformed, or made by a newer appliance: one that serves models, so that engine settings mean something.
        VerificationError: of another line.
    """
    release = decode(data, Release, what=RELEASE_TARGET)
    if release.line != line:
        raise VerificationError(
            f"this release is of line {release.line!r}; this side trusts line {line!r}", hint="use a bundle of the line this side trusts"
        )
    if _numbers(release.minimum_appliance) > _numbers(version):
        raise FormatError(
            f"release {release.version} is made by a newer appliance: it needs {release.minimum_appliance}, this is {version}",
            hint=_NEWER,
        )
    if release.engine:
        raise FormatError(
            f"release {release.version} is made by a newer appliance: it has engine settings, which this one does not apply", hint=_NEWER
        )
    return release


def _numbers(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: `0.2.1rc1` gives (0, 2, 1)."""
    if re.match(r"[0-9]{1,9}(\.[0-9]{1,9}){0,3}", version, re.ASCII) is None:
        raise FormatError(f"{version[:40]!r} is not a version such as 0.1.0", hint="create the bundle with appliance bundle create")
    return tuple(int(number) for number in re.findall(r"[0-9]{1,9}", version.partition("+")[0], re.ASCII)[:3])


def check_charts(release: Release, contents: Mapping[ContentClass, Contents]) -> None:
    """Check that every chart that the release installs is carried.

    Raises:
        VerificationError: one is not.
    """
    carried = {artifact.name for artifact in contents[ContentClass.CHARTS].artifacts}
    for chart in release.charts:
        if chart.chart not in carried:
            raise VerificationError(
                f"release installs chart {chart.chart!r}, which class charts does not hold", hint="do not use this bundle"
            )


def check_same_content(new: SeenVersions, seen: SeenVersions) -> None:
    """Check that a version means one content: the same number with other content is two releases under one number.

    Raises:
        VerificationError: it is.
    """
    pairs: list[tuple[str, int, int, object, object]] = [
        ("timestamp", new.timestamp, seen.timestamp, new.snapshot, seen.snapshot),
        ("snapshot", new.snapshot, seen.snapshot, (new.targets, new.classes), (seen.targets, seen.classes)),
        ("targets", new.targets, seen.targets, new.release, seen.release),
    ]
    pairs += [
        (name, new.classes[name], seen.classes.get(name, 0), new.contents[name], seen.contents.get(name)) for name in sorted(new.classes)
    ]
    for role, version, before, content, content_before in pairs:
        if version == before and content != content_before:
            raise VerificationError(
                f"{role} version {version} is not what this side saw before under the same version",
                hint="do not use this bundle: somebody signed two releases with one number; tell the publisher",
            )
