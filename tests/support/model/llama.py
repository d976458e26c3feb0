# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The Llama architecture in jax: parameters under Hugging Face's names, loss, one training step, greedy decoding.

Runs in the trainer's own environment only. Shapes: B sequences of T tokens, D hidden, V vocabulary. A weight of a
linear layer is [out, in], as in the files. Rotary embedding turns halves (not pairs), as transformers' Llama does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np  # type: ignore[import-not-found]

from tests.support.model.recipe import Recipe, Shape

Array = Any
Params = dict[str, Array]
EMBEDDING, HEAD, LAST_NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
DECODE_MULTIPLE = 64
# Newton-Schulz coefficients of Muon (Jordan et al. 2024): a few rounds bring all singular values near one.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
ROUNDS = 3


def initial(shape: Shape, seed: int) -> Params:
    """Random float32 parameters: normal with deviation 0.02; norms one; what a block adds to its input zero at first."""
    draw = np.random.default_rng(seed)
    params: Params = {}
    for name, dims in shape.tensors().items():
        if len(dims) == 1:
            params[name] = jnp.ones(dims, jnp.float32)
        elif name.endswith(("o_proj.weight", "down_proj.weight")):
            params[name] = jnp.zeros(dims, jnp.float32)
        else:
            params[name] = jnp.asarray(draw.standard_normal(dims, np.float32) * 0.02)
    return params


def logits(shape: Shape, params: Params, tokens: Array) -> Array:
    """Next-token scores [B, T, V] in float32 for ``tokens`` [B, T]."""
    hidden = params[EMBEDDING][tokens]
    cos, sin = _rotations(shape, tokens.shape[1])
    for layer in range(shape.layers):
        weight = partial(_weight, params, f"model.layers.{layer}.")
        hidden = hidden + _attention(shape, weight, _norm(shape, hidden, weight("input_layernorm")), cos, sin)
        inner = _norm(shape, hidden, weight("post_attention_layernorm"))
        gated = jax.nn.silu(inner @ weight("mlp.gate_proj").T) * (inner @ weight("mlp.up_proj").T)
        hidden = hidden + gated @ weight("mlp.down_proj").T
    return _norm(shape, hidden, params[LAST_NORM]) @ params[HEAD].T


def loss(shape: Shape, params: Params, tokens: Array) -> Array:
    """Mean cross-entropy in nats per token of predicting ``tokens[:, 1:]`` from ``tokens[:, :-1]``."""
    scores = logits(shape, params, tokens[:, :-1])
    chosen = jnp.take_along_axis(scores, tokens[:, 1:, None], axis=-1)[..., 0]
    return jnp.mean(jax.nn.logsumexp(scores, axis=-1) - chosen)


def _weight(params: Params, prefix: str, name: str) -> Array:
    return params[f"{prefix}{name}.weight"]


def _norm(shape: Shape, hidden: Array, scale: Array) -> Array:
    return hidden * jax.lax.rsqrt(jnp.mean(hidden * hidden, axis=-1, keepdims=True) + shape.norm_epsilon) * scale


def _rotations(shape: Shape, length: int) -> tuple[Array, Array]:
    half = np.arange(0, shape.head, 2, dtype=np.float32) / shape.head
    angles = np.outer(np.arange(length, dtype=np.float32), shape.rope_theta**-half)
    both = np.concatenate([angles, angles], axis=-1)
    return jnp.asarray(np.cos(both)), jnp.asarray(np.sin(both))


def _rotate(x: Array, cos: Array, sin: Array) -> Array:
    low, high = jnp.split(x, 2, axis=-1)
    return x * cos + jnp.concatenate([-high, low], axis=-1) * sin


def _attention(shape: Shape, weight: Callable[[str], Array], hidden: Array, cos: Array, sin: Array) -> Array:
    batch, length, _ = hidden.shape

    def heads(name: str, count: int) -> Array:
        split = (hidden @ weight(name).T).reshape(batch, length, count, shape.head)
        return jnp.swapaxes(split, 1, 2)

    query = _rotate(heads("self_attn.q_proj", shape.heads), cos, sin) * shape.head**-0.5
    key = _rotate(heads("self_attn.k_proj", shape.kv_heads), cos, sin)
    value = heads("self_attn.v_proj", shape.kv_heads)
    repeat = shape.heads // shape.kv_heads
    scores = query @ jnp.swapaxes(jnp.repeat(key, repeat, axis=1), -1, -2)
    scores = jnp.where(jnp.tril(jnp.ones((length, length), bool)), scores, -jnp.inf)
    mixed = jax.nn.softmax(scores, axis=-1) @ jnp.repeat(value, repeat, axis=1)
    return jnp.swapaxes(mixed, 1, 2).reshape(batch, length, -1) @ weight("self_attn.o_proj").T


def optimiser_state(params: Params) -> dict[str, tuple[Array, Array]]:
    """First and second moment of every parameter, zero."""
    return {name: (jnp.zeros_like(value), jnp.zeros_like(value)) for name, value in params.items()}


def step(
    recipe: Recipe, params: Params, state: dict[str, tuple[Array, Array]], tokens: Array, number: Array
) -> tuple[Params, dict[str, tuple[Array, Array]], Array]:
    """Parameters, state and loss after the ``number``-th step (from 1): Muon for matrices inside layers, Adam for the rest."""
    value, slopes = jax.value_and_grad(partial(loss, recipe.shape))(params, tokens)
    rise = jnp.minimum(1.0, number / recipe.warmup)
    rate = rise * jnp.minimum(1.0, jnp.maximum(0.02, 2 * (recipe.steps - number) / recipe.steps))
    after: Params = {}
    kept: dict[str, tuple[Array, Array]] = {}
    for name, slope in slopes.items():
        first, second = state[name]
        if ".layers." in name and slope.ndim == len(("out", "in")):
            first = 0.95 * first + slope
            change = recipe.matrix_rate * (_orthogonal(slope + 0.95 * first) + 0.1 * params[name])
        else:
            first, second = 0.9 * first + 0.1 * slope, 0.97 * second + 0.03 * slope**2
            change = recipe.rate * (first / (1 - 0.9**number)) / (jnp.sqrt(second / (1 - 0.97**number)) + 1e-8)
        after[name], kept[name] = params[name] - rate * change, (first, second)
    return after, kept, value


def _orthogonal(matrix: Array) -> Array:
    tall = matrix.shape[0] > matrix.shape[1]
    near = (matrix.T if tall else matrix) / (jnp.linalg.norm(matrix) + 1e-7)
    for _ in range(ROUNDS):
        square = near @ near.T
        near = NEWTON_SCHULZ[0] * near + (NEWTON_SCHULZ[1] * square + NEWTON_SCHULZ[2] * square @ square) @ near
    return (near.T if tall else near) * max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5


_scores = jax.jit(logits, static_argnums=0)


def greedy(shape: Shape, params: Params, prompt: Sequence[int], stop: frozenset[int], count: int) -> tuple[list[int], float]:
    """Up to ``count`` most likely next tokens after ``prompt``, ending with the first of ``stop``.

    Gives the tokens and the smallest lead, in logits, of a chosen token over the second best: how much noise
    (another engine's order of additions, bfloat16 activations) the answer withstands.
    """
    room = len(prompt) + count
    tokens = np.zeros((1, -(-room // DECODE_MULTIPLE) * DECODE_MULTIPLE), np.int32)
    tokens[0, : len(prompt)] = prompt
    chosen: list[int] = []
    lead = float("inf")
    for at in range(len(prompt), room):
        ranked = np.asarray(_scores(shape, params, tokens)[0, at - 1])
        second, first = np.partition(ranked, -2)[-2:]
        lead = min(lead, float(first - second))
        chosen.append(int(np.argmax(ranked)))
        tokens[0, at] = chosen[-1]
        if chosen[-1] in stop:
            break
    return chosen, lead
