# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Bytes and a pinned root to a verified bundle: the only thing later steps accept.

Pinned trust of a line lies in one folder, on a site `<state>/trust/<line>/`:

```
root.json            the root that was pinned by hand; never replaced
roots/N.root.json    every root of the chain that was verified since
seen.json            the highest versions and the latest signed moment
```
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tuf.api.metadata import Root

from appliance.adapters.disk import at, make_directory, read_small, write_atomic
from appliance.adapters.ownership import require_own
from appliance.adapters.publication import load_publication
from appliance.bundle.documents import decode, encode
from appliance.errors import FormatError, HostError, UsageError
from appliance.trust.client import VerifiedBundle
from appliance.trust.publication import check_line
from appliance.trust.roles import MAX_BYTES, check_delegator, check_signatures, line_of, read_role
from appliance.trust.state import SeenVersions

_MAX_SEEN: Final = 64 * 1024
_ROOT_NAME = re.compile(r"[1-9][0-9]{0,8}\.root\.json", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """What this side trusts of one line: `pin` is the newest verified root, `seen` what was accepted before."""

    directory: Path
    line: str
    pin: bytes
    seen: SeenVersions | None


def load_trust(directory: Path) -> Trust:
    """Return the pinned trust in `directory`.

    The newest of `roots/` is used only if the pinned root is in that folder too: the chain is verified again from it.

    Raises:
        HostError: nothing is pinned there, others may write there, or a file cannot be read.
        FormatError, VerificationError: a file is not what it must be.
    """
    path = directory / "root.json"
    if not path.is_file():
        raise HostError(f"{path}: no root is pinned there", hint="pin one: appliance site init SITE.toml --root ROOT.json")
    require_own([directory.parent, directory], links=True)
    require_own([path, directory / "roots", directory / "seen.json"])
    pinned = read_small(path, limit=MAX_BYTES[Root])
    root = check_root(pinned, what=str(path))
    data, number = pinned, root.version
    while (following := directory / "roots" / f"{number + 1}.root.json").is_file():
        candidate = read_small(following, limit=MAX_BYTES[Root])
        newer = read_role(candidate, Root, what=str(following))
        check_delegator(newer.signed, what=str(following))
        check_signatures(newer, "root", {f"root {number}": root, "itself": newer.signed}, what=str(following))
        if newer.signed.version != number + 1:
            raise FormatError(f"{following}: it says it is version {newer.signed.version}", hint="restore the trust folder from its backup")
        root, data, number = newer.signed, candidate, number + 1
    seen_path = directory / "seen.json"
    seen = decode(read_small(seen_path, limit=_MAX_SEEN), SeenVersions, what=str(seen_path)) if seen_path.is_file() else None
    return Trust(directory=directory, line=line_of(root, what=str(path)), pin=data, seen=seen)


def trust_publication(directory: Path) -> Trust:
    """Return the trust that a publication folder gives on the connected side: its first root, and nothing seen.

    Raises:
        HostError, FormatError, VerificationError: the folder is not what it must be.
    """
    folder = load_publication(directory)
    root = check_root(folder.pin, what=str(directory / "roots" / "1.root.json"))
    return Trust(directory=directory, line=line_of(root, what="root"), pin=folder.pin, seen=None)


def check_root(data: bytes, *, what: str) -> Root:
    """Return the root in `data`, signed by itself and with keys and thresholds as they must be.

    Raises:
        FormatError, VerificationError: it is not.
    """
    metadata = read_role(data, Root, what=what)
    check_delegator(metadata.signed, what=what)
    check_signatures(metadata, "root", {"itself": metadata.signed}, what=what, alone=True)
    check_line(line_of(metadata.signed, what=what))
    return metadata.signed


def pin_root(directory: Path, data: bytes) -> str:
    """Pin the root `data`, which a person compared, in the line's folder below `directory`; return the line.

    Raises:
        FormatError, VerificationError: not a root as it must be.
        UsageError: another root is pinned for that line.
        HostError: it cannot be written.
    """
    root = check_root(data, what="root.json")
    line = line_of(root, what="root.json")
    folder = directory / line
    path = folder / "root.json"
    if path.is_file():
        if read_small(path, limit=MAX_BYTES[Root]) != data:
            raise UsageError(
                f"line {line!r} has another root pinned in {path}", hint="compare both fingerprints with the publisher's paper"
            )
        return line
    make_directory(folder / "roots")
    write_atomic(folder / "roots" / f"{root.version}.root.json", data)
    write_atomic(path, data)
    return line


def save_seen(directory: Path, bundle: VerifiedBundle) -> None:
    """Remember what `bundle` proved: its roots first, then versions and time, each file atomically.

    Raises:
        HostError: a file cannot be written; what was remembered before stays.
    """
    make_directory(directory / "roots")
    for name, data in bundle.metadata.items():
        target = directory / "roots" / name
        if _ROOT_NAME.fullmatch(name) and not target.is_file():
            write_atomic(target, data)
    with at(directory):
        write_atomic(directory / "seen.json", encode(bundle.seen))
