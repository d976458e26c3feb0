# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The site file, format `site/1`: what a person writes about one installation. TOML to frozen records.

```toml
format = "site/1"
name = "harbour"                 # also the middle of the API's name: api.harbour.internal
line = "weekly"                  # the publication line this site follows
accelerator = "none"             # nvidia | amd | standin | none

[network]                        # both may be left out
pod_cidr = "10.244.0.0/16"
service_cidr = "10.96.0.0/16"

[[networks]]
name = "machines"
cidr = "10.20.0.0/24"
class = "admin"                  # admin: the machines themselves; users: people who may ask the models

[[machines]]
name = "depot"
address = "10.20.0.10"
roles = ["depot"]                # depot | control-plane | worker | gpu
```

Nothing here opens a file but `load_site`. Rules that span fields are in `appliance.install.siterules`.
"""

from __future__ import annotations

import re
import tomllib
from enum import StrEnum
from pathlib import Path
from typing import ClassVar, TypeVar

import msgspec

from appliance.bundle.documents import Document, Record
from appliance.errors import FormatError, HostError

MAX_SITE_BYTES = 1024 * 1024


class Accelerator(StrEnum):
    """What computes in the GPU nodes."""

    NVIDIA = "nvidia"
    AMD = "amd"
    STANDIN = "standin"
    NONE = "none"


class NetworkClass(StrEnum):
    """Who is on a network: the site's own machines and their keepers, or the people who use the models."""

    USERS = "users"
    ADMIN = "admin"


class Role(StrEnum):
    """What a machine does. `gpu` is a worker with an accelerator and is written beside `worker`."""

    DEPOT = "depot"
    CONTROL_PLANE = "control-plane"
    WORKER = "worker"
    GPU = "gpu"


class ClusterNetwork(Record, frozen=True, kw_only=True):
    """The two ranges that live inside the cluster only (IPv4 CIDR)."""

    pod_cidr: str = "10.244.0.0/16"
    service_cidr: str = "10.96.0.0/16"


class SiteNetwork(Record, frozen=True, kw_only=True):
    """One network the machines can see: its IPv4 `cidr` and the class of who is on it."""

    name: str
    cidr: str
    network_class: NetworkClass = msgspec.field(name="class")


class Machine(Record, frozen=True, kw_only=True):
    """One machine: `name` becomes its node name, `address` is its IPv4 address on an admin network."""

    name: str
    address: str
    roles: tuple[Role, ...]
    ssh_user: str = "root"
    ssh_port: int = 22

    @property
    def in_cluster(self) -> bool:
        """Whether it is a Kubernetes node."""
        return bool({Role.CONTROL_PLANE, Role.WORKER, Role.GPU} & set(self.roles))


class SiteFile(Document, frozen=True, kw_only=True):
    """One installation, as its operator wrote it.

    `outside` are `ADDRESS:PORT` that preflight tries to reach, to say whether the machines can leave the site; with
    `strict_egress` an answer from any of them is a refusal. `ssh_key` is a private key file on the depot; empty means
    the keys that ssh finds by itself.
    """

    FORMAT: ClassVar[str] = "site/1"

    name: str
    line: str
    accelerator: Accelerator
    strict_egress: bool = False
    outside: tuple[str, ...] = ()
    ssh_key: str = ""
    network: ClusterNetwork = ClusterNetwork()
    networks: tuple[SiteNetwork, ...]
    machines: tuple[Machine, ...]

    def with_role(self, role: Role) -> tuple[Machine, ...]:
        """Return the machines that have `role`, in the order of the file."""
        return tuple(machine for machine in self.machines if role in machine.roles)

    @property
    def depot(self) -> Machine:
        """The one machine that holds store, registry and keys."""
        return self.with_role(Role.DEPOT)[0]

    def machine(self, name: str) -> Machine | None:
        """Return the machine called `name`, if there is one."""
        return next((machine for machine in self.machines if machine.name == name), None)


_WRITE = {
    "format": 'format = "site/1" as the first line',
    "name": 'name = "a-name" in lower-case letters, digits and dashes',
    "line": "line = the publication line that the paper sheet names",
    "accelerator": 'accelerator = "nvidia", "amd", "standin" or "none"',
    "strict_egress": "strict_egress = true or false",
    "outside": 'outside = ["203.0.113.1:443"], addresses with ports',
    "ssh_key": 'ssh_key = "/path/of/the/private/key"',
    "network": "a table [network] with pod_cidr and service_cidr",
    "pod_cidr": 'pod_cidr = "10.244.0.0/16" under [network]',
    "service_cidr": 'service_cidr = "10.96.0.0/16" under [network]',
    "networks": "a table [[networks]] with name, cidr and class for each network",
    "cidr": 'cidr = "10.20.0.0/24" in that [[networks]] table',
    "class": 'class = "admin" (the machines) or class = "users" (the people who ask)',
    "machines": "a table [[machines]] with name, address and roles for each machine",
    "address": 'address = "10.20.0.10" in that [[machines]] table',
    "roles": 'roles = ["depot"], or of control-plane, worker, gpu',
    "ssh_user": 'ssh_user = "root" in that [[machines]] table',
    "ssh_port": "ssh_port = 22 in that [[machines]] table",
}
_NAMED = re.compile(r"`\$?\.?([A-Za-z_]+)(?:\[[^]]*\])?(?:\.([A-Za-z_]+))?[^`]*`")
_RecordT = TypeVar("_RecordT", bound=Record)


def parse_site(data: bytes, *, what: str) -> SiteFile:
    """Return the site file that the TOML in `data` says; `what` names the file in errors.

    Shapes only: `siterules.check_site` must be called before the result is used.

    Raises:
        FormatError: not TOML, a field missing, unknown or of the wrong type, or made for a newer appliance.
    """
    try:
        raw = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits, and arrays in arrays in arrays
        raise FormatError(f"{what}: not TOML: {error}", hint="correct the line that the message names") from error
    _check_format(raw.get("format"), what)
    for table, kind in (("machines", Machine), ("networks", SiteNetwork)):
        entries = raw.get(table)
        for number, entry in enumerate(entries if isinstance(entries, list) else [], start=1):
            named = f" ({entry['name']})" if isinstance(entry, dict) and isinstance(entry.get("name"), str) else ""
            _convert(entry, kind, f"{what}: {table} {number}{named}")
    return _convert(raw, SiteFile, what)


def load_site(path: Path) -> tuple[SiteFile, bytes]:
    """Return the site file at `path` and its bytes.

    Raises:
        HostError: it cannot be read.
        FormatError: as `parse_site`.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise HostError(f"{path}: {error.strerror}", hint="name the site file, or write one as docs/operate.md shows") from error
    if len(data) > MAX_SITE_BYTES:
        raise FormatError(f"{path}: {len(data)} bytes is more than a site file has", hint="check which file was given")
    return parse_site(data, what=str(path)), data


def json_schema() -> dict[str, object]:
    """Return the JSON Schema of a site file, for editors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **msgspec.json.schema(SiteFile)}


def _check_format(found: object, what: str) -> None:
    if found == SiteFile.FORMAT:
        return
    if isinstance(found, str) and found.startswith("site/"):
        raise FormatError(
            f"{what}: format {found!r} is made for a newer appliance; this one reads {SiteFile.FORMAT!r}",
            hint="use the appliance that the release carries",
        )
    raise FormatError(f"{what}: expected format {SiteFile.FORMAT!r}, got {found!r}", hint=f"write {_WRITE['format']}")


def _convert(raw: object, kind: type[_RecordT], where: str) -> _RecordT:
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        message = str(error)
        names = [name for pair in _NAMED.findall(message) for name in pair if name in _WRITE]
        unknown = "unknown field" in message
        hint = f"write {_WRITE[names[-1]]}" if names and not unknown else "remove what this version does not know, or correct its spelling"
        raise FormatError(f"{where}: {message}", hint=hint) from error
