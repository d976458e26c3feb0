# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
