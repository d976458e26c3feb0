# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`publication.json`: what the connected side remembers of a line (docs/bundle-format.md section 4.7).

It holds no secret. Version counters only rise: `sign_release` returns the publication with the counters it used, and
`bundle create` saves it before the bundle is given away.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, ClassVar

import msgspec
from securesystemslib.signer import SSlibKey

from appliance.bundle.contents import ContentClass
from appliance.bundle.documents import MAX_INTEGER, Document, Record
from appliance.errors import UsageError
from appliance.trust.keys import Family, family_counts, least_threshold

Counter = Annotated[int, msgspec.Meta(ge=0, le=MAX_INTEGER)]
KeyId = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$", max_length=64)]
_LINE = re.compile(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?")


class PublicKey(Record, frozen=True, kw_only=True):
    """A public key as TUF writes it."""

    keytype: str
    scheme: str
    public: str


class Delegation(Record, frozen=True, kw_only=True):
    """Who signs one class instead of the publication's own keys: keys by identifier, and how many must sign."""

    keys: dict[KeyId, PublicKey]
    threshold: int


class Publication(Document, frozen=True, kw_only=True):
    """Line name, counters of the last published versions (0: none yet) and classes delegated to other keys.

    `issued` is the last timestamp's `x-issued`, empty before the first: a clock behind it would sign what sites refuse.
    """

    FORMAT: ClassVar[str] = "publication/1"

    line: str
    timestamp: Counter = 0
    snapshot: Counter = 0
    targets: Counter = 0
    classes: dict[ContentClass, Counter] = msgspec.field(default_factory=dict)
    delegations: dict[ContentClass, Delegation] = msgspec.field(default_factory=dict)
    issued: str = ""


def check_line(line: str) -> None:
    """Check the name of a line: lower-case letters, digits and hyphens, at most 64.

    Raises:
        UsageError: any other name.
    """
    if _LINE.fullmatch(line) is None:
        raise UsageError(f"line {line[:80]!r} is not a plain name", hint="use lower-case letters, digits and hyphens, such as acme-models")


def new_publication(line: str) -> Publication:
    """Return the publication of a new line.

    Raises:
        UsageError: `line` is not a plain name.
    """
    check_line(line)
    return Publication(format=Publication.FORMAT, line=line)


def delegate(publication: Publication, content_class: ContentClass, keys: Sequence[SSlibKey]) -> Publication:
    """Return `publication` with `keys` added to those that sign `content_class` instead of its own keys.

    The first call for a class takes it away from the publication's keys; later calls add persons. The threshold is one
    more than the larger family has keys, so it needs both families, and of n persons more than half.

    Raises:
        UsageError: the keys of the class are not as many classical as ML-DSA ones, or a key is there already.
    """
    old = publication.delegations.get(content_class)
    table = dict(old.keys) if old else {}
    for key in keys:
        if key.keyid in table:
            raise UsageError(f"class {content_class}: key {key.keyid[:16]} signs it already", hint="give another person's public.pem")
        table[key.keyid] = PublicKey(keytype=key.keytype, scheme=key.scheme, public=str(key.keyval["public"]))
    every = [as_key(keyid, entry) for keyid, entry in table.items()]
    counts = family_counts(every)
    if counts[Family.CLASSICAL] != counts[Family.ML_DSA]:
        raise UsageError(
            f"class {content_class}: {counts[Family.CLASSICAL]} classical and {counts[Family.ML_DSA]} ML-DSA keys",
            hint="give the person's whole public.pem, which holds one key of each family",
        )
    delegation = Delegation(keys=table, threshold=least_threshold(every))
    return msgspec.structs.replace(publication, delegations={**publication.delegations, content_class: delegation})


def as_key(keyid: str, entry: PublicKey) -> SSlibKey:
    """Return `entry` as securesystemslib's key."""
    return SSlibKey(keyid, entry.keytype, entry.scheme, {"public": entry.public})
