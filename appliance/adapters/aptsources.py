# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""apt's own source lists, both spellings, cut down to one release (sources.list(5)).

A source keeps its options; one that tells apt not to check signatures is refused. What is written back is deb822, one
stanza for each URI, so that a single source can be left out.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from appliance.errors import UsageError, VerificationError

_POCKETS = ("", "-updates", "-security")
_UNCHECKED = ("trusted", "allow-insecure", "allow-weak", "allow-downgrade-to-insecure")
_ONE_LINE = re.compile(r"deb\s+(?:\[(?P<options>[^\]]*)\]\s*)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>.+)")
_LINE_OPTIONS = {"arch": "Architectures", "lang": "Languages", "target": "Targets"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One URI with the wanted suites of it; `fields` are the stanza's other fields, in order."""

    uri: str
    suites: tuple[str, ...]
    fields: tuple[tuple[str, str], ...]

    def stanza(self) -> str:
        """Return it as deb822."""
        head = (("Types", "deb"), ("URIs", self.uri), ("Suites", " ".join(self.suites)))
        return "".join(f"{name}: {value}\n" for name, value in (*head, *self.fields)) + "\n"


def read_sources(texts: dict[str, str], *, suite: str) -> tuple[Source, ...]:
    """Return the sources of `suite` and its updates and security pockets in the files `texts` (contents by name).

    Raises:
        VerificationError: one of them switches apt's signature check off.
        UsageError: there is none.
    """
    wanted = {f"{suite}{pocket}" for pocket in _POCKETS} | {f"{suite}/updates"}
    found: list[Source] = []
    for name, text in sorted(texts.items()):
        for source in _stanzas(text) if name.endswith(".sources") else _lines(text):
            suites = tuple(each for each in source.suites if each in wanted)
            if not suites:
                continue
            _check_signed(source, name)
            found.append(Source(uri=source.uri, suites=suites, fields=source.fields))
    if not found:
        raise UsageError(
            f"this machine's apt has no source for {suite}",
            hint=f"add one for {suite} and its security archive under /etc/apt/sources.list.d, with Signed-By",
        )
    return tuple(found)


def _check_signed(source: Source, name: str) -> None:
    for field, value in source.fields:
        if field.lower() in _UNCHECKED and value.strip().lower() not in {"no", "false", "0"}:
            raise VerificationError(
                f"apt source file {name}: {field}: {value.strip()} lets apt take packages that nobody signed",
                hint="remove that option and name the archive's keyring as Signed-By",
            )


def _lines(text: str) -> Iterator[Source]:
    for raw in text.splitlines():
        match = _ONE_LINE.fullmatch(raw.partition("#")[0].strip())
        if match is None:
            continue
        fields = [("Components", " ".join(match["components"].split()))]
        for option in shlex.split(match["options"] or ""):
            key, _, value = option.partition("=")
            fields.append((_LINE_OPTIONS.get(key, key.title()), value.replace(",", " ")))
        yield Source(uri=match["uri"], suites=(match["suite"],), fields=tuple(fields))


def _stanzas(text: str) -> Iterator[Source]:
    for block in re.split(r"\n[ \t]*\n", text):
        fields: list[tuple[str, str]] = []
        for raw in block.splitlines():
            if raw.startswith("#") or not raw.strip():
                continue
            if raw[0] in " \t" and fields:
                fields[-1] = (fields[-1][0], f"{fields[-1][1]}\n{raw}")
                continue
            key, _, value = raw.partition(":")
            fields.append((key.strip(), value.strip()))
        values = {key.lower(): value for key, value in fields}
        if "deb" not in values.get("types", "").split() or values.get("enabled", "yes").lower() in {"no", "false", "0"}:
            continue
        rest = tuple((key, value) for key, value in fields if key.lower() not in {"types", "uris", "suites", "enabled"})
        for uri in values.get("uris", "").split():
            yield Source(uri=uri, suites=tuple(values.get("suites", "").split()), fields=rest)
