//! What the tracer saw at one moment: outstanding memory per stack, and the stacks.
//! Data only: no maps, no symbols, no clocks, no formatting.

use crate::model::losses::Losses;

/// Frames that a stack can have at the most: what BCC's tools and the kernel's own stack maps keep.
pub const MAX_STACK_DEPTH: u32 = 127;

/// A stack's identity: the 64-bit hash under which the tracer stored its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StackId(pub u64);

impl StackId {
    /// The identity shared by allocations whose stack could not be stored.
    pub const NOT_STORED: StackId = StackId(0);
}

/// Return addresses, innermost first; element 0 is in the allocator's caller.
pub type Stack = Vec<u64>;

/// What kind of memory an allocation is. Classes never overlap: each byte is counted in one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    /// From malloc and its kin.
    Heap,
    /// An anonymous mapping that the program made itself.
    Mmap,
    /// An object of one of the kernel's slab caches, kmalloc's among them.
    Slab,
    /// Pages that the kernel took for itself.
    Page,
    /// Memory of which each CPU has its own copy; the size is that of one copy.
    Percpu,
    /// Pages that hold files' contents or are mapped into processes.
    UserPages,
}

impl Class {
    /// All of them.
    pub const ALL: [Class; 6] = [
        Class::Heap,
        Class::Mmap,
        Class::Slab,
        Class::Page,
        Class::Percpu,
        Class::UserPages,
    ];

    /// The name used in options and machine-readable outputs.
    pub fn name(self) -> &'static str {
        match self {
            Class::Heap => "heap",
            Class::Mmap => "mmap",
            Class::Slab => "slab",
            Class::Page => "page",
            Class::Percpu => "percpu",
            Class::UserPages => "user-pages",
        }
    }
}

/// Wall-clock time, with the offset that local readers expect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WallTime {
    /// Nanoseconds since the Unix epoch.
    pub unix_ns: i64,
    /// Seconds east of UTC at that moment.
    pub utc_offset_s: i32,
}

impl WallTime {
    /// Hour, minute and second of the local day.
    pub fn hms(self) -> (u32, u32, u32) {
        let local = self.unix_ns.div_euclid(1_000_000_000) + i64::from(self.utc_offset_s);
        let second = local.rem_euclid(86_400) as u32;
        (second / 3600, second / 60 % 60, second % 60)
    }
}

/// One live block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// Where it begins in the process's address space.
    pub address: u64,
    /// Bytes asked for.
    pub size: u64,
    /// The thread that allocated it.
    pub tid: u32,
    /// Nanoseconds between its allocation and the snapshot.
    pub age_ns: u64,
}

/// What one stack of one process holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Usage {
    /// The process (thread group) that owns the memory; 0 for the kernel.
    pub tgid: u32,
    /// What kind of memory it is.
    pub class: Class,
    /// The stack that allocated it.
    pub stack: StackId,
    /// Outstanding bytes; an estimate when [`Snapshot::estimated`] is set.
    pub bytes: u64,
    /// Outstanding allocations; an estimate when [`Snapshot::estimated`] is set.
    pub count: u64,
    /// Age of the oldest of them in ns, where ages are known.
    pub oldest_ns: Option<u64>,
    /// The blocks themselves, by address; filled only when they were asked for.
    pub allocations: Vec<Allocation>,
}

/// The state of the traced memory at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// When it was taken.
    pub time: WallTime,
    /// When it was taken, in ns of CLOCK_MONOTONIC.
    pub monotonic_ns: u64,
    /// What is outstanding, in no particular order.
    pub usage: Vec<Usage>,
    /// Whether the figures are scaled up from a sample.
    pub estimated: bool,
    /// What was lost since the start.
    pub losses: Losses,
}
