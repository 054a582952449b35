//! What the tracer saw at one moment: outstanding memory per stack, and the stacks.
//! Data only: no maps, no symbols, no clocks, no formatting.

use serde::{Deserialize, Serialize};

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

/// Some blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amount {
    /// Their bytes.
    pub bytes: u64,
    /// How many there are.
    pub count: u64,
}

impl Amount {
    /// These and others.
    pub fn plus(self, other: Amount) -> Amount {
        Amount {
            bytes: self.bytes.saturating_add(other.bytes),
            count: self.count.saturating_add(other.count),
        }
    }

    /// These without others.
    pub fn minus(self, other: Amount) -> Amount {
        Amount {
            bytes: self.bytes.saturating_sub(other.bytes),
            count: self.count.saturating_sub(other.count),
        }
    }

    /// Of each figure the smaller.
    pub fn min(self, other: Amount) -> Amount {
        Amount {
            bytes: self.bytes.min(other.bytes),
            count: self.count.min(other.count),
        }
    }
}

/// How much of what is outstanding the program can't reach any more. The rest is held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reach {
    /// Nothing points to it.
    pub lost: Amount,
    /// Only lost blocks point to it.
    pub lost_indirectly: Amount,
    /// Only memory that memleak knows nothing of points to it.
    pub undecided: Amount,
}

impl Reach {
    /// What is lost, directly or not.
    pub fn all_lost(self) -> Amount {
        self.lost.plus(self.lost_indirectly)
    }

    /// What is not known to be held.
    pub fn not_held(self) -> Amount {
        self.all_lost().plus(self.undecided)
    }

    /// This and another.
    pub fn plus(self, other: Reach) -> Reach {
        Reach {
            lost: self.lost.plus(other.lost),
            lost_indirectly: self.lost_indirectly.plus(other.lost_indirectly),
            undecided: self.undecided.plus(other.undecided),
        }
    }

    /// What can be of it in a part of the memory: as much as goes in, the lost first.
    pub fn within(self, part: Amount) -> Reach {
        let lost = self.lost.min(part);
        let lost_indirectly = self.lost_indirectly.min(part.minus(lost));
        let undecided = self.undecided.min(part.minus(lost.plus(lost_indirectly)));
        Reach {
            lost,
            lost_indirectly,
            undecided,
        }
    }
}

/// What a look at the target's memory came to, besides each stack's share. The names of the fields are those in recordings
/// and JSON: they are published.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Look {
    /// Of the recorded blocks.
    #[serde(flatten)]
    pub reach: Reach,
    /// Recorded blocks that the program can reach.
    pub held: Amount,
    /// Of the blocks that were allocated before memleak came, or that it was told to leave out.
    pub before: Reach,
    /// Such blocks that the program can reach.
    pub before_held: Amount,
    /// The longest that the target stood, in ns.
    pub stood_ns: u64,
    /// Whether what is lost was seen while the target stood, so that no pointer can have moved meanwhile.
    pub confirmed: bool,
    /// System calls of the target that the stop may have ended with EINTR, with how many threads.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interrupted: Vec<String>,
    /// What could not be looked at, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// What leads to the held blocks, largest first, where that was asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub held_by: Vec<Holder>,
    /// Why nothing can be told at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

impl Look {
    /// All that is lost, directly or not, recorded or from before.
    pub fn all_lost(&self) -> Amount {
        self.reach.plus(self.before).all_lost()
    }

    /// This look and one at another process.
    pub fn plus(mut self, other: Look) -> Look {
        self.reach = self.reach.plus(other.reach);
        self.held = self.held.plus(other.held);
        self.before = self.before.plus(other.before);
        self.before_held = self.before_held.plus(other.before_held);
        self.stood_ns = self.stood_ns.max(other.stood_ns);
        self.confirmed &= other.confirmed;
        self.interrupted.extend(other.interrupted);
        self.left_out.extend(other.left_out);
        self.left_out.extend(other.failed);
        self.held_by.extend(other.held_by);
        self
    }
}

/// What leads to held blocks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Holder {
    /// What it is: "`g_cache` \[app\]", "the stack of thread 7".
    pub name: String,
    /// What it leads to.
    #[serde(flatten)]
    pub held: Amount,
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
    /// How much of it can't be reached, where that was looked at.
    pub reach: Option<Reach>,
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
    /// What a look at the target's memory came to, where there was one.
    pub look: Option<Look>,
    /// Whether the figures are scaled up from a sample.
    pub estimated: bool,
    /// What was lost since the start.
    pub losses: Losses,
}
