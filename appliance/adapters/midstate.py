# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""SHA-256 whose inner state can be kept on disk, so that a killed run goes on and reads nothing twice.

Python's hashlib cannot give its state away. OpenSSL's `SHA256_CTX` is a plain structure of 112 bytes (openssl/sha.h:
eight state words, a 64-bit length, 64 bytes not yet hashed, their number, the digest's length); it is used through
ctypes from the libcrypto that CPython itself is linked to, as fast as hashlib and outside the interpreter's lock. Where
that library is absent, `begin` gives hashlib and `freeze` gives b"": the caller then reads again.
"""

from __future__ import annotations

import ctypes
import hashlib
from functools import cache
from typing import Protocol

_CONTEXT_BYTES = 112
_DIGEST_BYTES = 32


class Sha256(Protocol):
    """What is used of a hash."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Hash more bytes."""

    def hexdigest(self) -> str:
        """Return the digest so far."""


class ResumableSha256:
    """SHA-256 with a state that can be frozen and thawed."""

    def __init__(self, library: ctypes.CDLL, state: bytes = b"") -> None:
        """Begin anew, or where `state` was frozen."""
        self._library = library
        self._context = ctypes.create_string_buffer(state or bytes(_CONTEXT_BYTES), _CONTEXT_BYTES)
        if not state:
            library.SHA256_Init(self._context)

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Hash more bytes."""
        if isinstance(data, bytes):
            self._library.SHA256_Update(self._context, data, len(data))
            return
        view = memoryview(data).cast("B")
        if view.readonly:
            self._library.SHA256_Update(self._context, view.tobytes(), len(view))
        elif len(view):
            self._library.SHA256_Update(self._context, (ctypes.c_char * len(view)).from_buffer(view), len(view))

    def hexdigest(self) -> str:
        """Return the digest so far; hashing may go on."""
        copy = ctypes.create_string_buffer(self._context.raw, _CONTEXT_BYTES)
        digest = ctypes.create_string_buffer(_DIGEST_BYTES)
        self._library.SHA256_Final(digest, copy)
        return digest.raw.hex()

    def freeze(self) -> bytes:
        """Return the state."""
        return self._context.raw


@cache
def _libcrypto() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL("libcrypto.so.3")
        for name, types in (
            ("SHA256_Init", [ctypes.c_void_p]),
            ("SHA256_Update", [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]),
            ("SHA256_Final", [ctypes.c_void_p, ctypes.c_void_p]),
        ):
            getattr(library, name).argtypes = types
    except (OSError, AttributeError):
        return None
    probe = ResumableSha256(library)
    probe.update(b"abc" * 50)
    again = ResumableSha256(library, probe.freeze())
    again.update(b"d")
    return library if again.hexdigest() == hashlib.sha256(b"abc" * 50 + b"d").hexdigest() else None


def begin(state: bytes = b"") -> Sha256:
    """Return a hash that goes on from `state`, or a new one when it is empty."""
    library = _libcrypto()
    return hashlib.sha256() if library is None else ResumableSha256(library, state)


def freeze(hashing: Sha256) -> bytes:
    """Return the state of `hashing`, b"" when it cannot be kept."""
    return hashing.freeze() if isinstance(hashing, ResumableSha256) else b""
