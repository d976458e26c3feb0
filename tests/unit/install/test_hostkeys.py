# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Host keys: fingerprints as ssh prints them, the files that hold them, and the refusal when one changed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from appliance.adapters.host import HostKey, Login, parse_host_key
from appliance.errors import FormatError, HostError, UsageError, VerificationError
from appliance.install.hostkeys import check_shown, host_name, logins, read_expected, read_known, save_known
from appliance.install.places import SitePlaces
from tests.support.site import SITE, host_key, site

CP1 = site().machines[1]


def test_a_fingerprint_is_what_ssh_keygen_prints(tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    kind, blob = (tmp_path / "key.pub").read_text().split()[:2]
    printed = subprocess.run(["ssh-keygen", "-lf", tmp_path / "key.pub"], capture_output=True, text=True, check=True).stdout
    assert HostKey(kind=kind, blob=blob).fingerprint == printed.split()[1]


def test_what_is_saved_is_read_again_and_ssh_finds_it(tmp_path: Path) -> None:
    places = SitePlaces(state=tmp_path)
    other = site(SITE.replace('roles = ["worker", "gpu"]', 'roles = ["worker", "gpu"]\nssh_port = 2222')).machines[2]
    known = {host_name(CP1): host_key("cp1"), host_name(other): host_key("gpu1")}
    assert save_known(places, known)
    assert not save_known(places, known)
    assert read_known(places.known_hosts) == known
    assert places.known_hosts.stat().st_mode & 0o777 == 0o600
    for name in ("10.20.0.11", "[10.20.0.21]:2222"):
        assert subprocess.run(["ssh-keygen", "-F", name, "-f", places.known_hosts], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    "line", ["10.20.0.11 ssh-dss AAAA", "10.20.0.11", "10.20.0.11 ssh-ed25519 not*base64", "@cert-authority * ssh-ed25519 AAAA"]
)
def test_a_known_hosts_that_we_did_not_write_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "known_hosts").write_text(line + "\n")
    with pytest.raises(FormatError, match="not a line of this file"):
        read_known(tmp_path / "known_hosts")


def test_one_machine_twice_in_known_hosts_is_refused(tmp_path: Path) -> None:
    lines = "".join(f"10.20.0.11 ssh-ed25519 {host_key(name).blob}\n" for name in ("a", "b"))
    (tmp_path / "known_hosts").write_text(lines)
    with pytest.raises(FormatError):
        read_known(tmp_path / "known_hosts")


def test_expected_fingerprints_are_read_with_comments_and_several_per_machine(tmp_path: Path) -> None:
    first, second = host_key("a").fingerprint, host_key("b").fingerprint
    (tmp_path / "expected").write_text(f"# from the consoles\ncp1 {first}  # rack 1\ncp1 {second}\n\ngpu1 {second}\n")
    assert read_expected(tmp_path / "expected") == {"cp1": {first, second}, "gpu1": {second}}


@pytest.mark.parametrize("line", ["cp1", "cp1 MD5:aa:bb", "cp1 SHA256:short", "cp1 SHA256:" + "A" * 43 + " extra"])
def test_another_line_among_the_expected_fingerprints_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "expected").write_text(line + "\n")
    with pytest.raises(FormatError, match="line 1"):
        read_expected(tmp_path / "expected")
    with pytest.raises(HostError):
        read_expected(tmp_path / "none")
    with pytest.raises(FormatError, match="expected a regular file"):
        read_expected(Path("/dev/zero"))


def test_a_changed_host_key_is_refused_with_machine_expected_and_got() -> None:
    with pytest.raises(VerificationError) as caught:
        check_shown(CP1, {"10.20.0.11": host_key("cp1")}, scan=lambda _: (host_key("evil"),))
    for part in ("cp1 (10.20.0.11)", f"expected {host_key('cp1').fingerprint}", f"got {host_key('evil').fingerprint}"):
        assert part in caught.value.message


def test_the_accepted_key_among_several_is_enough() -> None:
    check_shown(CP1, {"10.20.0.11": host_key("cp1")}, scan=lambda _: (host_key("rsa"), host_key("cp1")))


def test_a_machine_that_was_never_accepted_is_not_spoken_to() -> None:
    with pytest.raises(UsageError, match="no host key was accepted"):
        check_shown(CP1, {}, scan=lambda _: ())


def test_every_login_checks_host_keys_and_the_depot_is_this_machine(tmp_path: Path) -> None:
    found = logins(site(SITE.replace("accelerator", 'ssh_key = "/etc/appliance/ssh-key"\naccelerator', 1)), SitePlaces(state=tmp_path))
    assert found["depot"] == Login(name="depot")
    for name in ("cp1", "gpu1"):
        options = found[name].options
        assert "StrictHostKeyChecking=yes" in options
        assert f"UserKnownHostsFile={tmp_path}/site/known_hosts" in options
        assert "GlobalKnownHostsFile=/dev/null" in options
        assert "IdentityFile=/etc/appliance/ssh-key" in options


@pytest.mark.parametrize(("kind", "blob"), [("ssh-dss", "AAAA"), ("ssh-ed25519", "%%%"), ("ssh-ed25519", ""), ("sk-ssh", "AAAA")])
def test_keys_of_other_kinds_are_not_taken(kind: str, blob: str) -> None:
    assert parse_host_key(kind, blob) is None
