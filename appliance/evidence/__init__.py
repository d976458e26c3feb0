# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Claims and verdicts. No I/O; reserved for the attestation service."""
