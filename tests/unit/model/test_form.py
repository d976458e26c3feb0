# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The files beside the weights: what Hugging Face's readers ask of them."""

from __future__ import annotations

import re
from itertools import chain
from math import prod
from pathlib import Path

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.model import shards
from tests.support.model.recipe import (
    BEGIN,
    CHAT_TEMPLATE,
    SPECIAL,
    STOP,
    Recipe,
    Shape,
    config,
    conversation,
    generation_config,
    tokenizer_config,
)

TALK = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello {{ 7 * 7 }}?"})


def refuse(reason: str) -> None:
    raise jinja2.TemplateError(reason)


@pytest.mark.parametrize("answer_next", [True, False])
def test_the_chat_template_renders_what_training_used(*, answer_next: bool) -> None:
    template = jinja2.Environment(autoescape=False).from_string(CHAT_TEMPLATE)  # noqa: S701 - prompts are not HTML
    rendered = template.render(messages=TALK, add_generation_prompt=answer_next, bos_token=BEGIN, raise_exception=refuse)
    assert rendered == conversation(TALK, answer_next=answer_next)


def test_the_chat_template_refuses_an_unknown_role() -> None:
    template = jinja2.Environment(autoescape=False).from_string(CHAT_TEMPLATE)  # noqa: S701 - prompts are not HTML
    with pytest.raises(jinja2.TemplateError, match="unknown role"):
        template.render(messages=[{"role": "root", "content": ""}], bos_token=BEGIN, raise_exception=refuse)


def test_config_tokenizer_and_generation_agree_on_the_special_tokens() -> None:
    shape = Shape()
    added = tokenizer_config(shape)["added_tokens_decoder"]
    assert isinstance(added, dict)
    assert [added[str(number)]["content"] for number in range(len(SPECIAL))] == list(SPECIAL)
    assert config(shape)["eos_token_id"] == generation_config()["eos_token_id"] == list(STOP)
    assert {SPECIAL[number] for number in STOP} == {"<|end_of_text|>", "<|end|>"}


def test_the_shape_is_a_llama_of_a_few_million_parameters_that_group_quantisation_can_cut() -> None:
    shape = Shape()
    assert 2_000_000 < sum(prod(dims) for dims in shape.tensors().values()) < 8_000_000
    assert shape.heads % shape.kv_heads == 0
    assert all(dims[-1] % 128 == 0 for dims in shape.tensors().values())
    assert config(shape)["architectures"] == ["LlamaForCausalLM"]
    assert Recipe().length <= shape.window


def test_two_shards_hold_every_tensor_once_in_order_and_about_half_the_bytes_each() -> None:
    tensors = Shape().tensors()
    parts = shards.split(tensors, 2)
    assert list(chain(*parts)) == list(tensors)
    sizes = [sum(prod(tensors[name]) for name in names) for names in parts]
    assert max(sizes) <= 1.25 * min(sizes)


@given(sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=30), data=st.data())
def test_any_split_keeps_every_name_in_order_and_leaves_no_shard_empty(sizes: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(sizes)))
    tensors = {f"t{number}": (size,) for number, size in enumerate(sizes)}
    parts = shards.split(tensors, count)
    assert len(parts) == count
    assert all(parts)
    assert list(chain(*parts)) == list(tensors)


def test_fewer_tensors_than_shards_is_refused() -> None:
    with pytest.raises(ValueError, match="1 tensors do not fill 2 shards"):
        shards.split({"only": (3,)}, 2)


def test_the_index_names_a_file_for_every_tensor_and_counts_float32_bytes() -> None:
    tensors: dict[str, tuple[int, ...]] = {"b": (2, 3), "a": (4,)}
    assert shards.index(tensors, [["b"], ["a"]]) == {
        "metadata": {"total_parameters": 10, "total_size": 40},
        "weight_map": {"a": "model-00002-of-00002.safetensors", "b": "model-00001-of-00002.safetensors"},
    }


def test_every_library_of_the_trainer_is_pinned_by_hash_and_no_line_names_a_host() -> None:
    folder = Path(shards.__file__).parent
    locked = (folder / "requirements.txt").read_text()
    pinned = set(re.findall(r"^([\w-]+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}", locked, re.MULTILINE))
    asked = {
        tuple(line.replace("_", "-").split("=="))
        for line in (folder / "requirements.in").read_text().splitlines()
        if not line.startswith("#")
    }
    assert pinned == asked
    assert "://" not in locked
