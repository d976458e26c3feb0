# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The connected side of the lab: what a customer's connected machine would fetch from upstreams, compiled, served on loopback.

`build()` fills a cache outside the clone (about 13 minutes once); `upstream(directory)` serves it.
"""

from __future__ import annotations

from tests.lab.world.building import World, build, missing
from tests.lab.world.serving import Upstream, upstream

__all__ = ["Upstream", "World", "build", "missing", "upstream"]
