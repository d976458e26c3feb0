# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""The site's content-addressed blobs, releases and the log of imports."""
