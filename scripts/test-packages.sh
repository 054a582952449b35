#!/usr/bin/env bash
# Installs the .deb in clean roots of Debian, traces a leaking program there, reads the manual page, completes an option, and
# removes it again; the .rpm's files are compared with the .deb's. usage: test-packages.sh target/dist [SUITE...]
set -euo pipefail
dist=$(realpath "$1")
shift
[ $# -gt 0 ] || set -- bookworm trixie
deb=$(echo "$dist"/memleak_*_amd64.deb)
rpm=$(echo "$dist"/memleak-*.x86_64.rpm)
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

lintian --fail-on error,warning "$deb"

# what is in the one is in the other
dpkg-deb -c "$deb" | awk '$1 !~ /^d/ { print substr($6, 2) }' | grep -v lintian | sort >"$work/deb"
rpm -qlp "$rpm" | sort >"$work/rpm"
while read -r path; do grep -qxF "$path" "$work/rpm" || { echo "the .rpm lacks $path" >&2; exit 1; }; done <"$work/deb"

gcc -g -O1 -static -o "$work/leak" "$here/tests/fixtures/ci_leak.c" -I"$here/tests/fixtures"
for suite in "$@"; do
	root=$work/$suite
	mmdebstrap --quiet --variant=minbase --include=man-db,bash-completion "$suite" "$root"
	cp "$deb" "$root/tmp/memleak.deb"
	cp "$work/leak" "$root/tmp/leak"
	mount --bind /sys "$root/sys"
	mount -t proc proc "$root/proc"
	trap 'umount "$work"/*/sys "$work"/*/proc 2>/dev/null || true; rm -rf "$work"' EXIT
	inside() { chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb LANG=C.UTF-8 "$@"; }
	inside sh -c 'command -v cargo' && { echo "$suite has Rust" >&2; exit 1; }
	inside dpkg -i /tmp/memleak.deb >/dev/null
	inside sh -c 'memleak -c /tmp/leak 3 >/tmp/report 2>/tmp/words || true'
	grep -q 'bytes in .* allocations from stack' "$root/tmp/report" || { cat "$root/tmp/words" >&2; exit 1; }
	# minbase leaves manual pages out when packages are unpacked
	zcat "$root/usr/share/man/man1/memleak.1.gz" 2>/dev/null | grep -q 'EXIT STATUS' ||
		dpkg-deb --fsys-tarfile "$deb" | tar -xO ./usr/share/man/man1/memleak.1.gz | zcat | grep -q 'EXIT STATUS'
	inside bash -c 'source /usr/share/bash-completion/completions/memleak; COMP_WORDS=(memleak --show-al); COMP_CWORD=1
		_memleak memleak --show-al memleak; [ "${COMPREPLY[0]}" = --show-allocs ]'
	inside dpkg -r memleak >/dev/null
	[ ! -e "$root/usr/bin/memleak" ]
	umount "$root/sys" "$root/proc"
	echo "$suite: installed, traced, completed, removed"
done
