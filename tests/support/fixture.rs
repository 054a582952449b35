//! Builds the programs of tests/fixtures with cc, c++ and rustc, once for each content, under target/tmp.
//! What they do and what the truth about them is stands in their sources, not here.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// Frame pointers and no tail calls: a fixture's own frames can be walked by any unwinder.
const C_FLAGS: &[&str] = &[
    "-g",
    "-O1",
    "-fno-omit-frame-pointer",
    "-fno-optimize-sibling-calls",
    "-pthread",
    "-Wall",
    "-Wextra",
    "-Werror",
    // realloc_cases keeps using a block after a realloc that failed, which is what it is about.
    "-Wno-use-after-free",
];
const RUST_FLAGS: &[&str] = &["-g", "-O", "-C", "force-frame-pointers=yes"];

/// A C fixture's executable.
pub fn c(name: &str) -> PathBuf {
    build(&format!("{name}.c"), "cc", C_FLAGS)
}

/// A C fixture's executable, with flags after the usual ones.
pub fn c_with(name: &str, flags: &[&str]) -> PathBuf {
    build(&format!("{name}.c"), "cc", &[C_FLAGS, flags].concat())
}

/// A C fixture's executable, made by another compiler, with flags after the usual ones.
pub fn with_compiler(name: &str, compiler: &str, flags: &[&str]) -> PathBuf {
    build(&format!("{name}.c"), compiler, &[C_FLAGS, flags].concat())
}

/// A C++ fixture's executable.
pub fn cpp(name: &str) -> PathBuf {
    build(&format!("{name}.cpp"), "c++", C_FLAGS)
}

/// A C++ fixture's executable, with flags after the usual ones.
pub fn cpp_with(name: &str, flags: &[&str]) -> PathBuf {
    build(&format!("{name}.cpp"), "c++", &[C_FLAGS, flags].concat())
}

/// A Rust fixture's executable.
pub fn rust(name: &str) -> PathBuf {
    build(&format!("{name}.rs"), "rustc", RUST_FLAGS)
}

/// A Go fixture's executable, with variables of the environment such as `CGO_ENABLED=0`.
pub fn go(name: &str, environment: &[&str]) -> PathBuf {
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("go-cache");
    let cache = format!("GOCACHE={}", cache.display());
    let command = [&["GOFLAGS=-mod=mod", &cache], environment, &["go", "build"]].concat();
    build(&format!("{name}.go"), "env", &command)
}

/// A program of a fixture that is a package of its own, with what it depends on.
pub fn cargo(package: &str, program: &str) -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join(package);
    // Cargo itself lets one build of a folder wait for another
    let status = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--locked", "--bin", program])
        .arg("--manifest-path")
        .arg(sources().join(package).join("Cargo.toml"))
        .arg("--target-dir")
        .arg(&target)
        .status()
        .expect("failed to run cargo");
    assert!(status.success(), "failed to build {package}");
    target.join("debug").join(program)
}

/// The 1-based line of a fixture's source that carries the comment `// {marker}`.
pub fn line_of(source: &str, marker: &str) -> u32 {
    let text = fs::read_to_string(sources().join(source)).expect("failed to read the fixture");
    let marker = format!("// {marker}");
    let index = text.lines().position(|line| line.ends_with(&marker));
    u32::try_from(index.expect("no such marker") + 1).expect("a short file")
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Compiles `source` unless an executable of the same content and flags is there.
///
/// Tests run side by side in threads and processes: each compiles to a name of its own and renames.
fn build(source: &str, compiler: &str, flags: &[&str]) -> PathBuf {
    static BUILDS: AtomicU32 = AtomicU32::new(0);

    let directory = Path::new(env!("CARGO_TARGET_TMPDIR"))
        .join("fixtures")
        .join(content_key(source, compiler, flags));
    let name = source.rsplit_once('.').expect("a source has a suffix").0;
    let executable = directory.join(name);
    if executable.exists() {
        return executable;
    }
    fs::create_dir_all(&directory).expect("failed to create the fixtures' directory");
    let number = BUILDS.fetch_add(1, Ordering::Relaxed);
    let partial = directory.join(format!("{name}.{}.{number}", std::process::id()));
    let output = Command::new(compiler)
        .args(flags)
        .arg("-o")
        .arg(&partial)
        .arg(sources().join(source))
        .output()
        .unwrap_or_else(|error| panic!("failed to run {compiler}: {error}"));
    assert!(
        output.status.success(),
        "failed to build {source}:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    fs::rename(&partial, &executable).expect("failed to rename the fixture");
    executable
}

/// Names one content of a source, the headers and the flags.
fn content_key(source: &str, compiler: &str, flags: &[&str]) -> String {
    let mut hasher = DefaultHasher::new();
    (compiler, flags).hash(&mut hasher);
    for file in [source, "fixture.h", "inside_malloc.h"] {
        let bytes = fs::read(sources().join(file))
            .unwrap_or_else(|error| panic!("failed to read tests/fixtures/{file}: {error}"));
        bytes.hash(&mut hasher);
    }
    format!("{:016x}", hasher.finish())
}
