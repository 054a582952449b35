# memleak: `make demo` shows it at work, `make test` runs every test. Both install what they need.

CARGO ?= cargo
PREFIX ?= /usr/local
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
TARGET := $(shell uname -m)-unknown-linux-gnu
comma := ,

.PHONY: build demo test bench static cross dist test-dist install test-truth test-vm fuzz soak

build: target/release/memleak

target/release/memleak: FORCE
	scripts/install-packages.sh build
	$(CARGO) build --release

# traces a program that leaks, to a report that names the leak; ends by itself
demo: build
	gcc -g -O2 -fno-omit-frame-pointer -Itests/fixtures -o target/demo tests/fixtures/demo.c
	$(SUDO) target/release/memleak -c target/demo 3

# formatting, lints, and the tiers of tests: units, command line, traces (as root), slow ones; says how long each took
test:
	scripts/install-packages.sh build test
	$(CARGO) fmt --check
	clang-format --dry-run --Werror $$(find src/bpf -name '*.[ch]')
	$(CARGO) clippy --all-targets -- -D warnings
	scripts/test-tiers.sh $(CARGO)

# what tracing costs, as Markdown; MEMLEAK_PEER=/path/to/tracer adds one that takes `-p PID INTERVAL`
bench: export CARGO_TARGET_$(shell uname -m | tr a-z A-Z)_UNKNOWN_LINUX_GNU_RUNNER = \
	$(if $(SUDO),sudo --preserve-env=MEMLEAK_PEER$(comma)BENCH_ROUNDS$(comma)BENCH_ONLY,env)
bench:
	scripts/install-packages.sh build bench
	@$(CARGO) bench --quiet --bench overhead

# what memleak reports at the end of programs against Valgrind's "in use at exit"
test-truth:
	scripts/install-packages.sh build test
	$(CARGO) test --test slow truth:: -- --ignored --nocapture

# the static binaries on Debian's kernels from 5.10 to the newest, amd64 and arm64, in software emulation; FAST=1: on five
# of each. All of them write their table into docs/kernels.md.
test-vm: CROSS_PROFILE := $(if $(FAST),quick,release)
test-vm: static cross
	scripts/install-packages.sh vm
	tests/vm/matrix.py --memleak target/$(TARGET)/release/memleak \
		--memleak-arm64 target/aarch64-unknown-linux-gnu/$(CROSS_PROFILE)/memleak \
		$(if $(FAST),--fast,--markdown docs/kernels.md)

# every parser of what others write, for a minute each, with its memory bounded; findings are in fuzz/artifacts
fuzz:
	cargo fuzz --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-fuzz
	@for target in $$(ls fuzz/corpus); do \
		$(CARGO) fuzz run --sanitizer none --release $$target -- -max_total_time=60 -rss_limit_mb=1024 -timeout=10 || exit 1; \
	done

# minutes of random operations in eight threads, against their own ledger; a minute of load on the kernel's allocators;
# a minute of short processes
soak:
	scripts/install-packages.sh build
	$(CARGO) test --test slow -- --ignored --nocapture --test-threads 1 --skip truth::
	$(CARGO) test --test trace -- --ignored --nocapture a_minute_of_short_processes_leaves_nothing

# one binary that needs no shared library, to copy to servers
static:
	scripts/install-packages.sh build
	LIBBPF_SYS_LIBRARY_PATH=/usr/lib/$$(gcc -print-multiarch) RUSTFLAGS="-C target-feature=+crt-static" \
		$(CARGO) build --release --features static --target $(TARGET)
	@ls -l target/$(TARGET)/release/memleak

# a tarball, a .deb, an .rpm and their checksums of the static binaries for x86-64 and aarch64, in target/dist
dist: static cross
	scripts/install-packages.sh dist
	scripts/dist.sh target/$(TARGET)/release/memleak $(TARGET)
	NATIVE=target/$(TARGET)/release/memleak \
		scripts/dist.sh target/aarch64-unknown-linux-gnu/release/memleak aarch64-unknown-linux-gnu

# the packages in clean roots of Debian 12 and 13, as root
test-dist: dist
	$(SUDO) scripts/test-packages.sh target/dist

# the same for aarch64, built on x86-64; compilers and libraries are unpacked into target/cross, and not installed
cross:
	scripts/install-packages.sh build cross
	scripts/cross.py --profile $(or $(CROSS_PROFILE),release)

install: build
	install -D -m 755 target/release/memleak $(DESTDIR)$(PREFIX)/bin/memleak
	target/release/memleak man $(DESTDIR)$(PREFIX)/share/man/man1
	install -d $(DESTDIR)$(PREFIX)/share/bash-completion/completions
	target/release/memleak completions bash >$(DESTDIR)$(PREFIX)/share/bash-completion/completions/memleak

FORCE:
