# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""DSSE: the nine situations of the protocol's public vectors, made again from the keys of RFC 8032, and our stricter form."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.signer import CryptoSigner, Key, SSlibKey

from appliance.errors import ApplianceError, FormatError, VerificationError
from appliance.trust import envelope as module
from appliance.trust.envelope import add_seals, open_envelope, open_own, pae, seal
from tests.support.simulator import person

TYPE = "application/vnd.in-toto+json"
PAYLOAD = b'{"_type":"https://in-toto.io/Statement/v1"}'
# RFC 8032 section 7.1, tests 1 and 2
SEEDS = {
    "A": "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
    "B": "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
}


def signer(name: str) -> CryptoSigner:
    private = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(SEEDS[name]))
    return CryptoSigner(private, SSlibKey.from_crypto(private.public_key(), keyid=name))


def keys(*names: str) -> dict[str, Key]:
    return {name: signer(name).public_key for name in names}


def signature(name: str, payload_type: str, payload: bytes) -> str:
    return base64.b64encode(bytes.fromhex(signer(name).sign(pae(payload_type, payload)).signature)).decode()


def envelope(payload_type: str, payload: bytes, *signatures: dict[str, str]) -> bytes:
    return json.dumps({"payload": base64.b64encode(payload).decode(), "payloadType": payload_type, "signatures": signatures}).encode()


def test_the_encoding_of_the_protocols_own_example() -> None:
    assert pae("http://example.com/HelloWorld", b"hello world") == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert pae("é", b"") == b"DSSEv1 2 \xc3\xa9 0 "


def test_one_signature_is_the_published_one() -> None:
    assert signature("A", TYPE, PAYLOAD).startswith("2WAfaHm5jluo0w+0rk8uVkluELJYWjSmU9x7EUzx")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One situation: what the envelope says, what was really signed, by whom, and whether it is accepted."""

    accepted: bool
    payload_type: str = TYPE
    signed_type: str = TYPE
    payload: bytes = PAYLOAD
    names: str = "A"
    keyids: bool = True
    url_safe: bool = False


CASES = {
    "single signature": Case(accepted=True),
    "url-safe base64": Case(accepted=True, payload=b"\xfb\xff\xbf\x3e\x3f", url_safe=True),
    "payload type swapped": Case(accepted=False, payload_type="application/vnd.example.other+json"),
    "payload type not ASCII": Case(accepted=True, payload_type="application/vnd.exämple+json", signed_type="application/vnd.exämple+json"),
    "empty payload": Case(accepted=True, payload=b""),
    "empty payload type": Case(accepted=False, payload_type="", signed_type=""),
    "two keys": Case(accepted=True, names="AB"),
    "one key twice": Case(accepted=False, names="AA"),
    "two keys without identifiers": Case(accepted=True, names="AB", keyids=False),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_nine_public_situations(case: Case) -> None:
    signed = [(name, signature(name, case.signed_type, case.payload)) for name in case.names]
    data = envelope(case.payload_type, case.payload, *[{"sig": sig, **({"keyid": name} if case.keyids else {})} for name, sig in signed])
    if case.url_safe:
        found = json.loads(data)
        found["payload"] = base64.urlsafe_b64encode(case.payload).decode()
        found["signatures"][0]["sig"] = found["signatures"][0]["sig"].replace("+", "-").replace("/", "_")
        data = json.dumps(found).encode()
    if case.accepted:
        opened = open_envelope(data, payload_type=case.payload_type, keys=keys("A", "B"), threshold=len(case.names), what="vector")
        assert opened.payload == case.payload
        return
    with pytest.raises(VerificationError):
        open_envelope(data, payload_type=case.payload_type, keys=keys("A", "B"), threshold=len(case.names), what="vector")


def own() -> bytes:
    return seal(TYPE, PAYLOAD, person("alice"))


def alice() -> dict[str, Key]:
    return {each.public_key.keyid: each.public_key for each in person("alice")}


def open_it(data: bytes, *, payload_type: str = TYPE, partly: bool = False) -> bytes:
    return open_own(data, payload_type=payload_type, keys=alice(), threshold=2, what="envelope", partly=partly).payload


def test_our_own_envelope_opens_and_a_second_signature_finishes_it() -> None:
    assert open_it(own()) == PAYLOAD
    half = seal(TYPE, PAYLOAD, person("alice")[:1])
    assert open_it(half, partly=True) == PAYLOAD
    with pytest.raises(VerificationError, match="1 of 2"):
        open_it(half)
    assert open_it(add_seals(half, person("alice"), what="envelope")) == PAYLOAD
    assert open_envelope(own(), payload_type=TYPE, keys=alice(), threshold=2, what="any").payload == PAYLOAD


def change(mutate: Any) -> bytes:  # noqa: ANN401 - a mutation of parsed JSON
    found = json.loads(own())
    mutate(found)
    return json.dumps(found, sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    ("data", "kind", "match"),
    [
        (lambda: b"", FormatError, "not a DSSE envelope"),
        (lambda: b"[" * 100_000, FormatError, "not a DSSE envelope"),
        (lambda: own() + b" ", FormatError, "not in canonical form|not a DSSE"),
        (lambda: change(lambda found: found.update(extra=1)), FormatError, "unknown field"),
        (lambda: change(lambda found: found.update(payload=found["payload"][:-1] + "!")), FormatError, "not base64"),
        (lambda: change(lambda found: found.update(payload="e31=")), FormatError, "not in canonical form"),
        (lambda: change(lambda found: found.update(payload="e30=")), VerificationError, "does not verify|of 2 needed"),
        (lambda: change(lambda found: found.update(payloadType="x/y")), VerificationError, "payload type"),
        (lambda: change(lambda found: found["signatures"].pop()), VerificationError, "1 of 2"),
        (lambda: change(lambda found: found["signatures"].append(found["signatures"][0])), VerificationError, "stands twice"),
        (lambda: change(lambda found: found["signatures"][0].update(keyid="0" * 64)), VerificationError, "not a key of its role"),
        (lambda: seal(TYPE, PAYLOAD, person("mallory")), VerificationError, "not a key of its role"),
        (lambda: seal(TYPE, PAYLOAD, [*person("alice"), person("mallory")[0]]), VerificationError, "not a key of its role"),
    ],
)
def test_a_changed_envelope_is_refused(data: Any, kind: type[ApplianceError], match: str) -> None:  # noqa: ANN401
    with pytest.raises(kind, match=match) as caught:
        open_it(data())
    assert caught.value.hint


@pytest.mark.parametrize("payload", ["e3", "e30=e30=", "e30 ", "e3\n0=", "é30="])
def test_a_payload_that_is_no_base64_is_refused(payload: str) -> None:
    data = json.dumps({"payload": payload, "payloadType": TYPE, "signatures": []}).encode()
    with pytest.raises(FormatError, match="not base64"):
        open_envelope(data, payload_type=TYPE, keys=keys("A"), threshold=1, what="any")


@pytest.mark.parametrize("data", [b"", b"[]", b"[" * 100_000, b'{"payload": 1}'])
def test_what_is_no_envelope_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match="not a DSSE envelope"):
        open_envelope(data, payload_type=TYPE, keys=keys("A"), threshold=1, what="any")


def test_an_envelope_that_is_too_long_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_DOCUMENT_BYTES", 10)
    with pytest.raises(FormatError, match="more than an envelope may have"):
        open_it(own())


def test_every_byte_of_an_envelope_is_bound() -> None:
    data = own()
    for position in range(len(data)):
        broken = bytearray(data)
        broken[position] ^= 1
        with pytest.raises(ApplianceError):
            open_it(bytes(broken))
