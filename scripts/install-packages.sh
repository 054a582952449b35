#!/bin/sh
# Installs the Debian packages that a task needs, and is quick when they are all there.
# usage: install-packages.sh build|test|bench|cross|vm|dist...
set -eu

packages=
for task in "$@"; do
	case $task in
	build) packages="$packages clang libelf-dev zlib1g-dev pkg-config gcc libc6-dev linux-libc-dev" ;;
	test)
		packages="$packages clang-format"
		# allocators whose code the probe sites are chosen in, and who checks them
		packages="$packages libjemalloc2 libgoogle-perftools4 libmimalloc2.0 libclang-rt-14-dev musl binutils"
		# the same linked into programs, statically as well
		packages="$packages libjemalloc-dev musl-tools redis-tools"
		# code whose unwind tables are read
		packages="$packages libstdc++6 libpython3.11 openjdk-17-jdk-headless libllvm14"
		# programs that are traced, and valgrind for the truth of their figures
		packages="$packages valgrind qemu-user-static g++ libc6-dbg bc bison cpio dc diffutils file findutils gawk git grep jq"
		packages="$packages libcap2-bin m4 make perl python3 sed sqlite3 tar util-linux xz-utils"
		# a module of Python's in C
		packages="$packages python3-dev"
		# servers under load, and servers whose workers are followed
		packages="$packages nginx-light redis-server postgresql"
		# a server of debug information
		packages="$packages debuginfod"
		# readers of what is written: a browser, and Go's pprof
		packages="$packages chromium chromium-driver fonts-dejavu-core golang-go"
		;;
	bench) packages="$packages python3 sqlite3" ;;
	cross) packages="$packages python3 debian-archive-keyring" ;;
	vm) packages="$packages qemu-system-x86 qemu-system-arm busybox-static cpio python3 debian-archive-keyring" ;;
	dist) packages="$packages python3 rpm lintian mmdebstrap xz-utils" ;;
	*) echo "unknown task: $task (build, test, bench, cross, vm or dist)" >&2 && exit 2 ;;
	esac
done

missing=
for package in $packages; do
	# "installed", and not "removed, configuration kept"
	status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
	[ "$status" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

echo "installing:$missing" >&2
sudo=
[ "$(id -u)" = 0 ] || sudo=sudo
export DEBIAN_FRONTEND=noninteractive
# shellcheck disable=SC2086 # one word each
$sudo apt-get install -y -qq --no-install-recommends $missing >/dev/null 2>&1 || {
	$sudo apt-get update -qq
	$sudo apt-get install -y -qq --no-install-recommends $missing
}
