# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""One module per outside thing; each maps foreign failures to our errors."""
