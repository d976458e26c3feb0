# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The site CA: OpenSSL accepts what it issues for this site, refuses it for anything else, and renewal is no surprise."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from appliance.errors import FormatError, HostError
from appliance.install.authority import CA_LIFE, LEAF_LIFE, ensure_authority, ensure_certificate, expiries, not_begun, site_id
from appliance.install.places import SitePlaces
from appliance.install.sitekeys import load_key, make_site_keys
from tests.support.site import SITE, site, snapshot

NOW = datetime.now(UTC).replace(microsecond=0)
HERE = site()


@pytest.fixture
def places(tmp_path: Path) -> SitePlaces:
    found = SitePlaces(state=tmp_path)
    make_site_keys(found)
    assert ensure_authority(HERE, found, now=NOW)
    assert ensure_certificate("registry", HERE, found, addresses=["10.20.0.10"], now=NOW)
    return found


def verify(places: SitePlaces, *words: str, certificate: Path | None = None, purpose: str = "sslserver") -> bool:
    command = ["openssl", "verify", "-x509_strict", "-CAfile", str(places.authority), "-purpose", purpose, *words]
    return subprocess.run([*command, str(certificate or places.certificate("registry"))], capture_output=True, check=False).returncode == 0


def test_openssl_accepts_the_certificate_for_its_names_and_no_others(places: SitePlaces) -> None:
    assert verify(places, "-verify_ip", "10.20.0.10")
    assert verify(places, "-verify_hostname", "registry.harbour.internal")
    assert not verify(places, "-verify_ip", "10.20.0.11")
    assert not verify(places, "-verify_hostname", "gateway.harbour.internal")
    assert not verify(places, purpose="sslclient")


@pytest.mark.parametrize("name", [x509.DNSName("bank.example"), x509.DNSName("registry.island.internal")])
def test_the_ca_is_good_for_this_site_alone(places: SitePlaces, name: x509.GeneralName) -> None:
    authority = x509.load_pem_x509_certificate(places.authority.read_bytes())
    key, issuer = ec.generate_private_key(ec.SECP256R1()), load_key(places, "ca")
    assert isinstance(issuer, ec.EllipticCurvePrivateKey)
    stolen = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(authority.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([name]), critical=True)
        .sign(issuer, hashes.SHA256())
    )
    path = places.site / "stolen.crt"
    path.write_bytes(stolen.public_bytes(serialization.Encoding.PEM))
    assert not verify(places, certificate=path)


def test_a_second_time_nothing_is_issued(places: SitePlaces) -> None:
    before = snapshot(places.site)
    assert not ensure_authority(HERE, places, now=NOW + timedelta(days=30))
    assert not ensure_certificate("registry", HERE, places, addresses=["10.20.0.10"], now=NOW + timedelta(days=30))
    assert snapshot(places.site) == before


def test_a_certificate_near_its_end_or_for_other_names_is_issued_anew_with_a_new_key(places: SitePlaces) -> None:
    key = places.certificate_key("registry").read_bytes()
    assert ensure_certificate("registry", HERE, places, addresses=["10.20.0.10"], now=NOW + LEAF_LIFE * 0.7)
    assert places.certificate_key("registry").read_bytes() != key
    assert places.certificate_key("registry").stat().st_mode & 0o777 == 0o600
    assert ensure_certificate("registry", HERE, places, addresses=["10.20.0.12"], now=NOW)


def test_what_a_clock_ahead_made_is_made_again_once_the_clock_is_right(places: SitePlaces) -> None:
    before, right = site_id(places), NOW - timedelta(days=400)
    assert not_begun(places, now=right) == ("ca", "registry")
    assert ensure_authority(HERE, places, now=right)
    assert ensure_certificate("registry", HERE, places, addresses=["10.20.0.10"], now=right)
    assert not_begun(places, now=right) == ()
    assert verify(places, "-verify_ip", "10.20.0.10", "-attime", str(int(right.timestamp())))
    assert site_id(places) == before
    assert not ensure_authority(HERE, places, now=right)
    assert not ensure_certificate("registry", HERE, places, addresses=["10.20.0.10"], now=right)


def test_the_ca_is_made_again_with_its_key_in_its_last_third_and_nothing_outlives_it(places: SitePlaces) -> None:
    before, late = site_id(places), NOW + CA_LIFE * 0.7
    assert not ensure_authority(HERE, places, now=NOW + CA_LIFE * 0.6)
    near = NOW + CA_LIFE - timedelta(days=300)
    assert ensure_certificate("registry", HERE, places, addresses=["10.20.0.10"], now=near)
    assert expiries(places)["registry"] == expiries(places)["ca"]
    assert ensure_authority(HERE, places, now=late)
    assert site_id(places) == before
    assert (expiries(places)["ca"] - late).days == CA_LIFE.days


def test_a_certificate_that_outlives_the_ca_is_issued_anew(places: SitePlaces) -> None:
    back = NOW - timedelta(days=3000)
    places.authority.unlink()
    ensure_authority(HERE, places, now=back)
    assert expiries(places)["registry"] > expiries(places)["ca"]
    assert ensure_certificate("registry", HERE, places, addresses=["10.20.0.10"], now=NOW)
    assert expiries(places)["registry"] == expiries(places)["ca"]


def test_new_networks_give_a_new_ca_certificate_of_the_same_key_and_old_certificates_stay_good(places: SitePlaces) -> None:
    before = site_id(places)
    more = site(SITE + '\n[[networks]]\nname = "lab-desks"\ncidr = "10.22.0.0/24"\nclass = "users"\n')
    assert ensure_authority(more, places, now=NOW)
    assert site_id(places) == before
    assert verify(places, "-verify_ip", "10.20.0.10")


def test_how_long_certificates_last_is_told(places: SitePlaces) -> None:
    ends = expiries(places)
    assert set(ends) == {"ca", "registry"}
    assert (ends["registry"] - NOW).days == 825
    assert (ends["ca"] - NOW).days == 3653


def test_something_else_in_the_place_of_key_or_certificate_is_refused(places: SitePlaces) -> None:
    places.authority.write_text("no certificate")
    with pytest.raises(FormatError, match="not a certificate"):
        ensure_certificate("gateway", HERE, places, addresses=[], now=NOW)
    places.authority_key.write_text("no key")
    with pytest.raises(FormatError, match="not a private key"):
        site_id(places)
    places.authority_key.unlink()
    with pytest.raises(HostError):
        site_id(places)
