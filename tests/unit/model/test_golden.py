# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

import pytest

from tests.support.model import golden
from tests.support.model.recipe import BEGIN, Recipe

KNOWN = golden.words_of("you may copy the work and give it to others as you like")
SENTENCE = "you may copy the work and give it"


@dataclass
class Letters:
    """A codec of one token a character."""

    ids: list[int] = field(default_factory=list)

    def encode(self, sequence: str, *, add_special_tokens: bool) -> Letters:
        assert not add_special_tokens
        return Letters([ord(letter) for letter in sequence])

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(one) for one in ids)


def speaker(text: str, lead: float) -> golden.Decode:
    return lambda prompt, _stop, _most: ([ord(letter) for letter in text], lead + len(prompt) / 1000)


def test_language_is_told_from_noise_and_from_going_in_circles() -> None:
    assert golden.reads_as_language(SENTENCE, KNOWN)
    assert not golden.reads_as_language("qwe zxc rty the work fgh", KNOWN)
    assert not golden.reads_as_language("the work the work the work the work", KNOWN)
    assert not golden.reads_as_language("the work", KNOWN)
    assert not golden.reads_as_language("", KNOWN)


def test_the_answer_with_the_safest_lead_is_chosen_one_of_each_kind() -> None:
    completion, chat = golden.choose(Recipe(), Letters(), speaker(SENTENCE, 0.5), KNOWN)
    assert completion.messages is None
    assert completion.prompt == max((f"{BEGIN}{text}" for text in golden.COMPLETIONS), key=len)
    assert chat.messages is not None
    assert chat.text == completion.text == SENTENCE


def test_a_model_whose_lead_is_too_small_is_unfit() -> None:
    with pytest.raises(golden.Unfit, match="no answer reads as language"):
        golden.choose(Recipe(least_lead=1.0), Letters(), speaker(SENTENCE, 0.5), KNOWN)


def test_a_model_that_babbles_is_unfit() -> None:
    with pytest.raises(golden.Unfit, match="no answer reads as language"):
        golden.choose(Recipe(), Letters(), speaker("zzz yyy xxx www", 5.0), KNOWN)


def test_a_decode_that_differs_from_its_repetition_is_unfit() -> None:
    calls = count()
    with pytest.raises(golden.Unfit, match="and then"):
        golden.choose(Recipe(), Letters(), lambda *_: ([*map(ord, SENTENCE), next(calls)], 1.0), KNOWN)


@pytest.mark.parametrize("loss", [4.5001, float("nan"), float("inf")])
def test_a_loss_above_the_bound_or_no_number_is_unfit(loss: float) -> None:
    with pytest.raises(golden.Unfit, match="held-out loss"):
        golden.require_loss(Recipe(worst_loss=4.5), loss)
    golden.require_loss(Recipe(worst_loss=4.5), 4.5)


def test_the_golden_file_gives_a_server_the_prompt_without_the_mark_it_adds_itself() -> None:
    answers = golden.choose(Recipe(), Letters(), speaker(SENTENCE, 0.5), KNOWN)
    written = json.loads(json.dumps(golden.document(Recipe(), answers, 3.0)))
    completion, chat = written["answers"]
    assert written["format"] == "tiny-model-golden/1"
    assert completion["prompt"] in golden.COMPLETIONS
    assert chat["prompt"] is None
    assert chat["messages"][0]["role"] == "user"
    assert completion["token_ids"] == [ord(letter) for letter in SENTENCE]
