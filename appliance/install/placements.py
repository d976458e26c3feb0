# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Which models lie on which node: each GPU node's own list, by the installer that placed them there.

A placement record says what was verified when it was placed; it is never evidence of what lies there now.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from appliance.adapters import host
from appliance.adapters.host import Login
from appliance.bundle.contents import ContentClass
from appliance.digests import hex_of
from appliance.errors import ToolError
from appliance.install.sitefile import Machine
from appliance.trust.client import VerifiedBundle

AS_PLACED = "as placed"
_PROGRAM = "/opt/appliance/{installer}/install.pyz"
_SECONDS = 60


class _Listed(msgspec.Struct, frozen=True):
    looks: str
    name: str | None = None
    version: str | None = None
    weights: str = ""


class _List(msgspec.Struct, frozen=True):
    models: tuple[_Listed, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPlacement:
    """One model on one node; `looks` is how its files compare with its record (`as placed`, or what is not)."""

    machine: str
    name: str
    version: str
    weights: str
    looks: str


def ask_placements(machine: Machine, login: Login, bundle: VerifiedBundle) -> tuple[tuple[ModelPlacement, ...], str]:
    """Return what `machine` lists, and what is wrong with it (empty when nothing is).

    Every model of the release must be there, as placed.
    """
    installer = next((a.payload for a in bundle.contents[ContentClass.INSTALLER].artifacts if a.payload is not None), None)
    wanted = {artifact.name: artifact.version for artifact in bundle.contents[ContentClass.MODELS].artifacts}
    if installer is None or not wanted:
        return (), ""
    program = _PROGRAM.format(installer=hex_of(installer))
    command = ["env", f"SHIV_ROOT={program.rpartition('/')[0]}", "/usr/bin/python3", "-sE", program, "node", "list", "--output", "json"]
    try:
        done = host.run_on(login, command if login.user == "root" else ["sudo", "-n", *command], seconds=_SECONDS)
        found = msgspec.json.decode(done.output, type=_List)
    except ToolError as error:
        return (), error.message.removeprefix(f"{machine.name}: ")
    except msgspec.MsgspecError:
        return (), "it does not say which models it has"
    placements = tuple(
        ModelPlacement(machine=machine.name, name=each.name or "", version=each.version or "", weights=each.weights, looks=each.looks)
        for each in found.models
    )
    there = {(each.name, each.version): each.looks for each in placements}
    for name, version in wanted.items():
        looks = there.get((name, version), "not placed")
        if looks != AS_PLACED:
            return placements, f"model {name} {version}: {looks}"
    return placements, ""
