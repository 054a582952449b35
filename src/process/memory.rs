//! How much memory a process takes, and how much it can still take before it meets a limit.
//! Reads /proc and /sys only; what the figures mean is judged elsewhere.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::files::proc;
use crate::model::run::{Headroom, Limit};

/// The resident memory of a process in bytes; `None` when it has ended.
pub fn resident_bytes(pid: u32) -> Option<u64> {
    let statm = proc::text(proc::folder(pid).join("statm")).ok()?;
    // One that has ended but was not waited for has none.
    let pages: u64 = statm
        .split_whitespace()
        .nth(1)?
        .parse()
        .ok()
        .filter(|&pages| pages > 0)?;
    pages.checked_mul(rustix::param::page_size() as u64)
}

/// The resident memory of a process that no file and no other process has, in bytes: what an allocator can have brought
/// in.
pub fn anonymous_bytes(pid: u32) -> Option<u64> {
    anonymous_in(&proc::text(proc::folder(pid).join("statm")).ok()?)
}

/// The same by the text of /proc/PID/statm; none where the process has ended, whether or not anybody has waited for it.
pub fn anonymous_in(statm: &str) -> Option<u64> {
    let mut pages = statm.split_whitespace().skip(1);
    let mut next = || pages.next()?.parse::<u64>().ok();
    let (resident, shared) = (next().filter(|&resident| resident > 0)?, next()?);
    resident
        .saturating_sub(shared)
        .checked_mul(rustix::param::page_size() as u64)
}

/// What a process can still take: up to its cgroup's limit or one above it, its own limit, or the machine's available
/// memory, whichever comes first.
///
/// Its own limit is no matter where there are others, whose memory it does not bound: `alone` says.
pub fn headroom(pid: u32, alone: bool) -> Option<Headroom> {
    let cgroups = fs::read(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let limited = cgroup_headroom(&cgroups, Path::new("/sys/fs/cgroup"));
    let available = available_bytes(&proc::text("/proc/meminfo").unwrap_or_default());
    let limited = limited.map(|bytes| Headroom {
        bytes,
        limit: Limit::Cgroup,
    });
    let available = available.map(|bytes| Headroom {
        bytes,
        limit: Limit::Available,
    });
    let text = |name: &str| proc::text(format!("/proc/{pid}/{name}")).unwrap_or_default();
    let own = alone.then(|| own_headroom(&text("limits"), &text("status")));
    let own = own.flatten().map(|bytes| Headroom {
        bytes,
        limit: Limit::Rlimit,
    });
    limited
        .into_iter()
        .chain(own)
        .chain(available)
        .min_by_key(|headroom| headroom.bytes)
}

/// Allocations of more bytes than this can fail in a process; up to it they don't, short of a machine that is out of
/// memory, where the kernel ends processes instead.
pub fn surely_allocatable(pid: u32) -> u64 {
    let limits = proc::text(format!("/proc/{pid}/limits")).unwrap_or_default();
    let overcommit = proc::text("/proc/sys/vm/overcommit_memory").unwrap_or_default();
    // a limit can be reached by the smallest allocation, and so can strict accounting
    if has_limit(&limits, "Max address space")
        || has_limit(&limits, "Max data size")
        || overcommit.trim() == "2"
    {
        return 0;
    }
    let machine = rustix::system::sysinfo();
    #[allow(clippy::useless_conversion, reason = "narrower on 32-bit machines")]
    let units = u64::from(machine.totalram).saturating_add(u64::from(machine.totalswap));
    // what the kernel takes for obvious overcommitment
    units.saturating_mul(u64::from(machine.mem_unit.max(1)))
}

/// What a process's own limits leave it: of its address space, and of its data. `limits` and `status` are the texts of
/// /proc/PID.
fn own_headroom(limits: &str, status: &str) -> Option<u64> {
    let left = |limit: &str, used: &str| {
        let soft = soft_limit(limits, limit)?.parse::<u64>().ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix(used))?;
        let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
        Some(soft.saturating_sub(kib.saturating_mul(1024)))
    };
    let space = left("Max address space", "VmSize:");
    let data = left("Max data size", "VmData:");
    space.into_iter().chain(data).min()
}

fn soft_limit<'a>(limits: &'a str, name: &str) -> Option<&'a str> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next())
}

/// Whether the soft limit of a line of /proc/PID/limits is a number.
fn has_limit(limits: &str, name: &str) -> bool {
    soft_limit(limits, name).is_some_and(|soft| soft != "unlimited")
}

/// The least that any cgroup of the process leaves it. `cgroups` is the text of /proc/PID/cgroup.
fn cgroup_headroom(cgroups: &[u8], root: &Path) -> Option<u64> {
    cgroups
        .split(|byte| *byte == b'\n')
        .filter_map(|line| memory_folder(line, root))
        .flat_map(|(top, path)| levels(&top, &path))
        .min()
}

/// Where a line of /proc/PID/cgroup has memory limits, if it does: the hierarchy's top, and the path below it.
fn memory_folder(line: &[u8], root: &Path) -> Option<(PathBuf, PathBuf)> {
    let mut fields = line.splitn(3, |byte| *byte == b':').skip(1);
    let (controllers, path) = (str::from_utf8(fields.next()?).ok()?, fields.next()?);
    let below = PathBuf::from(OsStr::from_bytes(path.strip_prefix(b"/")?));
    match controllers {
        // Version 2 has one hierarchy, which systemd's hybrid mode puts aside.
        "" => Some((root.to_path_buf(), below)),
        _ if controllers
            .split(',')
            .any(|controller| controller == "memory") =>
        {
            Some((root.join("memory"), below))
        }
        _ => None,
    }
}

/// What is left at each level, from the cgroup itself to the top.
fn levels(top: &Path, below: &Path) -> Vec<u64> {
    below
        .ancestors()
        .filter_map(|path| left(&top.join(path)))
        .collect()
}

fn left(folder: &Path) -> Option<u64> {
    let number = |names: [&str; 2]| -> Option<u64> {
        let text = names
            .iter()
            .find_map(|name| proc::text(folder.join(name)).ok())?;
        // "max" is no limit.
        text.trim().parse().ok()
    };
    let limit = number(["memory.max", "memory.limit_in_bytes"])?;
    // Version 1 writes no limit as a number that no machine has.
    (limit < 1 << 60).then_some(())?;
    Some(limit.saturating_sub(number(["memory.current", "memory.usage_in_bytes"])?))
}

/// MemAvailable, in bytes. `meminfo` is the text of /proc/meminfo.
fn available_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cgroup(root: &Path, path: &str, files: &[(&str, &str)]) {
        let folder = root.join(path);
        fs::create_dir_all(&folder).unwrap();
        files
            .iter()
            .for_each(|(name, text)| fs::write(folder.join(name), text).unwrap());
    }

    #[test]
    fn a_process_has_what_its_own_limits_leave_it() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
                      Max data size             unlimited            unlimited            bytes\n\
                      Max address space         1048576              unlimited            bytes\n";
        let status = "Name:\tx\nVmSize:\t     512 kB\nVmData:\t  100 kB\n";
        assert_eq!(own_headroom(limits, status), Some(512 << 10));
        let both = limits.replace(
            "unlimited            unlimited            bytes",
            "204800 204800 bytes",
        );
        assert_eq!(own_headroom(&both, status), Some(100 << 10));
        assert_eq!(
            own_headroom(&limits.replace("1048576  ", "unlimited"), status),
            None
        );
        assert_eq!(own_headroom("", ""), None);
    }

    #[test]
    fn the_tightest_limit_of_the_cgroups_above_counts() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        cgroup(
            root,
            "a/b",
            &[("memory.max", "max\n"), ("memory.current", "10\n")],
        );
        assert_eq!(cgroup_headroom(b"0::/a/b\n", root), None);
        cgroup(
            root,
            "a",
            &[("memory.max", "1000\n"), ("memory.current", "400\n")],
        );
        assert_eq!(cgroup_headroom(b"0::/a/b\n", root), Some(600));
        cgroup(
            root,
            "a/b",
            &[("memory.max", "50\n"), ("memory.current", "70\n")],
        );
        assert_eq!(cgroup_headroom(b"0::/a/b\n", root), Some(0));
        assert_eq!(cgroup_headroom(b"", root), None);
        assert_eq!(cgroup_headroom(b"garbage\n1:x\n", root), None);
    }

    #[test]
    fn version_one_has_its_own_files_and_its_own_way_to_say_no_limit() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let lines = "5:cpu,cpuacct:/x\n4:memory:/x\n0::/y\n";
        let files = [
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory.usage_in_bytes", "10\n"),
        ];
        cgroup(root, "memory/x", &files);
        assert_eq!(cgroup_headroom(lines.as_bytes(), root), None);
        cgroup(
            root,
            "memory/x",
            &[
                ("memory.limit_in_bytes", "90\n"),
                ("memory.usage_in_bytes", "10\n"),
            ],
        );
        assert_eq!(cgroup_headroom(lines.as_bytes(), root), Some(80));
    }

    #[test]
    fn limits_are_numbers_or_none() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
            Max data size             unlimited            unlimited            bytes     \n\
            Max address space         1073741824           unlimited            bytes     \n";
        assert!(has_limit(limits, "Max address space"));
        assert!(!has_limit(limits, "Max data size"));
        assert!(!has_limit("", "Max address space"));
        assert!(surely_allocatable(std::process::id()) > 1 << 20);
    }

    #[test]
    fn available_memory_is_in_kib() {
        assert_eq!(
            available_bytes("MemTotal: 9 kB\nMemAvailable:   4 kB\n"),
            Some(4096)
        );
        assert_eq!(available_bytes(""), None);
    }

    #[test]
    fn this_process_has_memory() {
        assert!(resident_bytes(std::process::id()).is_some_and(|bytes| bytes > 0));
        assert!(headroom(std::process::id(), true).is_some());
        assert_eq!(resident_bytes(u32::MAX), None);
    }
}
