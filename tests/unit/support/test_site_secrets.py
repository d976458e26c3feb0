# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The search that the lab makes through copies of its machines finds a key however it is written down."""

from __future__ import annotations

import base64
import gzip
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.lab_suite.site_secrets import _grep, _suspects, _tokens, core


def test_a_key_is_found_as_pem_in_base64_in_gzip_in_a_link_and_in_a_name_and_nothing_else_is(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    secrets = {"key": core(key)}
    folder = tmp_path / "machine"
    folder.mkdir()
    (folder / "pem").write_bytes(b"it was:\n" + pem)
    (folder / "escaped").write_text(repr(pem.decode())[1:-1])
    (folder / "lines").write_bytes(b"\n".join(base64.b64encode(core(key))[at : at + 10] for at in range(0, 44, 10)))
    (folder / "packed.gz").write_bytes(gzip.compress(pem))
    (folder / "link").symlink_to(core(key).hex())
    (folder / core(key).hex()).touch()
    (folder / "public").write_bytes(key.public_key().public_bytes_raw() + base64.b64encode(b"some other key of the same length"))
    found = {path.name for path in _suspects(secrets, folder)}
    assert found == {"pem", "escaped", "lines", "packed.gz", "link", core(key).hex()}
    assert "pem" in _grep(secrets, folder)


def test_a_join_token_is_found_and_what_only_looks_like_one_is_not(tmp_path: Path) -> None:
    (tmp_path / "run.log").write_text('"token": "abcdef.0123456789abcdef"\n')
    (tmp_path / "other.log").write_text("package abcdef.0123456789abcdef.deb and xabcdef.0123456789abcdef0\n")
    assert [(path.name, token) for path, token in _tokens(tmp_path)] == [("run.log", b"abcdef.0123456789abcdef")]
