# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What a model folder may hold (docs/bundle-format.md section 5.6).

An allow-list, not a scanner: safetensors, GGUF, tokenizer files, JSON and text. Whatever could run when a model is
loaded is refused whatever it contains: pickle by name and by content, Python files, `auto_map`. The caller walks the
folder and says what each entry is; nothing here opens a path by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import BinaryIO, Final

from appliance.bundle import formats
from appliance.bundle.contents import check_relative
from appliance.bundle.gguf import read_gguf_header
from appliance.bundle.pickles import calls_when_loaded, is_tokenizer_model
from appliance.bundle.safetensors import SafetensorsHeader, parse_strict_json, read_header
from appliance.errors import FormatError, VerificationError

MAX_TEXT_BYTES: Final = 64 * 1024 * 1024
"""JSON and text larger than this are refused; tokenizers of 256,000 entries are below 40 MB."""

_WEIGHTS: Final = (".safetensors", ".gguf")
_CONFIG: Final = (".json", ".model", ".tiktoken", ".jinja", ".txt")
_DOCUMENTS: Final = (".md", ".rst")
_DOCUMENT_NAMES: Final = ("LICENSE", "LICENCE", "NOTICE", "README", "USE_POLICY", "COPYING", "AUTHORS", "CITATION")
_PICKLE: Final = (
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".pkl",
    ".pickle",
    ".joblib",
    ".dill",
    ".npy",
    ".npz",
    ".h5",
    ".keras",
    ".msgpack",
    ".nemo",
    ".mar",
)
_CODE: Final = (".py", ".pyc", ".pyi", ".so", ".sh", ".js", ".ipynb", ".dll", ".dylib", ".wasm", ".exe")
_RUNNABLE_STARTS: Final[Mapping[bytes, str]] = {
    **{bytes([0x80, protocol]): "a pickle" for protocol in range(6)},
    b"PK\x03\x04": "a zip archive (a torch checkpoint is one)",
    b"PK\x05\x06": "a zip archive",
    b"\x93NUMPY": "a NumPy file",
    b"\x89HDF": "an HDF5 file",
    b"\x7fELF": "a program",
    b"#!": "a script",
    b"MZ": "a program",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
}
_HEAD_BYTES: Final = 8
_REMOVE: Final = "take this file out of the model's folder, or ask the publisher for a safetensors version"


class EntryKind(StrEnum):
    """What the caller's walk found, links not followed."""

    FILE = "file"
    SYMLINK = "symbolic link"
    OTHER = "device, pipe or socket"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """One entry of the walk: POSIX path in the folder, kind, bytes, and how to open it for reading."""

    path: str
    kind: EntryKind
    size: int
    open: Callable[[], AbstractContextManager[BinaryIO]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """One accepted file and the media type its layer gets."""

    path: str
    size: int
    media_type: str


def check_model(entries: Iterable[ModelEntry], *, name: str) -> tuple[ModelFile, ...]:
    """Return the files of the model `name` in the order of their paths, each looked into as far as its kind demands.

    Raises:
        VerificationError: a symbolic link, which may lead to other bytes tomorrow; something that could run: pickle,
            code, `auto_map`.
        FormatError: a device, a path that is not plain, an unknown or malformed file, no weights, or shards that differ
            from the index.
    """
    ordered = sorted(entries, key=lambda entry: entry.path)
    folded: dict[str, str] = {}
    files: list[ModelFile] = []
    headers: dict[str, SafetensorsHeader] = {}
    indexes: dict[str, Mapping[str, object]] = {}
    for entry in ordered:
        what = f"model {name}: {entry.path}"
        check_relative(entry.path, what=f"model {name}")
        if entry.kind is EntryKind.SYMLINK:
            raise VerificationError(f"{what}: a {entry.kind}, expected a plain file", hint="replace it by the file itself")
        if entry.kind is not EntryKind.FILE:
            raise FormatError(f"{what}: a {entry.kind}, expected a plain file", hint="replace it by the file itself")
        twin = folded.setdefault(entry.path.casefold(), entry.path)
        if twin != entry.path:
            raise FormatError(f"{what}: it differs from {twin} only in case", hint="rename one of them")
        files.append(ModelFile(path=entry.path, size=entry.size, media_type=_media_type(entry, what=what)))
        _look_into(entry, headers, indexes, what=what)
    if not any(file.media_type == formats.MODEL_WEIGHT_RAW for file in files):
        raise FormatError(f"model {name}: no safetensors or GGUF file in its folder", hint="check the model's path in the profile")
    _check_index(headers, indexes, name=name)
    return tuple(files)


def _media_type(entry: ModelEntry, *, what: str) -> str:
    """Return the layer's media type by the file's name."""
    base = entry.path.rpartition("/")[2]
    lower = base.lower()
    if lower.endswith(_PICKLE):
        raise VerificationError(f"{what}: pickle and other formats that run code when loaded are refused", hint=_REMOVE)
    if lower.endswith(_CODE):
        raise VerificationError(f"{what}: code is refused in a model", hint=_REMOVE)
    if lower.endswith(_WEIGHTS):
        return formats.MODEL_WEIGHT_RAW
    if base.upper().split(".")[0] in _DOCUMENT_NAMES or lower.endswith(_DOCUMENTS):
        return formats.MODEL_DOC_RAW
    if lower.endswith(_CONFIG):
        return formats.MODEL_WEIGHT_CONFIG_RAW
    raise FormatError(f"{what}: files of this kind are not known", hint="take it out of the model's folder if the model loads without it")


def _look_into(entry: ModelEntry, headers: dict[str, SafetensorsHeader], indexes: dict[str, Mapping[str, object]], *, what: str) -> None:
    lower = entry.path.lower()
    with entry.open() as stream:
        if lower.endswith(".safetensors"):
            headers[entry.path] = read_header(stream, size=entry.size, what=what)
            return
        if lower.endswith(".gguf"):
            read_gguf_header(stream, size=entry.size, what=what)
            return
        if entry.size > MAX_TEXT_BYTES:
            raise FormatError(f"{what}: {entry.size} bytes of text, at most {MAX_TEXT_BYTES} are read", hint=_REMOVE)
        data = stream.read(entry.size + 1)
    if len(data) != entry.size:
        raise FormatError(f"{what}: it changed while it was read", hint="run the command again when nothing writes to the folder")
    _check_harmless(data, what=what)
    if lower.endswith(".model"):
        if not is_tokenizer_model(data):
            raise FormatError(f"{what}: neither a SentencePiece model nor a tiktoken file", hint=_REMOVE)
        return
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{what}: not text (UTF-8): {error.reason} at byte {error.start}", hint=_REMOVE) from error
    if lower.endswith(".json"):
        value = parse_strict_json(data, what=what)
        if _has_key(value, "auto_map"):
            raise VerificationError(
                f"{what}: auto_map would load code that came with the model",
                hint="use a version of the model that needs no code of its own",
            )
        if lower.endswith(".safetensors.index.json"):
            indexes[entry.path] = _index_of(value, what=what)


def _check_harmless(data: bytes, *, what: str) -> None:
    """Refuse by content what could run, whatever its name."""
    for start, kind in _RUNNABLE_STARTS.items():
        if data.startswith(start):
            raise VerificationError(f"{what}: by its content it is {kind}", hint=_REMOVE)
    if calls_when_loaded(data):
        raise VerificationError(f"{what}: by its content it is a pickle", hint=_REMOVE)


def _has_key(value: object, key: str) -> bool:
    """Return whether `key` stands anywhere in `value`; iterative, since the depth is the file's choice."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            if key in each:
                return True
            waiting.extend(each.values())
        elif isinstance(each, list):
            waiting.extend(each)
    return False


def _index_of(value: object, *, what: str) -> Mapping[str, object]:
    found = value.get("weight_map") if isinstance(value, dict) else None
    if not isinstance(found, dict) or not all(isinstance(shard, str) for shard in found.values()):
        raise FormatError(
            f"{what}: no weight_map from tensors to files in it", hint="get the file again from where the model was published"
        )
    return found


def _check_index(headers: Mapping[str, SafetensorsHeader], indexes: Mapping[str, Mapping[str, object]], *, name: str) -> None:
    """An index names exactly the safetensors files of its folder, and each tensor where it really is."""
    again = "get index and shards again from where the model was published"
    for path, weight_map in indexes.items():
        folder = path.rpartition("/")[0]
        beside: dict[str, SafetensorsHeader] = {
            shard.rpartition("/")[2]: header for shard, header in headers.items() if shard.rpartition("/")[0] == folder
        }
        named = {str(shard) for shard in weight_map.values()}
        if missing := sorted(named - beside.keys()):
            raise FormatError(f"model {name}: {path} names {missing[0]}, which is not in the folder", hint=again)
        if extra := sorted(beside.keys() - named):
            raise FormatError(f"model {name}: {extra[0]} is not named by {path}", hint=again)
        real = {(tensor.name, shard) for shard, header in beside.items() for tensor in header.tensors}
        if wrong := sorted(real ^ {(tensor, str(shard)) for tensor, shard in weight_map.items()}):
            raise FormatError(f"model {name}: tensor {wrong[0][0]!r} is not where {path} says", hint=again)
    if not indexes:
        _check_unindexed(headers, name=name)


def _check_unindexed(headers: Mapping[str, SafetensorsHeader], *, name: str) -> None:
    """Without an index no tensor may stand in two files of one folder: which one counts would be the loader's choice."""
    seen: dict[tuple[str, str], str] = {}
    for path, header in headers.items():
        folder = path.rpartition("/")[0]
        for tensor in header.tensors:
            first = seen.setdefault((folder, tensor.name), path)
            if first != path:
                raise FormatError(f"model {name}: tensor {tensor.name!r} is in {first} and in {path}", hint="add the model's index file")
