#!/usr/bin/env bash
# SPDX-FileCopyrightText: The appliance authors
# SPDX-License-Identifier: Apache-2.0
# `make test` as nobody in a network namespace with only lo: nothing the tests need may come from a network or from root.
# Usage: tests/sealed.sh VENV [PYTEST ARGUMENTS]    (as root; the clone and the environment are copied or bound to where nobody can read them)
set -euo pipefail
venv=$1; SEALED_ARGS=${2:-}
top=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d /var/tmp/appliance-sealed.XXXXXX)
trap 'rm -rf "$work"' EXIT
mkdir "$work/clone" "$work/home" "$work/venv"
(cd "$top" && git -c safe.directory="$top" ls-files -co --exclude-standard -z | tar --null -T - -cf -) | tar -xf - -C "$work/clone"
chmod 0755 "$work"; chown -R nobody "$work/clone" "$work/home"
export work venv SEALED_ARGS
unshare --mount --net bash -euo pipefail -c '
  ip link set lo up
  [ "$(ip -o link | wc -l)" = 1 ] || { echo "sealed: more than lo is here" >&2; exit 1; }
  mount --bind "$venv" "$work/venv"
  cd "$work/clone"
  exec setpriv --reuid=nobody --regid=nogroup --clear-groups env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 HOME="$work/home" \
    PYTHONDONTWRITEBYTECODE=1 TMPDIR="$work/home" APPLIANCE_CACHE="$work/home/cache" "$work/venv/bin/python" -m pytest -n 2 -q ${SEALED_ARGS:-}'
