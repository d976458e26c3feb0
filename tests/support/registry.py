# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A registry and file server over real sockets that fails on purpose: 429, 500, a drop in the middle, wrong bytes, a drip.

It speaks what of the OCI distribution specification a puller uses, with basic or token logins, over TLS or plain. Every
request is kept, so that a test can say what was asked for, how often, from which byte, and with which login.
"""

from __future__ import annotations

import base64
import hashlib
import json
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.lab.world.tls import issue

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
USER, PASSWORD = "reader", "planted-password-5c1e"
TOKEN = "planted-token-9b7d"
_PIECE = 1 << 16


@dataclass(slots=True)
class Fault:
    """What goes wrong: `kind` is a status, `drop`, `stall`, `wrong`, `drip` or `forget-range`; `path` a part of the path."""

    kind: str
    path: str
    times: int = 1
    retry_after: str = ""
    after: int = 0
    """For `drop` and `stall`: how many bytes of the body arrive first."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it came."""

    path: str
    range: str
    authorization: str


@dataclass(frozen=True, slots=True)
class Image:
    """What was put into the registry, by digest."""

    reference: str
    index: str
    manifest: str
    config: str
    layers: tuple[str, ...]


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def dumps(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


@dataclass(slots=True)
class Upstream:
    """What is served, at `https://127.0.0.1:PORT`. `login` is "", "basic" or "token"."""

    address: str = ""
    ca: Path | None = None
    login: str = ""
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, tuple[str, bytes]] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    sent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"{'https' if self.ca else 'http'}://{self.address}"

    def asked(self, part: str) -> list[Request]:
        return [request for request in self.requests if part in request.path]

    def put_manifest(self, name: str, tag: str, media_type: str, value: object) -> str:
        data = value if isinstance(value, bytes) else dumps(value)
        digest = digest_of(data)
        self.manifests[f"{name}@{digest}"] = (media_type, data)
        if tag:
            self.tags[f"{name}:{tag}"] = digest
        return digest

    def put_image(
        self,
        name: str,
        tag: str,
        layers: tuple[bytes, ...] = (b"layer",),
        *,
        index: bool = True,
        architecture: str = "amd64",
        labels: Mapping[str, str] | None = None,
        extra: tuple[dict[str, object], ...] = (),
    ) -> Image:
        """Put an image; with `index` below an index of its platform and `extra` descriptors."""
        config = dumps(
            {"architecture": architecture, "os": "linux", "config": {"Labels": dict(labels or {})}, "rootfs": {"type": "layers"}}
        )
        for data in (config, *layers):
            self.blobs[f"{name}@{digest_of(data)}"] = data
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": digest_of(config), "size": len(config)},
            "layers": [{"mediaType": OCI_LAYER, "digest": digest_of(data), "size": len(data)} for data in layers],
        }
        digest = self.put_manifest(name, "" if index else tag, OCI_MANIFEST, manifest)
        top = digest
        if index:
            child = {
                "mediaType": OCI_MANIFEST,
                "digest": digest,
                "size": len(dumps(manifest)),
                "platform": {"os": "linux", "architecture": architecture},
            }
            top = self.put_manifest(name, tag, OCI_INDEX, {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*extra, child]})
        return Image(f"{self.address}/{name}:{tag}", top, digest, digest_of(config), tuple(digest_of(data) for data in layers))

    def take_fault(self, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.path in path and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream: Upstream

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        up = self.upstream
        path = urlsplit(self.path).path
        authorization = self.headers.get("Authorization", "")
        with up.lock:
            up.requests.append(Request(self.path, self.headers.get("Range", ""), authorization))
        fault = up.take_fault(path)
        if fault is not None and fault.kind.isdigit():
            self._send(int(fault.kind), b"no", {"Retry-After": fault.retry_after} if fault.retry_after else {})
        elif path == "/token":
            self._token(authorization)
        elif path in up.redirects:
            self._send(307, b"", {"Location": up.redirects[path]})
        elif path in up.files:
            self._body(up.files[path], "application/octet-stream", fault)
        elif path.startswith("/v2/"):
            self._registry(path, authorization, fault)
        else:
            self._send(404, b"not here", {})

    def _token(self, authorization: str) -> None:
        scope = parse_qs(urlsplit(self.path).query).get("scope", [""])[0]
        if authorization != self._basic():
            self._send(401, b"no", {})
        else:
            self._send(200, dumps({"token": f"{TOKEN}:{scope}"}), {})

    def _basic(self) -> str:
        return "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

    def _registry(self, path: str, authorization: str, fault: Fault | None) -> None:
        up = self.upstream
        name, kind, what = path.removeprefix("/v2/").rsplit("/", 2)
        wanted = {"": "", "basic": self._basic(), "token": f"Bearer {TOKEN}:repository:{name}:pull"}[up.login]
        if wanted and authorization != wanted:
            basic, bearer = 'Basic realm="test"', f'Bearer realm="{up.url}/token",service="test",scope="repository:{name}:pull"'
            self._send(401, b"no", {"WWW-Authenticate": basic if up.login == "basic" else bearer})
            return
        if kind == "manifests":
            found = up.manifests.get(f"{name}@{up.tags.get(f'{name}:{what}', what)}")
            if found is not None:
                self._body(found[1], found[0], fault)
                return
        data = up.blobs.get(f"{name}@{what}")
        if data is None:
            self._send(404, b"not here", {})
        else:
            self._body(data, "application/octet-stream", fault)

    def _body(self, data: bytes, media_type: str, fault: Fault | None) -> None:
        kind = fault.kind if fault else ""
        headers, status, start = {"Content-Type": media_type}, 200, 0
        asked = self.headers.get("Range", "")
        if asked and kind != "forget-range":
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"], status = f"bytes {start}-{len(data) - 1}/{len(data)}", 206
        body = data[start:]
        if kind == "wrong":
            body = bytes([body[0] ^ 1]) + body[1:]
        if kind == "drop":
            self._begin(status, {**headers, "Content-Length": str(len(body))})
            self._write(body[: fault.after if fault else 0])
            self.close_connection = True
        elif kind == "stall":
            self._begin(status, {**headers, "Content-Length": str(len(body))})
            self._write(body[: fault.after if fault else 0])
            self.connection.recv(1)  # until the client is gone
            self.close_connection = True
        elif kind == "drip":
            self._begin(status, {**headers, "Content-Length": str(len(body))})
            for offset in range(0, len(body), 7):
                self._write(body[offset : offset + 7])
        else:
            self._send(status, body, headers)

    def _begin(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _write(self, data: bytes) -> None:
        for start in range(0, len(data), _PIECE):
            self.wfile.write(data[start : start + _PIECE])
            with self.upstream.lock:
                self.upstream.sent += len(data[start : start + _PIECE])

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self._begin(status, {**headers, "Content-Length": str(len(body))})
        self._write(body)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *args: object) -> None:
        """A client that goes away is what some tests are about."""


@contextmanager
def serving(folder: Path, *, tls: bool = True, login: str = "") -> Iterator[Upstream]:
    """Serve an empty upstream on a free loopback port."""
    upstream = Upstream(login=login)
    handler = type("Handler", (_Handler,), {"upstream": upstream})
    server = _Server(("127.0.0.1", 0), handler)
    if tls:
        certificates = issue(folder)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates.certificate, certificates.key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        upstream.ca = certificates.ca
    upstream.address = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield upstream
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
