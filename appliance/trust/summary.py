# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A publication in words: what `keys show` prints. Public halves only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tuf.api.metadata import Root

from appliance.digests import digest_of, hex_of
from appliance.errors import FormatError
from appliance.trust.clock import format_instant
from appliance.trust.keys import family
from appliance.trust.metadata import TOP_LEVEL
from appliance.trust.publication import Publication, as_key
from appliance.trust.roles import read_role


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The same facts as a document for programs and as rows for people."""

    document: dict[str, object]
    rows: list[tuple[str, str]]


def fingerprint(root: bytes) -> str:
    """Return the SHA-256 of a root file's bytes in eight groups of eight digits, as the paper sheet prints it."""
    digits = hex_of(digest_of(root))
    return " ".join(digits[start : start + 8] for start in range(0, len(digits), 8))


def describe(publication: Publication, roots: Sequence[bytes]) -> Summary:
    """Return what there is to know about a publication.

    Raises:
        FormatError: no root, or a malformed one.
    """
    if not roots:
        raise FormatError("the publication has no root", hint="restore the publication folder from its backup")
    root = read_role(roots[-1], Root, what="root").signed
    keys = [{"keyid": keyid, "family": str(family(key)), "scheme": key.scheme} for keyid, key in sorted(root.keys.items())]
    thresholds = {name: f"{root.roles[name].threshold} of {len(root.roles[name].keyids)}" for name in TOP_LEVEL}
    delegations = {
        name: {
            "threshold": each.threshold,
            "keys": [{"keyid": keyid, "family": str(family(as_key(keyid, entry)))} for keyid, entry in sorted(each.keys.items())],
        }
        for name, each in sorted(publication.delegations.items())
    }
    document: dict[str, object] = {
        "line": publication.line,
        "root": {"version": root.version, "expires": format_instant(root.expires), "sha256": hex_of(digest_of(roots[0]))},
        "keys": keys,
        "thresholds": thresholds,
        "counters": {"timestamp": publication.timestamp, "snapshot": publication.snapshot, "targets": publication.targets},
        "delegations": delegations,
    }
    rows = [
        ("line", publication.line),
        ("fingerprint of root 1", fingerprint(roots[0])),
        ("newest root", f"{root.version}, expires {format_instant(root.expires)}"),
        *((f"key ({key['family']}, {key['scheme']})", key["keyid"]) for key in keys),
        *((f"{name} needs", f"{text} keys") for name, text in thresholds.items()),
        ("releases published", str(publication.targets)),
    ]
    for name, each in sorted(publication.delegations.items()):
        rows.append((f"class {name} needs", f"{each.threshold} of {len(each.keys)} other keys"))
        rows.extend((f"key of {name} ({family(as_key(keyid, entry))})", keyid) for keyid, entry in sorted(each.keys.items()))
    return Summary(document=document, rows=rows)
