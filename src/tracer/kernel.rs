//! What this kernel offers, and whether this process may use it. Decisions rest on the kernel's own type
//! information, not on its version.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use libbpf_rs::btf::{Btf, types};
use rustix::thread::{CapabilitySet, capabilities};

use crate::files::proc;

/// Inode of the initial pid namespace: the kernel's PROC_PID_INIT_INO.
const INITIAL_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

const KERNEL_BTF: &str = "/sys/kernel/btf/vmlinux";

/// How user probes are attached, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// One program for entry and return, which decides at entry whether the return is trapped; one link
    /// per object (Linux 6.13).
    Session,
    /// A program for entry and one for return, a link each per object (Linux 6.6).
    Multi,
    /// The same with links for each function (Linux 5.15).
    Single,
    /// The same, and a program for each function, since probes carry no cookie (Linux 5.10).
    Plain,
}

/// The pid namespace that memleak runs in, as its inode's number; 0 for the initial one, whose numbers the kernel gives
/// by itself.
///
/// # Errors
/// Fails when /proc can't be read.
pub fn pid_namespace() -> Result<u32> {
    let path = "/proc/self/ns/pid";
    let inode = fs::metadata(path)
        .with_context(|| format!("failed to read {path}"))?
        .ino();
    Ok(match inode {
        INITIAL_PID_NAMESPACE => 0,
        inode => u32::try_from(inode)?,
    })
}

/// What the running kernel offers, as its own type information tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// How to attach user probes.
    pub attachment: Attachment,
    /// Probes can keep memory with the task (Linux 5.11).
    pub task_storage: bool,
    /// Hash maps can grow from within a probe (Linux 6.1); older kernels warn in their log.
    pub growing_maps: bool,
    /// Allocations on a given node have tracepoints of their own (Linux up to 6.0); later ones report them as the others.
    pub node_tracepoints: bool,
}

impl Features {
    /// Asks the kernel.
    ///
    /// # Errors
    /// Fails when the kernel's type information can't be read.
    pub fn detect() -> Result<Self> {
        let btf = Btf::from_vmlinux().with_context(|| format!("failed to read {KERNEL_BTF}"))?;
        let has = |enumeration: &str, wanted: &str| -> Result<bool> {
            let values: types::Enum<'_> = btf
                .type_by_name(enumeration)
                .with_context(|| format!("the kernel's type information lacks `{enumeration}`"))?;
            Ok(values
                .iter()
                .any(|member| member.name.is_some_and(|name| name == wanted)))
        };
        let attachment = if has("bpf_attach_type", "BPF_TRACE_UPROBE_SESSION")? {
            Attachment::Session
        } else if has("bpf_attach_type", "BPF_TRACE_UPROBE_MULTI")? {
            Attachment::Multi
        } else if has("bpf_func_id", "BPF_FUNC_get_attach_cookie")? {
            Attachment::Single
        } else {
            Attachment::Plain
        };
        Ok(Self {
            attachment,
            task_storage: has("bpf_func_id", "BPF_FUNC_get_current_task_btf")?,
            growing_maps: btf
                .type_by_name::<types::Struct<'_>>("bpf_mem_alloc")
                .is_some(),
            node_tracepoints: has_tracepoint(&btf, "kmalloc_node")
                && has_tracepoint(&btf, "kmem_cache_alloc_node"),
        })
    }
}

/// Whether the kernel has a tracepoint: each has a type for what is called there.
fn has_tracepoint(btf: &Btf<'_>, name: &str) -> bool {
    let handler: Option<types::Typedef<'_>> = btf.type_by_name(&format!("btf_trace_{name}"));
    handler.is_some()
}

/// Whether programs can call a helper function, named as in the kernel's `enum bpf_func_id`.
///
/// # Errors
/// Fails when the kernel's type information can't be read.
pub fn has_helper(name: &str) -> Result<bool> {
    let btf = Btf::from_vmlinux().with_context(|| format!("failed to read {KERNEL_BTF}"))?;
    let helpers: Option<types::Enum<'_>> = btf.type_by_name("bpf_func_id");
    Ok(helpers.is_some_and(|helpers| {
        helpers
            .iter()
            .any(|member| member.name.is_some_and(|found| found == name))
    }))
}

/// Whether the kernel has a function of this name, as far as its type information tells.
///
/// # Errors
/// Fails when the kernel's type information can't be read.
pub fn has_function(name: &str) -> Result<bool> {
    let btf = Btf::from_vmlinux().with_context(|| format!("failed to read {KERNEL_BTF}"))?;
    Ok(btf.type_by_name::<types::Func<'_>>(name).is_some())
}

/// Whether the tracepoint of objects carries their cache (Linux 5.19).
///
/// # Errors
/// Fails when the kernel's type information can't be read.
pub fn tells_caches() -> Result<bool> {
    let btf = Btf::from_vmlinux().with_context(|| format!("failed to read {KERNEL_BTF}"))?;
    let shared: Option<types::Struct<'_>> = btf.type_by_name("trace_event_raw_kmem_alloc");
    Ok(shared.is_none_or(|record| {
        record
            .iter()
            .any(|member| member.name.is_some_and(|name| name == "accounted"))
    }))
}

/// Page frames of the machine, from the lowest to the highest with holes in between.
///
/// # Errors
/// Fails when /proc/zoneinfo can't be read.
pub fn page_frames() -> Result<u64> {
    let path = "/proc/zoneinfo";
    let text = proc::text(path).with_context(|| format!("failed to read {path}"))?;
    Ok(frames_of_zones(&text))
}

/// The end of the last zone: each has its length before its beginning.
fn frames_of_zones(text: &str) -> u64 {
    let (mut spanned, mut end) = (0, 0);
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let (name, figure) = (words.next(), words.next());
        let figure = figure.and_then(|figure| figure.parse::<u64>().ok());
        match (name, figure) {
            (Some("spanned"), Some(figure)) => spanned = figure,
            (Some("start_pfn:"), Some(figure)) => end = end.max(figure.saturating_add(spanned)),
            _ => {}
        }
    }
    end
}

/// Checks what every kind of tracing needs.
///
/// # Errors
/// One line that says what is missing: the privilege, or type information in the kernel.
pub fn check() -> Result<()> {
    check_privilege()?;
    if !has_type_information() {
        bail!(
            "the kernel has no type information ({KERNEL_BTF}): \
             run a kernel built with CONFIG_DEBUG_INFO_BTF=y"
        );
    }
    Ok(())
}

/// Whether the kernel has type information, by which programs find what they read.
pub fn has_type_information() -> bool {
    Path::new(KERNEL_BTF).exists()
}

/// The capabilities that tracing needs and this process lacks, by name.
///
/// # Errors
/// Fails when they can't be read.
pub fn missing_rights() -> Result<Vec<&'static str>> {
    let held = capabilities(None)
        .context("failed to read the capabilities of this process")?
        .effective;
    Ok(missing_capabilities(held))
}

fn check_privilege() -> Result<()> {
    let missing = missing_rights()?;
    if missing.is_empty() {
        return Ok(());
    }
    bail!(
        "missing {}: run as root, or give memleak CAP_BPF and CAP_PERFMON",
        missing.join(" and ")
    )
}

/// CAP_SYS_ADMIN stands for both, as it does in the kernel.
fn missing_capabilities(held: CapabilitySet) -> Vec<&'static str> {
    if held.contains(CapabilitySet::SYS_ADMIN) {
        return Vec::new();
    }
    let needed = [
        (CapabilitySet::BPF, "CAP_BPF"),
        (CapabilitySet::PERFMON, "CAP_PERFMON"),
    ];
    needed
        .into_iter()
        .filter(|(capability, _)| !held.contains(*capability))
        .map(|(_, name)| name)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_end_with_the_last_zone() {
        let zones = "Node 0, zone      DMA\n  pages free     0\n        spanned  4095\n  start_pfn:           1\n\
                     Node 0, zone   Normal\n        spanned  5505024\n  start_pfn:           1048576\n\
                     Node 0, zone  Movable\n        spanned  0\n";
        assert_eq!(frames_of_zones(zones), 1_048_576 + 5_505_024);
        assert_eq!(frames_of_zones(""), 0);
    }

    #[test]
    fn the_missing_capabilities_are_named() {
        assert_eq!(
            missing_capabilities(CapabilitySet::empty()),
            ["CAP_BPF", "CAP_PERFMON"]
        );
        assert_eq!(
            missing_capabilities(CapabilitySet::BPF | CapabilitySet::CHOWN),
            ["CAP_PERFMON"]
        );
        let both = CapabilitySet::BPF | CapabilitySet::PERFMON;
        assert!(missing_capabilities(both).is_empty());
        assert!(missing_capabilities(CapabilitySet::SYS_ADMIN).is_empty());
    }
}
