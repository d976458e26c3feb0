# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Who may say what: keys, thresholds, envelopes, order, expiry, rollback. No I/O; the clock is an argument."""
