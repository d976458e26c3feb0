# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Registry credentials from docker's own `config.json`; they are read when needed and never shown.

Source: the docker command line's documentation, "Configuration files": `auths`, `credsStore`, `credHelpers`. The file
is `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`. Helpers are programs; this version runs none of them and
refuses by name a host that only a helper knows.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from appliance.errors import FormatError, HostError, UsageError

DOCKER_HUB = "docker.io"
_HUB_NAMES = ("https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io")
_IDENTITY_USER = "<token>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """Who asks. Its parts are left out of `repr`, so that no traceback shows them."""

    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)

    def basic(self) -> str:
        """Return the value of an `Authorization` header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


class Credentials:
    """The logins of one `config.json`."""

    def __init__(self, document: dict[str, object], *, where: str) -> None:
        """`document` is the parsed file that lies at `where`."""
        self._where = where
        auths, helpers = document.get("auths") or {}, document.get("credHelpers") or {}
        if not isinstance(auths, dict) or not isinstance(helpers, dict):
            raise FormatError(f"{where}: `auths` and `credHelpers` must be tables", hint="run `docker login` again to rewrite it")
        self._auths = {str(name): entry for name, entry in auths.items()}
        self._helpers = {str(name): str(helper) for name, helper in helpers.items()}
        self._store = str(document.get("credsStore") or "")

    @classmethod
    def read(cls) -> Credentials:
        """Return the user's own logins; none when there is no file.

        Raises:
            HostError: the file cannot be read.
            FormatError: it is not docker's configuration.
        """
        folder = os.environ.get("DOCKER_CONFIG")
        path = (Path(folder) if folder else Path.home() / ".docker") / "config.json"
        try:
            document = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return cls({}, where=str(path))
        except OSError as error:
            raise HostError(f"{path}: {error.strerror}", hint="make it readable, or point DOCKER_CONFIG at another folder") from error
        except ValueError as error:
            raise FormatError(f"{path}: not JSON", hint="run `docker login` again to rewrite it") from error
        if not isinstance(document, dict):
            raise FormatError(f"{path}: not a table", hint="run `docker login` again to rewrite it")
        return cls(document, where=str(path))

    def login(self, host: str) -> Login | None:
        """Return the login of `host` (with its port), None when there is none.

        Raises:
            UsageError: only a credential helper knows it.
            FormatError: its entry is malformed.
        """
        names = (
            _HUB_NAMES
            if host in _HUB_NAMES
            else (host, f"https://{host}", f"https://{host}/", f"https://{host}/v2/", f"https://{host}/v1/")
        )
        for name in names:
            if name in self._helpers:
                raise self._helper(host, self._helpers[name])
        for name in names:
            entry = self._auths.get(name)
            if isinstance(entry, dict) and any(entry.values()):
                return self._entry(host, entry)
            if entry is not None and self._store:
                raise self._helper(host, self._store)
        return None

    def _helper(self, host: str, helper: str) -> UsageError:
        return UsageError(
            f"{self._where}: the login of {host} is kept by the credential helper {helper!r}; this version runs no helper",
            hint="put the login into `auths` of a config.json in a folder of its own and point DOCKER_CONFIG at it",
        )

    def _entry(self, host: str, entry: dict[str, object]) -> Login:
        user, password = str(entry.get("username") or ""), str(entry.get("password") or "")
        if encoded := entry.get("auth"):
            try:
                user, colon, password = base64.b64decode(str(encoded), validate=True).decode().rstrip("\0").partition(":")
            except (binascii.Error, UnicodeDecodeError):
                colon = ""
            if not colon:
                raise FormatError(
                    f"{self._where}: the login of {host} is not base64 of user:password", hint=f"run `docker login {host}` again"
                )
        token = str(entry.get("identitytoken") or "")
        return Login(user="" if user == _IDENTITY_USER else user, password=password, identity_token=token)
