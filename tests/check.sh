#!/usr/bin/env bash
# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
# The part of `make check` that is not Python's own: playbooks, charts, generated files. PY and VENV are set by make.
set -euo pipefail
: "${PY:?}" "${VENV:?}"
"$PY" -m tests.support.schemas --check
PATH="$VENV/bin:$PATH" "$VENV/bin/ansible-lint" -q --offline --profile production playbooks
helm=$(compgen -G "${APPLIANCE_CACHE:-$HOME/.cache/appliance}/lab/binaries-*/helm/helm" | head -n 1 || true) # compiled by the lab; the charts' own tests need none
if [ -n "$helm" ]; then for chart in charts/*/; do "$helm" lint --quiet --strict "$chart"; done; fi
