# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""HTTP as the connected side needs it: retries, own certificate authorities, ranges; no secret in any message.

A transient failure (no connection, 408, 429, 5xx, a stream that stops) is waited out with growing pauses, or as long
as `Retry-After` says (RFC 9110 section 10.2.3); anything else is an answer. Redirects are followed here and not by the
library, so that a credential goes to no other origin and https never falls back to http. URLs are shown without user
part, query and fragment: registries redirect to addresses that are secrets for a while.
"""

from __future__ import annotations

import email.utils
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit, urlunsplit

import httpx

from appliance.errors import HostError, ToolError, UsageError

_ATTEMPTS = 6
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_LONGEST_ASKED = 300.0
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 10
_TIMEOUT = httpx.Timeout(60.0, connect=20.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """Where an upstream is really asked: `url`, and the PEM file of one more trusted authority or None."""

    url: str
    ca: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole answer; header names are lower-case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transient(Exception):  # noqa: N818 - it is caught, never reported
    """Worth another try; `after` is how many seconds the server asked for, or None."""

    def __init__(self, reason: str, *, after: float | None = None) -> None:
        """Keep the reason, which holds no secret."""
        super().__init__(reason)
        self.reason = reason
        self.after = after


def public_url(url: str) -> str:
    """Return `url` without its user part, query and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


class Pauses:
    """Decides whether to try again and how long to wait first; one for each thing that is fetched."""

    def __init__(self, what: str, *, step: str, wait: Callable[[float], None] = time.sleep, attempts: int = _ATTEMPTS) -> None:
        """`what` and `step` name the thing in the error; `wait` sleeps."""
        self._what, self._step, self._wait, self._attempts = what, step, wait, attempts
        self._failed = 0

    def moved(self) -> None:
        """Something was received: start counting failures again."""
        self._failed = 0

    def after(self, error: Transient) -> None:
        """Wait before the next try.

        Raises:
            ToolError: that was the last try, or the server asks for more patience than a person has.
        """
        self._failed += 1
        if self._failed >= self._attempts:
            raise ToolError(
                f"{self._what}: {error.reason} ({self._failed} times)",
                step=self._step,
                hint="check the network and run the same command again; it goes on where it stopped",
            ) from error
        if error.after is not None and error.after > _LONGEST_ASKED:
            raise ToolError(
                f"{self._what}: {error.reason}, the server asks to wait {error.after:.0f} s",
                step=self._step,
                hint="run the same command again after that time; it goes on where it stopped",
            ) from error
        grown = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (self._failed - 1))
        self._wait(error.after if error.after is not None else grown * random.uniform(0.5, 1.0))  # noqa: S311 - jitter


class Web:
    """HTTP clients, one for each trusted authority; safe to use from several threads."""

    def __init__(self, *, wait: Callable[[float], None] = time.sleep) -> None:
        """`wait` sleeps between tries."""
        self.wait = wait
        self._clients: dict[Path | None, httpx.Client] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close every connection."""
        with self._lock:
            for client in self._clients.values():
                client.close()
            self._clients.clear()

    def _client(self, ca: Path | None) -> httpx.Client:
        with self._lock:
            if ca not in self._clients:
                self._clients[ca] = httpx.Client(
                    verify=_trust(ca),
                    timeout=_TIMEOUT,
                    limits=httpx.Limits(max_connections=64, max_keepalive_connections=32),
                    headers={"User-Agent": "appliance", "Accept-Encoding": "identity"},
                )
            return self._clients[ca]

    @contextmanager
    def open(self, location: Location, *, headers: Mapping[str, str] | None = None) -> Iterator[httpx.Response]:
        """Give the answer to one GET with its body unread; one try, redirects followed.

        Raises:
            Transient: worth another try.
            ToolError: a redirect leads nowhere or from https to http.
        """
        sent = dict(headers or {})
        url = location.url
        for _ in range(_MAX_REDIRECTS):
            with self._send(location.ca, url, sent) as answer:
                target = answer.headers.get("location")
                if answer.status_code not in _REDIRECTS or not target:
                    _refuse_transient(answer, url)
                    yield answer
                    return
            url, before = urljoin(url, target), url
            if urlsplit(before).scheme == "https" and urlsplit(url).scheme != "https":
                raise ToolError(f"{public_url(before)} redirects from https to {public_url(url)}", step="follow a redirect")
            if _origin(before) != _origin(url):
                sent.pop("Authorization", None)
        raise ToolError(f"{public_url(location.url)} redirects more than {_MAX_REDIRECTS} times", step="follow a redirect")

    @contextmanager
    def _send(self, ca: Path | None, url: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        try:
            with self._client(ca).stream("GET", url, headers=dict(headers)) as answer:
                yield answer
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise UsageError(f"{public_url(url)}: not a URL that can be fetched", hint="write an https or http URL") from error
        except httpx.HTTPError as error:
            if isinstance(error.__cause__, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise _untrusted(url) from error
            raise Transient(f"{public_url(url)}: {_reason(error)}") from error

    def get(self, location: Location, *, headers: Mapping[str, str] | None = None, limit: int, step: str) -> Answer:
        """Return the whole answer of at most `limit` bytes, trying again while the failure is transient.

        Raises:
            ToolError: no answer after all tries, or one larger than `limit`.
        """
        pauses = Pauses(public_url(location.url), step=step, wait=self.wait)
        while True:
            try:
                with self.open(location, headers=headers) as answer:
                    body = _read(answer, limit, step)
                    return Answer(status=answer.status_code, headers=dict(answer.headers.items()), body=body)
            except Transient as error:
                pauses.after(error)


def read_body(answer: httpx.Response) -> Iterator[bytes]:
    """Give the body in pieces as they arrive.

    Raises:
        Transient: the stream stopped before its end.
    """
    try:
        yield from answer.iter_raw()  # as it arrives: a size would hold back, and on an error lose, what came
    except httpx.HTTPError as error:
        raise Transient(f"{public_url(str(answer.url))}: {_reason(error)}") from error


def _read(answer: httpx.Response, limit: int, step: str) -> bytes:
    body = bytearray()
    for piece in read_body(answer):
        body += piece
        if len(body) > limit:
            raise ToolError(f"{public_url(str(answer.url))}: the answer is larger than {limit} bytes", step=step)
    return bytes(body)


def _refuse_transient(answer: httpx.Response, url: str) -> None:
    if answer.status_code in _TRANSIENT:
        raise Transient(f"{public_url(url)}: HTTP {answer.status_code}", after=_retry_after(answer.headers.get("retry-after")))


def _retry_after(text: str | None) -> float | None:
    if not text:
        return None
    if text.strip().isdigit():
        return float(text)
    try:
        when = email.utils.parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, when.timestamp() - time.time())


def _origin(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.rpartition("@")[2]


def _reason(error: httpx.HTTPError) -> str:
    text = str(error)
    return f"{type(error).__name__}: {text}" if text and "://" not in text else type(error).__name__


def _untrusted(url: str) -> ToolError:
    host = urlsplit(url).netloc.rpartition("@")[2]
    return ToolError(
        f"{host}: its certificate is signed by no authority this machine trusts",
        step="connect by TLS",
        hint="name the authority's PEM file as `ca` of that upstream in mirrors.toml, or install it on this machine",
    )


def _trust(ca: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if ca is not None:
        try:
            context.load_verify_locations(cafile=str(ca))
        except (OSError, ssl.SSLError) as error:
            raise HostError(f"{ca}: not a readable PEM file of certificates: {error}", hint="correct `ca` in mirrors.toml") from error
    return context
