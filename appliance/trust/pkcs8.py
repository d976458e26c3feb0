# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Encrypted PKCS#8 with a key derivation that resists guessing.

`cryptography` writes PBES2 with 2,048 rounds of PBKDF2; a passphrase deserves more. This writes the same structure
with scrypt (RFC 7914 section 7: N = 2^14, r = 8, p = 5; 16 MiB, the most that OpenSSL reads by itself) and AES-256-CBC
(RFC 8018 section 6.2). OpenSSL and `cryptography` read it.
"""

from __future__ import annotations

import base64
import os
from typing import Final

from cryptography.hazmat.primitives import padding
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

_N: Final = 2**14
_R: Final = 8
_P: Final = 5
_PBES2: Final = bytes.fromhex("06092a864886f70d01050d")
_SCRYPT: Final = bytes.fromhex("06092b06010401da47040b")
_AES_256_CBC: Final = bytes.fromhex("060960864801650304012a")
_SEQUENCE: Final = 0x30
_OCTETS: Final = 0x04
_INTEGER: Final = 0x02
_SHORT_LENGTH: Final = 0x80


def _der(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    if len(body) < _SHORT_LENGTH:
        return bytes([tag, len(body)]) + body
    length = len(body).to_bytes((len(body).bit_length() + 7) // 8, "big")
    return bytes([tag, _SHORT_LENGTH | len(length)]) + length + body


def _integer(value: int) -> bytes:
    return _der(_INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def encrypt_private_key(plain_pem: bytes, passphrase: bytes) -> bytes:
    """Return the `ENCRYPTED PRIVATE KEY` PEM of an unencrypted PKCS#8 PEM."""
    plain = base64.b64decode(b"".join(line for line in plain_pem.splitlines() if not line.startswith(b"-")))
    salt, vector = os.urandom(16), os.urandom(16)
    key = Scrypt(salt=salt, length=32, n=_N, r=_R, p=_P).derive(passphrase)
    padder = padding.PKCS7(128).padder()
    encryptor = Cipher(algorithms.AES(key), modes.CBC(vector)).encryptor()
    sealed = encryptor.update(padder.update(plain) + padder.finalize()) + encryptor.finalize()
    derivation = _der(_SEQUENCE, _SCRYPT, _der(_SEQUENCE, _der(_OCTETS, salt), _integer(_N), _integer(_R), _integer(_P)))
    scheme = _der(_SEQUENCE, _AES_256_CBC, _der(_OCTETS, vector))
    whole = _der(_SEQUENCE, _der(_SEQUENCE, _PBES2, _der(_SEQUENCE, derivation, scheme)), _der(_OCTETS, sealed))
    text = base64.b64encode(whole)
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return b"\n".join([b"-----BEGIN ENCRYPTED PRIVATE KEY-----", *lines, b"-----END ENCRYPTED PRIVATE KEY-----", b""])
