# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The publication folder and the key folder on disk (docs/bundle-format.md section 4.7).

```
DIR/publication.json       counters and delegations, no secret
DIR/roots/N.root.json      the whole root chain
DIR/public.pem             the public keys of the person who made it, for `keys add` elsewhere
KEYS/*.pem                 private keys, encrypted PKCS#8, 0600 in a folder of 0700 (KEYS is DIR/private unless given)
```
"""

from __future__ import annotations

import itertools
import os
import stat
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from securesystemslib.signer import CryptoSigner

from appliance.adapters.disk import at, locked, make_directory, read_small, write_atomic
from appliance.bundle.documents import decode, encode
from appliance.errors import FormatError, HostError, UsageError
from appliance.trust.keys import Family, family, generate_pair, load_signer, private_pem, public_pem
from appliance.trust.metadata import new_root
from appliance.trust.publication import Publication, new_publication

PRIVATE: Final = "private"
_MAX_FILE: Final = 1024 * 1024
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_BACKUP: Final = "restore the publication folder from its backup"


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicationFolder:
    """A publication as it lies on disk: `roots` oldest first."""

    directory: Path
    publication: Publication
    roots: tuple[bytes, ...]

    @property
    def pin(self) -> bytes:
        """The first root, which sites pin."""
        return self.roots[0]


def create_publication(
    directory: Path, *, line: str, keys: Path | None, passphrase: bytes, with_spare: bool, now: datetime
) -> tuple[PublicationFolder, tuple[CryptoSigner, ...]]:
    """Make a publication with new keys in `directory`: solo 2 of 2, `with_spare` 3 of 4.

    Raises:
        UsageError: the folder has a publication already, the key folder has keys, or the passphrase is too short.
        HostError: a file cannot be written.
    """
    publication = new_publication(line)
    key_folder = keys or directory / PRIVATE
    if (directory / "publication.json").exists():
        raise UsageError(f"{directory} has a publication already", hint="choose another folder; a publication is made once")
    if key_folder.is_dir() and any(key_folder.glob("*.pem")):
        raise UsageError(f"{key_folder} has keys already", hint="choose another folder with --keys")
    signers = tuple(itertools.chain.from_iterable(generate_pair() for _ in range(2 if with_spare else 1)))
    pems = {_key_name(signer, number // 2 + 1): private_pem(signer, passphrase) for number, signer in enumerate(signers)}
    make_directory(directory / "roots")
    make_directory(key_folder, mode=0o700)
    for name, pem in pems.items():
        write_atomic(key_folder / name, pem, mode=0o600)
    root = new_root(line=line, signers=signers, now=now)
    write_atomic(directory / "public.pem", b"".join(public_pem(signer.public_key) for signer in signers))
    write_atomic(directory / "roots" / "1.root.json", root)
    save_publication(directory, publication)
    return PublicationFolder(directory=directory, publication=publication, roots=(root,)), signers


def _key_name(signer: CryptoSigner, number: int) -> str:
    return f"{'classical' if family(signer.public_key) is Family.CLASSICAL else 'ml-dsa'}-{number}.pem"


def load_publication(directory: Path) -> PublicationFolder:
    """Return the publication in `directory`.

    Raises:
        UsageError: no publication there.
        HostError: a file cannot be read.
        FormatError: malformed, or a root is missing.
    """
    path = directory / "publication.json"
    if not path.is_file():
        raise UsageError(
            f"{path}: no publication there", hint="give the folder keys init made, or make one: appliance keys init DIR --line NAME"
        )
    try:
        publication = decode(read_small(path, limit=_MAX_FILE), Publication, what=str(path))
    except FormatError as error:
        raise FormatError(error.message, hint=_BACKUP) from error
    roots: list[bytes] = []
    while (root := directory / "roots" / f"{len(roots) + 1}.root.json").is_file():
        roots.append(read_small(root, limit=_MAX_FILE))
    if not roots:
        raise FormatError(f"{directory / 'roots'}: 1.root.json is missing", hint=_BACKUP)
    return PublicationFolder(directory=directory, publication=publication, roots=tuple(roots))


def save_publication(directory: Path, publication: Publication) -> None:
    """Write `publication.json` atomically.

    Raises:
        HostError: it cannot be written; the old file is untouched.
    """
    write_atomic(directory / "publication.json", encode(publication))


def lock_publication(directory: Path) -> AbstractContextManager[None]:
    """Return a context in which no other process uses the counters of `directory`; `HostError` (5) names the holder."""
    return locked(directory / ".lock", what=f"publication {directory}")


def load_signers(directory: Path, passphrase: bytes) -> tuple[CryptoSigner, ...]:
    """Return all signers of a key folder.

    Raises:
        HostError: a key file or key folder that others may use.
        UsageError: no key there, or a wrong passphrase.
        FormatError: a file that is not a private key.
    """
    if not directory.is_dir():
        raise UsageError(f"{directory}: no folder of private keys there", hint="give the key folder with --keys")
    with at(directory):
        mode = stat.S_IMODE(directory.stat().st_mode)
        paths = sorted(Path(entry.path) for entry in os.scandir(directory) if entry.name.endswith(".pem"))
    if not paths:
        raise UsageError(f"{directory}: no private key (*.pem) in it", hint="give the key folder with --keys")
    if mode & _OTHERS:
        raise HostError(
            f"{directory}: other users may use this folder of private keys (mode {mode:04o})", hint=f"run: chmod 700 {directory}"
        )
    return tuple(_load_one(path, passphrase) for path in paths)


def _load_one(path: Path, passphrase: bytes) -> CryptoSigner:
    with at(path):
        mode = path.stat().st_mode
    if mode & _OTHERS:
        raise HostError(f"{path}: other users may read this private key (mode {stat.S_IMODE(mode):04o})", hint=f"run: chmod 600 {path}")
    return load_signer(read_small(path, limit=_MAX_FILE), passphrase, what=str(path))
