# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Train the tiny model, judge it, and write its folder. Runs in the trainer's own environment (see environment.py)."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np  # type: ignore[import-not-found]
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from tests.support.model import golden, llama, shards
from tests.support.model.corpus import Corpus, Sources
from tests.support.model.recipe import BEGIN, END_OF_TEXT, SPECIAL, Recipe, config, conversation, generation_config, tokenizer_config

SHARDS = 2
REPORT_EVERY = 50
CARD = """# A tiny model for tests

A Llama of {parameters:,} parameters, trained in minutes on Debian's common licences and the documentation of Python's
standard library. It exists to be carried, verified, placed and served as a real model is. What it says is not worth
reading.
"""


def new_tokenizer(corpus: Corpus, vocabulary: int) -> Tokenizer:
    """A byte-level BPE of exactly ``vocabulary`` tokens, which puts BEGIN before a text as Llama's does."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(corpus.texts(), trainer)
    begin = processors.TemplateProcessing(single=f"{BEGIN} $A", special_tokens=[(BEGIN, SPECIAL.index(BEGIN))])
    made.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), begin])
    return made


def packed(corpus: Corpus, tokenizer: Tokenizer) -> llama.Array:
    """All of ``corpus`` as one row of token ids: documents between BEGIN and END_OF_TEXT, exchanges as chats."""
    texts = [f"{BEGIN}{document.text}{END_OF_TEXT}" for document in corpus.documents]
    for exchange in corpus.exchanges:
        turns = ({"role": "user", "content": exchange.question}, {"role": "assistant", "content": exchange.answer})
        texts.append(conversation(turns, answer_next=False))
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    return np.concatenate([np.asarray(one.ids, np.int32) for one in encoded])


def batches(recipe: Recipe, row: llama.Array) -> Iterator[llama.Array]:
    """Windows of ``row`` [batch, length + 1] without end: each pass cuts at another offset, in another order."""
    draw = np.random.default_rng(recipe.seed)
    starts: list[int] = []
    while True:
        while len(starts) < recipe.batch:
            offset = int(draw.integers(recipe.length))
            count = (len(row) - offset - 1) // recipe.length
            starts.extend(int(start) for start in draw.permutation(count) * recipe.length + offset)
        taken, starts = starts[: recipe.batch], starts[recipe.batch :]
        yield np.stack([row[start : start + recipe.length + 1] for start in taken])


def held_out_loss(recipe: Recipe, params: llama.Params, row: llama.Array) -> float:
    """Mean loss over whole windows of ``row``, in nats per token."""
    count = len(row) // (recipe.length + 1)
    windows = row[: count * (recipe.length + 1)].reshape(count, recipe.length + 1)
    measure = jax.jit(partial(llama.loss, recipe.shape))
    per_batch = [float(measure(params, part)) * len(part) for part in np.array_split(windows, max(1, count // recipe.batch))]
    return sum(per_batch) / count


def trained(recipe: Recipe, row: llama.Array, say: Callable[[str], None]) -> llama.Params:
    """The parameters after ``recipe.steps`` steps over ``row``."""
    params = llama.initial(recipe.shape, recipe.seed)
    state = llama.optimiser_state(params)
    step = jax.jit(partial(llama.step, recipe), donate_argnums=(0, 1))
    started = time.monotonic()
    for number, batch in zip(range(1, recipe.steps + 1), batches(recipe, row), strict=False):
        params, state, loss = step(params, state, batch, jnp.float32(number))
        if number % REPORT_EVERY == 0 or number == recipe.steps:
            say(f"step {number}/{recipe.steps}  loss {float(loss):.2f}  {time.monotonic() - started:.0f} s")
    return params


def write_model(recipe: Recipe, params: llama.Params, tokenizer: Tokenizer, folder: Path) -> None:
    """The model's folder, as Hugging Face lays it out."""
    folder.mkdir(parents=True)
    tensors = recipe.shape.tensors()
    parts = shards.split(tensors, SHARDS)
    for number, names in enumerate(parts, 1):
        held = {name: np.asarray(params[name], np.float32) for name in names}
        save_file(held, folder / shards.file_name(number, SHARDS), metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    write_json(folder / shards.INDEX, shards.index(tensors, parts))
    write_json(folder / "config.json", config(recipe.shape))
    write_json(folder / "generation_config.json", generation_config())
    write_json(folder / "tokenizer_config.json", tokenizer_config(recipe.shape))
    parameters = sum(array.size for array in params.values())
    (folder / "README.md").write_text(CARD.format(parameters=parameters), encoding="utf-8")


def read_model(folder: Path) -> tuple[llama.Params, Tokenizer]:
    """Parameters and tokenizer, from the files alone."""
    named = json.loads((folder / shards.INDEX).read_text(encoding="utf-8"))["weight_map"]
    files = {name: load_file(folder / name) for name in sorted(set(named.values()))}
    return {name: jnp.asarray(files[file][name]) for name, file in named.items()}, Tokenizer.from_file(str(folder / "tokenizer.json"))


def write_json(path: Path, value: object) -> None:
    """``value`` as indented JSON ending in a newline."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def run(recipe: Recipe, out: Path, say: Callable[[str], None]) -> None:
    """Make ``out``/model and ``out``/golden.json, or raise ``golden.Unfit`` when the result is not good enough."""
    started, cpu = time.monotonic(), time.process_time()
    learn, judge = Sources().read()
    tokenizer = new_tokenizer(learn, recipe.shape.vocabulary)
    row = packed(learn, tokenizer)
    say(f"{len(row)} tokens to learn from, vocabulary {tokenizer.get_vocab_size()}")
    params = trained(recipe, row, say)
    loss = held_out_loss(recipe, params, packed(judge, tokenizer))
    write_model(recipe, params, tokenizer, out / "model")
    read, tokenizer = read_model(out / "model")
    decode = partial(llama.greedy, recipe.shape, read)
    words = golden.words_of(" ".join(learn.texts()))
    found = golden.choose(recipe, tokenizer, decode, words)
    golden.require_loss(recipe, loss)
    spent = {"cpu_seconds": round(time.process_time() - cpu, 1), "seconds": round(time.monotonic() - started, 1)}
    write_json(out / "golden.json", golden.document(recipe, found, loss))
    write_json(out / "training.json", {"held_out_loss": round(loss, 4), "seed": recipe.seed, "steps": recipe.steps, **spent})
    say(f"held-out loss {loss:.3f} nats per token (at most {recipe.worst_loss}), {spent['seconds']} s, {spent['cpu_seconds']} CPU s")


def main() -> int:
    """``python -m tests.support.model.train --out DIR --seed N``."""
    parser = argparse.ArgumentParser(prog="train")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    asked = parser.parse_args()
    try:
        run(Recipe(seed=asked.seed), asked.out, lambda line: print(line, flush=True))
    except golden.Unfit as error:
        print(f"refused: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
