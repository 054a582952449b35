//! What the tracer saw at one moment: outstanding memory per stack, the stacks, and what was lost.
//! Data only: no maps, no symbols, no clocks, no formatting.

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

/// Everything that one stack has allocated and freed since tracing began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turnover {
    /// Bytes allocated so far.
    pub allocated_bytes: u64,
    /// Allocations so far.
    pub allocated_count: u64,
    /// Bytes freed so far.
    pub freed_bytes: u64,
    /// Frees so far.
    pub freed_count: u64,
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
    /// Allocations and frees so far, where the tracer counts them.
    pub turnover: Option<Turnover>,
    /// The blocks themselves, by address; filled only when they were asked for.
    pub allocations: Vec<Allocation>,
}

/// What the tracer could not see or store since it started. All zero means that the figures are complete.
/// The names of the fields are those in recordings and JSON: they are published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Losses {
    /// Allocations not recorded because the map of live blocks was full.
    pub allocations: u64,
    /// Bytes of those allocations.
    pub allocation_bytes: u64,
    /// Allocations counted without a stack because the map of stacks was full.
    pub stacks: u64,
    /// Changes of anonymous mappings that were dropped because their ring was full.
    pub ranges: u64,
    /// Announcements of code mappings that were dropped because their ring was full.
    pub mappings: u64,
    /// Calls that `--trace` could not show because their ring was full.
    pub calls: u64,
    /// Calls that were not seen because there was no memory for the thread's state.
    pub threads: u64,
    /// Blocks that were replaced because their address was handed out again: a free was missed.
    pub missed_frees: u64,
    /// Ways to free memory that this kernel does not tell of: what goes there looks live until its address is handed out
    /// again.
    pub unseen_frees: u64,
    /// C++ allocations so large that they could fail, whose exception would not have passed a return probe.
    pub unfollowed: u64,
    /// Calls by signal handlers on an alternate stack, whose return could not be trapped without ending the program.
    pub in_handlers: u64,
    /// Processes that were not traced because there were too many.
    pub processes: u64,
    /// Announcements of processes that were started, executed a program or ended, which were dropped because their ring was
    /// full: of those there may be neither name nor end.
    pub lives: u64,
    /// Events of the kernel that came while the program for them was at work already, in an interrupt of it.
    pub events: u64,
    /// Files of which not all is known, because reading them took too much or ended the process that did it.
    pub files: u64,
    /// Processes that ran for a while before they got their first probe, or for a moment had none.
    pub late_processes: u64,
    /// 1 where a run has ended in which no probed function was called: nothing can be said of it.
    pub silent: u64,
    /// Stacks that end before their outermost frame.
    pub cut: CutStacks,
}

impl Losses {
    /// Whether frees may be missing, so that blocks are counted that are gone, and what looks like growth may be none.
    pub fn may_lack_frees(&self) -> bool {
        self.missed_frees > 0
            || self.unseen_frees > 0
            || self.events > 0
            || self.threads > 0
            || self.ranges > 0
    }
}

/// Stacks that end before their outermost frame, by what ended them; each time one was captured counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct CutStacks {
    /// As many frames as were asked for.
    pub depth: u64,
    /// A return address in no code that was known at the time.
    pub unknown_code: u64,
    /// Unwind information that can't be followed here.
    pub unsupported: u64,
    /// Stack memory that could not be read.
    pub unreadable: u64,
    /// Code without unwind information, and a frame pointer that leads nowhere.
    pub frame_pointer: u64,
}

impl CutStacks {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.reasons().iter().map(|(count, _)| count).sum()
    }

    /// These and others.
    pub fn plus(&self, other: &CutStacks) -> CutStacks {
        CutStacks {
            depth: self.depth + other.depth,
            unknown_code: self.unknown_code + other.unknown_code,
            unsupported: self.unsupported + other.unsupported,
            unreadable: self.unreadable + other.unreadable,
            frame_pointer: self.frame_pointer + other.frame_pointer,
        }
    }

    /// How many, and why, in words.
    pub fn reasons(&self) -> [(u64, &'static str); 5] {
        [
            (self.depth, "at --perf-max-stack-depth"),
            (self.unknown_code, "in code not known yet"),
            (
                self.unsupported,
                "by unwind information that is not supported",
            ),
            (self.unreadable, "by unreadable stack memory"),
            (
                self.frame_pointer,
                "by code without frame pointers or unwind information",
            ),
        ]
    }
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
