//! When the target's memory is looked at for blocks that nothing points to, and what of the answer reports tell. How a look
//! is done is `reachability`'s business.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::BorrowedFd;
use std::path::Path;

use anyhow::Result;

use super::traced::Traced;
use super::{Session, monotonic_ns};
use crate::model::capture::Sampling;
use crate::model::run::Reason;
use crate::model::snapshot::{Amount, Class, Look, StackId};
use crate::options::{Options, TargetOption};
use crate::process::Mappings;
use crate::reachability::{self, Answer, Block, Request, State, Watch};
use crate::stderr::say;
use crate::tracer::{LiveBlock, States, Tracer};

/// What a session knows of lost and held memory.
#[derive(Default)]
pub struct LostOrHeld {
    /// The command, watched so that it can be looked at when it is about to end.
    watch: Option<Watch>,
    /// What was found then, by process.
    last: BTreeMap<u32, (States, Look)>,
    /// Reports so far.
    reports: u64,
}

impl LostOrHeld {
    /// Watches a command that is still held, if that is wanted.
    pub fn begin(options: &Options, target: &Traced) -> Self {
        let mut session = Self::default();
        if let (Some(_), Traced::Command(command)) = (&options.lost, target) {
            match Watch::start(command.process().pid()) {
                Ok(watch) => session.watch = Some(watch),
                Err(error) => {
                    say!("warning: the command's memory can't be looked at when it ends: {error:#}")
                }
            }
        }
        session
    }

    /// Readable when the command is about to end.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_ref().map(Watch::at_end)
    }
}

impl Session<'_> {
    /// Looks at a command that is about to end, and lets it.
    pub(super) fn look_at_end(&mut self) -> Result<()> {
        let Some(watch) = self.lost.watch.take() else {
            return Ok(());
        };
        if !watch.is_at_end() {
            self.lost.watch = Some(watch);
            return Ok(());
        }
        let pid = watch.pid();
        let found = self.look_at(pid, Some(&watch));
        // the command ends, whatever was found
        drop(watch);
        self.lost.last.insert(pid, found?);
        Ok(())
    }

    /// Watches the command no longer: it goes on by itself.
    pub(super) fn stop_watching(&mut self) {
        self.lost.watch = None;
    }

    /// Looks at the processes, where a report is to tell what is lost. Gives the state of each block.
    pub(super) fn look_for_lost(
        &mut self,
        reason: Reason,
        ended_only: bool,
    ) -> Result<Option<(States, Look)>> {
        let Some(lost) = self.options.lost else {
            return Ok(None);
        };
        if ended_only {
            return Ok(None);
        }
        self.lost.reports += 1;
        let due = lost
            .every
            .is_some_and(|every| self.lost.reports.is_multiple_of(every));
        if !(self.is_ending || reason == Reason::Demand || due) {
            return Ok(None);
        }
        let mut all = std::mem::take(&mut self.lost.last);
        let living: Vec<u32> = self.processes.living().collect();
        for pid in living {
            if all.contains_key(&pid) {
                continue;
            }
            let watch = self.lost.watch.take();
            let of_watch = watch.as_ref().filter(|watch| watch.pid() == pid);
            let found = self.look_at(pid, of_watch);
            self.lost.watch = watch;
            all.insert(pid, found?);
        }
        let mut states = States::default();
        let mut look: Option<Look> = None;
        for (_, (found, one)) in all {
            states.extend(found);
            look = Some(match look {
                Some(look) => look.plus(one),
                None => one,
            });
        }
        let look = look.unwrap_or_else(|| Look {
            failed: Some("the process has ended".to_owned()),
            ..Look::default()
        });
        if let Some(why) = &look.failed {
            say!("warning: what is lost can't be told: {why}");
        }
        Ok(Some((states, look)))
    }

    /// Looks at a process; that it can't be looked at is an answer as well.
    fn look_at(&mut self, pid: u32, watch: Option<&Watch>) -> Result<(States, Look)> {
        let Some(lost) = self.options.lost else {
            return Ok(Default::default());
        };
        let at_end = watch.is_some_and(Watch::is_at_end);
        self.take_in()?;
        let blocks = self.tracer.live_blocks(pid)?;
        let kept = kept_stacks(&self.tracer, &self.mappings, pid, &blocks)?;
        let request = Request {
            pid,
            blocks: blocks.iter().map(|block| of_block(block, &kept)).collect(),
            // while the program runs, blocks come between the list and the stop: what only they point to is not known lost
            complete: at_end && self.knows_all_blocks(pid),
            mode: match at_end {
                // it stands anyway
                true => reachability::Mode::Stop,
                false => lost.mode,
            },
        };
        let answer = match reachability::examine(&request, watch) {
            Ok(answer) => answer,
            Err(error) => {
                let look = Look {
                    failed: Some(format!("{error:#}")),
                    ..Look::default()
                };
                return Ok((States::default(), look));
            }
        };
        if self.options.verbose {
            say!(
                "looked at {} bytes of process {pid} in {:.1} ms, marked in {:.1} ms",
                answer.bytes,
                answer.scan.as_secs_f64() * 1e3,
                answer.marking.as_secs_f64() * 1e3
            );
        }
        let states = blocks.iter().zip(&answer.blocks);
        let states = states.filter_map(|(block, of)| {
            let (state, _) = (*of)?;
            Some(((pid, block.address), (block.time_ns, state)))
        });
        Ok((states.collect(), look_of(&answer)))
    }

    /// Whether no block of a process can be unknown: it was traced from its first instruction on, and nothing left out.
    fn knows_all_blocks(&self, pid: u32) -> bool {
        let recording = &self.options.recording;
        let losses = self.tracer.losses();
        let is_command = matches!(self.options.target, TargetOption::Command(_));
        is_command
            && self.processes.is_first(pid)
            && recording.sampling == Sampling::All
            && recording.sizes == (0..=u64::MAX)
            && losses.allocations == 0
            && losses.threads == 0
    }
}

/// The stacks whose blocks the dynamic linker keeps, in ways of its own.
fn kept_stacks(
    tracer: &Tracer<'_>,
    mappings: &Mappings,
    pid: u32,
    blocks: &[LiveBlock],
) -> Result<BTreeSet<StackId>> {
    let now_ns = monotonic_ns();
    let stacks: BTreeSet<StackId> = blocks.iter().map(|block| block.stack).collect();
    let mut kept = BTreeSet::new();
    for id in stacks {
        let stack = tracer.stack(id)?;
        let caller = stack.as_deref().and_then(<[u64]>::first);
        let mapping = caller.and_then(|caller| mappings.find(pid, caller - 1, now_ns));
        if mapping.is_some_and(|mapping| is_linker(&mapping.object.path)) {
            kept.insert(id);
        }
    }
    Ok(kept)
}

/// Whether a file is a dynamic linker that does nothing else; musl's is its C library as well.
fn is_linker(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("ld-linux") || name.starts_with("ld64.so") || name.starts_with("ld-2.")
}

fn of_block(block: &LiveBlock, kept: &BTreeSet<StackId>) -> Block {
    Block {
        address: block.address,
        size: block.size,
        mapping: block.class == Class::Mmap,
        kept: kept.contains(&block.stack),
    }
}

/// What reports tell of a look; the recorded blocks' share comes with the snapshot.
fn look_of(answer: &Answer) -> Look {
    let mut look = Look {
        stood_ns: u64::try_from(answer.pause.as_nanos()).unwrap_or(u64::MAX),
        confirmed: answer.confirmed,
        left_out: answer.refused.clone(),
        ..Look::default()
    };
    for (call, threads) in &answer.interrupted {
        let plural = if *threads == 1 { "" } else { "s" };
        look.interrupted
            .push(format!("{call} in {threads} thread{plural}"));
    }
    for block in &answer.unrecorded {
        let one = Amount {
            bytes: block.size,
            count: 1,
        };
        let to = match block.state {
            State::Lost => &mut look.before.lost,
            State::LostIndirectly => &mut look.before.lost_indirectly,
            State::Undecided => &mut look.before.undecided,
            State::Held => &mut look.before_held,
        };
        *to = to.plus(one);
    }
    look
}

/// Completes a look with what a snapshot's stacks come to.
pub fn sum_up(look: &mut Look, usage: &[crate::model::snapshot::Usage]) {
    for usage in usage {
        let Some(reach) = usage.reach else {
            continue;
        };
        let all = Amount {
            bytes: usage.bytes,
            count: usage.count,
        };
        look.reach = look.reach.plus(reach);
        look.held = look.held.plus(all.minus(reach.not_held()));
    }
}
