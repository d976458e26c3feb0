# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Parts to the store: metadata from the pinned root first, then every chunk checked before anybody can see it.

Parts may come in any order, from media that cannot be written, over several visits. A visit takes what is there and
says which parts are still missing. Refusal means: no release appears, what the site trusts is unchanged, no unverified
byte is readable; chunks that were good are kept in staging and need not be carried again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from appliance.adapters import disk
from appliance.adapters.copying import Source
from appliance.adapters.parallel import for_each
from appliance.bundle.contents import Blob, check_same_blobs
from appliance.bundle.media import ChunkEntry
from appliance.carry.activate import activate
from appliance.carry.layout import chunks_of
from appliance.carry.parts import PartFile, Scan, opened, read_part_metadata, scan
from appliance.carry.staging import Staging
from appliance.digests import Digest, chunk_size
from appliance.errors import ApplianceError, FormatError, HostError, UsageError, VerificationError
from appliance.progress import SILENT, Progress
from appliance.store import Store, line_named_in
from appliance.trust.client import VerifiedBundle, verify_metadata
from appliance.verify import load_trust

_CARRY_AGAIN = "carry this part again from where it was written, remove this copy, and run the same command again"
_SHOWN = 20

Targets = Mapping[Digest, Sequence[tuple[Blob, int]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadResult:
    """What one visit came to. `missing_parts` is empty when the release is complete; `new` when it appeared now."""

    bundle: VerifiedBundle
    set_name: Digest
    parts_read: tuple[int, ...]
    missing_parts: tuple[int, ...]
    count: int
    bytes_written: int
    complete: bool
    new: bool
    notes: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class _Visit:
    """One run over the parts that are here."""

    store: Store
    staging: Staging
    bundle: VerifiedBundle
    parts: list[PartFile]
    workers: int
    progress: Progress
    targets: Targets
    problems: list[tuple[ApplianceError, Digest | None]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    written: int = 0


def read_media(
    folders: Sequence[Path], store: Store, *, workers: int, who: str, clock: datetime, progress: Progress = SILENT
) -> ReadResult:
    """Read the parts in `folders` into `store`; make the release appear when it is whole.

    `clock` is this machine's time, believed only from the last signed moment on; `who` goes into the log of imports.

    Raises:
        UsageError: no part, or parts of two sets.
        VerificationError: metadata or a chunk is not what was signed; part and offset are named.
        FormatError: a part is malformed.
        HostError: nothing is pinned, the clock is behind, no space, a medium cannot be read.
    """
    found = scan(folders)
    files, parts, bad = _metadata(_one_set(found), found)
    store.trust_of(line_named_in(files))
    with store.lock():
        trust = load_trust(store.trust_of(line_named_in(files)))
        bundle = verify_metadata(files, pinned_root=trust.pin, seen=trust.seen, now=clock)
        for release in store.survey()[0]:
            check_same_blobs(bundle.blobs, known=release.bundle.blobs)
        wanted = {digest: bundle.blobs[digest] for digest in store.missing(bundle.blobs)}
        staging = Staging(store)
        staging.prepare(wanted)
        visit = _Visit(
            store=store,
            staging=staging,
            bundle=bundle,
            parts=parts,
            workers=workers,
            progress=progress,
            targets=_targets(wanted),
            problems=[(error, None) for error in bad],
        )
        _check_space(visit, wanted)
        with disk.syncing(staging.folder) if _mostly_small(wanted) else nullcontext():
            whole = _copy_all(visit, wanted)
        _publish(visit, wanted)
        progress.finish()
        return _conclude(visit, whole, who=who, clock=clock)


def _one_set(found: Scan) -> list[PartFile]:
    sets = found.sets()
    if len(sets) > 1:
        lines = [f"{name}: {', '.join(sorted(str(part.path) for part in parts))}" for name, parts in sorted(sets.items())]
        raise UsageError("parts of two sets:\n  " + "\n  ".join(lines), hint="put the parts of each set in a folder of its own")
    if not sets:
        raise found.bad[0]
    return next(iter(sets.values()))


def _metadata(parts: list[PartFile], found: Scan) -> tuple[dict[str, bytes], list[PartFile], list[ApplianceError]]:
    """Return the metadata, the parts that carry exactly it, and why others do not."""
    bad = list(found.bad)
    good: list[PartFile] = []
    files: dict[str, bytes] | None = None
    for part in parts:
        try:
            data = read_part_metadata(part)
        except (FormatError, HostError) as error:
            bad.append(error)
            continue
        if files is not None and data != files:
            bad.append(FormatError(f"{part.name}: carries other metadata than {good[0].name}", hint=_CARRY_AGAIN))
            continue
        files = data
        good.append(part)
    if files is None:
        raise bad[0]
    return files, good, bad


def _targets(wanted: Mapping[Digest, Blob]) -> dict[Digest, list[tuple[Blob, int]]]:
    """Where each chunk digest belongs; a digest may belong to several places."""
    targets: dict[Digest, list[tuple[Blob, int]]] = {}
    for blob in wanted.values():
        for index, (digest, _, _) in enumerate(chunks_of(blob)):
            targets.setdefault(digest, []).append((blob, index))
    return targets


def _check_space(visit: _Visit, wanted: Mapping[Digest, Blob]) -> None:
    needed = sum(blob.size for blob in wanted.values()) - visit.staging.staged_bytes(wanted)
    if needed > 0:
        disk.require_space(visit.staging.folder, needed, what="the release")


def _mostly_small(wanted: Mapping[Digest, Blob]) -> bool:
    """Whether most bytes are in blobs of one chunk; large blobs are written out range by range while they are copied."""
    small = sum(blob.size for blob in wanted.values() if not blob.chunks)
    return 2 * small > sum(blob.size for blob in wanted.values())


def _copy_all(visit: _Visit, wanted: Mapping[Digest, Blob]) -> set[int]:
    """Copy what is wanted from every part; return the indices of the parts whose every chunk is signed and now here."""
    sizes = {digest: size for blob in visit.bundle.blobs.values() for digest, _, size in chunks_of(blob)}
    visit.progress.start("read", total=sum(blob.size for blob in wanted.values()))
    whole: set[int] = set()
    for part in visit.parts:
        if (stray := _stray(part, sizes)) is not None:
            visit.problems.append((stray, None))
            continue
        before = len(visit.problems)
        if part.table.index in whole:
            visit.notes.append(f"{part.name}: part {part.table.index} once more")
        _copy_part(visit, part)
        if len(visit.problems) == before:
            whole.add(part.table.index)
    return whole


def _stray(part: PartFile, sizes: Mapping[Digest, int]) -> ApplianceError | None:
    for entry in part.table.chunks:
        if sizes.get(entry.digest) != entry.size:
            return VerificationError(
                f"{part.name}: offset {entry.offset}: a chunk {entry.digest} of {entry.size} bytes that the signed contents do not list",
                hint=_CARRY_AGAIN,
            )
    return None


def _copy_part(visit: _Visit, part: PartFile) -> None:
    """Copy every chunk of `part` that is still missing: one job per large blob, so that its own hash goes along."""
    runs: dict[Digest, list[tuple[ChunkEntry, int]]] = {}
    single: list[tuple[ChunkEntry, Blob]] = []
    again: list[tuple[ChunkEntry, Blob, int]] = []
    for entry in part.table.chunks:
        places = [(blob, index) for blob, index in visit.targets.get(entry.digest, ()) if not visit.staging.has_chunk(blob, index)]
        for number, (blob, index) in enumerate(places):
            if number:
                again.append((entry, blob, index))
            elif blob.chunks:
                runs.setdefault(blob.digest, []).append((entry, index))
            else:
                single.append((entry, blob))
    if not (runs or single):
        return
    with opened(part.path) as descriptor, Source(descriptor, direct=True) as source:
        jobs: list[tuple[Blob, list[tuple[ChunkEntry, int]]]] = [(visit.bundle.blobs[digest], run) for digest, run in runs.items()]
        jobs.sort(key=lambda job: -len(job[1]))
        jobs += [(blob, [(entry, 0)]) for entry, blob in single]
        for_each(
            jobs,
            lambda job: _copy_job(visit, part, source, job[0], job[1]),
            workers=visit.workers,
            prepare=lambda job: source.read_ahead(job[1][0][0].offset, job[1][0][0].size),
        )
        for entry, blob, index in again:
            _copy_job(visit, part, source, blob, [(entry, index)])


def _copy_job(visit: _Visit, part: PartFile, source: Source, blob: Blob, run: list[tuple[ChunkEntry, int]]) -> None:
    advance = visit.progress.advance
    wrong: Sequence[ChunkEntry | HostError]
    if blob.chunks:
        wrong = visit.staging.add_run(source, run, blob, path=part.path, advance=advance)
    else:
        wrong = visit.staging.add_small(source, run[0][0], blob, path=part.path, advance=advance)
    for each in wrong:
        if isinstance(each, HostError):
            visit.problems.append((each, None))
            continue
        error = VerificationError(
            f"{part.name}: offset {each.offset}: the chunk of {each.size} bytes there is not {each.digest}: damaged", hint=_CARRY_AGAIN
        )
        visit.problems.append((error, each.digest))


def _publish(visit: _Visit, wanted: Mapping[Digest, Blob]) -> None:
    """Move what is whole into the store; a large blob only after its own hash came out right."""
    ready = [blob for blob in wanted.values() if not blob.chunks and visit.staging.has_chunk(blob, 0)]
    large = [blob for blob in wanted.values() if blob.chunks and visit.staging.large[blob.digest].complete]
    checked = for_each(large, visit.staging.check_whole, workers=visit.workers)
    for blob, right in zip(large, checked, strict=True):
        if right:
            ready.append(blob)
            continue
        error = VerificationError(
            f"blob {blob.digest}: every chunk is as its contents list, but together they are another blob",
            hint="do not use this bundle: its contents were signed with a wrong chunk list; tell the publisher",
        )
        visit.problems.append((error, None))
    visit.written = visit.staging.publish(ready)


def _conclude(visit: _Visit, whole: set[int], *, who: str, clock: datetime) -> ReadResult:
    table = visit.parts[0].table
    missing = visit.store.missing(visit.bundle.blobs)
    still = {digest for digest in visit.targets if not _is_here(visit, digest)}
    problems = []
    for error, digest in visit.problems:
        if digest is not None and digest not in still:
            visit.notes.append(f"{error.message}; another copy of it was good")
        else:
            problems.append(error)
    read = visit.staging.parts_read(table.set) | whole
    if problems and missing:
        visit.staging.note_parts(table.set, read)
        raise _refusal(visit, problems, len(missing))
    visit.notes += [f"{error.message}; nothing of the release was missing without it: remove this file" for error in problems]
    if missing and len(read) == table.count:
        visit.staging.forget_set(table.set)
        read = set(whole)
    new = False
    if missing:
        visit.staging.note_parts(table.set, read)
    else:
        new = activate(
            visit.store,
            visit.bundle,
            set_name=table.set,
            parts=tuple(sorted(read)),
            count=table.count,
            written=visit.written,
            who=who,
            now=clock,
        )
        visit.staging.forget_set(table.set)
    return ReadResult(
        bundle=visit.bundle,
        set_name=table.set,
        parts_read=tuple(sorted(read)),
        missing_parts=tuple(index for index in range(1, table.count + 1) if index not in read) if missing else (),
        count=table.count,
        bytes_written=visit.written,
        complete=not missing,
        new=new,
        notes=tuple(visit.notes),
    )


def _is_here(visit: _Visit, digest: Digest) -> bool:
    return all(visit.store.has(blob) or visit.staging.has_chunk(blob, index) for blob, index in visit.targets[digest])


def _is_staged(visit: _Visit, blob: Blob) -> bool:
    return visit.staging.has_chunk(blob, 0) and not visit.store.has(blob)


def _refusal(visit: _Visit, problems: Sequence[ApplianceError], missing: int) -> ApplianceError:
    """Return one error for all problems: the gravest class, every part and offset, and what was kept."""
    gravest = min(problems, key=lambda error: error.exit_code)
    staged = [each for each in visit.staging.large.values() if not visit.store.has(each.blob)]
    kept = sum(chunk_size(each.blob.size, index) for each in staged for index in each.done)
    kept += sum(blob.size for blob in visit.bundle.blobs.values() if not blob.chunks and _is_staged(visit, blob))
    lines = [gravest.message, *(error.message for error in problems if error is not gravest)][:_SHOWN]
    more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    amounts = f"{kept} bytes in staging, {visit.written} bytes in the store"
    tail = f"\n  no release was made; {missing} blobs are missing; good chunks are kept ({amounts})"
    kind = type(gravest)
    return kind("\n  ".join(lines) + more + tail, hint=gravest.hint)
