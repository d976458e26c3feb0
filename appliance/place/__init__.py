# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""What a node does for itself: models from the depot onto its disk, verified from its own pinned root; entry: `placing`.

`observe` stands apart: it reads what lies there and knows nothing of how it came there.
"""
