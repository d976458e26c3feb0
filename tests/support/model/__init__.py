# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""A real tiny Llama, trained once on text of this machine and then kept in the cache.

``make(out)`` makes ``out`` a model folder (config, tokenizer, safetensors in two shards and their index) and writes the
golden answers beside it, in ``out`` + ``.golden.json``: prompts, and the token ids that greedy decoding must give.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from appliance.errors import ToolError
from tests.support.model import cache, corpus, environment

ROOT = Path(__file__).resolve().parents[3]


def make(out: Path, *, seed: int = 1, say: Callable[[str], None] = print) -> None:
    """Make ``out`` the model of ``seed``, training it if the cache has none.

    Raises:
        HostError: no text to train on, or ``out`` holds something else.
        ToolError: the environment could not be made, or the trained model failed its judgement.
    """
    started = time.monotonic()
    kept = cache.folder() / f"tiny-model-{cache.key(seed=seed, corpus=corpus.Sources().digest())}"
    with cache.locked(kept):
        found = cache.is_whole(kept)
        if not found:
            _train(kept, seed=seed, say=say)
    cache.hand_out(kept, out)
    say(f"tiny model, seed {seed}: {'from the cache' if found else 'trained'} in {time.monotonic() - started:.1f} s, {out}")


def _train(kept: Path, *, seed: int, say: Callable[[str], None]) -> None:
    started = time.monotonic()
    python = environment.interpreter(kept.parent)
    say(f"trainer's environment ready in {time.monotonic() - started:.1f} s")
    made = kept.with_name(f"{kept.name}.making")
    shutil.rmtree(made, ignore_errors=True)
    command = [str(python), "-m", "tests.support.model.train", "--out", str(made), "--seed", str(seed)]
    quiet = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=quiet, stdout=subprocess.PIPE, text=True) as training:
        for line in training.stdout or ():
            say(f"  {line.rstrip()}")
    if training.returncode:
        shutil.rmtree(made, ignore_errors=True)
        raise ToolError("training the tiny model failed", step="train", hint="Read the trainer's last lines above.")
    cache.keep(made, kept)
