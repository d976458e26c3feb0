# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The golden answers: prompts whose greedy continuation reads as language and leads its rivals by a safe margin."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tests.support.model.recipe import BEGIN, STOP, Recipe, conversation

FORMAT = "tiny-model-golden/1"
COMPLETIONS = (
    "This program is free software; you can redistribute",
    "This program is distributed in the hope that",
    "You may not copy, modify, sublicense,",
    "Each time you redistribute",
    "For example, if you distribute copies of",
    "To protect your rights, we need",
    "When we speak of free software,",
    "The precise terms and conditions for",
    "A work that contains no derivative of",
    "Each Contributor hereby grants",
    "The license does not",
    "The Free Software Foundation",
)
QUESTIONS = (
    "What does shutil.copyfile do?",
    "What is threading.Lock for?",
    "Tell me about email.message.Message.",
    "Tell me about asyncio.Queue.",
    "What does os.path.join do?",
    "What does socket.create_connection do?",
)
WORD = re.compile(r"[a-z]+(?:['-][a-z]+)*")
KNOWN_SHARE = 0.9
DISTINCT_SHARE = 0.5
FEWEST_WORDS = 4

Decode = Callable[[Sequence[int], frozenset[int], int], tuple[list[int], float]]


class Unfit(Exception):  # noqa: N818 - a verdict on the result, not an error of the program
    """The trained model is not good enough to be used."""


class Encoded(Protocol):
    """What encoding gives."""

    ids: list[int]


class Codec(Protocol):
    """The part of a tokenizer that golden answers need."""

    def encode(self, sequence: str, *, add_special_tokens: bool) -> Encoded: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One prompt and its greedy continuation. ``messages`` is None for a plain completion; ``lead`` is in logits."""

    messages: tuple[dict[str, str], ...] | None
    prompt: str
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    lead: float


def words_of(text: str) -> frozenset[str]:
    """The words of ``text`` in lower case."""
    return frozenset(WORD.findall(text.lower()))


def reads_as_language(text: str, known: frozenset[str]) -> bool:
    """Whether ``text`` has some words, nearly all of them in ``known``, and does not go round in a circle."""
    words = WORD.findall(text.lower())
    enough = len(words) >= FEWEST_WORDS
    return enough and sum(word in known for word in words) >= KNOWN_SHARE * len(words) and len(set(words)) >= DISTINCT_SHARE * len(words)


def choose(recipe: Recipe, codec: Codec, decode: Decode, known: frozenset[str]) -> tuple[Answer, Answer]:
    """The best plain completion and the best chat answer among the candidates.

    Raises:
        Unfit: a decode differs from its repetition, or no candidate of a kind reads as language with enough lead.
    """
    chats = [({"role": "user", "content": question},) for question in QUESTIONS]
    completions = [_answer(recipe, codec, decode, None, f"{BEGIN}{text}") for text in COMPLETIONS]
    answers = [_answer(recipe, codec, decode, chat, conversation(chat, answer_next=True)) for chat in chats]
    chosen = _best(recipe, completions, known), _best(recipe, answers, known)
    for answer in chosen:
        again, _ = decode(answer.prompt_token_ids, frozenset(STOP), recipe.golden_tokens)
        if tuple(again) != answer.token_ids:
            raise Unfit(f"greedy decoding of {answer.prompt!r} gave {list(answer.token_ids)} and then {again}")
    return chosen


def require_loss(recipe: Recipe, loss: float) -> None:
    """Raises Unfit unless ``loss`` is a number at most ``recipe.worst_loss``."""
    if not loss <= recipe.worst_loss:
        raise Unfit(f"held-out loss is {loss:.3f} nats per token, expected at most {recipe.worst_loss}")


def document(recipe: Recipe, answers: Sequence[Answer], loss: float) -> dict[str, object]:
    """``golden.json``. ``prompt`` has no leading BEGIN where a server adds it itself (plain completions)."""
    return {
        "format": FORMAT,
        "seed": recipe.seed,
        "held_out_loss": round(loss, 4),
        "max_tokens": recipe.golden_tokens,
        "answers": [
            {
                "kind": "completion" if answer.messages is None else "chat",
                "prompt": answer.prompt.removeprefix(BEGIN) if answer.messages is None else None,
                "messages": None if answer.messages is None else list(answer.messages),
                "prompt_token_ids": list(answer.prompt_token_ids),
                "token_ids": list(answer.token_ids),
                "text": answer.text,
                "lead": round(answer.lead, 4),
            }
            for answer in answers
        ],
    }


def _answer(recipe: Recipe, codec: Codec, decode: Decode, messages: tuple[dict[str, str], ...] | None, prompt: str) -> Answer:
    ids = codec.encode(prompt, add_special_tokens=False).ids
    chosen, lead = decode(ids, frozenset(STOP), recipe.golden_tokens)
    text = codec.decode(chosen)
    return Answer(messages=messages, prompt=prompt, prompt_token_ids=tuple(ids), token_ids=tuple(chosen), text=text, lead=lead)


def _best(recipe: Recipe, answers: Sequence[Answer], known: frozenset[str]) -> Answer:
    fit = [answer for answer in answers if answer.lead >= recipe.least_lead and reads_as_language(answer.text, known)]
    if not fit:
        heard = "; ".join(f"{answer.prompt!r} -> {answer.text!r} (lead {answer.lead:.3f})" for answer in answers)
        raise Unfit(f"no answer reads as language with a lead of {recipe.least_lead}: {heard}")
    return max(fit, key=lambda answer: answer.lead)
