# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""DSSE: signed envelopes with a threshold of keys (docs/bundle-format.md section 5.5).

Source: DSSE specification 1.0.2 (protocol.md: PAE, signing, verifying; envelope.md: JSON form). Own code, since
securesystemslib refuses signatures without `keyid` and leaves the payload type to its caller.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import Key, Signature

from appliance.bundle.documents import JSON_ERRORS, MAX_DOCUMENT_BYTES, Record, encode, reason_of
from appliance.errors import FormatError, VerificationError
from appliance.trust.keys import Signer

_AGAIN = "carry it again; if it stays so, do not use it"
_URL_SAFE = str.maketrans("-_", "+/")


class _Signature(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    sig: str
    keyid: str = ""


class _Envelope(msgspec.Struct, frozen=True, kw_only=True, rename={"payload_type": "payloadType"}):
    payload: str
    payload_type: str
    signatures: tuple[_Signature, ...]


class _OwnSignature(Record, frozen=True, kw_only=True):
    keyid: str
    sig: str


class _OwnEnvelope(Record, frozen=True, kw_only=True, rename={"payload_type": "payloadType"}):
    payload: str
    payload_type: str
    signatures: tuple[_OwnSignature, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A payload and the identifiers of the distinct keys whose signatures on it verify."""

    payload: bytes
    payload_type: str
    signed_by: frozenset[str]


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return the pre-authentication encoding (protocol.md, "PAE"): what is signed."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def _decode64(text: str, *, what: str) -> bytes:
    """Decode standard or URL-safe base64, as envelope.md says a verifier must."""
    try:
        return base64.b64decode(text.translate(_URL_SAFE), validate=True)
    except ValueError as error:
        raise FormatError(f"{what}: not base64: {error}", hint=_AGAIN) from error


def seal(payload_type: str, payload: bytes, signers: Sequence[Signer]) -> bytes:
    """Return the envelope of `payload`, signed by all of `signers`, in canonical form."""
    return _encode(
        payload_type, payload, {signer.public_key.keyid: signer.sign(pae(payload_type, payload)).signature for signer in signers}
    )


def _encode(payload_type: str, payload: bytes, signatures: Mapping[str, str]) -> bytes:
    entries = [_OwnSignature(keyid=keyid, sig=base64.b64encode(bytes.fromhex(sig)).decode()) for keyid, sig in sorted(signatures.items())]
    return encode(_OwnEnvelope(payload=base64.b64encode(payload).decode(), payload_type=payload_type, signatures=tuple(entries)))


def add_seals(envelope: bytes, signers: Sequence[Signer], *, what: str) -> bytes:
    """Return our own envelope with the signatures of `signers` added.

    Raises:
        FormatError: not an envelope in canonical form.
    """
    found = _read_own(envelope, what=what)
    payload = _decode64(found.payload, what=what)
    signatures = {each.keyid: _decode64(each.sig, what=what).hex() for each in found.signatures}
    for signer in signers:
        if signer.public_key.keyid not in signatures:
            signatures[signer.public_key.keyid] = signer.sign(pae(found.payload_type, payload)).signature
    return _encode(found.payload_type, payload, signatures)


def _read_own(envelope: bytes, *, what: str) -> _OwnEnvelope:
    if len(envelope) > 2 * MAX_DOCUMENT_BYTES:
        raise FormatError(f"{what}: {len(envelope)} bytes is more than an envelope may have", hint=_AGAIN)
    try:
        found = msgspec.json.decode(envelope, type=_OwnEnvelope)
    except JSON_ERRORS as error:
        raise FormatError(f"{what}: not a DSSE envelope: {reason_of(error)}", hint=_AGAIN) from error
    canonical = [
        base64.b64encode(_decode64(text, what=what)).decode() for text in (found.payload, *(each.sig for each in found.signatures))
    ]
    if encode(found) != envelope or canonical != [found.payload, *(each.sig for each in found.signatures)]:
        raise FormatError(f"{what}: not in canonical form", hint=_AGAIN)
    return found


def open_own(envelope: bytes, *, payload_type: str, keys: Mapping[str, Key], threshold: int, what: str, partly: bool = False) -> Opened:
    """Return the payload of an envelope that this project wrote: canonical, every signature by one of `keys` and valid.

    With `partly` (before the last person has signed) fewer than `threshold` are enough, but none may be wrong.

    Raises:
        FormatError: malformed or not canonical.
        VerificationError: another payload type, a wrong or foreign signature, or fewer than `threshold`.
    """
    found = _read_own(envelope, what=what)
    keyids = [each.keyid for each in found.signatures]
    if foreign := [keyid for keyid in keyids if keyid not in keys]:
        raise VerificationError(f"{what}: signed by {foreign[0][:16]}, which is not a key of its role", hint=_AGAIN)
    opened = open_envelope(envelope, payload_type=payload_type, keys=keys, threshold=0 if partly else threshold, what=what)
    if len(set(keyids)) != len(keyids) or opened.signed_by != set(keyids):
        raise VerificationError(f"{what}: a signature on it does not verify or stands twice", hint=_AGAIN)
    return opened


def open_envelope(envelope: bytes, *, payload_type: str, keys: Mapping[str, Key], threshold: int, what: str) -> Opened:
    """Return the payload of any DSSE envelope that `threshold` distinct `keys` (by identifier) signed.

    `keyid` in an envelope is only a hint (protocol.md): a signature without one, or with an unknown one, is tried with
    every key, and a key counts once however often it signed.

    Raises:
        FormatError: not an envelope.
        VerificationError: another payload type, or fewer than `threshold` keys.
    """
    try:
        found = msgspec.json.decode(envelope, type=_Envelope)
    except JSON_ERRORS as error:
        raise FormatError(f"{what}: not a DSSE envelope: {reason_of(error)}", hint=_AGAIN) from error
    if not found.payload_type or found.payload_type != payload_type:
        raise VerificationError(
            f"{what}: payload type {found.payload_type[:80]!r}, expected {payload_type!r}", hint="check which file was given"
        )
    payload = _decode64(found.payload, what=what)
    message = pae(found.payload_type, payload)
    valid: set[str] = set()
    for signature in found.signatures:
        raw = _decode64(signature.sig, what=what).hex()
        named = [keys[signature.keyid]] if signature.keyid in keys else list(keys.values())
        valid.update(key.keyid for key in named if _verifies(key, raw, message))
    if len(valid) < threshold:
        raise VerificationError(
            f"{what}: {len(valid)} of {threshold} needed signatures", hint="have the holders of the missing keys sign it"
        )
    return Opened(payload=payload, payload_type=found.payload_type, signed_by=frozenset(valid))


def _verifies(key: Key, signature: str, message: bytes) -> bool:
    try:
        key.verify_signature(Signature(key.keyid, signature), message)
    except UnverifiedSignatureError:
        return False
    return True
