# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Signed offline bundles, carried across an air gap and installed as a Kubernetes GPU cluster."""

__version__ = "0.1.0"
