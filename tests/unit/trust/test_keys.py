# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, mldsa, rsa
from securesystemslib.signer import CryptoSigner, Key, SSlibKey
from tuf.api.metadata import Role

from appliance.errors import ApplianceError, FormatError, UsageError, VerificationError
from appliance.trust.keys import (
    Family,
    check_keys,
    check_threshold,
    family,
    generate_pair,
    keyid_of,
    least_threshold,
    load_public_keys,
    load_signer,
    private_pem,
    public_pem,
)
from tests.support.simulator import person

PASSPHRASE = b"five plain words in a row"


def table(*keys: Key) -> dict[str, Key]:
    return {key.keyid: key for key in keys}


def public(*names: str) -> list[SSlibKey]:
    return [signer.public_key for name in names for signer in person(name)]


def test_a_pair_has_one_key_of_each_family() -> None:
    classical, post_quantum = generate_pair()
    assert family(classical.public_key) is Family.CLASSICAL
    assert family(post_quantum.public_key) is Family.ML_DSA
    for signer in (classical, post_quantum):
        assert keyid_of(signer.public_key) == signer.public_key.keyid


@pytest.mark.parametrize(
    "private", [ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1())], ids=["P-256", "P-384"]
)
def test_nist_curves_are_classical_keys(private: ec.EllipticCurvePrivateKey) -> None:
    key = CryptoSigner(private).public_key
    check_keys(table(key), what="root")
    assert family(key) is Family.CLASSICAL


@pytest.mark.parametrize(
    "private",
    [rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP521R1()), mldsa.MLDSA44PrivateKey.generate()],
    ids=["RSA", "P-521", "ML-DSA-44"],
)
def test_other_key_types_are_refused(private: rsa.RSAPrivateKey) -> None:
    with pytest.raises(VerificationError, match="not a key of this format"):
        check_keys(table(CryptoSigner(private).public_key), what="root")


def test_one_public_key_under_two_identifiers_is_refused() -> None:
    key = public("alice")[0]
    twin = SSlibKey("0" * 64, key.keytype, key.scheme, dict(key.keyval))
    with pytest.raises(VerificationError, match="one public key stands under two identifiers"):
        check_keys(table(key, twin), what="root")


def test_one_public_key_spelled_in_two_ways_is_refused() -> None:
    key = public("alice")[1]
    spelled = SSlibKey("x", key.keytype, key.scheme, {"public": key.keyval["public"].rstrip("\n")})
    spelled.keyid = keyid_of(spelled)
    with pytest.raises(VerificationError, match="one public key stands under two identifiers"):
        check_keys(table(key, spelled), what="root")
    with pytest.raises(VerificationError, match="not in its canonical form"):
        check_keys(table(spelled), what="root")


def test_an_identifier_that_is_not_the_keys_hash_is_refused() -> None:
    key = public("alice")[0]
    with pytest.raises(VerificationError, match="is not the hash of its key"):
        check_keys(table(SSlibKey("0" * 64, key.keytype, key.scheme, dict(key.keyval))), what="root")


@pytest.mark.parametrize("extra", [{"unrecognized_fields": {"x": "y"}}, {"keyval_extra": "z"}], ids=["field", "keyval"])
def test_a_key_with_more_fields_is_refused(extra: dict[str, object]) -> None:
    key = public("alice")[0]
    more = SSlibKey(key.keyid, key.keytype, key.scheme, dict(key.keyval))
    if "keyval_extra" in extra:
        more.keyval["private"] = "z"
    else:
        more.unrecognized_fields["x"] = "y"
    with pytest.raises(VerificationError, match="is not the hash of its key"):
        check_keys(table(more), what="root")


@pytest.mark.parametrize("value", ["", "zz", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "00" * 31])
def test_what_is_no_public_key_is_refused(value: str) -> None:
    for keytype, scheme in (("ed25519", "ed25519"), ("ml-dsa", "ml-dsa-65/1")):
        key = SSlibKey("x", keytype, scheme, {"public": value})
        key.keyid = keyid_of(key)
        with pytest.raises(VerificationError):
            check_keys(table(key), what="root")


@pytest.mark.parametrize(
    ("people", "threshold", "refused"),
    [
        (("alice",), 2, ""),
        (("alice",), 1, "alone could meet"),
        (("alice",), 3, "threshold 3 of only 2"),
        (("alice", "bob"), 3, ""),
        (("alice", "bob"), 4, ""),
        (("alice", "bob"), 2, "alone could meet"),
        (("alice", "bob", "carol"), 4, ""),
        (("alice", "bob", "carol"), 3, "alone could meet"),
    ],
)
def test_a_threshold_that_one_family_could_meet_is_refused(people: tuple[str, ...], threshold: int, refused: str) -> None:
    keys = table(*public(*people))
    role = Role(sorted(keys), threshold)
    if not refused:
        check_threshold(role, keys, what="root")
        return
    with pytest.raises(VerificationError, match=refused):
        check_threshold(role, keys, what="root")


def test_a_named_key_that_is_absent_is_refused() -> None:
    keys = table(*public("alice"))
    with pytest.raises(VerificationError, match="named but absent"):
        check_threshold(Role([*keys, "1" * 64], 2), keys, what="root")


def test_the_least_threshold_needs_both_families() -> None:
    assert least_threshold(public("alice")) == 2
    assert least_threshold(public("alice", "bob")) == 3
    assert least_threshold([public("alice")[0], *public("bob")]) == 3


def test_a_private_key_survives_its_encrypted_file() -> None:
    for signer in person("alice"):
        pem = private_pem(signer, PASSPHRASE)
        loaded = load_signer(pem, PASSPHRASE, what="alice.pem")
        assert loaded.public_key == signer.public_key
        assert b"ENCRYPTED PRIVATE KEY" in pem
        assert signer.private_bytes.splitlines()[1] not in pem


def test_the_encrypted_file_is_read_by_openssl_and_uses_scrypt(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(private_pem(person("alice")[0], PASSPHRASE))
    shown = subprocess.run(["openssl", "asn1parse", "-in", str(path)], check=True, capture_output=True, text=True).stdout
    assert "scrypt" in shown
    assert "aes-256-cbc" in shown
    done = subprocess.run(
        ["openssl", "pkey", "-in", str(path), "-passin", "stdin", "-pubout"], input=PASSPHRASE, capture_output=True, check=True
    )
    assert done.stdout == public_pem(person("alice")[0].public_key)


def test_two_files_of_one_key_differ() -> None:
    signer = person("alice")[0]
    assert private_pem(signer, PASSPHRASE) != private_pem(signer, PASSPHRASE)


@pytest.mark.parametrize(
    ("pem", "passphrase", "expected"),
    [
        (lambda: private_pem(person("alice")[0], PASSPHRASE), b"another passphrase", UsageError),
        (lambda: person("alice")[0].private_bytes, PASSPHRASE, FormatError),
        (lambda: b"", PASSPHRASE, FormatError),
        (lambda: b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n", PASSPHRASE, UsageError),
    ],
    ids=["wrong passphrase", "not encrypted", "empty", "garbage"],
)
def test_a_key_file_that_does_not_open_is_refused_without_its_secret(
    pem: object, passphrase: bytes, expected: type[ApplianceError]
) -> None:
    assert callable(pem)
    with pytest.raises(expected) as caught:
        load_signer(pem(), passphrase, what="alice.pem")
    assert passphrase.decode() not in str(caught.value)
    assert caught.value.hint


def test_a_short_passphrase_is_refused() -> None:
    with pytest.raises(UsageError, match="fewer than 8"):
        private_pem(person("alice")[0], b"short")


def test_a_persons_public_file_holds_both_keys() -> None:
    keys = public("alice")
    assert list(load_public_keys(b"".join(map(public_pem, keys)))) == keys


@pytest.mark.parametrize("pem", [b"", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_a_file_without_public_keys_is_refused(pem: bytes) -> None:
    with pytest.raises(FormatError):
        load_public_keys(pem)


def test_a_public_key_of_another_type_is_refused() -> None:
    other = ec.generate_private_key(ec.SECP521R1())
    with pytest.raises(VerificationError, match="not a key of this format"):
        load_public_keys(CryptoSigner(other).public_key.keyval["public"].encode())


def test_the_ed25519_signer_refuses_nothing_it_made() -> None:
    signer = CryptoSigner(ed25519.Ed25519PrivateKey.generate())
    signer.public_key.verify_signature(signer.sign(b"payload"), b"payload")


def test_a_key_that_says_it_is_of_another_type_is_refused() -> None:
    other = CryptoSigner(rsa.generate_private_key(65537, 2048)).public_key
    liar = SSlibKey("x", "ecdsa", "ecdsa-sha2-nistp256", dict(other.keyval))
    liar.keyid = keyid_of(liar)
    with pytest.raises(VerificationError, match="RSAPublicKey is not a key of this format"):
        check_keys(table(liar), what="root")
    swapped = SSlibKey("x", "ml-dsa", "ml-dsa-65/1", dict(CryptoSigner(ec.generate_private_key(ec.SECP256R1())).public_key.keyval))
    swapped.keyid = keyid_of(swapped)
    with pytest.raises(VerificationError, match="not in its canonical form"):
        check_keys(table(swapped), what="root")


def test_a_private_key_of_another_type_is_refused() -> None:
    other = CryptoSigner(rsa.generate_private_key(65537, 2048))
    with pytest.raises(FormatError, match="RSAPrivateKey is not a key of this format"):
        load_signer(private_pem(other, PASSPHRASE), PASSPHRASE, what="rsa.pem")
