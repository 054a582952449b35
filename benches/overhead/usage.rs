//! What a process uses, from /proc: CPU time, resident memory, and the memory of its BPF maps.

use anyhow::{Context as _, Result};
use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

/// CPU time of all threads that `pid` has now; none once it is gone.
pub fn cpu_time(pid: u32) -> Option<Duration> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let nanoseconds = threads
        .flatten()
        .filter_map(|thread| {
            let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse::<u64>().ok()
        })
        .sum();
    Some(Duration::from_nanos(nanoseconds))
}

/// Memory of one process, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// Resident pages, but those of BPF maps that it has mapped, which count as maps.
    pub resident: u64,
    /// What the kernel charges for the BPF maps that it holds open.
    pub maps: u64,
}

/// The memory of `pid` now.
pub fn memory(pid: u32) -> Result<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))
        .with_context(|| format!("failed to read the status of process {pid}"))?;
    let resident = value(&status, "VmRSS:").unwrap_or(0) * 1024;
    let mapped = resident_maps(pid)?;
    // Several descriptors may be of one map.
    let mut maps = BTreeMap::new();
    let descriptors = fs::read_dir(format!("/proc/{pid}/fdinfo"))
        .with_context(|| format!("failed to list the descriptors of process {pid}"))?;
    for descriptor in descriptors.flatten() {
        let Ok(text) = fs::read_to_string(descriptor.path()) else {
            continue; // closed since it was listed
        };
        if let (Some(id), Some(bytes), true) = (
            value(&text, "map_id:"),
            value(&text, "memlock:"),
            text.contains("map_type:"),
        ) {
            maps.insert(id, bytes);
        }
    }
    Ok(Memory {
        resident: resident.saturating_sub(mapped),
        maps: maps.values().sum(),
    })
}

/// Bytes of BPF maps among a process's resident pages.
fn resident_maps(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps"))
        .with_context(|| format!("failed to read the mappings of process {pid}"))?;
    let mut of_map = false;
    let mut bytes = 0;
    for line in text.lines() {
        match line.split_once(':') {
            Some(("Rss", _)) if of_map => bytes += value(line, "Rss:").unwrap_or(0) * 1024,
            // a mapping's first line, unlike the others, begins with addresses
            _ if line
                .split(' ')
                .next()
                .is_some_and(|word| word.contains('-')) =>
            {
                of_map = line.ends_with("anon_inode:bpf-map");
            }
            _ => {}
        }
    }
    Ok(bytes)
}

fn value(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    line[name.len()..].split_whitespace().next()?.parse().ok()
}
