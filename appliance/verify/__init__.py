# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Bytes and a pinned root to a verified bundle: the only thing later steps accept."""
