# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Anonymous bearer tokens, as ghcr.io gives them: a 401 names a realm, the realm gives a JWT to anybody, the registry checks it."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Mapping
from urllib.parse import parse_qs

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from tests.lab.world.tls import Certificates

SERVICE = "ghcr.io"
PATH = "/token"
_ISSUER = "lab"
_LIFE = 300
_SCOPE = re.compile(r"repository:(?P<name>[a-z0-9._/-]+):(?P<actions>[a-z*,]+)")


def registry_settings(base: str, certificates: Certificates) -> dict[str, object]:
    """The `auth` part of distribution's configuration; `base` is the address of the server that gives the tokens."""
    return {"token": {"realm": base + PATH, "service": SERVICE, "issuer": _ISSUER, "rootcertbundle": str(certificates.ca)}}


def answer(query: str, certificates: Certificates) -> bytes:
    """The JSON answer of the realm: a token to pull what the query's scopes name, and nothing else."""
    asked = parse_qs(query)
    now = int(time.time())
    claims: Mapping[str, object] = {
        "iss": _ISSUER,
        "sub": "",
        "aud": asked.get("service", [""])[0],
        "iat": now,
        "nbf": now - 5,
        "exp": now + _LIFE,
        "jti": str(time.monotonic_ns()),
        "access": [
            {"type": "repository", "name": match["name"], "actions": ["pull"]}
            for scope in asked.get("scope", [])
            if (match := _SCOPE.fullmatch(scope)) and "pull" in match["actions"].split(",")
        ],
    }
    return json.dumps({"token": _signed(claims, certificates), "expires_in": _LIFE}).encode()


def _signed(claims: Mapping[str, object], certificates: Certificates) -> str:
    """A JWT (RFC 7519) by ES256, the server's certificate in its header for the registry to check against the authority."""
    key = serialization.load_pem_private_key(certificates.key.read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    certificate = x509.load_pem_x509_certificate(certificates.certificate.read_bytes())
    chain = [base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()]
    head = {"typ": "JWT", "alg": "ES256", "x5c": chain}
    text = f"{_base64(json.dumps(head).encode())}.{_base64(json.dumps(claims).encode())}"
    r, s = decode_dss_signature(key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
    return f"{text}.{_base64(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
