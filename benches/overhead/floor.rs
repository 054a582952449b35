//! BPF programs that do nothing, attached to malloc and free: the cost that no uprobe tracer gets below.

use crate::probes::site::{self, Contract};
use crate::probes::symbols::Symbols;
use anyhow::{Context as _, Result, bail, ensure};
use libbpf_rs::{Link, Object, ObjectBuilder, UprobeMultiOpts};
use std::path::{Path, PathBuf};
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
        let directory = tempfile::tempdir().context("failed to make a temporary directory")?;
        let path = directory.path().join("floor.bpf.o");
        let status = Command::new("clang")
            .args(["-O2", "-g", "-target", "bpf", "-c", SOURCE, "-o"])
            .arg(&path)
            .status()
            .context("failed to run clang")?;
        ensure!(status.success(), "failed to compile {SOURCE}");
        let object = ObjectBuilder::default()
            .open_file(&path)
            .and_then(|object| object.load())
            .context("failed to load the empty BPF programs (root? Linux 6.13 or newer?)")?;
        Ok(Self { object })
    }

    /// Attaches them to the allocator of the process `pid` until the links are dropped.
    pub fn attach(&self, pid: u32, at: At) -> Result<Vec<Link>> {
        let libc = libc_of(pid)?;
        let data = std::fs::read(&libc).context("failed to read the target's libc")?;
        let symbols = Symbols::parse(&data)?;
        let offsets = |returns: bool| -> Result<Vec<usize>> {
            let functions = FUNCTIONS.iter().filter(|function| function.2 == returns);
            functions
                .map(|(name, signature, _)| offset(&symbols, name, *signature, at))
                .collect()
        };
        Ok(vec![
            self.link("entry_and_return", pid, &libc, offsets(true)?, true)?,
            self.link("entry", pid, &libc, offsets(false)?, false)?,
        ])
    }

    fn link(
        &self,
        name: &str,
        pid: u32,
        path: &Path,
        offsets: Vec<usize>,
        session: bool,
    ) -> Result<Link> {
        let program = self
            .object
            .progs_mut()
            .find(|program| program.name() == name);
        let options = UprobeMultiOpts {
            offsets,
            session,
            ..Default::default()
        };
        program
            .with_context(|| format!("no program {name}"))?
            .attach_uprobe_multi_with_opts(pid.cast_signed(), path, "", options)
            .with_context(|| format!("failed to attach {name} to {}", path.display()))
    }
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
