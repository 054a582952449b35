//! Whom to trace next of all processes that are looked at: the strongest suspect, one at a time, seldom enough.
//! Pure: readings and times are given, and whether a process can be traced is told afterwards.

use std::collections::HashMap;

use super::suspect::{Readings, Sensitivity, Suspicion};

/// Looks between two judgements of one process.
const JUDGE_EVERY: u64 = 12;

/// Windows' lengths that a process has peace after its first window; twice as many after each further one.
const PEACE: u64 = 4;

/// The same after a window that found nothing, or could not be opened.
const LONG_PEACE: u64 = 30;

/// The longest peace, in ns: six hours.
const LONGEST_PEACE_NS: u64 = 6 * 3600 * 1_000_000_000;

/// A process that is not mistaken for a later one of the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Who {
    /// Its id.
    pub pid: u32,
    /// When it began, in ticks since boot.
    pub started: u64,
}

/// A process that grows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Suspect {
    /// Which one.
    pub who: Who,
    /// How.
    pub suspicion: Suspicion,
}

/// What a window came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Stacks that grow were found.
    Found,
    /// None were.
    Nothing,
    /// The process could not be traced.
    Failed,
}

/// The state of all processes.
#[derive(Debug)]
pub struct Watch {
    sensitivity: Sensitivity,
    window_ns: u64,
    looks: u64,
    processes: HashMap<Who, Watched>,
    /// Nobody is traced before this time.
    free_ns: u64,
}

#[derive(Debug, Default)]
struct Watched {
    readings: Readings,
    suspicion: Option<Suspicion>,
    windows: u32,
    peace_until_ns: u64,
}

impl Watch {
    /// Nobody has been looked at yet. A window lasts `window_ns`.
    pub fn new(sensitivity: Sensitivity, window_ns: u64) -> Self {
        Self {
            sensitivity,
            window_ns,
            looks: 0,
            processes: HashMap::new(),
            free_ns: 0,
        }
    }

    /// Takes in what processes hold at a time; those that are not among them have ended. `headroom` tells what is left to
    /// a process.
    pub fn look(
        &mut self,
        now_ns: u64,
        readings: &[(Who, u64)],
        mut headroom: impl FnMut(u32) -> Option<u64>,
    ) {
        self.looks += 1;
        for &(who, bytes) in readings {
            let watched = self.processes.entry(who).or_default();
            watched.readings.push(now_ns, bytes);
            // not all at the same time
            if (self.looks + u64::from(who.pid)).is_multiple_of(JUDGE_EVERY) {
                watched.suspicion = watched
                    .readings
                    .judge(self.sensitivity, || headroom(who.pid));
            }
        }
        if self.processes.len() > readings.len() {
            let present: std::collections::HashSet<Who> =
                readings.iter().map(|(who, _)| *who).collect();
            self.processes.retain(|who, _| present.contains(who));
        }
    }

    /// Everybody who grows, the strongest suspect first: whoever meets a limit soonest, then who grows fastest for sure.
    pub fn suspects(&self) -> Vec<Suspect> {
        let mut suspects: Vec<Suspect> = self
            .processes
            .iter()
            .filter_map(|(who, watched)| {
                Some(Suspect {
                    who: *who,
                    suspicion: watched.suspicion?,
                })
            })
            .collect();
        suspects.sort_by(|one, other| {
            let limit = |of: &Suspect| of.suspicion.limit_in_s.unwrap_or(f64::INFINITY);
            limit(one)
                .total_cmp(&limit(other))
                .then_with(|| other.suspicion.low.total_cmp(&one.suspicion.low))
                .then_with(|| one.who.cmp(&other.who))
        });
        suspects
    }

    /// Whom to trace now, if it is time for anybody.
    pub fn next(&self, now_ns: u64) -> Option<Suspect> {
        if now_ns < self.free_ns {
            return None;
        }
        let mut suspects = self.suspects().into_iter();
        suspects.find(|suspect| {
            let watched = self.processes.get(&suspect.who);
            watched.is_some_and(|watched| watched.peace_until_ns <= now_ns)
        })
    }

    /// A window of a process has ended at a time. As long as it was, nobody is traced; the process itself has peace for
    /// longer, the longer the more often it was traced.
    pub fn traced(&mut self, who: Who, now_ns: u64, outcome: Outcome) {
        self.free_ns = now_ns.saturating_add(self.window_ns);
        let Some(watched) = self.processes.get_mut(&who) else {
            return;
        };
        let lengths = match outcome {
            Outcome::Found => PEACE,
            Outcome::Nothing | Outcome::Failed => LONG_PEACE,
        };
        let doubled = lengths.saturating_mul(1 << watched.windows.min(20));
        let peace = self.window_ns.saturating_mul(doubled).min(LONGEST_PEACE_NS);
        watched.windows += 1;
        watched.peace_until_ns = now_ns.saturating_add(peace);
    }

    /// Processes that are looked at.
    pub fn processes(&self) -> usize {
        self.processes.len()
    }
}

#[cfg(test)]
mod tests;
