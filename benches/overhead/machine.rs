//! The machine that the figures belong to, in a few lines.

use std::fs;

/// Processor, memory and kernel, as Markdown.
pub fn describe() -> String {
    let cpu = field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown processor".into());
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kibibytes = field("/proc/meminfo", "MemTotal")
        .and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok())
        .unwrap_or(0);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let virtual_machine =
        fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains(" hypervisor"));
    format!(
        "Machine: {cpu}, {cores} cores{}, {} GiB, Linux {} {}.\n",
        if virtual_machine {
            " of a virtual machine"
        } else {
            ""
        },
        kibibytes >> 20,
        kernel.trim(),
        std::env::consts::ARCH,
    )
}

fn field(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_string())
}
