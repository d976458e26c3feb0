# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Debian packages through the machine's real apt, from a signed archive on loopback."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.adapters.aptsources import read_sources
from appliance.adapters.packages import Apt, Download
from appliance.bundle.contents import ContentClass
from appliance.digests import digest_of
from appliance.errors import FormatError, ToolError, UsageError, VerificationError
from tests.support.archive import Archive, Deb, archive
from tests.support.building import Bench, tree
from tests.support.registry import Upstream, serving

DEBS = (
    Deb(name="app", version="2:1.5-1", fields=("Depends: lib (>= 1), common", "Pre-Depends: base", "Recommends: nice")),
    Deb(name="lib", version="1.2"),
    Deb(name="common", architecture="all"),
    Deb(name="base"),
    Deb(name="nice"),
    Deb(name="other"),
)
PROFILE = '[packages]\nsuite = "bookworm"\nnames = ["app"]\n'


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[Upstream]:
    with serving(tmp_path / "tls", tls=False) as up:
        yield up


@pytest.fixture
def debian(tmp_path: Path, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    """The archive, and a machine whose apt knows only it."""
    with archive(upstream, tmp_path / "archive") as made:
        made.publish(*DEBS)
        (tmp_path / "sources").mkdir()
        (tmp_path / "sources" / "debian.sources").write_text(made.source())
        config = tmp_path / "apt.conf"
        config.write_text(
            f'Dir::Etc::sourcelist "{tmp_path}/none.list";\nDir::Etc::sourceparts "{tmp_path}/sources";\n'
            f'Acquire::http::Proxy::127.0.0.1 "DIRECT";\nAPT::Update::Post-Invoke {{ "touch {tmp_path}/hook-ran"; }};\n'
            'APT::Get::AllowUnauthenticated "true";\nAcquire::AllowInsecureRepositories "true";\nAPT::Install-Recommends "true";\n'
        )
        monkeypatch.setenv("APT_CONFIG", str(config))
        yield made


@pytest.fixture
def apt(tmp_path: Path, debian: Archive) -> Apt:
    assert debian.debs
    return Apt(tmp_path / "apt", suite="bookworm", architecture="amd64")


def test_the_closure_is_complete_on_an_empty_system_with_what_the_index_says(apt: Apt, debian: Archive) -> None:
    found = apt.closure(["app"])
    assert [package.name for package in found] == ["app", "base", "common", "lib"]
    assert [package.version for package in found] == ["2:1.5-1", "1.0", "1.0", "1.2"]
    for package in found:
        data = debian.debs[package.name]
        assert (package.digest, package.size) == (digest_of(data), len(data))
        assert package.path.startswith("pool/main/")


def test_hooks_of_the_machine_do_not_run_and_its_state_is_not_read(apt: Apt, tmp_path: Path) -> None:
    apt.closure(["app"])
    assert not (tmp_path / "hook-ran").exists()
    assert (tmp_path / "apt" / "state" / "status").read_bytes() == b""


def test_a_release_file_signed_by_nobody_known_is_refused_whatever_the_machine_says(apt: Apt, debian: Archive, upstream: Upstream) -> None:
    path = "/debian/dists/bookworm/InRelease"
    upstream.files[path] = upstream.files[path].replace(b"Origin: Debian", b"Origin: debian")
    with pytest.raises(ToolError, match="apt-get failed") as caught:
        apt.closure(["app"])
    assert caught.value.step == "refresh the package index"
    assert debian.keyring.exists()


def test_an_index_that_is_not_the_one_signed_is_refused(apt: Apt, upstream: Upstream) -> None:
    path = "/debian/dists/bookworm/main/binary-amd64/Packages"
    upstream.files[path] = upstream.files[path].replace(b"Version: 1.2", b"Version: 1.3")
    with pytest.raises(ToolError):
        apt.closure(["app"])


@pytest.mark.parametrize("extra", ["Trusted: yes\n", "Allow-Insecure: yes\n", "allow-weak: true\n"])
def test_a_source_that_switches_the_check_off_is_refused(apt: Apt, debian: Archive, tmp_path: Path, extra: str) -> None:
    (tmp_path / "sources" / "debian.sources").write_text(debian.source(extra=extra))
    with pytest.raises(VerificationError, match=r"debian\.sources"):
        apt.closure(["app"])


def test_another_origin_with_the_same_suite_name_is_left_out(apt: Apt, upstream: Upstream, tmp_path: Path) -> None:
    with archive(upstream, tmp_path / "other", prefix="vendor", origin="Vendor") as vendor:
        vendor.publish(Deb(name="app", version="9:99.0"))
        (tmp_path / "sources" / "vendor.sources").write_text(vendor.source())
        assert apt.closure(["app"])[0].version == "2:1.5-1"


def test_updates_of_the_security_archive_count(apt: Apt, debian: Archive, tmp_path: Path) -> None:
    debian.publish(Deb(name="lib", version="1.2+deb12u1"), suite="bookworm-security")
    (tmp_path / "sources" / "debian.sources").write_text(debian.source("bookworm", "bookworm-security", "bookworm-backports"))
    assert {package.version for package in apt.closure(["app"])} >= {"1.2+deb12u1"}


def test_an_unknown_package_is_named(apt: Apt) -> None:
    with pytest.raises(UsageError, match="package nosuch: bookworm has none"):
        apt.closure(["app", "nosuch"])


@pytest.mark.parametrize("name", ["app-", "app=1", "-o", "App", "app/bookworm", "app:i386", ""])
def test_a_name_that_apt_would_read_as_an_order_is_refused(apt: Apt, name: str) -> None:
    with pytest.raises(UsageError, match="not the name of a Debian package"):
        apt.closure([name])


def test_no_source_for_the_release_is_said(apt: Apt, debian: Archive, tmp_path: Path) -> None:
    (tmp_path / "sources" / "debian.sources").write_text(debian.source("trixie"))
    with pytest.raises(UsageError, match="no source for bookworm"):
        apt.closure(["app"])


def test_a_package_with_other_bytes_is_not_taken(apt: Apt, debian: Archive, upstream: Upstream, tmp_path: Path) -> None:
    upstream.files["/debian/pool/main/l/lib_1.2_amd64.deb"] = b"other bytes"
    wanted = Download(path="pool/main/l/lib_1.2_amd64.deb", digest=digest_of(debian.debs["lib"]), target=tmp_path / "lib.deb")
    with pytest.raises(ToolError, match="with the SHA-256 of the lock"):
        apt.download([wanted])
    assert not wanted.target.exists()


def test_lock_and_create_carry_the_packages(debian: Archive, upstream: Upstream, tmp_path: Path) -> None:
    bench = Bench(folder=tmp_path / "bench", upstream=upstream)
    bench.folder.mkdir()
    bench.profile(PROFILE)
    first = bench.lock().path.read_bytes()
    assert bench.lock().path.read_bytes() == first
    assert upstream.address.encode() not in first
    bench.create("one.bundle")
    upstream.requests.clear()
    bench.create("two.bundle")
    assert upstream.requests == []
    assert tree(bench.folder / "one.bundle", without="metadata") == tree(bench.folder / "two.bundle", without="metadata")
    verified, findings = bench.verify()
    assert findings == ()
    artifact = verified.contents[ContentClass.OS].artifacts[0]
    assert [package.path for package in artifact.packages] == [
        "pool/app_2%3a1.5-1_amd64.deb",
        "pool/base_1.0_amd64.deb",
        "pool/common_1.0_all.deb",
        "pool/lib_1.2_amd64.deb",
    ]
    blobs = tree(bench.folder / "one.bundle" / "blobs" / "sha256")
    assert {hashlib.sha256(debian.debs[name]).hexdigest() for name in ("app", "base", "common", "lib")} <= blobs.keys()


def test_a_package_that_the_archive_dropped_says_to_lock_again(debian: Archive, upstream: Upstream, tmp_path: Path) -> None:
    bench = Bench(folder=tmp_path / "bench", upstream=upstream)
    bench.folder.mkdir()
    bench.profile(PROFILE)
    bench.lock()
    debian.publish(*DEBS[:1], Deb(name="lib", version="1.3"), *DEBS[2:])
    del upstream.files["/debian/pool/main/l/lib_1.2_amd64.deb"]
    with pytest.raises(ToolError) as caught:
        bench.create()
    assert "bundle lock" in (caught.value.hint or "")
    assert not (bench.folder / "one.bundle").exists()


def test_a_login_in_a_source_is_in_no_lock_and_no_message(apt: Apt, debian: Archive, upstream: Upstream, tmp_path: Path) -> None:
    secret = "planted-apt-password-77"
    with_login = debian.source().replace("http://", f"http://me:{secret}@")
    (tmp_path / "sources" / "debian.sources").write_text(with_login)
    assert secret not in repr(apt.closure(["app"]))
    assert upstream.requests[-1].authorization == "Basic " + base64.b64encode(f"me:{secret}".encode()).decode()
    assert [path.name for path in (tmp_path / "apt").rglob("*") if path.is_file() and secret.encode() in path.read_bytes()] == ["auth.conf"]
    assert (tmp_path / "apt" / "auth.conf").stat().st_mode & 0o077 == 0
    upstream.files.clear()
    with pytest.raises(ToolError) as caught:
        apt.closure(["app"])
    assert secret not in caught.value.message


LINE = "deb [arch=amd64,arm64 signed-by=/keys/a.gpg] http://mirror.test/debian bookworm main contrib # a comment"


def test_one_line_sources_keep_their_options() -> None:
    (source,) = read_sources({"sources.list": f"# off\n{LINE}\ndeb-src http://mirror.test/debian bookworm main\n"}, suite="bookworm")
    assert source.uri == "http://mirror.test/debian"
    assert source.stanza() == (
        "Types: deb\nURIs: http://mirror.test/debian\nSuites: bookworm\nComponents: main contrib\n"
        "Architectures: amd64 arm64\nSigned-By: /keys/a.gpg\n\n"
    )


def test_a_one_line_source_that_is_trusted_blindly_is_refused() -> None:
    with pytest.raises(VerificationError, match="nobody signed"):
        read_sources({"x.list": "deb [trusted=yes] http://mirror.test/debian bookworm main"}, suite="bookworm")


def test_a_key_inside_a_stanza_and_switched_off_stanzas_are_understood() -> None:
    text = (
        "Types: deb deb-src\nURIs: http://a.test/d http://b.test/d\nSuites: bookworm bookworm-updates sid\nComponents: main\n"
        "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n -----END PGP PUBLIC KEY BLOCK-----\n\n"
        "Enabled: no\nTypes: deb\nURIs: http://c.test/d\nSuites: bookworm\nComponents: main\n"
    )
    found = read_sources({"x.sources": text}, suite="bookworm")
    assert [(source.uri, source.suites) for source in found] == [
        ("http://a.test/d", ("bookworm", "bookworm-updates")),
        ("http://b.test/d", ("bookworm", "bookworm-updates")),
    ]
    assert " abc\n" in found[0].stanza()


def test_an_index_without_sha256_is_refused(apt: Apt, debian: Archive) -> None:
    data = debian.debs["lib"]
    stanza = f"Package: lib\nVersion: 1.2\nArchitecture: amd64\nFilename: pool/main/l/lib_1.2_amd64.deb\nSize: {len(data)}\n"
    debian.index(f"{stanza}MD5sum: {hashlib.md5(data, usedforsecurity=False).hexdigest()}\n".encode())
    with pytest.raises((FormatError, ToolError)):
        apt.closure(["lib"])
