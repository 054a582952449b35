//! BPF programs that do nothing, attached to malloc and free: the cost that no uprobe tracer gets below.

use anyhow::{Context as _, Result, bail, ensure};
use libbpf_rs::{Link, Object, ObjectBuilder, UprobeMultiOpts};
use memleak::probes::site::{self, Contract};
use memleak::probes::symbols::Symbols;
use std::path::PathBuf;
use std::process::Command;

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/overhead/floor.bpf.c");

/// Which instruction of a function is probed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// The one that the tracer would choose.
    Sites,
    /// The first.
    Symbols,
}

/// The loaded programs.
pub struct Floor {
    object: Object,
}

/// The functions that are probed: name, what a probe relies on, whether its return is probed too.
const FUNCTIONS: [(&str, Contract, bool); 4] = [
    ("malloc", Contract::reads(1), true),
    ("calloc", Contract::reads(2), true),
    ("realloc", Contract::reads(2), true),
    ("free", Contract::FREE, false),
];

impl Floor {
    /// Compiles and loads the programs.
    pub fn load() -> Result<Self> {
        Ok(Self {
            object: load(SOURCE)?,
        })
    }

    /// Attaches them to the allocator of the process `pid` until the links are dropped.
    pub fn attach(&self, pid: u32, at: At) -> Result<Vec<Link>> {
        let names = |returns: bool| -> Vec<&str> {
            let functions = FUNCTIONS.iter().filter(|function| function.2 == returns);
            functions.map(|(name, ..)| *name).collect()
        };
        Ok(vec![
            attach_to(&self.object, "entry_and_return", pid, &names(true), at)?,
            attach_to(&self.object, "entry", pid, &names(false), at)?,
        ])
    }
}

/// Compiles and loads the programs of a source file.
pub fn load(source: &str) -> Result<Object> {
    let directory = tempfile::tempdir().context("failed to make a temporary directory")?;
    let path = directory.path().join("programs.bpf.o");
    let headers = format!("-I/usr/include/{}-linux-gnu", std::env::consts::ARCH);
    let status = Command::new("clang")
        .args(["-O2", "-g", "-target", "bpf", &headers, "-c", source, "-o"])
        .arg(&path)
        .status()
        .context("failed to run clang")?;
    ensure!(status.success(), "failed to compile {source}");
    ObjectBuilder::default()
        .open_file(&path)
        .and_then(|object| object.load())
        .with_context(|| format!("failed to load {source} (root? Linux 6.13 or newer?)"))
}

/// Attaches a program to some of [`FUNCTIONS`] in the libc of the process `pid`, until the link is dropped.
pub fn attach_to(
    object: &Object,
    program: &str,
    pid: u32,
    functions: &[&str],
    at: At,
) -> Result<Link> {
    let libc = libc_of(pid)?;
    let data = std::fs::read(&libc).context("failed to read the target's libc")?;
    let symbols = Symbols::parse(&data)?;
    let offsets = FUNCTIONS
        .iter()
        .filter(|(name, ..)| functions.contains(name))
        .map(|(name, signature, _)| offset(&symbols, name, *signature, at))
        .collect::<Result<Vec<usize>>>()?;
    let found = object.progs_mut().find(|found| found.name() == program);
    let found = found.with_context(|| format!("no program {program}"))?;
    let section = found.section().to_string_lossy().into_owned();
    let options = UprobeMultiOpts {
        offsets,
        session: section == "uprobe.session",
        retprobe: section == "uretprobe.multi",
        ..Default::default()
    };
    found
        .attach_uprobe_multi_with_opts(pid.cast_signed(), &libc, "", options)
        .with_context(|| format!("failed to attach {program} to {}", libc.display()))
}

fn offset(symbols: &Symbols, name: &str, signature: Contract, at: At) -> Result<usize> {
    let function = symbols
        .find(name)
        .with_context(|| format!("no {name} in libc"))?;
    let moved = match at {
        At::Sites => site::choose(symbols, &function, signature).offset,
        At::Symbols => 0,
    };
    Ok(usize::try_from(function.file_offset + moved)?)
}

fn libc_of(pid: u32) -> Result<PathBuf> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))
        .with_context(|| format!("failed to read the mappings of process {pid}"))?;
    let mut paths = maps
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5));
    match paths.find(|path| path.contains("/libc.so") || path.contains("/libc-")) {
        Some(path) => Ok(path.into()),
        None => bail!("process {pid} maps no libc"),
    }
}
