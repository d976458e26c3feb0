# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The site CA (P-256) and the certificates it issues: registry now, gateway, sidecar, agents and services later.

RFC 5280. The CA lives ten years, may not have another below it, and is good for this site alone: name constraints
(section 4.2.1.10, critical) allow `<site>.internal` and the site's own networks. Certificates live 825 days; one with
less than a third of its life left is issued anew, with a new key, by the next `site install`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv4Network

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.adapters.disk import read_small
from appliance.errors import FormatError
from appliance.install.places import PUBLIC_FILE, SitePlaces, ensure_private, write_if_changed
from appliance.install.sitefile import SiteFile
from appliance.install.sitekeys import load_key, write_private_key

CA_LIFE = timedelta(days=3653)
LEAF_LIFE = timedelta(days=825)
_BACKDATED = timedelta(minutes=5)
_MAX_CERTIFICATE_BYTES = 64 * 1024


def site_id(places: SitePlaces) -> str:
    """Return the id of this site: SHA-256 of its CA's public key (DER), 64 hexadecimal digits.

    Raises:
        HostError: the site was not initialised.
    """
    return hashlib.sha256(_ca_key(places).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def ensure_authority(site: SiteFile, places: SitePlaces, *, now: datetime) -> bool:
    """Make the CA certificate if there is none, or again with the same key; says whether it did.

    Again: the site's networks are others now, its life has not begun yet, or less than a third of it is left.

    Raises:
        HostError: it cannot be written.
        FormatError: what is there is not a certificate.
    """
    wanted = _constraints(site)
    if places.authority.exists():
        found = _read(places)
        if _in_its_time(found, CA_LIFE, now) and found.extensions.get_extension_for_class(x509.NameConstraints).value == wanted:
            return False
    key = _ca_key(places)
    name = _name(f"{site.name} site CA")
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    certificate = (
        _builder(name, name, key.public_key(), now, now + CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(wanted, critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    return write_if_changed(places.authority, certificate.public_bytes(Encoding.PEM), mode=PUBLIC_FILE)


def ensure_certificate(service: str, site: SiteFile, places: SitePlaces, *, addresses: Sequence[str], now: datetime) -> bool:
    """Issue the server certificate of `service` for `<service>.<site>.internal` and `addresses`, unless a good one is there.

    Good means: issued by this CA for these names, begun, not outliving the CA, with more than a third of its life left.
    Returns whether it issued.

    Raises:
        HostError: it cannot be written.
        FormatError: what is there is not a certificate.
    """
    names = x509.SubjectAlternativeName(
        [x509.DNSName(f"{service}.{site.name}.internal"), *(x509.IPAddress(IPv4Address(address)) for address in addresses)]
    )
    authority = _read(places)
    path = places.certificate(service)
    if path.exists() and places.certificate_key(service).exists() and _good(_load(path.read_bytes(), str(path)), authority, names, now):
        return False
    ensure_private(path.parent)
    key, issuer = ec.generate_private_key(ec.SECP256R1()), _ca_key(places)
    end = min(now + LEAF_LIFE, authority.not_valid_after_utc)
    certificate = (
        _builder(_name(f"{service}.{site.name}.internal"), authority.subject, key.public_key(), now, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(names, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False)
        .sign(issuer, hashes.SHA256())
    )
    write_private_key(places.certificate_key(service), key)
    return write_if_changed(path, certificate.public_bytes(Encoding.PEM), mode=PUBLIC_FILE)


def expiries(places: SitePlaces) -> dict[str, datetime]:
    """Return when the CA and each issued certificate ends, by name.

    Raises:
        FormatError: a file there is not a certificate.
    """
    return {name: certificate.not_valid_after_utc for name, certificate in _all(places).items()}


def not_begun(places: SitePlaces, *, now: datetime) -> tuple[str, ...]:
    """Return the names, as `expiries` has them, of certificates that are not valid yet: this clock was ahead when they were made.

    Raises:
        FormatError: a file there is not a certificate.
    """
    return tuple(name for name, certificate in _all(places).items() if now < certificate.not_valid_before_utc)


def _all(places: SitePlaces) -> dict[str, x509.Certificate]:
    files = {"ca": places.authority} | {path.stem: path for path in sorted((places.site / "certificates").glob("*.crt"))}
    return {name: _load(path.read_bytes(), str(path)) for name, path in files.items() if path.exists()}


def _ca_key(places: SitePlaces) -> ec.EllipticCurvePrivateKey:
    key = load_key(places, "ca")
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise FormatError(f"{places.authority_key}: not a P-256 key", hint="restore it from the site's backup")
    return key


def _read(places: SitePlaces) -> x509.Certificate:
    return _load(read_small(places.authority, limit=_MAX_CERTIFICATE_BYTES), str(places.authority))


def _load(data: bytes, what: str) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(data)
    except ValueError as error:
        raise FormatError(f"{what}: not a certificate", hint="move it away; site init and site install make it again") from error


def _good(found: x509.Certificate, authority: x509.Certificate, names: x509.SubjectAlternativeName, now: datetime) -> bool:
    if found.issuer != authority.subject or not _in_its_time(found, LEAF_LIFE, now):
        return False
    if found.not_valid_after_utc > authority.not_valid_after_utc:
        return False
    return found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value == names


def _in_its_time(found: x509.Certificate, life: timedelta, now: datetime) -> bool:
    return found.not_valid_before_utc <= now < found.not_valid_after_utc - life / 3


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, end: datetime
) -> x509.CertificateBuilder:
    begin = now - _BACKDATED
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    return builder.serial_number(x509.random_serial_number()).not_valid_before(begin).not_valid_after(end)


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _constraints(site: SiteFile) -> x509.NameConstraints:
    networks = sorted({network.cidr for network in site.networks})
    names: list[x509.GeneralName] = [x509.DNSName(f"{site.name}.internal")]
    return x509.NameConstraints(permitted_subtrees=[*names, *(x509.IPAddress(IPv4Network(n)) for n in networks)], excluded_subtrees=None)
