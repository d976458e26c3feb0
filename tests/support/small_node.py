# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The command `appliance` in a process of its own whose chunks are 64 KiB: for runs that are killed."""

from __future__ import annotations

import importlib

import appliance.cli
from tests.support.carried import small_chunks

CHUNK = 64 * 1024

if __name__ == "__main__":
    importlib.import_module("appliance.cli.node")
    with small_chunks(CHUNK):
        appliance.cli.main()
