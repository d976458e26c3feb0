# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
"""`python -m appliance`."""

from appliance.cli import main

if __name__ == "__main__":
    main()
