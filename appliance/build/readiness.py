# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What `bundle create` checks before the first byte is fetched: the publication's own roots, its keys, this clock."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from appliance.adapters.publication import PublicationFolder
from appliance.errors import FormatError, UsageError, VerificationError
from appliance.trust.client import MetadataFiles, update_root
from appliance.trust.clock import format_instant, parse_instant, trusted_now
from appliance.trust.keys import Signer, family

_BACKUP = "restore the publication folder from its backup"


def check_ready(folder: PublicationFolder, signers: Sequence[Signer], *, now: datetime) -> tuple[str, ...]:
    """Check that a bundle signed at `now` by `signers` would be believed; return notes on keys that will sign nothing.

    Raises:
        VerificationError: the chain of roots does not verify, or its newest root is expired.
        FormatError: a root is malformed.
        UsageError: no signer has a key of the newest root, or the roots are of another line.
        HostError: the clock is behind the last published timestamp.
    """
    roots = {f"{number}.root.json": data for number, data in enumerate(folder.roots, 1)}
    try:
        chain = update_root(MetadataFiles(roots), folder.pin)
    except (VerificationError, FormatError) as error:
        raise type(error)(f"publication {folder.directory}: {error.message}", hint=_BACKUP) from error
    if chain.line != folder.publication.line:
        raise UsageError(f"{folder.directory}: its roots are of line {chain.line!r}, not {folder.publication.line!r}", hint=_BACKUP)
    if folder.publication.issued:
        trusted_now(now, floor=parse_instant(folder.publication.issued, what=str(folder.directory / "publication.json")))
    if chain.newest.is_expired(now):
        raise VerificationError(
            f"publication {folder.directory}: root {chain.newest.version} expired on {format_instant(chain.newest.expires)}; "
            f"this machine's clock says {format_instant(now)}, and no site would accept the bundle",
            hint="check this machine's clock; if it is right, put a newer root, signed by this publication's keys, into roots/",
        )
    own = set(chain.newest.roles["timestamp"].keyids)
    if not any(signer.public_key.keyid in own for signer in signers):
        raise UsageError("none of the keys given is a key of this publication", hint="give the folder keys init wrote with --keys")
    used = own.union(
        *(role.keyids for role in chain.newest.roles.values()), *(each.keys for each in folder.publication.delegations.values())
    )
    strange = [signer.public_key for signer in signers if signer.public_key.keyid not in used]
    return tuple(f"key {key.keyid[:16]} ({family(key)}) is none of this publication's; it signs nothing" for key in strange)
