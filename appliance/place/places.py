# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Where a node keeps models and what it trusts (docs/bundle-format.md, "What a node keeps").

```
/etc/appliance/trust/root.json         pinned once by the installer of the site; never replaced
<state>/trust/<line>/                  the same root, the chain verified since, the versions seen (appliance.verify)
<state>/models/<hex>/                  one model, whole and verified, 0444; <hex> is the digest of its weights manifest
<state>/models/<hex>.placement.json    what was placed when; a note, never evidence of a hash
<state>/models/by-name/<name>          link to the model of that name in the release placed last; `/` is written `%2f`
<state>/models/.partial-<hex>/         being fetched, 0700
<state>/models/.partial-<hex>.journal  its verified chunks
<state>/node.lock                      held while anything of this changes
```
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.adapters.disk import at
from appliance.digests import Digest, hex_of

PINNED_ROOT = Path("/etc/appliance/trust/root.json")
_HEX = re.compile(r"[0-9a-f]{64}")
_PARTIAL = ".partial-"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlaces:
    """Paths of one node. `state` is `/var/lib/appliance` unless the operator chose another."""

    state: Path

    @property
    def trust(self) -> Path:
        """A folder for each line this node trusts; there is one."""
        return self.state / "trust"

    @property
    def lock(self) -> Path:
        """The lock that one command at a time holds."""
        return self.state / "node.lock"

    @property
    def models(self) -> Path:
        """Folder of all models."""
        return self.state / "models"

    def model(self, weights: Digest) -> Path:
        """Folder of one model."""
        return self.models / hex_of(weights)

    def record(self, weights: Digest) -> Path:
        """The note of its placement."""
        return self.models / f"{hex_of(weights)}.placement.json"

    def partial(self, weights: Digest) -> Path:
        """Folder of a model that is being fetched."""
        return self.models / f"{_PARTIAL}{hex_of(weights)}"

    def journal(self, weights: Digest) -> Path:
        """The verified chunks of a model that is being fetched."""
        return self.models / f"{_PARTIAL}{hex_of(weights)}.journal"

    def by_name(self, name: str) -> Path:
        """The link that a model is found by."""
        return self.models / "by-name" / name.replace("/", "%2f")

    def placed(self) -> tuple[Digest, ...]:
        """Return the models that have a folder, sorted."""
        return tuple(Digest(f"sha256:{path.name}") for path in self._entries() if _HEX.fullmatch(path.name))

    def partials(self) -> tuple[Path, ...]:
        """Return what is being fetched, or was left by a run that died: folders and journals."""
        return tuple(path for path in self._entries() if path.name.startswith(_PARTIAL))

    def _entries(self) -> Iterator[Path]:
        if self.models.is_dir():
            with at(self.models):
                yield from sorted(self.models.iterdir())
