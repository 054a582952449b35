//! Control groups, of either version: found by folder or by the container that they belong to, and who is in them.
//! Follows nobody; who comes and goes is the tracer's to see.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

use super::handle::running;
use crate::files::proc;

/// Where cgroups are mounted.
const MOUNTS: &str = "/proc/self/mountinfo";

/// Digits of a container's id in the names of its cgroups.
const ID_DIGITS: usize = 64;

/// A cgroup, with all those below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cgroup {
    folder: PathBuf,
    version2: bool,
}

/// A place where a hierarchy of cgroups is mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mount {
    /// The cgroup that is mounted there; `/` but for containers.
    root: PathBuf,
    point: PathBuf,
    /// What /proc/PID/cgroup calls the hierarchy: its controllers, nothing for version 2.
    controllers: String,
}

impl Cgroup {
    /// The cgroup of a folder below /sys/fs/cgroup, or of a path as /proc/PID/cgroup gives it.
    ///
    /// # Errors
    /// When there is none.
    pub fn open(path: &Path) -> Result<Self> {
        let mounts = mounts()?;
        let below = path.strip_prefix("/").unwrap_or(path);
        // version 2 first: it tells of those that come later
        let candidates = std::iter::once(path.to_path_buf())
            .chain(mounts.iter().map(|mount| mount.point.join(below)));
        for folder in candidates.filter(|folder| folder.join("cgroup.procs").is_file()) {
            let folder = fs::canonicalize(&folder).unwrap_or(folder);
            let mount = mounts
                .iter()
                .filter(|mount| folder.starts_with(&mount.point))
                .max_by_key(|mount| mount.point.as_os_str().len());
            if let Some(mount) = mount {
                let version2 = mount.controllers.is_empty();
                return Ok(Self { folder, version2 });
            }
        }
        if path.is_dir() {
            bail!(
                "{} is no cgroup: give a folder below /sys/fs/cgroup",
                path.display()
            );
        }
        bail!(
            "no such cgroup: {}: give a folder below /sys/fs/cgroup, or a path as in /proc/PID/cgroup",
            path.display()
        )
    }

    /// The cgroup of the container with this id, or whose id begins so.
    ///
    /// # Errors
    /// When no process, or when more than one container, fits.
    pub fn of_container(id: &str) -> Result<Self> {
        let mut found: BTreeSet<String> = BTreeSet::new();
        let mut lines: Vec<Vec<u8>> = Vec::new();
        for pid in running() {
            // it may have ended meanwhile
            let text = fs::read(format!("/proc/{pid}/cgroup")).unwrap_or_default();
            for line in text.split(|byte| *byte == b'\n') {
                if let Some((container, _)) = container_in(line, id) {
                    found.insert(container.to_owned());
                    lines.push(line.to_owned());
                }
            }
        }
        let mut ids = found.into_iter();
        let Some(container) = ids.next() else {
            bail!(
                "no running container has an id that begins with {id}: see docker ps, podman ps or crictl ps"
            );
        };
        let others: Vec<String> = ids.collect();
        ensure!(
            others.is_empty(),
            "{id} begins the ids of several containers: {container}, {}",
            others.join(", ")
        );
        lines.sort();
        lines.dedup();
        Self::of_lines(&lines, id)
            .with_context(|| format!("failed to find the cgroup of container {container}"))
    }

    /// The cgroup that lines of /proc/PID/cgroup name, up to the part that is the container's.
    fn of_lines(lines: &[Vec<u8>], id: &str) -> Result<Self> {
        let mounts = mounts()?;
        for mount in &mounts {
            for line in lines {
                let (Some((_, path)), Some(controllers)) =
                    (container_in(line, id), controllers_of(line))
                else {
                    continue;
                };
                let below = path.strip_prefix(&mount.root).ok();
                let folder = below.map(|below| mount.point.join(below));
                match folder {
                    Some(folder)
                        if controllers == mount.controllers
                            && folder.join("cgroup.procs").is_file() =>
                    {
                        let version2 = controllers.is_empty();
                        return Ok(Self { folder, version2 });
                    }
                    _ => {}
                }
            }
        }
        let lines: Vec<_> = lines
            .iter()
            .map(|line| String::from_utf8_lossy(line))
            .collect();
        bail!("its cgroups are not mounted here: {}", lines.join(", "))
    }

    /// The processes in it now, in memleak's own numbers.
    pub fn members(&self) -> BTreeSet<u32> {
        let mut members = BTreeSet::new();
        let mut folders = vec![self.folder.clone()];
        while let Some(folder) = folders.pop() {
            let text = proc::text(folder.join("cgroup.procs")).unwrap_or_default();
            // those of other pid namespaces are listed as 0
            let pids = text.lines().filter_map(|line| line.parse().ok());
            members.extend(pids.filter(|&pid: &u32| pid != 0));
            let entries = fs::read_dir(&folder).into_iter().flatten().flatten();
            folders.extend(
                entries
                    .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                    .map(|entry| entry.path()),
            );
        }
        members
    }

    /// Whether the kernel tells a program who is in it: in version 2.
    pub fn tells_of_members(&self) -> bool {
        self.version2
    }

    /// The open folder, by which the kernel knows it, if it tells of its members.
    ///
    /// # Errors
    /// When it can't be opened.
    pub fn descriptor(&self) -> Result<Option<OwnedFd>> {
        if !self.tells_of_members() {
            return Ok(None);
        }
        let folder = File::open(&self.folder)
            .with_context(|| format!("failed to open {}", self.folder.display()))?;
        Ok(Some(folder.into()))
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// The container that a process runs in, by its whole id.
pub fn container_of(pid: u32) -> Option<String> {
    // it may have ended meanwhile
    let text = fs::read(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    text.split(|byte| *byte == b'\n')
        .find_map(|line| container_in(line, ""))
        .map(|(id, _)| id.to_owned())
}

/// The container's id that begins with `id` in a line of /proc/PID/cgroup, and the path up to there. Ids stand alone
/// (Docker, cgroup version 1) or between a runtime's name and `.scope` (systemd), as 64 hexadecimal digits.
fn container_in<'a>(line: &'a [u8], id: &str) -> Option<(&'a str, &'a Path)> {
    let path = line.splitn(3, |byte| *byte == b':').nth(2)?;
    let mut end = 0;
    for part in path.split(|byte| *byte == b'/') {
        end += part.len();
        let name = part.strip_suffix(b".scope").unwrap_or(part);
        let container = name.rsplit(|byte| matches!(byte, b'-' | b':')).next();
        let container = container.and_then(|digits| str::from_utf8(digits).ok());
        let whole = container.filter(|digits| {
            digits.len() == ID_DIGITS && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
        });
        if let Some(container) = whole.filter(|container| container.starts_with(id)) {
            return Some((container, Path::new(OsStr::from_bytes(&path[..end]))));
        }
        end += 1;
    }
    None
}

/// The controllers of the hierarchy that a line of /proc/PID/cgroup is about.
fn controllers_of(line: &[u8]) -> Option<&str> {
    let controllers = line.split(|byte| *byte == b':').nth(1)?;
    str::from_utf8(controllers).ok()
}

/// All mounted hierarchies, that of version 2 first.
fn mounts() -> Result<Vec<Mount>> {
    let text = fs::read(MOUNTS).with_context(|| format!("failed to read {MOUNTS}"))?;
    let mut mounts: Vec<Mount> = text
        .split(|byte| *byte == b'\n')
        .filter_map(parse_mount)
        .collect();
    mounts.sort_by_key(|mount| !mount.controllers.is_empty());
    Ok(mounts)
}

/// Reads a line of mountinfo, as proc(5) describes it; none for what is no cgroup's.
fn parse_mount(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let path = |shown| proc::path(shown, b" \t\n\\");
    let (root, point) = (path(fields.nth(3)?), path(fields.next()?));
    // optional fields come between, and end with a dash
    fields.by_ref().find(|field| *field == b"-")?;
    let kind = str::from_utf8(fields.next()?).ok()?;
    let options = str::from_utf8(fields.nth(1)?).ok()?;
    let controllers = match kind {
        "cgroup2" => String::new(),
        "cgroup" => {
            let controllers = options
                .split(',')
                .filter(|option| {
                    !matches!(
                        *option,
                        "rw" | "ro" | "xattr" | "noprefix" | "clone_children"
                    )
                })
                .filter(|option| !option.starts_with("release_agent="));
            controllers.collect::<Vec<_>>().join(",")
        }
        _ => return None,
    };
    Some(Mount {
        root,
        point,
        controllers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_found_as_runtimes_name_their_cgroups() {
        let id = "0123456789abcdef".repeat(4);
        for (line, path) in [
            (format!("5:memory:/docker/{id}"), format!("/docker/{id}")),
            (
                format!("0::/system.slice/docker-{id}.scope/inner"),
                format!("/system.slice/docker-{id}.scope"),
            ),
            (
                format!("0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{id}.scope"),
                format!("/kubepods.slice/kubepods-pod1.slice/cri-containerd-{id}.scope"),
            ),
            (
                format!("0::/machine.slice/libpod-{id}.scope/container"),
                format!("/machine.slice/libpod-{id}.scope"),
            ),
            (
                format!(
                    "3:cpu:/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:{id}"
                ),
                format!("/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:{id}"),
            ),
        ] {
            let found = container_in(line.as_bytes(), "0123456789ab");
            assert_eq!(
                found,
                Some((id.as_str(), Path::new(path.as_str()))),
                "{line}"
            );
            assert_eq!(container_in(line.as_bytes(), "123"), None);
        }
        assert_eq!(container_in(b"0::/user.slice/abc", "abc"), None);
        assert_eq!(container_in(b"garbage", "a"), None);
    }

    #[test]
    fn mounts_of_both_versions_are_read() {
        let line = "31 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct";
        let mount = parse_mount(line.as_bytes()).unwrap();
        assert_eq!(mount.point, Path::new("/sys/fs/cgroup/cpu,cpuacct"));
        assert_eq!(mount.controllers, "cpu,cpuacct");
        let line =
            "30 24 0:26 /docker/1 /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        let mount = parse_mount(line.as_bytes()).unwrap();
        assert_eq!(mount.root, Path::new("/docker/1"));
        assert_eq!(mount.controllers, "");
        assert_eq!(parse_mount(b"30 24 0:26 / / rw - ext4 /dev/sda rw"), None);
        assert_eq!(parse_mount(b"nonsense"), None);
    }
}
