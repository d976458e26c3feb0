# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What people write: profiles, mirrors, charts. Everything this version does not do is refused by its name."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.build.charts import pack_chart
from appliance.build.locking import lock_path
from appliance.build.profiles import read_mirrors, read_profile
from appliance.errors import ApplianceError, FormatError, UsageError, VerificationError
from tests.support.building import CHART, Bench, write_files
from tests.unit.build.conftest import WORLD

ROOT = Path(__file__).resolve().parents[3]
HEAD = 'format = "profile/1"\nname = "core"\nversion = "1"\nplatform = "debian-12-amd64"\nkubernetes = "1.36.4"\n'

MODEL = HEAD + '[[models]]\nname = "m"\nversion = "1"\npath = "PATH"\nlicense = "MIT"\n'


@pytest.mark.parametrize("path", sorted((ROOT / "bundles").glob("*.toml")), ids=lambda path: path.name)
def test_the_projects_own_profiles_are_valid(path: Path) -> None:
    profile, _ = read_profile(path)
    assert profile.name == path.stem


def test_the_lock_lies_beside_the_profile() -> None:
    assert lock_path(Path("bundles/core.toml")) == Path("bundles/core.lock.json")


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("", FormatError, "expected format = 'profile/1', got None"),
        ('format = "profile/2"', FormatError, "made by a newer appliance"),
        ('format = "site/1"', FormatError, "expected format"),
        ("= broken", FormatError, "not TOML"),
        (HEAD + 'git = "x"', UsageError, "git repositories are not done by this version"),
        (HEAD + "[sbom]\n", UsageError, "unknown field `sbom`"),
        (HEAD + "images = 3", FormatError, "Expected `array`"),
        (HEAD.replace("debian-12", "debian-13"), UsageError, "platform 'debian-13-amd64' is not done"),
        (HEAD.replace('"core"', '"Core/x"'), UsageError, "name 'Core/x' is not plain"),
        (HEAD + '[[images]]\nreference = "a.test/b:1"\n[[images]]\nreference = "a.test/b:1"\n', UsageError, "named twice"),
        (HEAD + '[[images]]\nreference = "busybox"\n', UsageError, "no registry host"),
        (HEAD + '[[images]]\nreference = "a.test/b:1"\npull = true\n', UsageError, "unknown field `pull`"),
        (HEAD + '[[files]]\nname = "f"\nversion = "1"\nurl = "ftp://a.test/f"\n', UsageError, "ftp URLs are not done"),
        (HEAD + '[[files]]\nname = "f"\nversion = "1"\nurl = "http://a.test/f"\n', UsageError, "plain http needs sha256"),
        (HEAD + '[[files]]\nname = "f"\nversion = "1"\nurl = "https://u:p@a.test/f"\n', UsageError, "holds a login"),
        (HEAD + '[[files]]\nname = "f"\nversion = "1"\nurl = "https://a.test/f?token=x"\n', UsageError, "or a query"),
        (HEAD + '[[files]]\nname = "f"\nversion = "1"\nurl = "https://a.test/f"\nsha256 = "AB"\n', UsageError, "sha256 is not 64"),
        (HEAD + '[[charts]]\nname = "c"\npath = "oci://a.test/c"\nnamespace = "n"\n', UsageError, "a chart from oci is not done"),
        (HEAD, UsageError, "names nothing to carry"),
        (HEAD.replace('"core"', f'"{"n" * 250}"'), UsageError, "has 250 characters"),
        (MODEL.replace("PATH", "hf://meta/llama"), UsageError, "a model from hf is not done by this version"),
        (MODEL.replace("MIT", "do what you want"), UsageError, "not an SPDX expression"),
        (MODEL.replace("MIT", "MIT OR"), UsageError, "not an SPDX expression"),
        (MODEL.replace("MIT", "(MIT"), UsageError, "not an SPDX expression"),
        (MODEL.replace("MIT", ""), UsageError, "not an SPDX expression"),
        (HEAD + '[packages]\nsuite = "trixie"\nnames = ["a"]\n', UsageError, "do not fit platform"),
    ],
)
def test_a_profile_that_is_not_right_is_refused_by_name(tmp_path: Path, text: str, kind: type[ApplianceError], said: str) -> None:
    path = tmp_path / "p.toml"
    path.write_text(text)
    with pytest.raises(kind) as caught:
        read_profile(path)
    assert said in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize(
    "license_", ["MIT", "(MIT OR Apache-2.0) AND GPL-2.0+", "GPL-2.0-only WITH Classpath-exception-2.0", "LicenseRef-x"]
)
def test_a_licence_is_an_spdx_expression(tmp_path: Path, license_: str) -> None:
    path = tmp_path / "p.toml"
    path.write_text(MODEL.replace("MIT", license_))
    assert read_profile(path)[0].models[0].license == license_


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_no_bytes_make_the_profile_reader_fail_otherwise(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "profile.toml")
        path.write_bytes(b'format = "profile/1"\n' + data)
        with pytest.raises(ApplianceError):
            read_profile(path)


def test_mirrors_take_the_longest_prefix_and_paths_relative_to_their_file(tmp_path: Path) -> None:
    path = tmp_path / "mirrors.toml"
    path.write_text(
        'format = "mirrors/1"\n[registries."a.test"]\nlocation = "http://b.test:5000/x"\nca = "ca.pem"\n'
        '[files."https://f.test/"]\nlocation = "https://g.test/all/"\n[files."https://f.test/deep/"]\nlocation = "https://h.test/"\n'
    )
    mirrors = read_mirrors(path)
    found = mirrors.registry("a.test")
    assert found is not None
    assert (found.url, found.ca) == ("http://b.test:5000/x", tmp_path / "ca.pem")
    assert mirrors.registry("b.test") is None
    assert mirrors.file("https://f.test/deep/x").url == "https://h.test/x"
    assert mirrors.file("https://f.test/x").url == "https://g.test/all/x"
    assert mirrors.file("https://other.test/x").url == "https://other.test/x"


@pytest.mark.parametrize("line", ['location = "https://user:pw@b.test"', 'location = "ftp://b.test"', 'location = "https://b.test?x=1"'])
def test_a_mirror_that_is_no_plain_address_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "mirrors.toml"
    path.write_text(f'format = "mirrors/1"\n[registries."a.test"]\n{line}\n')
    with pytest.raises(UsageError, match="not a plain http or https address") as caught:
        read_mirrors(path)
    assert "pw" not in f"{caught.value.message}{caught.value.hint}"


def test_a_chart_packs_to_the_same_bytes_whatever_times_modes_and_order(tmp_path: Path) -> None:
    one = pack_chart(write_files(tmp_path / "one", CHART))
    other = write_files(tmp_path / "two", dict(reversed(CHART.items())))
    (other / "values.yaml").chmod(stat.S_IRUSR)
    assert pack_chart(other).data == one.data
    with tarfile.open(fileobj=io.BytesIO(one.data)) as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == ["demo/Chart.yaml", "demo/templates/pod.yaml", "demo/values.yaml"]
    assert {(member.mtime, member.uid, member.gid, member.uname, member.mode) for member in members} == {(0, 0, 0, "", 0o644)}
    assert gzip.decompress(one.data)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"Chart.yaml": "apiVersion: v1\nname: demo\nversion: 1.0.0\n"}, "apiVersion is not v2"),
        ({"Chart.yaml": "apiVersion: v2\nname: Demo\nversion: 1.0.0\n"}, "name or version"),
        ({"Chart.yaml": "apiVersion: v2\nname: demo\nversion: 1\n"}, "name or version"),
        ({"Chart.yaml": "[}"}, "not YAML"),
        ({"Chart.yaml": CHART["Chart.yaml"] + "annotations: &a\n  again: *a\n"}, "anchors or aliases|never end"),
        ({"Chart.yaml": CHART["Chart.yaml"] + "annotations: &a\n  b: c\nmore: *a\n"}, "anchors or aliases"),
        ({"Chart.yaml": CHART["Chart.yaml"] + "annotations:\n  big: .inf\n"}, "not a number that JSON has"),
        ({"Chart.yaml": CHART["Chart.yaml"] + "annotations: " + "[" * 3000 + "]" * 3000}, "not YAML|too deep"),
        ({"values.yaml": "a: &a\n  again: *a\n"}, "never end"),
        ({"values.yaml": "a: .nan\n"}, "not a number that JSON has"),
        ({"values.yaml": "- a\n"}, "not a mapping"),
    ],
)
def test_a_malformed_chart_is_refused(tmp_path: Path, files: dict[str, str], said: str) -> None:
    with pytest.raises(FormatError, match=said):
        pack_chart(write_files(tmp_path / "chart", CHART | files))


def test_a_dependency_that_is_not_in_the_folder_is_refused_by_name(tmp_path: Path) -> None:
    text = f"{CHART['Chart.yaml']}dependencies:\n  - name: redis\n    version: 1.0.0\n    repository: https://charts.test\n"
    folder = write_files(tmp_path / "chart", CHART | {"Chart.yaml": text})
    with pytest.raises(UsageError, match="dependency 'redis'"):
        pack_chart(folder)
    write_files(folder, {"charts/redis-1.0.0.tgz": b"packed"})
    pack_chart(folder)


def test_a_symbolic_link_in_a_chart_is_refused(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "chart", CHART)
    (folder / "templates" / "more.yaml").symlink_to("/etc/passwd")
    with pytest.raises(VerificationError, match="symbolic link"):
        pack_chart(folder)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("containers: [{name: a, image: evil.test/img:1}]", ("evil.test/img:1",)),
        (
            "containers: [{image: 'evil.test/img:1', name: a}, {name: b, \"image\": evil.test/two:1}]",
            ("evil.test/img:1", "evil.test/two:1"),
        ),
        ("containers:\n  - image: evil.test/img:1 # pinned\n", ("evil.test/img:1",)),
        ("  # image: old.test/img:1\n  # or {image: old.test/img:1}\nimage: {{ .Values.image }}\n", ()),
        ('image: "{{ .Values.registry }}/img:1"\nimage: a.test/{{ .Values.name }}\n', ()),
        ("description: the image: a.test/b is used\n", ()),
    ],
)
def test_images_written_out_are_found_in_every_style(tmp_path: Path, text: str, found: tuple[str, ...]) -> None:
    folder = write_files(tmp_path / "chart", CHART | {"templates/pod.yaml": text})
    assert pack_chart(folder).literals == found


def test_values_may_repeat_themselves_by_an_alias(tmp_path: Path) -> None:
    pack_chart(write_files(tmp_path / "chart", CHART | {"values.yaml": "a: &a {b: 1}\nc: *a\n"}))


FAKE_HELM = """#!/bin/sh
printf 'kind: Pod\\nspec:\\n  initContainers:\\n    - image: registry.test/team/app:1.0\\n  volumes:\\n'
printf '    - name: v\\n      image:\\n        reference: %s\\n' "$(sed -n 's/.*"model":"\\([^"]*\\)".*/\\1/p' "$7")"
"""


@pytest.mark.parametrize("reference", ["registry.test/team/volume:1.0", "team/app:1.0", "registry.test/team/app:1.0@sha256:" + "0" * 64])
def test_an_image_that_only_rendering_shows_is_found(bench: Bench, reference: str) -> None:
    helm = bench.folder / "helm"
    helm.write_text(FAKE_HELM)
    helm.chmod(0o755)
    bench.profile(WORLD.replace("replicas = 2", f'model = "{reference}"'))
    assert bench.lock().notes
    with pytest.raises(UsageError, match="chart demo: image"):
        bench.lock(helm=helm)
    bench.profile(WORLD.replace("replicas = 2", 'model = "registry.test/team/app:1.0"'))
    assert bench.lock(helm=helm).notes == ()
