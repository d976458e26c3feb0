# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Debian packages by this machine's own apt: the closure of named packages on an empty system, and their bytes.

apt runs with state, cache, status and preferences of its own below `folder`: the host's are neither read nor written,
and hooks of the host's configuration do not run. The host's sources, keyrings, proxies and logins are used as they
are; apt's signature check stays on whatever the host says. An empty dpkg status is the cleanest root there is: nothing
is taken for installed, so the closure is complete on every machine of that release.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from appliance.adapters.aptsources import Source, read_sources
from appliance.adapters.disk import at, locked, make_directory, write_atomic
from appliance.digests import Digest, hex_of
from appliance.errors import FormatError, HostError, ToolError, UsageError

_ORIGIN = "Debian"
_NAME = re.compile(r"[a-z0-9][a-z0-9+.-]*[a-z0-9+.]")
_URI_LINE = re.compile(r"'([^']+)' (\S+) \d+ ?\S*")
_USER_PART = re.compile(r"://[^/@\s]+@")
_INDEX = re.compile(r"^Acquire::IndexTargets::deb::([^:\s]+)::MetaKey ", re.MULTILINE)
_HOOKS = (
    "APT::Update::Pre-Invoke",
    "APT::Update::Post-Invoke",
    "APT::Update::Post-Invoke-Success",
    "DPkg::Pre-Invoke",
    "DPkg::Post-Invoke",
)
_SAID = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One package of the closure; `path` is its Filename below the archive's root, size and digest from the signed index."""

    name: str
    version: str
    architecture: str
    path: str
    digest: Digest
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """A package to fetch: `path` below an archive's root, to the file `target`."""

    path: str
    digest: Digest
    target: Path


class Apt:
    """apt for one release and architecture, with everything it keeps below `folder`."""

    def __init__(self, folder: Path, *, suite: str, architecture: str) -> None:
        """`suite` is the release's code name, such as `bookworm`."""
        self._folder, self._suite, self._architecture = folder, suite, architecture
        self._config = folder / "apt.conf"

    def closure(self, names: Sequence[str]) -> tuple[Package, ...]:
        """Return `names` and all they depend on, sorted by name, from a fresh and signature-checked index.

        Raises:
            UsageError: no such package, or no source for this release.
            VerificationError: a source switches the signature check off.
            ToolError: apt failed.
        """
        for name in names:
            if not _NAME.fullmatch(name):
                raise UsageError(f"package {name!r}: not the name of a Debian package", hint="write the name as apt shows it")
        with self._ready():
            uris = self._uris(names)
            stanzas = self._stanzas(uris)
        found = [_package(uri, stanzas) for uri in uris]
        return tuple(sorted(found, key=lambda package: (package.name, package.architecture)))

    def download(self, wanted: Sequence[Download]) -> None:
        """Fetch `wanted` through apt's own methods from whichever source has them; apt checks each SHA-256.

        Raises:
            ToolError: a package could not be had; those that could are at their targets.
        """
        helper = self._methods().parent / "apt-helper"
        said = ""
        with self._ready(update=False) as sites:
            for site in sites:
                missing = [each for each in wanted if not each.target.exists()]
                if not missing:
                    return
                asked = [
                    text for each in missing for text in (f"{site}/{quote(each.path)}", str(each.target), f"SHA256:{hex_of(each.digest)}")
                ]
                said = self._run([str(helper), "-c", str(self._config), "-q", "download-file", *asked], step="", may_fail=True)
        if absent := [each.path for each in wanted if not each.target.exists()]:
            raise ToolError(
                f"apt could not fetch {absent[0]} and {len(absent) - 1} more packages with the SHA-256 of the lock: {said}",
                step="fetch Debian packages",
                hint="run again; if the archive has newer packages meanwhile, run `appliance bundle lock` again",
            )

    @contextmanager
    def _ready(self, *, update: bool = True) -> Iterator[tuple[str, ...]]:
        """Write the private configuration, refresh the index, leave out what is not Debian's; gives the archives' roots."""
        for name in ("lists/partial", "state/lists/partial", "cache/archives/partial", "sources"):
            make_directory(self._folder / name, mode=0o700)
        with locked(self._folder / "lock", what=f"apt's private state for {self._suite}"):
            sources = self._without_logins(read_sources(self._host_sources(), suite=self._suite))
            write_atomic(self._folder / "state" / "status", b"")
            write_atomic(self._config, self._settings().encode(), mode=0o600)
            self._write_sources(sources)
            if update:
                self._run(["apt-get", "-c", str(self._config), "-q", "update", "--error-on=any"], step="refresh the package index")
                sources = self._debian_only(sources)
                self._write_sources(sources)
            yield tuple(dict.fromkeys(source.uri.rstrip("/") for source in sources))

    def _without_logins(self, sources: Sequence[Source]) -> tuple[Source, ...]:
        """Move logins out of URIs into a private auth.conf (apt_auth.conf(5)): a URI stands on command lines and in messages."""
        own = re.search(
            r"NETRC='([^']*)'", self._run(["apt-config", "shell", "NETRC", "Dir::Etc::netrc/f"], step="read apt's configuration")
        )
        lines = []
        if own and Path(own[1]).is_file():
            with at(Path(own[1])):
                lines = Path(own[1]).read_text(encoding="utf-8").splitlines()
        plain = []
        for source in sources:
            parts = urlsplit(source.uri)
            host = parts.netloc.rpartition("@")[2]
            if parts.username:
                login, password = unquote(parts.username), unquote(parts.password or "")
                lines.append(f"machine {parts.scheme}://{host} login {login} password {password}")
            plain.append(Source(uri=urlunsplit(parts._replace(netloc=host)), suites=source.suites, fields=source.fields))
        write_atomic(self._folder / "auth.conf", "".join(f"{line}\n" for line in lines).encode(), mode=0o600)
        return tuple(plain)

    def _settings(self) -> str:
        dump = self._run(["apt-config", "dump"], step="read apt's configuration")
        unwanted = [name for name in _INDEX.findall(dump) if name != "Packages"]
        values = {
            "Dir::State": self._folder / "state",
            "Dir::State::status": self._folder / "state" / "status",
            "Dir::Cache": self._folder / "cache",
            "Dir::Etc::sourcelist": "/dev/null",
            "Dir::Etc::sourceparts": self._folder / "sources",
            "Dir::Etc::netrc": self._folder / "auth.conf",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "APT::Architecture": self._architecture,
            "APT::Install-Recommends": "false",
            "APT::Install-Suggests": "false",
            "APT::Get::AllowUnauthenticated": "false",
            "Acquire::AllowInsecureRepositories": "false",
            "Acquire::AllowWeakRepositories": "false",
            "Acquire::AllowDowngradeToInsecureRepositories": "false",
            "Acquire::Languages": "none",
            "Acquire::Retries": "5",
            **({"APT::Sandbox::User": "root"} if os.geteuid() == 0 else {}),  # the folder is the caller's own, 0700
            **{f"Acquire::IndexTargets::deb::{name}::DefaultEnabled": "false" for name in unwanted},
        }
        cleared = (*_HOOKS, "APT::Architectures", "Acquire::Languages")
        return "".join(f"#clear {name};\n" for name in cleared) + "".join(f'{name} "{value}";\n' for name, value in values.items())

    def _host_sources(self) -> dict[str, str]:
        asked = ["apt-config", "shell", "ONE", "Dir::Etc::sourcelist/f", "PARTS", "Dir::Etc::sourceparts/d"]
        places = dict(re.findall(r"(\w+)='([^']*)'", self._run(asked, step="read apt's configuration")))
        one, parts = Path(places.get("ONE", "/nonexistent")), Path(places.get("PARTS", "/nonexistent"))
        files = [one] if one.is_file() else []
        files += [path for path in sorted(parts.glob("*")) if path.suffix in {".list", ".sources"} and path.is_file()]
        texts = {}
        for path in files:
            with at(path):
                texts[path.name] = path.read_text(encoding="utf-8", errors="replace")
        return texts

    def _write_sources(self, sources: Sequence[Source]) -> None:
        text = "".join(source.stanza() for source in sources)
        write_atomic(self._folder / "sources" / "host.sources", text.encode(), mode=0o600)

    def _debian_only(self, sources: Sequence[Source]) -> tuple[Source, ...]:
        """Keep the sources whose signed Release file says they are Debian's own: others may use the same suite names."""
        form = "$(SITE) $(RELEASE) $(ORIGIN)"
        listed = self._run(
            ["apt-get", "-c", str(self._config), "indextargets", "--format", form, "Created-By: Packages"], step="list sources"
        )
        debian = {tuple(line.split()[:2]) for line in listed.splitlines() if line.split()[2:] == [_ORIGIN]}
        kept = []
        for source in sources:
            suites = tuple(suite for suite in source.suites if (source.uri.rstrip("/"), suite) in debian)
            if suites:
                kept.append(Source(uri=source.uri, suites=suites, fields=source.fields))
        if not kept:
            raise UsageError(
                f"no apt source for {self._suite} on this machine is of origin {_ORIGIN}",
                hint=f"add the Debian archive for {self._suite}, or a mirror of it that keeps its signed Release file",
            )
        return tuple(kept)

    def _uris(self, names: Sequence[str]) -> list[str]:
        command = ["apt-get", "-c", str(self._config), "-qq", "-y", "--no-install-recommends", "--print-uris", "install", *names]
        lines = [_URI_LINE.match(line) for line in self._run(command, step="solve package dependencies").splitlines()]
        uris = [match[1] for match in lines if match]
        if not uris:
            raise ToolError("apt names no package to fetch", step="solve package dependencies")
        return uris

    def _stanzas(self, uris: Sequence[str]) -> list[dict[str, str]]:
        asked = []
        for uri in uris:
            name, _, architecture = unquote(uri.rpartition("/")[2]).removesuffix(".deb").split("_")
            asked.append(f"{name}:{self._architecture if architecture == 'all' else architecture}")
        text = self._run(["apt-cache", "-c", str(self._config), "show", *dict.fromkeys(asked)], step="read the package index")
        return [dict(re.findall(r"^([A-Za-z0-9-]+): (.*)$", block, re.MULTILINE)) for block in text.split("\n\n")]

    def _methods(self) -> Path:
        said = self._run(["apt-config", "shell", "METHODS", "Dir::Bin::methods/d"], step="read apt's configuration")
        found = re.search(r"METHODS='([^']*)'", said)
        return Path(found[1] if found else "/usr/lib/apt/methods")

    def _run(self, command: Sequence[str], *, step: str, may_fail: bool = False) -> str:
        environment = os.environ | {"LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, stdin=subprocess.DEVNULL)
        except FileNotFoundError as error:
            raise HostError(f"{command[0]} is not on this machine", hint="lock and create packages on a machine with apt") from error
        if done.returncode == 0:
            return done.stdout
        said = _USER_PART.sub("://", (done.stderr or done.stdout).strip())[-_SAID:]
        if may_fail:
            return said
        if unknown := re.search(r"Unable to locate package (\S+)|Package '?([^' ]+)'? has no installation candidate", said):
            raise UsageError(
                f"package {unknown[1] or unknown[2]}: {self._suite} has none of that name", hint="check the name and suite in the profile"
            )
        raise ToolError(f"{command[0]} failed: {said}", step=step, hint="see that `apt-get update` works on this machine, then run again")


def _package(uri: str, stanzas: Sequence[dict[str, str]]) -> Package:
    """Return the stanza of the signed index that `uri` was made from."""
    path = unquote(uri)
    for stanza in stanzas:
        name = stanza.get("Filename", "")
        if name and path.endswith(f"/{name.removeprefix('./')}"):
            if not re.fullmatch(r"[0-9a-f]{64}", stanza.get("SHA256", "")):
                raise FormatError(f"package {stanza['Package']}: the archive's index gives no SHA-256", hint="use another mirror")
            return Package(
                name=stanza["Package"],
                version=stanza["Version"],
                architecture=stanza["Architecture"],
                path=name.removeprefix("./"),
                digest=Digest(f"sha256:{stanza['SHA256']}"),
                size=int(stanza["Size"]),
            )
    raise ToolError(f"apt wants {_USER_PART.sub('://', uri)}, which its index does not list", step="read the package index")
