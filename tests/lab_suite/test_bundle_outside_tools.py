# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The real core profile from the lab's upstream, by real commands; then read back with tools that are not ours."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from tuf.api.exceptions import DownloadHTTPError, UnsignedMetadataError
from tuf.ngclient import FetcherInterface, Updater

from appliance.bundle.contents import ContentClass
from appliance.trust.metadata import new_root
from tests.lab.world import Upstream, upstream
from tests.support.building import safetensors, tree, write_files
from tests.support.observe import leaks
from tests.support.signing import private_secrets
from tests.support.simulator import person

PASSPHRASE = "a passphrase of the test"
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """Two bundles from one lock, and how to make more."""

    folder: Path
    up: Upstream
    inspected: dict[str, list[dict[str, object]]]
    product: set[str]
    """Digests of the product's own files, which travel in the installer, before and after: one, unless somebody works on them."""

    def names(self, content_class: str) -> list[str]:
        return [str(each["name"]) for each in self.inspected["artifacts"] if each["class"] == content_class]


def product() -> str:
    files = {path: path.read_bytes() for folder in ("appliance", "playbooks") for path in (ROOT / folder).rglob("*.*") if path.is_file()}
    return hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()


def run(*words: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None) -> str:
    done = subprocess.run([str(word) for word in words], check=False, capture_output=True, text=True, env=os.environ | (env or {}), cwd=cwd)
    assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("bundle")
    model = write_files(folder / "model", {"model.safetensors": safetensors(70 << 20, 100), "config.json": "{}"})
    text = (ROOT / "bundles" / "core.toml").read_text().replace('"../charts/', f'"{ROOT}/charts/')
    text += f'\n[[models]]\nname = "tiny"\nversion = "1"\npath = "{model}"\nlicense = "Apache-2.0"\n'
    (folder / "core.toml").write_text(text)
    (folder / "passphrase").write_text(f"{PASSPHRASE}\n")
    with upstream(folder / "upstream") as up:
        environment = {"DOCKER_CONFIG": str(up.docker_config.parent), "PYTHONPATH": str(ROOT)}

        def appliance(*words: str | Path) -> str:
            return run(sys.executable, "-m", "appliance", *words, env=environment, cwd=folder)

        appliance("keys", "init", "pub", "--line", "lab", "--passphrase-file", "passphrase")
        appliance("bundle", "lock", "core.toml", "--mirrors", up.mirrors, "--helm", up.world.binaries / "helm" / "helm")
        before = product()
        for name in ("one", "two"):
            options = ("--publication", "pub", "--passphrase-file", "passphrase", "--mirrors", up.mirrors)
            appliance("bundle", "create", "core.lock.json", "--to", name, *options)
        after = product()
        appliance("bundle", "verify", "one", "--publication", "pub")
        inspected = json.loads(appliance("bundle", "inspect", "one", "--publication", "pub", "-o", "json"))
        yield Made(folder=folder, up=up, inspected=inspected, product={before, after})


def test_two_creates_from_one_lock_are_equal_outside_metadata(made: Made) -> None:
    if len(made.product) > 1:
        pytest.skip("the product's own files changed while the two were made")
    one, two = (tree(made.folder / name, without="metadata") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []


def test_skopeo_reads_every_image_by_its_reference(made: Made) -> None:
    images = {image.reference: image for image in made.up.world.images}
    assert len(made.names("images")) >= 8
    for reference in made.names("images"):
        seen = json.loads(run("skopeo", "inspect", "--no-tags", f"oci:{made.folder / 'one'}:{reference}"))
        media_type = json.loads(images[reference].blob(images[reference].index).read_bytes())["mediaType"]
        assert seen["Digest"] == images[reference].index or "docker" in media_type
        assert seen["Layers"] == list(images[reference].layers)
        assert (seen["Os"], seen["Architecture"]) == ("linux", "amd64")


@pytest.mark.parametrize("reference", ["registry.k8s.io/coredns/coredns:v1.14.2", "registry.k8s.io/pause:3.10.2"])
def test_skopeo_copies_an_image_out_with_the_same_bytes(made: Made, reference: str) -> None:
    image = next(image for image in made.up.world.images if image.reference == reference)
    target = made.folder / f"copied-{image.manifest[-8:]}"
    run("skopeo", "--insecure-policy", "copy", f"oci:{made.folder / 'one'}:{reference}", f"dir:{target}")
    assert (target / "manifest.json").read_bytes() == image.blob(image.manifest).read_bytes()
    for layer in image.layers:
        assert (target / layer.removeprefix("sha256:")).read_bytes() == image.blob(layer).read_bytes()


@pytest.mark.parametrize("content_class", ["models", "charts", "files", "os", "installer"])
def test_skopeo_reads_every_other_artifact_raw(made: Made, content_class: str) -> None:
    index = json.loads((made.folder / "one" / "index.json").read_bytes())
    names = [each["annotations"]["org.opencontainers.image.ref.name"] for each in index["manifests"]]
    chosen = [name for name in names if name.startswith(f"{content_class}/")]
    assert len(chosen) == len(made.names(content_class)) > 0
    for name in chosen:
        manifest = json.loads(run("skopeo", "inspect", "--raw", f"oci:{made.folder / 'one'}:{name}"))
        for blob in (manifest["config"], *manifest["layers"]):
            assert (made.folder / "one" / "blobs" / blob["digest"].replace(":", "/")).stat().st_size == blob["size"]


def test_helm_renders_every_chart_out_of_the_layout(made: Made) -> None:
    helm = made.up.world.binaries / "helm" / "helm"
    assert {"flannel", "coredns"} <= set(made.names("charts"))
    for name in made.names("charts"):
        version = next(each["version"] for each in made.inspected["artifacts"] if each["name"] == name)
        manifest = json.loads(run("skopeo", "inspect", "--raw", f"oci:{made.folder / 'one'}:charts/{name}:{version}"))
        packed = made.folder / "one" / "blobs" / manifest["layers"][0]["digest"].replace(":", "/")
        rendered = list(yaml.safe_load_all(run(helm, "template", name, packed, "--kube-version", "1.36.4")))
        assert any(document and document["kind"] in {"DaemonSet", "Deployment"} for document in rendered)
        assert run(helm, "show", "chart", packed).startswith("apiVersion: v2")


class Disk(FetcherInterface):
    """Reads `file://` from disk: what a web server over the bundle's metadata folder would serve."""

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = Path(url.removeprefix("file://"))
        if not path.is_file():
            raise DownloadHTTPError(f"{path} is absent", 404)
        yield path.read_bytes()


def stock_client(made: Made, folder: Path, root: bytes) -> Updater:
    (folder / "targets").mkdir(parents=True)
    address = f"file://{made.folder / 'one' / 'metadata'}/"
    return Updater(str(folder / "state"), address, str(folder / "targets"), f"{address}targets/", fetcher=Disk(), bootstrap=root)


def test_the_stock_tuf_client_downloads_release_and_every_contents_file(made: Made, tmp_path: Path) -> None:
    updater = stock_client(made, tmp_path, (made.folder / "pub" / "roots" / "1.root.json").read_bytes())
    updater.refresh()
    names = ["release.json", *(f"contents/{each}.json" for each in ContentClass)]
    documents = {}
    for name in names:
        target = updater.get_targetinfo(name)
        assert target is not None, name
        documents[name] = json.loads(Path(updater.download_target(target)).read_bytes())
    assert documents["release.json"]["lock"] == f"sha256:{hashlib.sha256((made.folder / 'core.lock.json').read_bytes()).hexdigest()}"
    blobs = made.folder / "one" / "blobs" / "sha256"
    listed = [blob for name in names[1:] for blob in documents[name]["blobs"]]
    assert {blob["digest"].removeprefix("sha256:") for blob in listed} == {path.name for path in blobs.iterdir()}
    assert all((blobs / blob["digest"].removeprefix("sha256:")).stat().st_size == blob["size"] for blob in listed)
    for each in ContentClass:
        assert [artifact["name"] for artifact in documents[f"contents/{each}.json"]["artifacts"]] == sorted(made.names(each))
    assert made.names("models") == ["tiny"]
    assert updater.get_targetinfo("contents/nothing.json") is None


def test_the_stock_tuf_client_with_another_publications_root_refuses_it(made: Made, tmp_path: Path) -> None:
    other = new_root(line="lab", signers=person("mallory"), now=datetime.now(UTC))
    with pytest.raises(UnsignedMetadataError):
        stock_client(made, tmp_path, other).refresh()


def test_no_secret_is_in_the_installer_the_metadata_or_the_lock(made: Made, tmp_path: Path) -> None:
    login = json.loads(made.up.docker_config.read_bytes())
    planted: dict[str, str | bytes] = {f"login {name}": each["auth"] for name, each in login["auths"].items()}
    planted |= {f"password {name}": base64.b64decode(each["auth"]).partition(b":")[2] for name, each in login["auths"].items()}
    planted |= {"passphrase": PASSPHRASE, **private_secrets(made.folder / "pub" / "private", PASSPHRASE.encode())}
    one = made.folder / "one"
    index = json.loads((one / "index.json").read_bytes())
    documents = {
        name: json.loads((one / "blobs" / name.replace(":", "/")).read_bytes()) for name in (each["digest"] for each in index["manifests"])
    }
    layers = [layer for each in documents.values() for layer in each.get("layers", ())]
    (installer,) = (layer for layer in layers if layer.get("annotations", {}).get("org.opencontainers.image.title") == "install.pyz")
    pyz = one / "blobs" / installer["digest"].replace(":", "/")
    with zipfile.ZipFile(pyz) as packed:  # the rest are wheels, pinned by hash
        own = [name for name in packed.namelist() if "/appliance/" in f"/{name}" or "/" not in name]
        assert any(name.endswith("appliance/data/root.json") for name in own)
        packed.extractall(tmp_path, own)
    assert leaks(planted, tmp_path, one / "metadata", one / "index.json", made.folder / "core.lock.json", made.folder / "pub") == []


def test_dpkg_reads_every_package(made: Made) -> None:
    index = json.loads((made.folder / "one" / "index.json").read_bytes())
    root = next(each for each in index["manifests"] if each["annotations"]["org.opencontainers.image.ref.name"].startswith("os/"))
    manifest = json.loads((made.folder / "one" / "blobs" / root["digest"].replace(":", "/")).read_bytes())
    assert len(manifest["layers"]) > 50
    for layer in manifest["layers"]:
        name = run("dpkg-deb", "--field", made.folder / "one" / "blobs" / layer["digest"].replace(":", "/"), "Package").strip()
        assert layer["annotations"]["org.opencontainers.image.title"].startswith(f"pool/{name}_")
