# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Laws are tried on the same examples each time; `APPLIANCE_EXPLORE=1` looks for new ones."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("steady", deadline=None, derandomize=True, database=None, max_examples=60)
settings.register_profile("explore", deadline=None, database=None, print_blob=True, max_examples=2000)
settings.load_profile("explore" if os.environ.get("APPLIANCE_EXPLORE") else "steady")
