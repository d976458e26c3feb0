# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A workbench of the connected side: an upstream on loopback, a profile, a chart, a model, a publication, real commands' code.

bench.profile(images=(...), files=(...))
bench.lock()
bench.create("one.bundle")
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from securesystemslib.signer import CryptoSigner

from appliance.adapters.publication import save_publication
from appliance.build.collecting import Tools, tools
from appliance.build.creating import Created, create_bundle
from appliance.build.locking import Locked, lock_profile
from appliance.build.profiles import Mirrors, read_mirrors
from appliance.trust.client import VerifiedBundle
from appliance.trust.metadata import new_root
from appliance.trust.publication import new_publication
from appliance.verify import trust_publication
from appliance.verify.blobs import Finding, verify_bundle_blobs
from appliance.verify.metadata import verify_bundle_metadata
from tests.support.registry import Upstream
from tests.support.simulator import bytes_of, person

NOW = datetime(2026, 11, 23, 7, 0, tzinfo=UTC)
CHART = {
    "Chart.yaml": "apiVersion: v2\nname: demo\nversion: 1.2.3\ndescription: a chart\n",
    "values.yaml": "replicas: 1\n",
    "templates/pod.yaml": 'apiVersion: v1\nkind: Pod\nmetadata:\n  name: demo\nspec:\n  containers:\n    - name: a\n      image: "IMAGE"\n',
}


def safetensors(*sizes: int, seed: str = "weights") -> bytes:
    """A safetensors file with a tensor of bytes of each size."""
    header, offset = {}, 0
    for number, size in enumerate(sizes):
        header[f"t{number}"] = {"dtype": "U8", "shape": [size], "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(text)) + text + bytes_of(seed, offset)


def write_files(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    """Write `files` below `folder`."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


@dataclass(slots=True, kw_only=True)
class Bench:
    """Everything lies below `folder`; `waits` are the pauses that code asked for, none of them taken."""

    folder: Path
    upstream: Upstream
    waits: list[float] = field(default_factory=list)
    packages: tuple[str, ...] = ()

    def model(self, name: str = "tiny", files: Mapping[str, bytes | str] | None = None) -> Path:
        """Write a small valid model, with `files` instead of or besides its own."""
        own: dict[str, bytes | str] = {
            "model.safetensors": safetensors(9000, 100),
            "config.json": '{"architectures":["LlamaForCausalLM"]}',
            "tokenizer.json": "{}",
            "LICENSE": "free",
        }
        return write_files(self.folder / name, own | dict(files or {}))

    def chart(self, image: str, name: str = "chart", files: Mapping[str, str] | None = None) -> Path:
        """Write a chart that runs `image`."""
        return write_files(self.folder / name, {key: text.replace("IMAGE", image) for key, text in (CHART | dict(files or {})).items()})

    def profile(self, text: str = "", *, name: str = "core.toml", version: str = "1.0") -> Path:
        """Write a profile whose tables are `text`."""
        path = self.folder / name
        head = f'format = "profile/1"\nname = "core"\nversion = "{version}"\nplatform = "debian-12-amd64"\nkubernetes = "1.36.4"\n'
        path.write_text(f"{head}installer = false\n{text}")
        return path

    @property
    def mirrors(self) -> Mirrors:
        """The upstream is asked for `registry.test` and `https://files.test/`."""
        path = self.folder / "mirrors.toml"
        ca = f'ca = "{self.upstream.ca}"\n' if self.upstream.ca else ""
        path.write_text(
            'format = "mirrors/1"\n'
            f'[registries."registry.test"]\nlocation = "{self.upstream.url}"\n{ca}'
            f'[files."https://files.test/"]\nlocation = "{self.upstream.url}/files/"\n{ca}'
        )
        return read_mirrors(path)

    @contextmanager
    def tools(self) -> Iterator[Tools]:
        """The tools of one run; the cache stays between runs."""
        with tools(mirrors=self.mirrors, wait=self.waits.append, folder=self.folder / "cache") as ready:
            yield ready

    def lock(self, profile: Path | None = None, *, helm: Path | None = None) -> Locked:
        """`bundle lock`."""
        with self.tools() as ready:
            return lock_profile(profile or self.folder / "core.toml", tools=ready, helm=helm, workers=2)

    @property
    def publication(self) -> Path:
        """A publication folder, made on first use."""
        folder = self.folder / "publication"
        if not folder.exists():
            (folder / "roots").mkdir(parents=True)
            (folder / "roots" / "1.root.json").write_bytes(new_root(line="test", signers=person("anna"), now=NOW))
            save_publication(folder, new_publication("test"))
        return folder

    def create(
        self,
        name: str = "one.bundle",
        *,
        lock: Path | None = None,
        link: bool = False,
        installer: Callable[[bytes, Path], object] | None = None,
        now: datetime = NOW,
        signers: Sequence[CryptoSigner] | None = None,
    ) -> Created:
        """`bundle create`."""
        with self.tools() as ready:
            return create_bundle(
                lock or self.folder / "core.lock.json",
                tools=ready,
                publication=self.publication,
                signers=signers or person("anna"),
                target=self.folder / name,
                installer=installer,
                now=lambda: now,
                link=link,
                workers=2,
            )

    def verify(self, name: str = "one.bundle") -> tuple[VerifiedBundle, tuple[Finding, ...]]:
        """`bundle verify`."""
        bundle = self.folder / name
        verified = verify_bundle_metadata(bundle, trust_publication(self.publication), now=NOW)
        return verified, verify_bundle_blobs(bundle, verified.blobs, contents=verified.contents, workers=2)


def tree(folder: Path, *, without: str = "") -> dict[str, bytes]:
    """Every file below `folder` by its relative path, but for those below `without`."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
    return {name: data for name, data in found.items() if not without or not name.startswith(f"{without}/")}
