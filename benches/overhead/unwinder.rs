//! What a stack costs: unwound by memleak's tables, against the kernel's walk along frame pointers; and what the tables
//! of programs and libraries cost. The rest of an event's cost is taken off.

use crate::Setup;
use crate::floor::{self, At, Floor};
use crate::table::{Table, cell, median, number};
use crate::target::{Frames, Target};
use crate::tracer::Tracer;
use anyhow::{Context as _, Result};
use libbpf_rs::{Link, Object};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

const SOURCE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/benches/overhead/stackid.bpf.c"
);
const DEPTHS: [u32; 3] = [10, 20, 50];
/// The goal: the unwinder's time as a share of bpf_get_stackid's.
const GOAL: f64 = 0.75;

/// Nanoseconds per pair of malloc and free, round by round.
#[derive(Default)]
struct Times {
    nothing: Vec<f64>,
    stackid: Vec<f64>,
    one_frame: Vec<f64>,
    unwound: Vec<f64>,
}

/// Measures and prints.
pub fn run(setup: &Setup, floor: &Floor) -> Result<()> {
    stacks(setup, floor)?;
    tables(setup)
}

fn stacks(setup: &Setup, floor: &Floor) -> Result<()> {
    let kernel = floor::load(SOURCE)?;
    let one_frame = ["--unwind", "fp", "--perf-max-stack-depth", "1"];
    let one_frame = setup.ours("memleak, one frame", &one_frame);
    let unwound = setup.ours("memleak", &["--unwind", "dwarf"]);
    let mut times: [Times; DEPTHS.len()] = Default::default();
    for round in 1..=setup.rounds {
        eprintln!("unwinder, round {round} of {}", setup.rounds);
        for (depth, times) in DEPTHS.iter().zip(&mut times) {
            let command = format!("pairs {depth}");
            for (program, times) in [
                ("nothing", &mut times.nothing),
                ("stackid", &mut times.stackid),
            ] {
                let mut target = setup.workloads.start()?;
                let _link = attach(&kernel, program, &target)?;
                times.push(target.ask(&command)?);
            }
            for (tracer, times) in [
                (&one_frame, &mut times.one_frame),
                (&unwound, &mut times.unwound),
            ] {
                let target = setup.workloads.start_built(Frames::WithoutPointers)?;
                times.push(traced(floor, tracer, target, &command)?);
            }
        }
    }
    let columns = [
        "ns per stack",
        "bpf_get_stackid, frame pointers",
        "memleak, tables",
        "ratio",
    ];
    let table = Table::begin("Cost of a stack", &columns);
    for (depth, times) in DEPTHS.iter().zip(&times) {
        let kernel = difference(&times.stackid, &times.nothing);
        let ours = difference(&times.unwound, &times.one_frame);
        let ratio = ours.zip(kernel).map(|(ours, kernel)| ours / kernel);
        table.row(&[
            format!("depth {depth}"),
            cell(kernel),
            cell(ours),
            cell(ratio),
        ]);
    }
    table.end(&format!(
        "bpf_get_stackid: a return probe with it, less an empty one. Tables: memleak, less memleak with `--unwind fp \
         --perf-max-stack-depth 1`, whose one frame is not in the figure. The goal is a ratio of {} at most.",
        number(GOAL)
    ));
    Ok(())
}

fn attach(object: &Object, program: &str, target: &Target) -> Result<Link> {
    floor::attach_to(object, program, target.pid(), &["malloc"], At::Sites)
}

fn traced(floor: &Floor, tracer: &Tracer, mut target: Target, command: &str) -> Result<f64> {
    let mut attached = tracer.attach(floor, target.pid(), 3600)?;
    attached.settle()?;
    target.ask(command)
}

/// The median difference, round by round.
fn difference(with: &[f64], without: &[f64]) -> Option<f64> {
    let differences: Vec<f64> = with.iter().zip(without).map(|(a, b)| a - b).collect();
    median(&differences)
}

/// What is measured of each file.
struct Built {
    bytes: u64,
    rows: usize,
    milliseconds: Option<f64>,
}

fn tables(setup: &Setup) -> Result<()> {
    let columns = ["", "files", "MB", "rows", "KiB of rows", "ms to build"];
    let table = Table::begin("Unwind tables", &columns);
    let row = |name: &str, files: &[PathBuf]| -> Result<()> {
        let built: Vec<Built> = files
            .iter()
            .filter_map(|file| build(file, setup.rounds))
            .collect();
        let rows: usize = built.iter().map(|built| built.rows).sum();
        let bytes: u64 = built.iter().map(|built| built.bytes).sum();
        let times: Option<Vec<f64>> = built.iter().map(|built| built.milliseconds).collect();
        table.row(&[
            name.to_string(),
            built.len().to_string(),
            number(bytes as f64 / 1e6),
            rows.to_string(),
            (rows * size_of::<u32>() / 1024).to_string(),
            cell(times.map(|times| times.iter().sum())),
        ]);
        Ok(())
    };
    for pattern in [
        "libc.so.6",
        "libstdc++.so.6",
        "libjvm.so",
        "libLLVM-14.so.1",
    ] {
        if let Some(file) = find_library(pattern) {
            row(&format!("{pattern} alone"), &[file])?;
        }
    }
    for (name, command) in [
        (
            "python3",
            &["python3", "-c", "import sqlite3, ssl, json; input()"][..],
        ),
        ("java", &["jshell", "-q"]),
    ] {
        match mapped_files(command) {
            Ok(files) => row(name, &files)?,
            Err(error) => eprintln!("  failed: {error:#}"),
        }
    }
    table.end(
        "All files with code that a process maps, one after the other on one processor; memleak builds several at a time. \
         Each row takes 4 bytes in the kernel, in blocks of 256 KiB, and as much in memleak.",
    );
    Ok(())
}

/// None where there is no table to be had.
fn build(file: &Path, rounds: usize) -> Option<Built> {
    let bytes = std::fs::metadata(file).ok()?.len();
    let mut times = Vec::new();
    let mut rows = 0;
    for _ in 0..rounds {
        let begin = Instant::now();
        let data = object::ReadCache::new(std::fs::File::open(file).ok()?);
        rows = memleak::unwind::build(&data).ok()?.rows.len();
        times.push(begin.elapsed().as_secs_f64() * 1000.0);
    }
    Some(Built {
        bytes,
        rows,
        milliseconds: median(&times),
    })
}

fn find_library(name: &str) -> Option<PathBuf> {
    let folders = [
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib64",
        "/usr/lib/jvm/default-java/lib/server",
        "/usr/lib/jvm/java-17-openjdk-amd64/lib/server",
    ];
    let mut paths = folders.iter().map(|folder| Path::new(folder).join(name));
    paths.find(|path| path.exists())
}

/// The files whose code a program maps once it waits for input.
fn mapped_files(command: &[&str]) -> Result<Vec<PathBuf>> {
    let child = Command::new(command[0])
        .args(&command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("failed to run {}", command[0]))?;
    let mut child = Killed(child);
    let mut before = BTreeSet::new();
    // it maps nothing new for a second once it has started
    loop {
        std::thread::sleep(std::time::Duration::from_secs(1));
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", child.0.id()))
            .with_context(|| format!("failed to read what {} maps", command[0]))?;
        let now: BTreeSet<PathBuf> = maps
            .lines()
            .filter(|line| {
                line.split(' ')
                    .nth(1)
                    .is_some_and(|mode| mode.contains('x'))
            })
            .filter_map(|line| Some(PathBuf::from(&line[line.find('/')?..])))
            .collect();
        if now == before || child.0.try_wait()?.is_some() {
            return Ok(now.into_iter().collect());
        }
        before = now;
    }
}

/// A child that does not outlive its use.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
