# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A node's client of the depot's registry: HTTPS with the site's own CA and nothing else, by the standard library alone.

No system certificates, no proxy, no redirect, no login, no compression; every answer has a length known before it is
read. What it brings is not believed: callers hash it. Source: OCI distribution specification 1.1 ("Pull"), RFC 9110
section 14 (ranges).
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import appliance
from appliance.adapters.disk import read_small
from appliance.bundle.formats import OCI_MANIFEST
from appliance.digests import Digest, digest_of
from appliance.errors import ApplianceError, FormatError, ToolError, UsageError, VerificationError

PATIENCE_SECONDS = 30.0
"""The longest silence."""
_SLOWEST_BYTES_A_SECOND = 256 * 1024
PAUSES_SECONDS = (0.2, 1.0, 3.0, 5.0)
"""What is waited before each new try of one request."""
_MAX_CA_BYTES = 64 * 1024
_ADDRESS = re.compile(r"(?:\[([0-9a-fA-F:]+)\]|([A-Za-z0-9.-]+)):([0-9]{1,5})", re.ASCII)
_RANGE = re.compile(r"bytes ([0-9]+)-([0-9]+)/(?:[0-9]+|\*)", re.ASCII)
_MAX_PORT = 65535
_STEP = "fetch from the depot"


@dataclass(frozen=True, slots=True, kw_only=True)
class DepotAddress:
    """Where the depot's registry listens."""

    host: str
    port: int

    def __str__(self) -> str:
        """Return it as it is typed."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> DepotAddress:
    """Return the address that `text` (`HOST:PORT`) names.

    Raises:
        UsageError: it does not.
    """
    match = _ADDRESS.fullmatch(text)
    if match is None or not 0 < int(match[3]) <= _MAX_PORT:
        raise UsageError(f"{text[:80]!r} is not HOST:PORT", hint="give the depot's address as 10.0.0.1:5000")
    return DepotAddress(host=match[1] or match[2], port=int(match[3]))


class Sink(Protocol):
    """Where the bytes of a range go. It raises no `OSError` of its own: that would read as a lost connection."""

    def room(self, most: int) -> memoryview:
        """Return a buffer of 1 to `most` bytes to be filled."""

    def filled(self, count: int) -> None:
        """Take the first `count` bytes of the last room; 0 takes the room back."""


class _DroppedError(Exception):
    """The connection ended before the answer did."""


class Depot:
    """The depot as one process sees it: a connection for each thread that asks. Close it when all have ended."""

    def __init__(
        self, address: DepotAddress, *, ca: Path, pauses: Sequence[float] | None = None, patience: float = PATIENCE_SECONDS
    ) -> None:
        """Trust the certificates in `ca` (PEM) alone; nothing is connected yet.

        Raises:
            HostError: `ca` cannot be read.
            FormatError: it is not a certificate.
        """
        self.address = address
        self.ca = ca
        self.pauses = tuple(PAUSES_SECONDS if pauses is None else pauses)
        self.patience = patience
        self.context = _context(ca)
        self._local = threading.local()
        self._all: list[DepotConnection] = []
        self._lock = threading.Lock()

    def connection(self) -> DepotConnection:
        """Return this thread's connection."""
        mine: DepotConnection | None = getattr(self._local, "connection", None)
        if mine is None:
            mine = self._local.connection = DepotConnection(self)
            with self._lock:
                self._all.append(mine)
        return mine

    @property
    def received(self) -> int:
        """How many bytes of bodies came in, over all connections."""
        with self._lock:
            return sum(each.received for each in self._all)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close every connection."""
        with self._lock:
            for each in self._all:
                each.close()


class DepotConnection:
    """One kept-alive connection, used by one thread."""

    def __init__(self, depot: Depot) -> None:
        """Name the depot; the first request connects."""
        self._depot = depot
        self._http: http.client.HTTPSConnection | None = None
        self.received = 0

    def close(self) -> None:
        """End the connection; the next request makes a new one."""
        if self._http is not None:
            self._http.close()
        self._http = None

    def manifest(self, repository: str, reference: str, *, limit: int) -> bytes:
        """Return the manifest that `reference` names now.

        Raises:
            ToolError: the depot does not answer, or does not offer it.
            VerificationError: whoever answers is not this site's depot.
        """
        return self._small(f"/v2/{repository}/manifests/{reference}", what=f"{repository}:{reference}", limit=limit)

    def blob(self, repository: str, digest: Digest, *, size: int) -> bytes:
        """Return a small blob, whose bytes are `digest`.

        Raises:
            ToolError: the depot does not answer, or does not offer it.
            VerificationError: whoever answers is not this site's depot, or the bytes are others.
        """
        what = f"{repository}@{digest}"
        data = self._small(f"/v2/{repository}/blobs/{digest}", what=what, limit=size)
        if digest_of(data) != digest:
            raise VerificationError(
                f"{self._depot.address} gave {len(data)} bytes of {digest_of(data)} for {what}",
                hint="run appliance store verify on the depot",
            )
        return data

    def blob_range(self, repository: str, digest: Digest, *, offset: int, size: int, sink: Sink) -> None:
        """Give `size` bytes at `offset` of a blob to `sink`, each byte once and in order, over as many tries as it takes.

        Raises:
            ToolError: the depot does not answer, does not offer it, or offers other ranges.
            VerificationError: whoever answers is not this site's depot.
        """
        done = 0
        what = f"{repository}@{digest}"

        def go_on() -> None:
            nonlocal done
            first, last = offset + done, offset + size - 1
            with self._answer(f"/v2/{repository}/blobs/{digest}", what, size - done, {"Range": f"bytes={first}-{last}"}) as response:
                self._check_range(response, first, last, what)
                while done < size:
                    got = _fill(response, sink, size - done)
                    done += got
                    self.received += got

        if size:
            self._with_retries(go_on, what)

    def _small(self, path: str, *, what: str, limit: int) -> bytes:
        data = b""

        def get() -> None:
            nonlocal data
            with self._answer(path, what, limit, {"Accept": OCI_MANIFEST}) as response:
                if response.status != http.client.OK or response.length is None or response.length > limit:
                    raise self._refused(f"{what}: {response.length} bytes with status {response.status}, expected at most {limit} bytes")
                expected = response.length
                data = response.read()
                self.received += len(data)
                if len(data) != expected:
                    raise _DroppedError(f"ended after {len(data)} of {expected} bytes")

        self._with_retries(get, what)
        return data

    def _with_retries(self, once: Callable[[], None], what: str) -> None:
        """Call `once` until it does not lose its connection; a new connection and a pause before every new try."""
        for pause in (*self._depot.pauses, None):
            try:
                once()
            except ssl.SSLCertVerificationError as error:
                self.close()
                raise VerificationError(
                    f"{self._depot.address} is not this site's depot: {error.verify_message} (trusted: {self._depot.ca})",
                    hint="check the depot's address; on the depot, run appliance site install to renew its certificate",
                ) from error
            except (_DroppedError, http.client.HTTPException, OSError) as error:
                self.close()
                if pause is None:
                    raise ToolError(
                        f"{self._depot.address} did not give {what}: {_reason(error)}",
                        step=_STEP,
                        hint="check that the depot is on and its appliance-registry.service runs, then run the same command again",
                    ) from error
                time.sleep(pause)
            except ApplianceError:
                self.close()
                raise
            else:
                return

    @contextmanager
    def _answer(self, path: str, what: str, size: int, headers: Mapping[str, str]) -> Iterator[http.client.HTTPResponse]:
        """Ask once and check the head of the answer; the block reads the body, in a time that depends on `size` bytes."""
        if self._http is None or self._http.sock is None:
            address = self._depot.address
            self._http = http.client.HTTPSConnection(address.host, address.port, timeout=self._depot.patience, context=self._depot.context)
            self._http.connect()
        raw = self._http.sock
        cut = threading.Timer(self._depot.patience + size / _SLOWEST_BYTES_A_SECOND, _cut, (raw,))
        cut.daemon = True
        cut.start()
        try:
            self._http.request("GET", path, headers={"User-Agent": f"appliance/{appliance.__version__}", **headers})
            response = self._http.getresponse()
            self._check_head(response, what)
            yield response
            if response.length:
                self.close()
        finally:
            cut.cancel()

    def _check_head(self, response: http.client.HTTPResponse, what: str) -> None:
        status = response.status
        if status in {http.client.OK, http.client.PARTIAL_CONTENT}:
            if response.getheader("Content-Encoding", "identity") != "identity":
                raise self._refused(f"{what}: an encoded answer, which was not asked for")
            return
        if status == http.client.TOO_MANY_REQUESTS or status >= http.client.INTERNAL_SERVER_ERROR:
            raise _DroppedError(f"status {status} {response.reason}")
        if status == http.client.NOT_FOUND:
            raise self._refused(f"{what}: the depot does not offer it")
        if status == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise self._refused(f"{what}: the depot's copy is shorter than what was signed")
        if http.client.MULTIPLE_CHOICES <= status < http.client.BAD_REQUEST:
            raise self._refused(f"{what}: a redirect, which a node does not follow")
        raise self._refused(f"{what}: status {status} {response.reason}")

    def _check_range(self, response: http.client.HTTPResponse, first: int, last: int, what: str) -> None:
        """Check that the body is exactly the bytes `first` to `last`; a whole answer is right only if that is the whole."""
        length = last - first + 1
        if response.status == http.client.PARTIAL_CONTENT:
            given = response.getheader("Content-Range", "")
            match = _RANGE.fullmatch(given)
            right = match is not None and (int(match[1]), int(match[2])) == (first, last)
        else:
            given, right = "the whole", first == 0
        if not right or response.length != length:
            raise self._refused(f"{what}: asked for bytes {first} to {last}, offered {given} of {response.length} bytes")

    def _refused(self, message: str) -> ToolError:
        return ToolError(
            f"{self._depot.address}: {message}",
            step=_STEP,
            hint="on the depot, run appliance store verify and appliance site install, then run the same command again",
        )


def _fill(response: http.client.HTTPResponse, sink: Sink, most: int) -> int:
    """Read once into the sink's room; whatever happens, the room goes back to the sink."""
    room, got = sink.room(most), 0
    try:
        got = response.readinto(room)
    finally:
        sink.filled(got)
    if got == 0:
        raise _DroppedError(f"the connection ended {most} bytes before the answer did")
    return got


def _context(ca: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cadata=read_small(ca, limit=_MAX_CA_BYTES).decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise FormatError(f"{ca}: not a certificate in PEM form", hint="give the site's CA, ca.crt of the depot") from error
    return context


def _cut(connected: socket.socket) -> None:
    """End the TCP connection below TLS, so that a read in another thread ends with an error and no byte is let through."""
    with suppress(OSError):
        socket.socket.shutdown(connected, socket.SHUT_RDWR)


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
