# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""Formats: bytes to frozen records and back. Nothing here opens a file by itself, a socket or a process."""
