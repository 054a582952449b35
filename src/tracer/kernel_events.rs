//! The kernel's allocators: which programs are attached where, and what can't be seen on this kernel.
//! What the programs do with an event is theirs alone.

use std::ops::Range;

use anyhow::{Context as _, Result};
use libbpf_rs::{Link, ProgramMut};

use super::cost;
use super::kernel::Features;
use super::skel::{MemleakProgs, types};

/// Which of the kernel's allocators are traced, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelEvents {
    /// Per-CPU memory as well as slabs and pages.
    pub percpu: bool,
    /// Stacks of pages that processes and files hold; otherwise such pages are only counted.
    pub user_pages: bool,
    /// Where the kernel's code is that matters for stacks.
    pub code: KernelCode,
}

/// Places in the kernel, by addresses as in `/proc/kallsyms`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelCode {
    /// Code through which interrupts come, where stacks end.
    pub interrupts: Vec<Range<u64>>,
    /// The function that all system calls go through, where stacks can be told from each other without unwinding.
    pub system_call: Option<Range<u64>>,
    /// The unwind table (ORC), if the kernel has one and shows where.
    pub unwind_table: Option<UnwindTable>,
}

/// The kernel's unwind table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnwindTable {
    /// Code addresses, each an i32 from where it stands.
    pub addresses: Range<u64>,
    /// What belongs to each.
    pub entries: u64,
}

/// Frees that this kernel does not tell of: their blocks look live until their address is handed out again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnseenFrees {
    /// Through kfree_rcu.
    Rcu,
    /// Through kmem_cache_free_bulk.
    Bulk,
}

impl UnseenFrees {
    /// The kernel's function.
    pub fn function(self) -> &'static str {
        match self {
            Self::Rcu => "kfree_rcu",
            Self::Bulk => "kmem_cache_free_bulk",
        }
    }
}

impl KernelEvents {
    /// Whether a program is one of those that are needed, and that this kernel has something to attach to.
    pub fn uses(&self, program: &str, features: Features) -> bool {
        match program.strip_prefix("kernel_") {
            Some("percpu_alloc" | "percpu_free") => self.percpu,
            Some("kmalloc_node" | "cache_alloc_node") => features.node_tracepoints,
            Some(_) => true,
            None => false,
        }
    }
}

/// Attaches the programs; also gives the frees that can't be seen.
///
/// # Errors
/// Fails when the kernel lacks one of the tracepoints that all kernels have, or refuses.
pub fn attach(programs: &MemleakProgs<'_>) -> Result<(Vec<Link>, Vec<UnseenFrees>)> {
    let mut links = Vec::new();
    let mut unseen = Vec::new();
    let probed = [
        (
            &programs.kernel_rcu_free,
            "kvfree_call_rcu",
            UnseenFrees::Rcu,
        ),
        (
            &programs.kernel_bulk_free,
            "kmem_cache_free_bulk",
            UnseenFrees::Bulk,
        ),
    ];
    for (program, function, what) in probed {
        match program.attach_kprobe(false, function) {
            Ok(link) => links.push(link),
            Err(_) => unseen.push(what),
        }
    }
    for (program, tracepoint) in tracepoints(programs).filter(|(program, _)| program.autoload()) {
        let link = program.attach_raw_tracepoint(tracepoint).with_context(|| {
            format!("failed to attach to the kernel's tracepoint `{tracepoint}`")
        })?;
        links.push(link);
    }
    Ok((links, unseen))
}

/// The programs and the tracepoints that they belong to; frees first, as one that is not seen would leave its block in the
/// report. Not all of them are loaded.
fn tracepoints<'a, 'obj>(
    programs: &'a MemleakProgs<'obj>,
) -> impl Iterator<Item = (&'a ProgramMut<'obj>, &'static str)> {
    [
        (&programs.kernel_kfree, "kfree"),
        (&programs.kernel_cache_free, "kmem_cache_free"),
        (&programs.kernel_page_free, "mm_page_free"),
        (&programs.kernel_percpu_free, "percpu_free_percpu"),
        (&programs.kernel_kmalloc, "kmalloc"),
        (&programs.kernel_kmalloc_node, "kmalloc_node"),
        (&programs.kernel_cache_alloc, "kmem_cache_alloc"),
        (&programs.kernel_cache_alloc_node, "kmem_cache_alloc_node"),
        (&programs.kernel_page_alloc, "mm_page_alloc"),
        (&programs.kernel_percpu_alloc, "percpu_alloc_percpu"),
    ]
    .into_iter()
}

/// Fills in an array of ranges; those beyond its end are left out.
pub fn set_ranges(entries: &mut [types::code_range], ranges: &[Range<u64>]) {
    for (entry, code) in entries.iter_mut().zip(ranges) {
        entry.begin = code.start;
        entry.size = code.end - code.start;
    }
}

/// Events that came while their program was at work on the same CPU, which the kernel counts and leaves out.
pub fn missed(programs: &MemleakProgs<'_>) -> u64 {
    let all: Vec<&ProgramMut<'_>> = tracepoints(programs)
        .map(|(program, _)| program)
        .chain([&programs.kernel_rcu_free, &programs.kernel_bulk_free])
        .filter(|program| program.autoload())
        .collect();
    cost::recursion_misses(&all).unwrap_or(0)
}

/// The name that `--trace` gives an event.
pub fn name(event: u32) -> &'static str {
    match types::kernel_event(event) {
        types::kernel_event::EVENT_KMALLOC => "kmalloc",
        types::kernel_event::EVENT_KFREE => "kfree",
        types::kernel_event::EVENT_CACHE_ALLOC => "kmem_cache_alloc",
        types::kernel_event::EVENT_CACHE_FREE => "kmem_cache_free",
        types::kernel_event::EVENT_PAGE_ALLOC => "alloc_pages",
        types::kernel_event::EVENT_PAGE_FREE => "free_pages",
        types::kernel_event::EVENT_PERCPU_ALLOC => "alloc_percpu",
        types::kernel_event::EVENT_PERCPU_FREE => "free_percpu",
        types::kernel_event::EVENT_RCU_FREE => "kfree_rcu",
        types::kernel_event::EVENT_BULK_FREE => "kmem_cache_free_bulk",
        _ => "[unknown]",
    }
}

/// The text of a name as the programs store it; none when it is empty.
pub fn cache_name(value: &[u8]) -> Option<String> {
    let end = value.iter().position(|byte| *byte == 0)?;
    (end > 0).then(|| String::from_utf8_lossy(&value[..end]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracer::kernel::Attachment;

    #[test]
    fn only_what_is_asked_for_and_has_a_tracepoint_is_loaded() {
        let newest = Features {
            attachment: Attachment::Session,
            task_storage: true,
            growing_maps: true,
            node_tracepoints: false,
        };
        let oldest = Features {
            node_tracepoints: true,
            ..newest
        };
        let slabs = KernelEvents::default();
        assert!(slabs.uses("kernel_kmalloc", newest));
        assert!(!slabs.uses("kernel_kmalloc_node", newest));
        assert!(slabs.uses("kernel_kmalloc_node", oldest));
        assert!(slabs.uses("kernel_cache_alloc_node", oldest));
        assert!(!slabs.uses("kernel_percpu_alloc", newest));
        assert!(!slabs.uses("user_session", newest));
        let percpu = KernelEvents {
            percpu: true,
            ..KernelEvents::default()
        };
        assert!(percpu.uses("kernel_percpu_free", newest));
    }

    #[test]
    fn names_end_at_the_first_zero() {
        assert_eq!(cache_name(b"dentry\0\0").as_deref(), Some("dentry"));
        assert_eq!(cache_name(b"\0\0"), None);
    }
}
