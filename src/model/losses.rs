//! What the tracer could not see or store: one table that every output and every verdict reads.
//! How losses are counted is the tracer's matter, how they are laid out is the outputs'.

/// One kind of loss, and how to speak of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// Its name in recordings and JSON.
    pub name: &'static str,
    /// What was lost, if it is one.
    pub one: &'static str,
    /// What was lost, if it is several.
    pub many: &'static str,
    /// What became of it, as a participle or a clause.
    pub fate: &'static str,
    /// Why, as a sentence without its full stop.
    pub cause: &'static str,
    /// What follows, or which option helps, as a clause.
    pub advice: &'static str,
    /// Whether blocks may be counted that are gone, so that what looks like growth may be none.
    pub hides_frees: bool,
}

impl Kind {
    /// What was lost, for so many of it.
    pub fn noun(&self, count: u64) -> &'static str {
        if count == 1 { self.one } else { self.many }
    }
}

/// Makes [`Losses`] and its table of kinds from the same rows.
macro_rules! losses {
    ($($(#[$doc:meta])* $name:ident {
        one: $one:literal, many: $many:literal, fate: $fate:literal, cause: $cause:literal, advice: $advice:literal,
        hides_frees: $hides_frees:literal
    })*) => {
        /// What the tracer could not see or store since it started. All zero means that the figures are complete.
        /// The names of the fields are those in recordings and JSON: they are published.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
        #[serde(default)]
        pub struct Losses {
            $($(#[$doc])* pub $name: u64,)*
            /// Bytes of the allocations that were not recorded.
            pub allocation_bytes: u64,
            /// Stacks that end before their outermost frame. Their figures are whole.
            pub cut: CutStacks,
        }

        /// Every kind of loss, in the order in which it is shown.
        pub const KINDS: &[Kind] = &[$(Kind {
            name: stringify!($name),
            one: $one,
            many: $many,
            fate: $fate,
            cause: $cause,
            advice: $advice,
            hides_frees: $hides_frees,
        }),*];

        impl Losses {
            /// How often each of [`KINDS`] happened.
            fn counts(&self) -> [u64; KINDS.len()] {
                [$(self.$name),*]
            }

            /// These and others.
            pub fn plus(&self, other: &Losses) -> Losses {
                Losses {
                    $($name: self.$name.saturating_add(other.$name),)*
                    allocation_bytes: self.allocation_bytes.saturating_add(other.allocation_bytes),
                    cut: self.cut.plus(&other.cut),
                }
            }
        }
    };
}

losses! {
    /// Allocations not recorded because the map of live blocks was full.
    allocations {
        one: "allocation", many: "allocations", fate: "not recorded",
        cause: "The map of live blocks was full", advice: "raise --max-allocs", hides_frees: false
    }
    /// Allocations counted without a stack because the map of stacks was full.
    stacks {
        one: "stack", many: "stacks", fate: "not stored",
        cause: "The map of stacks was full", advice: "raise --stack-storage-size", hides_frees: false
    }
    /// Changes of anonymous mappings that were dropped because their ring was full.
    ranges {
        one: "change of a mapping", many: "changes of mappings", fate: "dropped",
        cause: "Their buffer was full: some mappings may be missing, or shown although they are gone",
        advice: "leave mappings out with --no-mmap", hides_frees: true
    }
    /// Announcements of code mappings that were dropped because their ring was full.
    mappings {
        one: "code mapping", many: "code mappings", fate: "not seen",
        cause: "Their buffer was full", advice: "some frames may stay unknown", hides_frees: false
    }
    /// Calls that `--trace` could not show because their ring was full.
    calls {
        one: "call", many: "calls", fate: "left out of --trace",
        cause: "Their buffer was full", advice: "the figures count them all the same", hides_frees: false
    }
    /// Calls that were not seen because there was no memory for the thread's state.
    threads {
        one: "call", many: "calls", fate: "not seen for want of kernel memory",
        cause: "The kernel had no memory for a thread's state", advice: "lower --max-allocs", hides_frees: true
    }
    /// Blocks that were replaced because their address was handed out again: a free was missed.
    missed_frees {
        one: "free", many: "frees", fate: "missed",
        cause: "An address was handed out again while it still counted as live",
        advice: "their blocks were replaced", hides_frees: true
    }
    /// Ways to free memory that this kernel does not tell of: what goes there looks live until its address is handed out
    /// again.
    unseen_frees {
        one: "way to free", many: "ways to free", fate: "not seen",
        cause: "The kernel does not tell of them",
        advice: "their blocks are shown until their address is used again", hides_frees: true
    }
    /// C++ allocations so large that they could fail, whose exception would not have passed a return probe.
    unfollowed {
        one: "C++ allocation", many: "C++ allocations", fate: "not followed",
        cause: "An exception does not pass a probed return",
        advice: "so large that failing with an exception could have ended the program", hides_frees: false
    }
    /// Calls by signal handlers on an alternate stack, whose return could not be trapped without ending the program.
    in_handlers {
        one: "call of a signal handler", many: "calls of signal handlers", fate: "not followed",
        cause: "They were made on an alternate stack within other calls",
        advice: "trapping their return would have ended the program", hides_frees: false
    }
    /// Processes that were not traced because there were too many.
    processes {
        one: "process", many: "processes", fate: "not traced",
        cause: "There were too many", advice: "name fewer", hides_frees: false
    }
    /// Announcements of processes that were started, executed a program or ended, which were dropped because their ring was
    /// full: of those there may be neither name nor end.
    lives {
        one: "start or end of a process", many: "starts and ends of processes", fate: "not seen",
        cause: "Their buffer was full: some processes may have no name, or be reported late",
        advice: "trace fewer", hides_frees: false
    }
    /// Processes that ran for a while before they got their first probe, or for a moment had none.
    late_processes {
        one: "process", many: "processes", fate: "not seen from the first instruction, or for a moment",
        cause: "A translator such as valgrind ran, which would have died of probes for everyone",
        advice: "each process got its own", hides_frees: false
    }
    /// 1 where a run has ended in which no probed function was called: nothing can be said of it.
    silent {
        one: "run", many: "runs", fate: "that called no probed function",
        cause: "The target's memory may be in functions that memleak does not know",
        advice: "nothing can be said of the target's memory", hides_frees: false
    }
    /// Events of the kernel that came while the program for them was at work already, in an interrupt of it.
    events {
        one: "kernel event", many: "kernel events", fate: "not seen",
        cause: "They came in an interrupt of memleak's own program",
        advice: "some allocations or frees are missing", hides_frees: true
    }
    /// Stacks without some of the frames that an interpreter runs: its native ones stand there.
    interpreted {
        one: "stack", many: "stacks", fate: "without some of the interpreter's frames",
        cause: "What the interpreter keeps of its frames could not be followed",
        advice: "its native frames are shown instead", hides_frees: false
    }
    /// Files of which not all is known, because reading them took too much or ended the process that did it.
    files {
        one: "file", many: "files", fate: "not read to their end",
        cause: "Reading took too much time or memory, or ended the reader",
        advice: "some frames may stay unknown or missing", hides_frees: false
    }
}

impl Losses {
    /// What happened, and how often, in the order of the table.
    pub fn happened(&self) -> impl Iterator<Item = (&'static Kind, u64)> {
        KINDS
            .iter()
            .zip(self.counts())
            .filter(|(_, count)| *count > 0)
    }

    /// Whether frees may be missing, so that blocks are counted that are gone, and what looks like growth may be none.
    pub fn may_lack_frees(&self) -> bool {
        self.happened().any(|(kind, _)| kind.hides_frees)
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
            depth: self.depth.saturating_add(other.depth),
            unknown_code: self.unknown_code.saturating_add(other.unknown_code),
            unsupported: self.unsupported.saturating_add(other.unsupported),
            unreadable: self.unreadable.saturating_add(other.unreadable),
            frame_pointer: self.frame_pointer.saturating_add(other.frame_pointer),
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    #[test]
    fn every_field_has_a_row() {
        let Value::Object(fields) = serde_json::to_value(Losses::default()).unwrap() else {
            panic!("losses are an object");
        };
        let fields: BTreeSet<&str> = fields.keys().map(String::as_str).collect();
        let rows = KINDS.iter().map(|kind| kind.name);
        let apart = ["allocation_bytes", "cut"];
        assert_eq!(fields, rows.chain(apart).collect());
    }

    #[test]
    fn the_format_of_recordings_tells_of_every_kind() {
        let text = include_str!("../../docs/recording.md");
        let (_, section) = text.split_once("The kinds of losses:").unwrap();
        let (section, _) = section.split_once("\n## ").unwrap();
        for kind in KINDS {
            assert!(
                section.contains(&format!("`{}`", kind.name)),
                "{}",
                kind.name
            );
        }
    }

    #[test]
    fn missed_frees_make_growth_doubtful_and_lost_names_do_not() {
        let files = Losses {
            files: 1,
            ..Losses::default()
        };
        let frees = Losses {
            missed_frees: 1,
            ..files
        };
        assert!(!files.may_lack_frees() && frees.may_lack_frees());
    }
}
