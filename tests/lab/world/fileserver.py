# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Release files over HTTPS under `/<upstream host>/<path>`, with ranges, and with redirects where the upstreams redirect."""

from __future__ import annotations

import re
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO, ClassVar

from tests.lab.world import tokens
from tests.lab.world.releases import ReleaseFile
from tests.lab.world.tls import Certificates

REDIRECTED = {"dl.k8s.io": "cdn.dl.k8s.io", "github.com": "release-assets.githubusercontent.com"}
"""Upstream hosts which answer 302 to a host of their content network."""

_BLOCK = 1 << 20


def tree(released: tuple[ReleaseFile, ...]) -> dict[str, Path]:
    """Every path the server knows, with the file behind it."""
    paths = {}
    for file in released:
        path = file.url.removeprefix("https:/")
        paths[path] = file.path
        paths[path + file.checksum_url] = file.checksum
    return paths


@contextmanager
def serving(paths: Mapping[str, Path], log: Path, certificates: Certificates) -> Iterator[str]:
    """Serve `paths` and the realm of tokens on a free loopback port; gives `https://127.0.0.1:PORT`. Each request is a line of `log`."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.certificate, certificates.key)
    with log.open("a", buffering=1) as stream:
        handler = type(
            "Handler", (_Handler,), {"paths": dict(paths), "certificates": certificates, "write_line": staticmethod(stream.write)}
        )
        server = _Server(("127.0.0.1", 0), handler)
        # the handshake belongs to the connection's own thread: a silent client must not stop the others
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        thread.start()
        try:
            yield f"https://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60
    paths: ClassVar[Mapping[str, Path]]
    certificates: ClassVar[Certificates]

    @staticmethod
    def write_line(line: str) -> object:
        """Replaced by the log's own."""
        return line

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class's name
        self.write_line(f"{format % args}\n")

    def _answer(self, *, with_body: bool) -> None:
        asked, _, query = self.path.partition("?")
        if asked == tokens.PATH:
            body = tokens.answer(query, self.certificates)
            self._head(HTTPStatus.OK, len(body), Content_Type="application/json")
            self.wfile.write(body if with_body else b"")
            return
        _, host, rest = (asked + "//").split("/", 2)
        rest = rest.rstrip("/")
        if host in REDIRECTED and f"/{host}/{rest}" in self.paths:
            self._head(HTTPStatus.FOUND, 0, Location=f"/{REDIRECTED[host]}/{rest}")
            return
        origin = next((name for name, behind in REDIRECTED.items() if behind == host), host)
        path = self.paths.get(f"/{origin}/{rest}")
        if path is None:
            self._head(HTTPStatus.NOT_FOUND, 0)
            return
        with path.open("rb") as stream:
            self._send(stream, path.stat().st_size, with_body=with_body)

    def _send(self, stream: BinaryIO, size: int, *, with_body: bool) -> None:
        first, last = 0, size - 1
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            first, last = int(asked[1]), min(int(asked[2] or last), last)
            if first > last:
                self._head(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, 0, Content_Range=f"bytes */{size}")
                return
            self._head(HTTPStatus.PARTIAL_CONTENT, last - first + 1, Content_Range=f"bytes {first}-{last}/{size}")
        else:
            self._head(HTTPStatus.OK, size, Accept_Ranges="bytes")
        stream.seek(first)
        left = last - first + 1 if with_body else 0
        while left and (block := stream.read(min(left, _BLOCK))):
            self.wfile.write(block)
            left -= len(block)

    def _head(self, status: HTTPStatus, length: int, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        for name, value in ({"Content_Type": "application/octet-stream"} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
