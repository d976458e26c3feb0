# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What a machine said of itself and what it reached: records of the lines `nodeprobe` answers. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network
from typing import TypeVar

import msgspec

from appliance.errors import ToolError


class Filesystem(msgspec.Struct, frozen=True, kw_only=True):
    """The file system that holds `path`: bytes, free inodes, options noexec and read-only."""

    path: str
    size: int
    free: int
    inodes: int
    options: tuple[str, ...]


class Listening(msgspec.Struct, frozen=True, kw_only=True):
    """One port in use and the process that has it (empty when not visible)."""

    protocol: str
    port: int
    process: str


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """One IPv4 route."""

    destination: str
    interface: str


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything one machine said. Sizes in bytes."""

    os_id: str
    os_version: str
    os_name: str
    architecture: str
    kernel: str
    hostname: str
    python: str
    root: bool
    systemd: bool
    cpus: int
    memory: int
    swap: int
    cgroup: int
    controllers: tuple[str, ...]
    modules: dict[str, bool]
    filesystems: tuple[Filesystem, ...]
    machine_id: str
    product_uuid: str
    listening: tuple[Listening, ...]
    routes: tuple[Route, ...]
    has_address: bool
    mtu: int
    leftovers: tuple[str, ...]
    site_id: str
    packages: tuple[str, ...]
    hosts: tuple[tuple[str, ...], ...]
    inotify_instances: int
    open_files: int

    def filesystem(self, path: str) -> Filesystem:
        """Return the file system of `path`, which the probe was asked about."""
        return next(found for found in self.filesystems if found.path == path)


class Reached(msgspec.Struct, frozen=True, kw_only=True):
    """For each target (`tcp/ADDRESS:PORT`) empty, or why it was not reached."""

    results: dict[str, str]


class Busy(msgspec.Struct, frozen=True, kw_only=True):
    """Ports (`tcp/6443`) on which the probe could not listen because somebody does."""

    busy: tuple[str, ...]


def check_facts(facts: Facts, paths: Sequence[str], *, machine: str) -> None:
    """Check what the decisions lean on: an answer for each of `paths`, in order, and routes that are IPv4 ranges.

    Raises:
        ToolError: the machine answered something else.
    """
    if tuple(found.path for found in facts.filesystems) != tuple(paths):
        raise _odd(machine, f"expected the file systems of {', '.join(paths)}")
    for route in facts.routes:
        try:
            IPv4Network(route.destination)
        except ValueError as error:
            raise _odd(machine, f"route {route.destination[:60]!r} is not an IPv4 range") from error


def _odd(machine: str, reason: str) -> ToolError:
    return ToolError(
        f"{machine}: the probe's answer cannot be read: {reason}",
        step=f"look at {machine}",
        hint="see that its login shell prints nothing of its own, then run it again",
    )


_AnswerT = TypeVar("_AnswerT", Facts, Reached, Busy)


def decode_answer(line: bytes, kind: type[_AnswerT], *, machine: str) -> _AnswerT:
    """Return the answer in `line`.

    Raises:
        ToolError: the machine answered something else.
    """
    try:
        return msgspec.json.decode(line, type=kind)
    except msgspec.MsgspecError as error:
        raise _odd(machine, str(error)) from error
