# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.support.model --out DIR``: the tiny model in DIR, and its golden answers beside it in DIR.golden.json."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from appliance.errors import ApplianceError
from tests.support.model import make


def main() -> int:
    """Make or find the model, say which, and give the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.model", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the model folder to make")
    parser.add_argument("--seed", type=int, default=1, help="another seed gives another revision of the model")
    asked = parser.parse_args()
    try:
        make(asked.out, seed=asked.seed, say=lambda line: print(line, flush=True))
    except ApplianceError as error:
        print(f"{error.message}\n{error.hint or ''}".rstrip(), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
