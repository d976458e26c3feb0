# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Paired measurements of create, write, read and verify beside the floors of this very machine: `make bench`."""
