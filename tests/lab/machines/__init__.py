# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The machines of the air-gapped lab: systemd-nspawn machines in network namespaces without an uplink. See tests/lab/README.md."""

from __future__ import annotations

from tests.lab.machines.errors import LabError
from tests.lab.machines.lab import Lab
from tests.lab.machines.plan import Machine

__all__ = ["Lab", "LabError", "Machine"]
