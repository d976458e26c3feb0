# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The tools that lock and create share: registries, the web, apt and the download cache of one run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import httpx

from appliance.adapters.credentials import Credentials
from appliance.adapters.download import Location, Web, public_url
from appliance.adapters.packages import Apt
from appliance.adapters.registry import Registry
from appliance.build.cache import DownloadCache, OpenAt, default_cache
from appliance.build.profiles import PLATFORMS, Mirrors
from appliance.errors import ToolError, UsageError

FETCHING = 8
"""Things fetched at a time: more gain nothing on one uplink and are unfriendly to registries."""

_OK, _PARTIAL, _NOT_FOUND = 200, 206, 404


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """What a run fetches with."""

    web: Web
    registry: Registry
    mirrors: Mirrors
    cache: DownloadCache
    folder: Path

    def apt(self, platform: str) -> Apt:
        """Return apt for the release and architecture of `platform`."""
        _, architecture, suite = PLATFORMS[platform]
        return Apt(self.folder / "apt" / f"{suite}-{architecture}", suite=suite, architecture=architecture)

    def file_opener(self, url: str) -> OpenAt:
        """Return what opens `url`, at its mirror where there is one, from an offset on."""
        location = self.mirrors.file(url)

        def open_at(offset: int) -> AbstractContextManager[httpx.Response]:
            return _opened(self.web, location, url, offset)

        return open_at


@contextmanager
def _opened(web: Web, location: Location, url: str, offset: int) -> Iterator[httpx.Response]:
    with web.open(location, headers={"Range": f"bytes={offset}-"} if offset else None) as answer:
        if answer.status_code not in {_OK, _PARTIAL}:
            where = public_url(str(answer.url))
            hint = "check the URL in the profile, and mirrors.toml" if answer.status_code == _NOT_FOUND else None
            raise ToolError(f"{public_url(url)}: HTTP {answer.status_code} from {where}", step="fetch a file", hint=hint)
        yield answer


@contextmanager
def tools(*, mirrors: Mirrors, wait: Callable[[float], None], folder: Path | None = None) -> Iterator[Tools]:
    """Give the tools of one run; connections are closed in the end.

    Raises:
        HostError, FormatError: docker's configuration or the cache folder is not as it must be.
    """
    home = folder or default_cache()
    web = Web(wait=wait)
    try:
        yield Tools(
            web=web,
            registry=Registry(web, credentials=Credentials.read(), locate=mirrors.registry),
            mirrors=mirrors,
            cache=DownloadCache(home / "downloads", wait=wait),
            folder=home,
        )
    finally:
        web.close()


def local_file(url: str) -> Path | None:
    """Return the path that a `file:` URL names, None for any other.

    Raises:
        UsageError: a host in it, or a path that is not absolute.
    """
    parts = urlsplit(url)
    if parts.scheme != "file":
        return None
    path = Path(unquote(parts.path))
    if parts.netloc not in {"", "localhost"} or not path.is_absolute():
        raise UsageError(f"{url}: not the URL of a file on this machine", hint="write file:///absolute/path")
    return path
