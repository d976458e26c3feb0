# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Telling data from text pickles and from tokenizer models, without loading either.

A pickle of protocol 0 is plain text and has no mark at its start. What gives it away is that its instructions, followed
without doing them, come to a call of something it named; a loader would have made that call. Source: `pickletools`.
"""

from __future__ import annotations

import pickletools
import re
from typing import Final

_NAMES: Final = frozenset({"GLOBAL", "STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"})
_CALLS: Final = frozenset({"INST", "OBJ", "REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD"})
_TIKTOKEN: Final = re.compile(rb"(?:[A-Za-z0-9+/]+={0,2} [0-9]+\r?\n)*(?:[A-Za-z0-9+/]+={0,2} [0-9]+)?")
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_FIRST_EXTENSION: Final = 200
_KNOWN_FIELDS: Final = range(1, 6)


def calls_when_loaded(data: bytes) -> bool:
    """Return whether a pickle loader given `data` would call something that `data` names."""
    stack: list[object] = []
    named = False
    try:
        for opcode, _, _ in pickletools.genops(data):
            named = named or opcode.name in _NAMES
            if not _follow(stack, opcode):
                return False
            if named and opcode.name in _CALLS:
                return True
    except (ValueError, IndexError, OverflowError):
        return False
    return False


def _follow(stack: list[object], opcode: pickletools.OpcodeInfo) -> bool:
    """Take from and put on `stack` what `opcode` does; False where a loader would stop for want of something."""
    before = list(opcode.stack_before)
    if opcode.name == "POP" and stack and stack[-1] is pickletools.markobject:
        before = [pickletools.markobject]
    if pickletools.stackslice in before:
        while stack and stack[-1] is not pickletools.markobject:
            stack.pop()
        del before[before.index(pickletools.stackslice)]
    if len(before) > len(stack):
        return False
    if before:
        del stack[-len(before) :]
    stack.extend(opcode.stack_after)
    return True


def is_tokenizer_model(data: bytes) -> bool:
    """Return whether `data` is what `*.model` files hold: a SentencePiece ModelProto, or tiktoken's lines of base64 and rank.

    Of the protocol buffer only the top level is read: fields 1 to 5, extensions from 200 on, ending at the last byte.
    """
    if not data:
        return False
    return _is_model_proto(data) or _TIKTOKEN.fullmatch(data) is not None


def _is_model_proto(data: bytes) -> bool:
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        number, wire = tag >> 3, tag & 7
        if number in _KNOWN_FIELDS:
            if wire != _LENGTH:
                return False
        elif number < _FIRST_EXTENSION:
            return False
        if wire in {_VARINT, _LENGTH}:
            value, place = _varint(data, place)
            place += value if wire == _LENGTH else 0
        elif wire in {_FIXED64, _FIXED32}:
            place += 8 if wire == _FIXED64 else 4
        else:
            return False
    return place == len(data)


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """Return the number at `place` and where it ends; one that does not end, ends behind the data."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= len(data):
            break
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # noqa: PLR2004 - the highest bit says that more follows
            return value, place
    return 0, len(data) + 1
