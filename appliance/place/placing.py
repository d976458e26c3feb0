# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The models of a release from the depot onto this node's disk, verified from the node's own pinned root.

A model appears whole or not at all, under the digest of its weights manifest. What is in
its place already is left alone; what was changed there is never mended silently, since the change is what somebody may
want to explain.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path

from appliance.adapters import disk
from appliance.adapters.depot import Depot, DepotAddress
from appliance.adapters.parallel import default_workers
from appliance.bundle.contents import ContentClass
from appliance.bundle.weights import Weights
from appliance.digests import Digest, hex_of
from appliance.errors import UsageError, VerificationError
from appliance.place.fetching import fetch_files
from appliance.place.observe import Observation, observe
from appliance.place.partial import Partial, clear_away, seal
from appliance.place.places import NodePlaces
from appliance.place.record import describe_files, load_record, looks_as_placed, new_record, save_record
from appliance.place.trusted import fetch_metadata, node_trust, remember, verify_release
from appliance.progress import SILENT, Progress
from appliance.store.registry import repository_of
from appliance.trust.client import VerifiedBundle
from appliance.trust.clock import format_instant
from appliance.verify import Trust


class State(StrEnum):
    """What a run did about one model, or, with `plan`, would do."""

    PLACED = "placed"
    IN_PLACE = "in place"
    VERIFIED = "verified"
    RECORDED = "recorded"
    """The bytes are right, but they did not look as they were placed; modes and note were renewed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceRequest:
    """What to place: the models of `release` named in `models` (all if empty), from `depot`, below `places`.

    `ca` is the site's CA (PEM), `pinned` the root this node trusts. `verify`: read every byte of what is in place.
    `plan`: say what would be done and write nothing.
    """

    depot: DepotAddress
    ca: Path
    release: Digest
    places: NodePlaces
    pinned: Path
    models: tuple[str, ...] = ()
    workers: int | None = None
    verify: bool = False
    plan: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedModel:
    """One model: where it is, what was done; `fetched` of `size` bytes came from the depot in this run."""

    name: str
    version: str
    weights: Digest
    folder: Path
    state: State
    changed: bool
    size: int
    fetched: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceReport:
    """What a run did; `remembered`: the node learned newer versions of the line."""

    release: Digest
    models: tuple[PlacedModel, ...]
    remembered: bool

    @property
    def changed(self) -> bool:
        """Whether anything on this node is, or with `plan` would be, other than before."""
        return self.remembered or any(model.changed for model in self.models)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """One model of the release: the repository it is served from, its weights manifest and the digest of that."""

    repository: str
    digest: Digest
    weights: Weights

    @property
    def size(self) -> int:
        return sum(file.size for file in self.weights.files)


def place_models(request: PlaceRequest, *, now: datetime, progress: Progress = SILENT) -> PlaceReport:
    """Have the models of the release in place on this node; a second run changes nothing. `now` is the node's clock.

    Raises:
        VerificationError: metadata, a chunk, the depot's certificate or what is in place is not as signed; nothing new is visible.
        FormatError: malformed metadata.
        UsageError: the release has no such model.
        HostError: no root is pinned, no space, clock behind, or another run is at work.
        ToolError: the depot does not answer, or does not offer what was signed.
    """
    with Depot(request.depot, ca=request.ca) as depot:
        trust = node_trust(request.places, request.pinned)
        bundle = verify_release(fetch_metadata(depot.connection(), request.release), trust, release=request.release, now=now)
        wanted = _wanted(bundle)
        chosen = _chosen(wanted, request.models)
        if request.plan:
            models = tuple(_planned(request.places, each) for each in chosen)
            return PlaceReport(release=request.release, models=models, remembered=trust.seen != bundle.seen)
        with disk.locked(request.places.lock, what=f"the model folder {request.places.models}"):
            run = _Run(request, depot, trust, bundle, format_instant(now), progress)
            run.clear(keep=[each.digest for each in wanted])
            models = tuple(run.ensure(each) for each in chosen)
            run.remember()
            return PlaceReport(release=request.release, models=models, remembered=run.remembered)


def _wanted(bundle: VerifiedBundle) -> tuple[_Wanted, ...]:
    found = []
    for artifact in bundle.contents[ContentClass.MODELS].artifacts:
        if artifact.weights is not None:
            repository, _ = repository_of(ContentClass.MODELS, artifact)
            found.append(_Wanted(repository=repository, digest=artifact.weights, weights=bundle.weights[artifact.weights]))
    return tuple(found)


def _chosen(wanted: Sequence[_Wanted], names: Sequence[str]) -> tuple[_Wanted, ...]:
    known = {each.weights.name for each in wanted}
    if unknown := sorted(set(names) - known):
        raise UsageError(
            f"the release has no model {unknown[0]!r}; it has {', '.join(sorted(known)) or 'none'}",
            hint="give one of these names to --model",
        )
    return tuple(each for each in wanted if not names or each.weights.name in names)


def _planned(places: NodePlaces, wanted: _Wanted) -> PlacedModel:
    folder = places.model(wanted.digest)
    record = load_record(places.record(wanted.digest))
    there = os.path.lexists(folder)
    if there and record is not None and looks_as_placed(folder, record):
        linked = not _points(places.by_name(wanted.weights.name), folder)
        return _model(wanted, folder, State.IN_PLACE, changed=linked)
    return _model(wanted, folder, State.RECORDED if there else State.PLACED, changed=True)


def _model(wanted: _Wanted, folder: Path, state: State, *, changed: bool, fetched: int = 0) -> PlacedModel:
    return PlacedModel(
        name=wanted.weights.name,
        version=wanted.weights.version,
        weights=wanted.digest,
        folder=folder,
        state=state,
        changed=changed,
        size=wanted.size,
        fetched=fetched,
    )


def _points(link: Path, folder: Path) -> bool:
    return link.is_symlink() and str(link.readlink()) == f"../{folder.name}"


class _Run:
    """One run with the node's lock held."""

    def __init__(self, request: PlaceRequest, depot: Depot, trust: Trust, bundle: VerifiedBundle, when: str, progress: Progress) -> None:  # noqa: PLR0917 - private
        self._places = request.places
        self._verify = request.verify
        self._workers = request.workers or default_workers()
        self._depot = depot
        self._trust = trust
        self._bundle = bundle
        self._when = when
        self._progress = progress
        self.remembered = False

    def clear(self, *, keep: Sequence[Digest]) -> None:
        """Remove what runs for other releases left unfinished."""
        disk.make_directory(self._places.models)
        kept = {path for digest in keep for path in (self._places.partial(digest), self._places.journal(digest))}
        for path in self._places.partials():
            if path not in kept:
                clear_away(path)

    def remember(self) -> None:
        """Keep what the release proved, once."""
        if not self.remembered:
            self.remembered = remember(self._places, self._trust, self._bundle)

    def ensure(self, wanted: _Wanted) -> PlacedModel:
        """Have one model in place."""
        folder = self._places.model(wanted.digest)
        if os.path.lexists(folder):
            state, fetched = self._found(folder, wanted), 0
        else:
            state, fetched = State.PLACED, self._fetch(folder, wanted)
        linked = self._link(folder, wanted)
        for left in (self._places.partial(wanted.digest), self._places.journal(wanted.digest)):
            clear_away(left)
        changed = linked or state in {State.PLACED, State.RECORDED}
        return _model(wanted, folder, state, changed=changed, fetched=fetched)

    def _found(self, folder: Path, wanted: _Wanted) -> State:
        """Judge what is in place: by its looks if they are as noted, else, or when asked, by every byte."""
        if folder.is_symlink() or not folder.is_dir():
            raise VerificationError(
                f"{folder} is not a folder of its own", hint="find out who made it; then move it away and run this again"
            )
        record = load_record(self._places.record(wanted.digest))
        looks_right = record is not None and looks_as_placed(folder, record)
        if looks_right and not self._verify:
            return State.IN_PLACE
        self._progress.start(f"verify {wanted.weights.name}", total=wanted.size)
        seen = observe(folder, wanted.weights, workers=self._workers, advance=self._progress.advance)
        self._progress.finish()
        _refuse(seen, folder, wanted)
        if looks_right:
            return State.VERIFIED
        seal(folder, wanted.weights)
        self._note(folder, wanted)
        return State.RECORDED

    def _fetch(self, folder: Path, wanted: _Wanted) -> int:
        partial = Partial(self._places.partial(wanted.digest), self._places.journal(wanted.digest), wanted.weights)
        partial.prepare()
        before = self._depot.received
        self._progress.start(f"place {wanted.weights.name}", total=partial.missing_bytes())
        fetch_files(self._depot, wanted.repository, partial, workers=self._workers, advance=self._progress.advance)
        partial.complete()
        self._progress.finish()
        self.remember()
        self._note(partial.folder, wanted)
        with disk.at(folder):
            partial.folder.rename(folder)
        disk.sync_directory(folder.parent)
        return self._depot.received - before

    def _note(self, folder: Path, wanted: _Wanted) -> None:
        files = describe_files(folder, wanted.weights)
        if files is None:
            raise VerificationError(f"{folder} was changed while it was placed", hint="find out by whom, then run the same command again")
        record = new_record(wanted.weights, digest=wanted.digest, release=self._bundle.digest, when=self._when, files=files)
        save_record(self._places.record(wanted.digest), record)

    def _link(self, folder: Path, wanted: _Wanted) -> bool:
        """Let the model's name point at `folder`; says whether it did not before."""
        link = self._places.by_name(wanted.weights.name)
        if _points(link, folder):
            return False
        disk.make_directory(link.parent)
        beside = link.with_name(f".{link.name}.new")
        with disk.at(link):
            beside.unlink(missing_ok=True)
            beside.symlink_to(f"../{folder.name}")
            beside.rename(link)
        disk.sync_directory(link.parent)
        return True


def _refuse(seen: Observation, folder: Path, wanted: _Wanted) -> None:
    if seen.first is not None:
        raise VerificationError(
            f"model {wanted.weights.name} in {folder} is not what was signed ({hex_of(wanted.digest)}): "
            f"{seen.differences} differences, first {seen.first}",
            hint="find out who changed it; then move that folder away and run the same command again to place the model anew",
        )
