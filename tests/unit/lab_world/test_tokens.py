# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from tests.lab.world import tokens
from tests.lab.world.tls import Certificates, issue


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return issue(tmp_path / "tls")


def unpadded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def parts(certificates: Certificates, **query: str) -> tuple[str, dict[str, Any], bytes]:
    """The signed text, the claims and the signature of the token for `query`."""
    token = json.loads(tokens.answer(urlencode(query), certificates))["token"]
    text, _, signature = token.rpartition(".")
    claims: dict[str, Any] = json.loads(unpadded(text.partition(".")[2]))
    return text, claims, unpadded(signature)


def test_anybody_gets_a_token_to_pull_what_was_asked_for(certificates: Certificates) -> None:
    _, claims, _ = parts(certificates, service="ghcr.io", scope="repository:ghcr.io/flannel-io/flannel:pull")
    assert claims["aud"] == "ghcr.io"
    assert claims["access"] == [{"type": "repository", "name": "ghcr.io/flannel-io/flannel", "actions": ["pull"]}]
    assert claims["iat"] < claims["exp"]


@pytest.mark.parametrize("scope", ["", "repository:a/b:push", "registry:catalog:*", "repository:a/b"])
def test_a_token_never_allows_more_than_pulling(certificates: Certificates, scope: str) -> None:
    assert parts(certificates, scope=scope)[1]["access"] == []


def test_pushing_is_dropped_from_a_scope_that_asks_for_both(certificates: Certificates) -> None:
    assert parts(certificates, scope="repository:a/b:pull,push")[1]["access"] == [
        {"type": "repository", "name": "a/b", "actions": ["pull"]}
    ]


def test_the_signature_is_that_of_the_certificate_in_the_tokens_head(certificates: Certificates) -> None:
    text, _, signature = parts(certificates, scope="repository:a/b:pull")
    head = json.loads(unpadded(text.partition(".")[0]))
    key = x509.load_der_x509_certificate(base64.b64decode(head["x5c"][0])).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    pair = encode_dss_signature(int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    key.verify(pair, text.encode(), ec.ECDSA(hashes.SHA256()))
