# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What the tiny model is: its shape, how it is trained, its chat form, and the JSON files that stand beside its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# In the order of their token ids.
BEGIN, END_OF_TEXT, END_OF_TURN = "<|begin_of_text|>", "<|end_of_text|>", "<|end|>"
ROLES = ("system", "user", "assistant")
SPECIAL = (BEGIN, END_OF_TEXT, END_OF_TURN, *(f"<|{role}|>" for role in ROLES))
STOP = (SPECIAL.index(END_OF_TEXT), SPECIAL.index(END_OF_TURN))

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}{{ raise_exception('unknown role') }}{% endif %}"
    "<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """The size of a Llama. ``head`` is the width of one attention head; ``window`` the longest context in tokens."""

    vocabulary: int = 2048
    hidden: int = 256
    inner: int = 768
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head: int = 64
    window: int = 512
    rope_theta: float = 10000.0
    norm_epsilon: float = 1e-5

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor, in the order of a forward pass. A linear layer's weight is [out, in]."""
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for layer in range(self.layers):
            for name, dims in self._layer().items():
                found[f"model.layers.{layer}.{name}.weight"] = dims
        return {**found, "model.norm.weight": (self.hidden,), "lm_head.weight": (self.vocabulary, self.hidden)}

    def _layer(self) -> dict[str, tuple[int, ...]]:
        return {
            "input_layernorm": (self.hidden,),
            "self_attn.q_proj": (self.heads * self.head, self.hidden),
            "self_attn.k_proj": (self.kv_heads * self.head, self.hidden),
            "self_attn.v_proj": (self.kv_heads * self.head, self.hidden),
            "self_attn.o_proj": (self.hidden, self.heads * self.head),
            "post_attention_layernorm": (self.hidden,),
            "mlp.gate_proj": (self.inner, self.hidden),
            "mlp.up_proj": (self.inner, self.hidden),
            "mlp.down_proj": (self.hidden, self.inner),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """One training run: everything that decides the weights, besides the text and the libraries.

    A step reads ``batch`` windows of ``length`` tokens. ``rate`` is the peak learning rate of Adam, ``matrix_rate``
    that of Muon (matrices inside layers); both rise over ``warmup`` steps and fall to nothing over the last half.
    ``worst_loss`` (nats per token on held-out text) and ``least_lead`` (logits) are what the result must reach.
    """

    seed: int = 1
    shape: Shape = field(default_factory=Shape)
    steps: int = 400
    batch: int = 8
    length: int = 256
    warmup: int = 30
    rate: float = 3e-3
    matrix_rate: float = 0.02
    worst_loss: float = 3.8
    least_lead: float = 0.02
    golden_tokens: int = 32


def conversation(messages: Sequence[Mapping[str, str]], *, answer_next: bool) -> str:
    """The text of a chat, as ``CHAT_TEMPLATE`` renders it; ``answer_next`` opens the assistant's turn."""
    turns = "".join(f"<|{message['role']}|>\n{message['content']}{END_OF_TURN}\n" for message in messages)
    return f"{BEGIN}{turns}" + ("<|assistant|>\n" if answer_next else "")


def config(shape: Shape) -> dict[str, object]:
    """``config.json``: transformers' Llama, float32, so that engines differ by rounding and never by a token."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": list(STOP),
        "head_dim": shape.head,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.inner,
        "max_position_embeddings": shape.window,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "rms_norm_eps": shape.norm_epsilon,
        "rope_scaling": None,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "use_cache": True,
        "vocab_size": shape.vocabulary,
    }


def generation_config() -> dict[str, object]:
    """``generation_config.json``: greedy unless the request says otherwise."""
    return {"bos_token_id": 0, "do_sample": False, "eos_token_id": list(STOP)}


def tokenizer_config(shape: Shape) -> dict[str, object]:
    """``tokenizer_config.json``, with the chat template."""
    added = {
        str(number): {"content": text, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
        for number, text in enumerate(SPECIAL)
    }
    return {
        "added_tokens_decoder": added,
        "bos_token": BEGIN,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": END_OF_TEXT,
        "model_max_length": shape.window,
        "pad_token": END_OF_TEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
