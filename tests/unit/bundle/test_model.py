# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import functools
import io
import json
import pickle
from collections.abc import Mapping

import pytest

from appliance.bundle import formats
from appliance.bundle.model import MAX_TEXT_BYTES, EntryKind, ModelEntry, check_model
from appliance.errors import ApplianceError, FormatError, VerificationError


def shard(*names: str) -> bytes:
    header = {name: {"dtype": "U8", "shape": [4], "data_offsets": [4 * place, 4 * place + 4]} for place, name in enumerate(names)}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(4 * len(names))


WEIGHT_MAP = {"a": "m-1.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors"}
INDEX = {"metadata": {"total_size": 12}, "weight_map": WEIGHT_MAP}
MODEL: Mapping[str, bytes] = {
    "config.json": b'{"architectures": ["LlamaForCausalLM"], "rope_theta": 10000.0}',
    "m-1.safetensors": shard("a", "b"),
    "m-2.safetensors": shard("c"),
    "model.safetensors.index.json": json.dumps(INDEX).encode(),
    "tokenizer.json": b'{"version": "1.0"}',
    "tokenizer.model": b"\x0a\x0e\x0a\x05<unk>\x15\x00\x00\x00\x00\x18\x02",
    "chat_template.jinja": b"{{ messages }}",
    "LICENSE": b"Apache-2.0",
    "README.md": "Ein Modell, größer als nötig".encode(),
}


def entries(files: Mapping[str, bytes], kinds: Mapping[str, EntryKind] | None = None) -> list[ModelEntry]:
    return [
        ModelEntry(path=path, kind=(kinds or {}).get(path, EntryKind.FILE), size=len(data), open=functools.partial(io.BytesIO, data))
        for path, data in files.items()
    ]


def refused(files: Mapping[str, bytes], match: str, kind: type[ApplianceError], kinds: Mapping[str, EntryKind] | None = None) -> None:
    with pytest.raises(kind, match=match) as caught:
        check_model(entries(files, kinds), name="tiny")
    assert caught.value.hint


def test_a_model_of_two_shards_passes_in_any_order() -> None:
    found = check_model(entries(MODEL), name="tiny")
    assert [file.path for file in found] == sorted(MODEL)
    assert check_model(entries(MODEL)[::-1], name="tiny") == found
    types = {file.path: file.media_type for file in found}
    assert types["m-1.safetensors"] == formats.MODEL_WEIGHT_RAW
    assert types["config.json"] == formats.MODEL_WEIGHT_CONFIG_RAW
    assert types["README.md"] == types["LICENSE"] == formats.MODEL_DOC_RAW


def test_a_single_file_and_a_gguf_pass_without_an_index() -> None:
    check_model(entries({"model.safetensors": shard("a")}), name="tiny")
    check_model(entries({"model.gguf": b"GGUF\x03\x00\x00\x00" + bytes(16)}), name="tiny")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "a.pt", "a.PTH", "a.ckpt", "a.pkl", "a.pickle", "sub/a.npz", "a.h5", "LICENSE.bin"])
def test_pickle_by_name_is_refused_whatever_it_holds(name: str) -> None:
    refused({**MODEL, name: b"harmless"}, "pickle and other formats", VerificationError)


@pytest.mark.parametrize(
    ("name", "data", "match"),
    [
        ("tokenizer.json", pickle.dumps({"a": 1}), "a pickle"),
        ("vocab.txt", pickle.dumps([1], protocol=2), "a pickle"),
        ("tokenizer.model", pickle.dumps("x", protocol=5), "a pickle"),
        ("README.md", b"PK\x03\x04rest", "a zip archive"),
        ("LICENSE", b"\x7fELF", "a program"),
        ("merges.txt", b"#!/bin/sh\nrm -rf /", "a script"),
        ("notes.txt", b"\x93NUMPY", "a NumPy file"),
        ("vocab.txt", b"\x1f\x8b\x08", "a gzip archive"),
        ("tokenizer.model", b"cos\nsystem\n(S'id'\ntR.", "a pickle"),
        ("vocab.txt", b"cos\nsystem\n(S'id'\ntR.", "a pickle"),
        ("vocab.txt", b"cos\nsystem\n(S'id'\ntR", "a pickle"),
        ("vocab.txt", b"I1\n0(S'id'\nios\nsystem\n.", "a pickle"),
        ("README.md", pickle.dumps(functools.partial(print, "x"), protocol=0), "a pickle"),
    ],
)
def test_what_could_run_is_refused_by_content(name: str, data: bytes, match: str) -> None:
    refused({**MODEL, name: data}, match, VerificationError)


@pytest.mark.parametrize("data", [b"", b"text", b"\x0a\x05ab", b"(lp0\nI1\na.", b"\x0a\x01a\x63", bytes(20), b"\x0a" + b"\xff" * 12])
def test_a_model_file_that_is_no_tokenizer_is_refused(data: bytes) -> None:
    refused({**MODEL, "tokenizer.model": data}, "neither a SentencePiece model", FormatError)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("tokenizer.model", b"IQ== 0\nIg== 1\nIw== 2\n"),
        ("tokenizer.model", b"\x0a\x03\x0a\x01a\x12\x02\x18\x01\x1a\x00\xc2\x0c\x00"),
        ("vocab.txt", b"cat\ndog\nmouse\n"),
        ("vocab.txt", b"cos\nsystem\nR\n"),
        ("README.md", b"Read me. Rather long.\n"),
    ],
)
def test_data_that_only_looks_odd_passes(name: str, data: bytes) -> None:
    check_model(entries({**MODEL, name: data}), name="tiny")


@pytest.mark.parametrize("name", ["modeling_tiny.py", "sub/setup.PY", "a.so", "run.sh", "a.ipynb", "LICENSE.py"])
def test_code_is_refused(name: str) -> None:
    refused({**MODEL, name: b"x = 1"}, "code is refused", VerificationError)


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("value", [{"auto_map": {}}, {"a": [{"auto_map": {"AutoModel": "x.Y"}}]}])
def test_auto_map_is_refused_wherever_it_stands(name: str, value: object) -> None:
    refused({**MODEL, name: json.dumps(value).encode()}, "auto_map", VerificationError)


def test_auto_map_in_another_spelling_is_refused() -> None:
    refused({**MODEL, "config.json": b'{"\\u0061uto_map": {}}'}, "auto_map", VerificationError)
    refused({**MODEL, "config.json": b'{"x": 1, "x": {"auto_map": {}}}'}, "stands twice", FormatError)


@pytest.mark.parametrize("path", ["../config.json", "/config.json", "a/../b.json", "a//b.json", "a\\b.json", "a\n.json"])
def test_a_path_that_is_not_plain_is_refused(path: str) -> None:
    refused({**MODEL, path: b"{}"}, "not a plain relative path", FormatError)


@pytest.mark.parametrize(("kind", "refusal"), [(EntryKind.SYMLINK, VerificationError), (EntryKind.OTHER, FormatError)])
def test_links_and_devices_are_refused(kind: EntryKind, refusal: type[ApplianceError]) -> None:
    refused(MODEL, f"a {kind}, expected a plain file", refusal, {"config.json": kind})


@pytest.mark.parametrize("name", [".gitattributes", "model.onnx", "weights.dat", ".git/config", "a.tar", "config.jsonl", "noext"])
def test_a_file_of_an_unknown_kind_is_refused(name: str) -> None:
    refused({**MODEL, name: b"x"}, "files of this kind are not known", FormatError)


def test_names_that_differ_only_in_case_are_refused() -> None:
    refused({**MODEL, "Config.json": b"{}"}, "differs from Config.json only in case|differs from config.json only in case", FormatError)


def test_a_model_without_weights_is_refused() -> None:
    refused({"config.json": b"{}"}, "no safetensors or GGUF file", FormatError)
    refused({}, "no safetensors or GGUF file", FormatError)


def test_text_that_is_no_text_is_refused() -> None:
    refused({**MODEL, "vocab.txt": b"abc\xff"}, "not text .*at byte 3", FormatError)
    refused({**MODEL, "config.json": b"{"}, "not strict JSON", FormatError)


def test_a_file_that_grew_while_it_was_read_is_refused() -> None:
    entry = ModelEntry(path="config.json", kind=EntryKind.FILE, size=2, open=lambda: io.BytesIO(b"{} "))
    with pytest.raises(FormatError, match="changed while it was read"):
        check_model([*entries({"model.safetensors": shard("a")}), entry], name="tiny")


def test_text_beyond_the_limit_is_refused_unread() -> None:
    entry = ModelEntry(path="config.json", kind=EntryKind.FILE, size=MAX_TEXT_BYTES + 1, open=lambda: io.BytesIO(b""))
    with pytest.raises(FormatError, match="at most"):
        check_model([entry], name="tiny")


def index(change: Mapping[str, str | None]) -> bytes:
    weight_map: dict[str, str | None] = {**WEIGHT_MAP, **change}
    return json.dumps({"weight_map": {name: shard for name, shard in weight_map.items() if shard is not None}}).encode()


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({"model.safetensors.index.json": index({"d": "m-3.safetensors"})}, "names m-3.safetensors, which is not in the folder"),
        ({"m-3.safetensors": shard("d")}, "m-3.safetensors is not named by"),
        ({"model.safetensors.index.json": index({"d": "m-2.safetensors"})}, "tensor 'd' is not where"),
        ({"model.safetensors.index.json": index({"b": None})}, "tensor 'b' is not where"),
        ({"model.safetensors.index.json": index({"a": "m-2.safetensors"})}, "tensor 'a' is not where"),
        ({"m-2.safetensors": shard("c", "a")}, "tensor 'a' is not where"),
        ({"model.safetensors.index.json": index({"a": "../m-1.safetensors"})}, "which is not in the folder"),
        ({"model.safetensors.index.json": b"{}"}, "no weight_map"),
        ({"model.safetensors.index.json": b'{"weight_map": {"a": 1}}'}, "no weight_map"),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(files: Mapping[str, bytes], match: str) -> None:
    refused({**MODEL, **files}, match, FormatError)


def test_one_tensor_in_two_files_without_an_index_is_refused() -> None:
    refused({"a.safetensors": shard("x"), "b.safetensors": shard("x")}, "tensor 'x' is in a.safetensors and in b.safetensors", FormatError)


def test_a_broken_shard_is_named() -> None:
    refused({**MODEL, "m-2.safetensors": MODEL["m-2.safetensors"] + b"x"}, "model tiny: m-2.safetensors: tensors end", FormatError)
