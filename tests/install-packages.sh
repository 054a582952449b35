#!/bin/sh
# Installs what the tests need on Debian and Ubuntu, and is quick when it is all there.
set -eu

packages="bc bison cpio dc diffutils file findutils g++ gawk gcc git grep jq libc6-dbg m4 make perl sed sqlite3
tar util-linux valgrind xz-utils"

missing=""
for package in $packages; do
	# Only "installed" is wanted here, not "removed, configuration kept".
	status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
	[ "$status" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

echo "installing:$missing" >&2
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# shellcheck disable=SC2086 # one word each
apt-get install -y -qq --no-install-recommends $missing
