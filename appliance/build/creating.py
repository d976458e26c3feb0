# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`bundle create`: from a lock to a signed bundle directory.

Everything is made in `BUNDLE.partial` and becomes `BUNDLE` by one rename, after a sync: a bundle is whole or not there,
and a finished one is never touched again. A killed run leaves the partial folder; the next one goes on in it. The
publication's counters are raised on disk before the bundle is there: a number may be skipped, never used twice. Nothing
is fetched for a publication whose bundles no site would accept, and nothing is named that does not verify.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import appliance
from appliance.adapters.disk import at, locked, make_directory, sync_directory, sync_filesystem, write_fully
from appliance.adapters.hashing import FileHashes, hash_file
from appliance.adapters.installer import build_installer
from appliance.adapters.publication import load_publication, lock_publication, save_publication
from appliance.build.assembling import Assembled, assemble
from appliance.build.collecting import Tools
from appliance.build.gathering import Gatherer
from appliance.build.journal import Journal
from appliance.build.locking import changed_profile, read_lock
from appliance.build.readiness import check_ready
from appliance.build.sources import Sources, find_sources
from appliance.bundle.documents import encode
from appliance.bundle.layout import OCI_LAYOUT
from appliance.bundle.lock import Lock
from appliance.bundle.release import ChartRelease, Release
from appliance.digests import Digest, digest_of, hex_of
from appliance.errors import UsageError
from appliance.progress import SILENT, Progress
from appliance.trust.client import verify_metadata
from appliance.trust.countersign import signature_states
from appliance.trust.keys import Signer
from appliance.trust.metadata import sign_release

InstallerBuilder = Callable[[bytes, Path], object]
"""Given the publication's first root and a target path, writes `install.pyz` there."""


def installer_builder(cache: Path) -> InstallerBuilder:
    """Return the builder of the real installer, which keeps its wheels below `cache`."""

    def build(root: bytes, target: Path) -> None:
        folder = cache / "installer"
        make_directory(folder, mode=0o700)
        build_installer(root, target=target, cache=folder)

    return build


@dataclass(frozen=True, slots=True, kw_only=True)
class Created:
    """A finished bundle: directory, digest of `release.json`, blobs and their bytes, roles that lack signatures.

    `notes` are things a person should know.
    """

    bundle: Path
    release: Digest
    blobs: int
    size: int
    unsigned: tuple[str, ...]
    notes: tuple[str, ...] = ()


def create_bundle(
    lock_file: Path,
    *,
    tools: Tools,
    publication: Path,
    signers: Sequence[Signer],
    target: Path,
    installer: InstallerBuilder | None,
    now: Callable[[], datetime],
    link: bool = False,
    workers: int,
    progress: Progress = SILENT,
) -> Created:
    """Make the bundle of `lock_file` at `target`, signed by `signers` with the counters of the folder `publication`.

    Raises:
        UsageError: `target` is there already, or the lock wants an installer and there is no builder.
        VerificationError: a source changed since the lock, or gives other bytes; the publication's roots do not verify.
        HostError, ToolError: no space, a clock behind the last bundle's, or an outside source failed; running again goes on.
    """
    lock, lock_data = read_lock(lock_file)
    if os.path.lexists(target):
        raise UsageError(f"{target} is there already; a finished bundle is never changed", hint="give another --to, or remove it")
    if lock.installer and installer is None:
        raise UsageError(
            "the lock wants the installer, and nothing here builds it", hint="set installer = false in the profile and lock again"
        )
    folder = load_publication(publication)
    notes = check_ready(folder, signers, now=now())
    if (changed := changed_profile(lock_file, lock)) is not None:
        notes += (f"{changed} changed since it was locked; to take that in, run: appliance bundle lock {changed}",)
    partial = target.with_name(f"{target.name}.partial")
    make_directory(partial / "blobs" / "sha256")
    with locked(partial / ".lock", what=f"{partial}"):
        sources = find_sources(lock, lock_file.parent, tools)
        journal = Journal(partial / ".journal")
        try:
            blobs = _gather(lock, sources, partial, journal, tools, link=link, workers=workers, progress=progress)
            progress.start("build the installer")
            pyz = _installer(installer if lock.installer else None, folder.pin, partial)
            progress.start("sign and finish")
            made = assemble(lock, sources, blobs, installer=pyz)
            release = _release(lock, lock_data, folder.publication.line)
            _write_documents(partial, made)
            files, lacking = _sign(publication, signers, release, made, now())
            _finish(partial, target, files)
        finally:
            journal.close()
    progress.finish()
    every = {blob.digest: blob.size for contents in made.contents.values() for blob in contents.blobs}
    size = sum(every.values())
    return Created(bundle=target, release=digest_of(release), blobs=len(every), size=size, unsigned=lacking, notes=notes)


def _sign(
    publication: Path, signers: Sequence[Signer], release: bytes, made: Assembled, now: datetime
) -> tuple[dict[str, bytes], tuple[str, ...]]:
    """Sign, verify what was signed as a site would, and only then raise the counters; return metadata and roles that lack signatures."""
    with lock_publication(publication):
        folder = load_publication(publication)
        check_ready(folder, signers, now=now)
        raised, files = sign_release(
            publication=folder.publication,
            roots=folder.roots,
            signers=signers,
            release=release,
            contents={each: encode(contents) for each, contents in made.contents.items()},
            now=now,
            statements=made.statements,
        )
        states = signature_states(files, pinned_root=folder.pin)
        lacking = tuple(dict.fromkeys(state.role for state in states if state.lacking))
        if not lacking:
            verify_metadata(files, pinned_root=folder.pin, seen=None, now=now)
        save_publication(publication, raised)
    return files, lacking


def _gather(
    lock: Lock, sources: Sources, partial: Path, journal: Journal, tools: Tools, *, link: bool, workers: int, progress: Progress
) -> dict[Digest, FileHashes]:
    gatherer = Gatherer(
        sources=sources,
        blobs=partial / "blobs" / "sha256",
        journal=journal,
        cache=tools.cache,
        apt=tools.apt(lock.platform),
        link=link,
        workers=workers,
        progress=progress,
    )
    gatherer.check_space()
    return gatherer.gather()


def _installer(build: InstallerBuilder | None, root: bytes, partial: Path) -> FileHashes | None:
    """Build the installer, with the first root in it, and put it among the blobs."""
    if build is None:
        return None
    made = partial / ".install.pyz"
    with at(made):
        made.unlink(missing_ok=True)
        build(root, made)
        hashes = hash_file(made)
        made.chmod(0o444)
        made.replace(partial / "blobs" / "sha256" / hex_of(hashes.digest))
    return hashes


def _release(lock: Lock, lock_data: bytes, line: str) -> bytes:
    charts = tuple(ChartRelease(name=chart.name, chart=chart.name, namespace=chart.namespace, values=chart.values) for chart in lock.charts)
    return encode(
        Release(
            format=Release.FORMAT,
            name=lock.name,
            line=line,
            version=lock.version,
            lock=digest_of(lock_data),
            platform=lock.platform,
            kubernetes=lock.kubernetes,
            charts=charts,
            minimum_appliance=appliance.__version__,
        )
    )


def _write(path: Path, data: bytes, mode: int) -> None:
    with at(path, needed=len(data)):
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            write_fully(descriptor, data, 0)
        finally:
            os.close(descriptor)


def _write_documents(partial: Path, made: Assembled) -> None:
    """Write what was made here, and remove blobs that no artifact has: an earlier lock's, or half a document."""
    blobs = partial / "blobs" / "sha256"
    for digest, data in made.documents.items():
        _write(blobs / hex_of(digest), data, 0o444)
    listed = {hex_of(blob.digest) for contents in made.contents.values() for blob in contents.blobs}
    with at(blobs):
        for entry in list(os.scandir(blobs)):
            if entry.name not in listed:
                Path(entry.path).unlink()
    _write(partial / "oci-layout", OCI_LAYOUT, 0o644)
    _write(partial / "index.json", made.index, 0o644)


def _finish(partial: Path, target: Path, metadata: Mapping[str, bytes]) -> None:
    """Write the metadata, make everything durable, and give the bundle its name."""
    top = partial / "metadata"
    with at(top):
        if top.is_dir():
            shutil.rmtree(top)
    for name, data in metadata.items():
        make_directory((top / name).parent)
        _write(top / name, data, 0o644)
    sync_filesystem(partial)
    with at(target):
        for name in (".journal", ".lock"):
            (partial / name).unlink(missing_ok=True)
        if os.path.lexists(target):
            raise UsageError(f"{target} appeared meanwhile", hint="give another --to; the partial bundle is kept")
        partial.rename(target)
    sync_directory(target.parent)
