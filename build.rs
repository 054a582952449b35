//! Compiles the BPF object into OUT_DIR and generates its skeleton. Nothing else is built here.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use libbpf_cargo::SkeletonBuilder;

const SOURCE: &str = "src/bpf/memleak.bpf.c";

fn main() -> Result<()> {
    println!("cargo:rerun-if-changed=src/bpf");
    println!("cargo:rerun-if-env-changed=MEMLEAK_SYSROOT");
    let arch = env::var("CARGO_CFG_TARGET_ARCH").context("cargo sets CARGO_CFG_TARGET_ARCH")?;
    let out_dir = env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?;
    // clang's BPF target has no default include path for the kernel's <asm/…> headers.
    let (define, triplet) = match arch.as_str() {
        "x86_64" => ("-D__TARGET_ARCH_x86", "x86_64-linux-gnu"),
        "aarch64" => ("-D__TARGET_ARCH_arm64", "aarch64-linux-gnu"),
        other => bail!("memleak traces x86-64 and aarch64 programs, not {other}"),
    };
    let sysroot = env::var("MEMLEAK_SYSROOT").unwrap_or_default();
    let include = format!("-I{sysroot}/usr/include/{triplet}");
    SkeletonBuilder::new()
        .source(SOURCE)
        .clang_args([define, &include, "-Isrc/bpf", "-Wall", "-Werror"].map(OsString::from))
        .build_and_generate(PathBuf::from(out_dir).join("memleak.skel.rs"))
        .with_context(|| {
            format!(
                "failed to compile {SOURCE} (are clang, libelf-dev and linux-libc-dev installed?)"
            )
        })
}
