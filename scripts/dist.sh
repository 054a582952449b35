#!/usr/bin/env bash
# Packs a static binary for distribution: a tarball, a .deb, an .rpm, and their checksums, in target/dist. Two runs on the
# same commit give the same bytes. usage: dist.sh BINARY RUST_TARGET
set -euo pipefail
cd "$(dirname "$0")/.."
binary=$1 target=$2
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)} LC_ALL=C TZ=UTC
umask 022
case $target in
x86_64-*) debian=amd64 machine=x86_64 ;;
aarch64-*) debian=arm64 machine=aarch64 ;;
*) echo "dist.sh: unknown target $target" >&2 && exit 2 ;;
esac
out=target/dist stage=target/dist/stage-$machine
rm -rf "$stage"
mkdir -p "$stage/usr/bin" "$stage/usr/share/man/man1" "$stage/usr/share/doc/memleak" \
	"$stage/usr/share/bash-completion/completions" "$stage/usr/share/zsh/vendor-completions" \
	"$stage/usr/share/fish/vendor_completions.d"

# what the binary itself knows; that of this machine, for another one's can't run here
native=${NATIVE:-$binary}
install -m 755 "$binary" "$stage/usr/bin/memleak"
"$native" man "$stage/usr/share/man/man1"
gzip -9n "$stage"/usr/share/man/man1/*.1
"$native" completions bash >"$stage/usr/share/bash-completion/completions/memleak"
"$native" completions zsh >"$stage/usr/share/zsh/vendor-completions/_memleak"
"$native" completions fish >"$stage/usr/share/fish/vendor_completions.d/memleak.fish"
doc=$stage/usr/share/doc/memleak
cp README.md ARCHITECTURE.md docs/*.md "$doc"
gzip -9n <CHANGELOG.md >"$doc/changelog.gz"
printf 'memleak (%s-1) unstable; urgency=low\n\n  * See changelog.gz.\n\n -- The memleak authors <memleak@localhost>  %s\n' \
	"$version" "$(date -R -d "@$SOURCE_DATE_EPOCH")" | gzip -9n >"$doc/changelog.Debian.gz"
scripts/notices.py --target "$target" >"$doc/THIRD-PARTY-NOTICES"
{
	printf 'Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: memleak\n\n'
	printf 'Files: *\nCopyright: 2026, the memleak authors\nLicense: BSD-2-Clause\n'
	tail -n +5 LICENSE | sed -e 's/^$/./' -e 's/^/ /'
	printf '\nComment:\n What else is linked into the binary is listed in THIRD-PARTY-NOTICES.\n'
} >"$doc/copyright"
if [ -e deploy/systemd/memleak-watch.service ]; then
	install -D -m 644 deploy/systemd/memleak-watch.service "$stage/usr/lib/systemd/system/memleak-watch.service"
fi
find "$stage" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +

tarball=memleak-$version-$machine.tar.gz
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" \
	--transform="s,^\.,memleak-$version-$machine," -C "$stage" -cf - . | gzip -9n >"$out/$tarball"

root=$out/deb-$machine
rm -rf "$root" && cp -a "$stage" "$root"
mkdir -p "$root/DEBIAN" "$root/usr/share/lintian/overrides"
install -m 644 packaging/lintian-overrides "$root/usr/share/lintian/overrides/memleak"
sed -e "s/@VERSION@/$version-1/" -e "s/@ARCH@/$debian/" \
	-e "s/@SIZE@/$(du -sk --apparent-size "$stage" | cut -f1)/" packaging/control.in >"$root/DEBIAN/control"
(cd "$root" && find usr -type f -print0 | sort -z | xargs -0 md5sum >DEBIAN/md5sums)
find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
dpkg-deb --root-owner-group -Zxz --build "$root" "$out/memleak_${version}-1_$debian.deb" >/dev/null

spec=$out/memleak-$machine.spec
sed -e "s/@VERSION@/$version/" -e "s,@STAGE@,$PWD/$stage," packaging/memleak.spec.in >"$spec"
if [ -e "$stage/usr/lib/systemd/system/memleak-watch.service" ]; then
	echo /usr/lib/systemd/system/memleak-watch.service >>"$spec"
fi
rpmbuild -bb --quiet --target "$machine" --define "_topdir $PWD/$out/rpm" --define "_rpmdir $PWD/$out" \
	--define '_rpmfilename %{name}-%{version}-%{release}.%{arch}.rpm' --define '_buildhost localhost' \
	--define 'use_source_date_epoch_as_buildtime 1' --define 'clamp_mtime_to_source_date_epoch 1' \
	--define '_use_internal_dependency_generator 0' "$spec"

rm -rf "$stage" "$root" "$spec" "$out/rpm"
(cd "$out" && sha256sum memleak* >SHA256SUMS)
ls -l "$out"
