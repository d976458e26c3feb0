# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The real command line with chunks of 1 MiB, so that a drill of a hundred chunks is a hundred megabytes."""

from __future__ import annotations

import importlib

from appliance.cli import app
from tests.support.carried import small_chunks

DRILL_CHUNK = 1024 * 1024

if __name__ == "__main__":
    for name in ("bundle", "media", "store"):
        importlib.import_module(f"appliance.cli.{name}")
    for name in ("build.creating", "build.locking", "build.gathering", "build.models", "bundle.contents", "bundle.layout"):
        importlib.import_module(f"appliance.{name}")
    with small_chunks(DRILL_CHUNK):
        app()
