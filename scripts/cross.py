#!/usr/bin/env -S python3 -B
"""Builds memleak for aarch64 on an x86-64 machine, with compilers and libraries unpacked from Debian packages.
Nothing is installed, and the machine's own packages stay as they are; what is fetched and built stays in target/cross.

Needs cargo, clang, and Debian's apt and keyring (or a Debian container)."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from debian import Archive, Unavailable

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "target/cross"
CARGO_HOME = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo"))
TRIPLET = "aarch64-linux-gnu"
RUST_TARGET = "aarch64-unknown-linux-gnu"
SUITES = ("bookworm", "bookworm-security")
# The newest Rust of the suites, whose standard library there is for other architectures as well.
RUST_PARTS = r"^(rustc-web|libstd-rust-web-|libllvm)"
GCC_PARTS = r"(aarch64-linux-gnu|-arm64-cross|^gcc-12-cross-base|^gcc-12-base|^libisl|^libmpc|^libmpfr|^libgmp|^libctf|^libbfd|^binutils)"
LIBRARIES = ("libc6", "libc6-dev", "libcrypt1", "libgcc-s1", "libgcc-12-dev", "linux-libc-dev", "libelf1", "libelf-dev",
             "zlib1g", "zlib1g-dev", "busybox-static")  # fmt: skip


class Toolchain:
    """Compilers for aarch64, and the headers and libraries that they compile against."""

    def __init__(self, cache):
        self.folder = cache / "root"
        self.wrappers = cache / "bin"
        self.cc = self.wrappers / f"{TRIPLET}-gcc"
        self.rustc = self.wrappers / "rustc"
        self.libraries = self.folder / "usr/lib" / TRIPLET

    def environment(self):
        """What cargo and the build scripts of crates are told of it."""
        name = RUST_TARGET.replace("-", "_")
        return {
            "RUSTC": self.rustc,
            f"CARGO_TARGET_{name.upper()}_LINKER": self.cc,
            f"CC_{name}": self.cc,
            f"AR_{name}": self.wrappers / f"{TRIPLET}-ar",
            f"LIBBPF_SYS_LIBRARY_PATH_{name}": self.libraries,
            "LIBBPF_SYS_LIBRARY_PATH_x86_64_unknown_linux_gnu": "/usr/lib/x86_64-linux-gnu",
            "MEMLEAK_SYSROOT": self.folder,
            # no path of this machine goes into the binary
            "RUSTFLAGS": f"-C target-feature=+crt-static --remap-path-prefix={ROOT}=. --remap-path-prefix={CARGO_HOME}=cargo",
        }


def toolchain(cache=CACHE):
    """Fetch and unpack the toolchain, if that has not been done."""
    archive = Archive(cache / "apt", SUITES, ("amd64", "arm64"))
    tools = Toolchain(cache.resolve())
    if not tools.folder.exists():
        archive.update()
        rust = ["rustc-web", *archive.family("rustc-web", RUST_PARTS), "libstd-rust-web-dev:arm64"]
        gcc = ["gcc-aarch64-linux-gnu", *archive.family("gcc-aarch64-linux-gnu", GCC_PARTS)]
        archive.unpack([*rust, *gcc, *(f"{name}:arm64" for name in LIBRARIES)], tools.folder)
    write_wrappers(tools)
    return tools


def write_wrappers(tools):
    """The tools look for their libraries and headers in the folder instead of on the machine."""
    tools.wrappers.mkdir(exist_ok=True)
    programs = tools.folder / "usr/bin"
    commands = {
        "rustc": f'"{programs}/rustc"',
        f"{TRIPLET}-gcc": f'"{programs}/{TRIPLET}-gcc" --sysroot="{tools.folder}"',
        f"{TRIPLET}-ar": f'"{programs}/{TRIPLET}-ar"',
    }
    libraries = tools.folder / "usr/lib/x86_64-linux-gnu"
    for name, command in commands.items():
        wrapper = tools.wrappers / name
        wrapper.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH="{libraries}" exec {command} "$@"\n')
        wrapper.chmod(0o755)


def build(profile):
    """Build the static binary; returns its path."""
    tools = toolchain()
    command = ["cargo", "build", "--locked", "--features", "static", "--target", RUST_TARGET, "--profile", profile]
    environment = {name: str(value) for name, value in tools.environment().items()}
    if subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}).returncode:
        raise Unavailable("failed to build memleak for aarch64")
    folder = ROOT / "target" / RUST_TARGET / ("debug" if profile == "dev" else profile)
    return folder / "memleak"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--profile", default="release", help="cargo's profile to build with (release)")
    options = parser.parse_args()
    try:
        binary = build(options.profile)
    except (Unavailable, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{binary.relative_to(ROOT)}: {binary.stat().st_size} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
