# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A depot and a node in one folder: a publication with models, the depot's store and registry tree, the node's state.

The tree is the one that the product makes; it is served by the standard library over TLS, with ranges and with faults
on purpose. The compiled registry serves the same tree in the lab's tests.
"""

from __future__ import annotations

import json
import re
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from appliance.adapters.depot import DepotAddress, parse_address
from appliance.bundle import formats
from appliance.bundle.contents import Artifact, Blob, ContentClass, Contents
from appliance.bundle.layout import ModelLayer, build_model
from appliance.bundle.weights import WeightsFile, build_statement
from appliance.carry.activate import activate
from appliance.digests import Digest, digest_of, hex_of
from appliance.place.places import NodePlaces
from appliance.place.placing import PlaceReport, PlaceRequest, place_models
from appliance.store import Store
from appliance.store.registry import registry_tree
from appliance.verify import pin_root
from tests.lab.world.tls import Certificates, issue
from tests.support.simulator import Files, Line, blob_of, bytes_of, contents_of

CHUNK = 4096

Model = Mapping[str, bytes]
"""A model's files by path."""

TINY: Model = {
    "config.json": b"{}",
    "empty.txt": b"",
    "model-00001-of-00002.safetensors": bytes_of("one", 5 * CHUNK + 100),
    "model-00002-of-00002.safetensors": bytes_of("two", 3 * CHUNK),
    "nested/deep/tokenizer.json": bytes_of("tokenizer", 1000),
}
PATH = re.compile(r"/v2/(.+)/(blobs|manifests)/([^/]+)")


def model_contents(models: Mapping[str, Model], *, version: str = "1.0") -> tuple[Contents, dict[Digest, bytes], list[bytes]]:
    """Contents of class models, all blobs, and the weights manifests."""
    artifacts: list[Artifact] = []
    blobs: dict[Digest, bytes] = {}
    listed: dict[Digest, Blob] = {}
    statements: list[bytes] = []
    for name, files in models.items():
        entries = {path: blob_of(data) for path, data in files.items()}
        weights = [WeightsFile(path=path, size=blob.size, digest=blob.digest, chunks=blob.chunks) for path, blob in entries.items()]
        statement = build_statement(name, version, weights)
        layers = [ModelLayer(path=path, media_type=formats.MODEL_WEIGHT_RAW, blob=blob) for path, blob in entries.items()]
        built = build_model(name, version, layers, statement=statement, license_="Apache-2.0")
        artifacts.append(built.artifact)
        listed |= {blob.digest: blob for blob in built.blobs}
        blobs |= {digest_of(data): data for data in files.values()} | dict(built.documents)
        statements.append(statement)
    return contents_of(ContentClass.MODELS, artifacts, listed.values()), blobs, statements


@dataclass(slots=True)
class Fault:
    """What goes wrong with requests whose path has `part`, from the moment `skip` of them went well, `times` times.

    `kind` is a status, `flip` or `drop` (at byte `at` of the body), `short`, `other-range`, `forget-range`, `encoded`,
    `stall` (nothing comes after byte `at`), or `drip` (a byte every 50 ms).
    """

    kind: str
    part: str
    times: int = 10**6
    skip: int = 0
    at: int = 0


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it came: path and range, `first` byte and `size`, 0 and -1 without a range."""

    path: str
    first: int = 0
    size: int = -1


@dataclass
class Served:
    """The running server: its address, its CA, the tree it serves, and what it was asked."""

    address: DepotAddress
    certificates: Certificates
    tree: Path
    faults: list[Fault] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)
    connections: set[tuple[str, int]] = field(default_factory=set)
    sent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    ended: threading.Event = field(default_factory=threading.Event)

    def ranges(self) -> list[Asked]:
        """The requests for parts of model files."""
        return [each for each in self.asked if each.size >= 0]

    def take_fault(self, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.part in path and fault.times > 0:
                    if fault.skip > 0:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    served: Served

    def log_message(self, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        served = self.served
        match = PATH.fullmatch(self.path)
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), int(asked[2])) if asked else (0, -1)
        with served.lock:
            served.asked.append(Asked(self.path, first, last - first + 1 if asked else -1))
            served.connections.add(self.client_address)
        fault = served.take_fault(self.path)
        data = self._find(match) if match else None
        size = data.stat().st_size if data else 0
        if fault is not None and fault.kind.isdigit():
            self._head(int(fault.kind), 0, {"Location": "/v2/elsewhere"} if fault.kind.startswith("3") else {})
        elif data is None:
            self._head(404, 0, {})
        elif not asked or (fault and fault.kind == "forget-range"):
            self._body(200, _slice(data, 0, size), {}, fault)
        elif last >= size or first > last:
            self._head(416, 0, {})
        else:
            if fault and fault.kind == "short":
                last -= 1
            if fault and fault.kind == "other-range":
                first, last = first + 1, last + 1
            self._body(206, _slice(data, first, last + 1 - first), {"Content-Range": f"bytes {first}-{last}/{size}"}, fault)

    def _find(self, match: re.Match[str]) -> Path | None:
        """As distribution looks it up: tag to link, link to data; a blob only if this repository links to it."""
        top = self.served.tree / "docker" / "registry" / "v2"
        repository, kind, what = top / "repositories" / match[1], match[2], match[3]
        if kind == "manifests":
            tag = repository / "_manifests" / "tags" / what / "current" / "link"
            digest = tag.read_text() if tag.is_file() else what
            link = repository / "_manifests" / "revisions" / "sha256" / digest.removeprefix("sha256:") / "link"
            if formats.OCI_MANIFEST not in self.headers.get("Accept", ""):
                return None
        else:
            digest = what
            link = repository / "_layers" / "sha256" / digest.removeprefix("sha256:") / "link"
        if not link.is_file() or link.read_text() != digest:
            return None
        digits = digest.removeprefix("sha256:")
        return top / "blobs" / "sha256" / digits[:2] / digits / "data"

    def _body(self, status: int, data: bytes, headers: Mapping[str, str], fault: Fault | None) -> None:
        kind = fault.kind if fault else ""
        at = fault.at if fault else 0
        self._head(status, len(data), {**headers, "Content-Encoding": "gzip"} if kind == "encoded" else headers)
        if kind == "flip":
            data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        whole = kind not in {"drop", "stall", "drip"}
        self._write(data if whole else data[:at])
        for place in range(len(data) if kind == "drip" else 0):
            self._write(data[place : place + 1])
            self.served.ended.wait(0.05)
        if kind == "stall":
            self.served.ended.wait(20)
        self.close_connection = self.close_connection or not whole

    def _head(self, status: int, size: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(size)}.items():
            self.send_header(name, value)
        self.end_headers()

    def _write(self, data: bytes) -> None:
        with self.served.lock:
            self.served.sent += len(data)
        self.wfile.write(data)
        self.wfile.flush()


def _slice(path: Path, first: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(first)
        return file.read(size)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, *args: object) -> None:
        """A client that goes away is what some tests are about."""


@contextmanager
def serving(tree: Path, folder: Path, *, certificates: Certificates | None = None, host: str = "127.0.0.1") -> Iterator[Served]:
    """Serve the registry tree `tree` on a free port of `host`; certificates (of 127.0.0.1) go into `folder` unless given."""
    own = certificates or issue(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.certificate, own.key)
    handler = type("Handler", (_Handler,), {})
    server = _Server((host, 0), handler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    served = Served(address=parse_address(f"{host}:{server.server_address[1]}"), certificates=own, tree=tree)
    handler.served = served  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        served.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass
class Placement:
    """The publication, the depot's state and the node's; `release` is the one published last."""

    root: Path
    line: Line = field(default_factory=Line)
    models: Mapping[str, Model] = field(default_factory=lambda: {"tiny": TINY})
    files: Files = field(default_factory=dict)
    blobs: dict[Digest, bytes] = field(default_factory=dict)
    release: Digest = field(init=False)

    def __post_init__(self) -> None:
        pin_root(self.depot / "trust", self.line.pin)
        self.pin(self.line.pin)
        self.publish()

    @property
    def depot(self) -> Path:
        return self.root / "depot"

    @property
    def places(self) -> NodePlaces:
        return NodePlaces(state=self.root / "node")

    @property
    def pinned(self) -> Path:
        return self.root / "etc" / "root.json"

    @property
    def tree(self) -> Path:
        return self.depot / "releases" / hex_of(self.release) / "registry"

    def pin(self, data: bytes) -> None:
        """Put `data` where the node's pinned root is."""
        self.pinned.parent.mkdir(exist_ok=True)
        self.pinned.write_bytes(data)

    def publish(self, models: Mapping[str, Model] | None = None, *, version: str = "1.0.0") -> Digest:
        """Publish a further release and have it on the depot, with its registry tree."""
        self.models = models or self.models
        contents, self.blobs, statements = model_contents(self.models)
        release = self.line.release(version)
        self.files = self.line.publish({ContentClass.MODELS: contents}, release=release, statements=statements)
        store = Store(self.depot)
        store.blobs.mkdir(parents=True, exist_ok=True)
        for digest, data in self.blobs.items():
            path = store.blob_path(digest)
            if not path.exists():
                path.write_bytes(data)
                path.chmod(0o444)
        bundle = self.line.verify(self.files)
        self.release = bundle.digest
        activate(store, bundle, set_name=bundle.digest, parts=(0,), count=1, written=0, who="ann", now=self.line.now)
        registry_tree(store, store.release(self.release))
        return self.release

    def weights(self, name: str = "tiny") -> Digest:
        """The digest of a model's weights manifest."""
        bundle = self.line.verify(self.files)
        (found,) = [each.weights for each in bundle.contents[ContentClass.MODELS].artifacts if each.name == name]
        assert found is not None
        return found

    def folder(self, name: str = "tiny") -> Path:
        """Where the node has a model."""
        return self.places.model(self.weights(name))

    def place(self, served: Served, **changes: Any) -> PlaceReport:  # noqa: ANN401 - any field of the request
        """Run the verb at the line's time."""
        now = changes.pop("now", self.line.now)
        values: dict[str, Any] = {
            "depot": served.address,
            "ca": served.certificates.ca,
            "release": self.release,
            "places": self.places,
            "pinned": self.pinned,
            "workers": 2,
        }
        return place_models(PlaceRequest(**{**values, **changes}), now=now)

    def holds(self, name: str = "tiny") -> bool:
        """Whether the node has exactly the model's files, byte for byte, read-only, and the name points at it."""
        folder = self.folder(name)
        there = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if not path.is_dir()}
        return (
            {path: place.read_bytes() for path, place in there.items()} == dict(self.models[name])
            and all(place.stat().st_mode & 0o777 == 0o444 for place in there.values())
            and self.places.by_name(name).resolve() == folder.resolve()
        )

    def nothing_is_visible(self) -> bool:
        """Whether no model, no name, no record and no trust appeared on the node."""
        shown = [path.name for path in self.places.models.glob("*") if not path.name.startswith(".partial-")]
        return shown == [] and not self.places.trust.exists()


def json_of(text: str) -> dict[str, Any]:
    """The one JSON document in `text`."""
    found: dict[str, Any] = json.loads(text)
    return found
