# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What is placed on this node, by the notes that placements left. Nothing is written and no byte of a model is read."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from appliance.adapters.disk import at
from appliance.digests import Digest
from appliance.errors import FormatError
from appliance.place.places import NodePlaces
from appliance.place.record import PlacementRecord, load_record, looks_as_placed


class Looks(StrEnum):
    """How a model's folder looks to the file system. It says nothing about bytes."""

    AS_PLACED = "as placed"
    CHANGED = "changed since"
    NO_RECORD = "no record"


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedModel:
    """One model folder; `record` is its note, if there is a readable one; `names` are the links that point at it."""

    weights: Digest
    folder: Path
    record: PlacementRecord | None
    looks: Looks
    names: tuple[str, ...]


def list_models(places: NodePlaces) -> tuple[ListedModel, ...]:
    """Return the models on this node, by digest.

    Raises:
        HostError: the folder cannot be read.
    """
    names = _names(places)
    return tuple(_listed(places, digest, tuple(names.get(places.model(digest).name, ()))) for digest in places.placed())


def _listed(places: NodePlaces, digest: Digest, names: tuple[str, ...]) -> ListedModel:
    folder = places.model(digest)
    try:
        record = load_record(places.record(digest))
    except FormatError:
        record = None
    looks = Looks.NO_RECORD
    if record is not None:
        looks = Looks.AS_PLACED if looks_as_placed(folder, record) else Looks.CHANGED
    return ListedModel(weights=digest, folder=folder, record=record, looks=looks, names=names)


def _names(places: NodePlaces) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    links = places.by_name("x").parent
    if links.is_dir():
        with at(links):
            for link in sorted(links.iterdir()):
                if link.is_symlink() and not link.name.startswith("."):
                    found.setdefault(link.readlink().name, []).append(link.name.replace("%2f", "/"))
    return found
