//! The rings: changes of anonymous mappings, which become ranges, calls for `--trace`, code that the unwinder doesn't
//! know, walks that it could not finish, and the lives of processes.
//! Draining never waits.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use anyhow::{Context as _, Result, ensure};
use libbpf_rs::{MapCore, RingBuffer, RingBufferBuilder};

use super::deferred::DeferredWalk;
use super::ranges::{Ranges, Span};
use super::skel::types;
use crate::model::call::Call;
use crate::process::{Event, What};

/// Walks that are kept until somebody takes them: some 100 MiB. What comes while tables of large programs are built.
const MOST_WALKS: usize = 8192;
/// Walks that fit into their ring, and some more.
const MOST_WALKS_AT_ONCE: usize = 4096;

/// What has come out of the rings so far.
pub struct Events {
    rings: RingBuffer<'static>,
    walks_ring: RingBuffer<'static>,
    ranges: Rc<RefCell<Ranges>>,
    calls: Rc<RefCell<Vec<types::call_event>>>,
    unknown_code: Rc<RefCell<BTreeSet<u32>>>,
    deferred_walks: Rc<RefCell<Vec<DeferredWalk>>>,
    lives: Rc<RefCell<Vec<Event>>>,
}

impl Events {
    /// Opens the rings.
    ///
    /// # Errors
    /// Fails when a ring can't be mapped.
    pub fn open(
        range_events: &dyn MapCore,
        call_events: &dyn MapCore,
        unknown_code_events: &dyn MapCore,
        life_events: &dyn MapCore,
        deferred_walks_ring: &dyn MapCore,
    ) -> Result<Self> {
        let ranges = Rc::new(RefCell::new(Ranges::default()));
        let calls = Rc::new(RefCell::new(Vec::new()));
        let mut builder = RingBufferBuilder::new();
        let unknown_code = Rc::new(RefCell::new(BTreeSet::new()));
        let (ranges_in, calls_in) = (Rc::clone(&ranges), Rc::clone(&calls));
        let unknown_code_in = Rc::clone(&unknown_code);
        let lives = Rc::new(RefCell::new(Vec::new()));
        let lives_in = Rc::clone(&lives);
        let deferred_walks = Rc::new(RefCell::new(Vec::new()));
        let deferred_walks_in = Rc::clone(&deferred_walks);
        builder
            .add(range_events, move |data| {
                if let Ok(event) = plain::from_bytes::<types::range_event>(data) {
                    apply(&mut ranges_in.borrow_mut(), event);
                }
                0
            })
            .and_then(|builder| {
                builder.add(call_events, move |data| {
                    if let Ok(event) = plain::from_bytes::<types::call_event>(data) {
                        calls_in.borrow_mut().push(*event);
                    }
                    0
                })
            })
            .and_then(|builder| {
                builder.add(unknown_code_events, move |data| {
                    if let Ok(event) = plain::from_bytes::<types::unknown_code_event>(data) {
                        unknown_code_in.borrow_mut().insert(event.tgid);
                    }
                    0
                })
            })
            .and_then(|builder| {
                builder.add(life_events, move |data| {
                    if let Ok(event) = plain::from_bytes::<types::life_event>(data) {
                        lives_in.borrow_mut().extend(life(event));
                    }
                    0
                })
            })
            .context("failed to open the rings of events")?;
        let rings = builder
            .build()
            .context("failed to open the rings of events")?;
        let mut builder = RingBufferBuilder::new();
        builder
            .add(deferred_walks_ring, move |data| {
                deferred_walks_in
                    .borrow_mut()
                    .extend(DeferredWalk::parse(data));
                0
            })
            .context("failed to open the ring of deferred walks")?;
        let walks_ring = builder
            .build()
            .context("failed to open the ring of deferred walks")?;
        Ok(Self {
            rings,
            walks_ring,
            ranges,
            calls,
            unknown_code,
            deferred_walks,
            lives,
        })
    }

    /// Takes in what has come.
    ///
    /// # Errors
    /// Fails when a ring is damaged.
    pub fn drain(&self) -> Result<()> {
        let room = MOST_WALKS - self.deferred_walks.borrow().len();
        // no more than were there: they can come as fast as they are taken, as long as nobody makes the table
        if room > 0 {
            let taken = self.walks_ring.consume_raw_n(room.min(MOST_WALKS_AT_ONCE));
            ensure!(taken >= 0, "failed to read the ring of deferred walks");
        }
        self.rings
            .consume()
            .context("failed to read the rings of events")
    }

    /// The anonymous mappings as they are now.
    pub fn ranges(&self) -> std::cell::Ref<'_, Ranges> {
        self.ranges.borrow()
    }

    /// A process executed another program: what it had mapped before is gone.
    pub fn forget(&self, tgid: u32, before_ns: u64) {
        self.ranges.borrow_mut().forget(tgid, before_ns);
    }

    /// Takes the calls that have come since the last time.
    pub fn take_calls(&self, name: impl Fn(u32) -> String) -> Vec<Call> {
        self.calls
            .take()
            .into_iter()
            .map(|event| Call {
                time_ns: event.time_ns,
                tgid: event.tgid,
                tid: event.tid,
                comm: comm(&event.comm),
                function: name(event.function),
                size: event.size,
                address: event.address,
                old_address: event.old_address,
                error: event.error,
            })
            .collect()
    }

    /// Takes the processes in which the unwinder has met code that it doesn't know.
    pub fn take_unknown_code(&self) -> BTreeSet<u32> {
        self.unknown_code.take()
    }

    /// Takes what has happened to traced processes, in the order in which it was announced.
    pub fn take_lives(&self) -> Vec<Event> {
        self.lives.take()
    }

    /// Takes the walks that are to be finished, oldest first.
    pub fn take_deferred_walks(&self) -> Vec<DeferredWalk> {
        self.deferred_walks.take()
    }

    /// They become readable when something has come.
    #[allow(unsafe_code)] // libbpf-rs gives raw descriptors only
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [&self.rings, &self.walks_ring].map(|rings| {
            // SAFETY: the rings own the descriptor, and the borrow of `self` keeps the rings.
            unsafe { BorrowedFd::borrow_raw(rings.epoll_fd()) }
        })
    }
}

fn apply(ranges: &mut Ranges, event: &types::range_event) {
    let span = Span {
        entry_ns: event.entry_ns,
        return_ns: event.return_ns,
    };
    let old = event.old_address..event.old_address.saturating_add(event.old_length);
    let new = event.address..event.address.saturating_add(event.length);
    match types::op(event.op) {
        types::op::OP_MMAP => ranges.map(event.tgid, new, span, event.stack, event.tid),
        types::op::OP_MUNMAP => ranges.unmap(event.tgid, old, span),
        types::op::OP_MREMAP => ranges.remap(event.tgid, old, new, span, event.flags),
        _ => {}
    }
}

fn life(event: &types::life_event) -> Option<Event> {
    let name = comm(&event.comm);
    let what = match event.life {
        types::life::LIFE_FORKED => What::Forked {
            parent: event.parent,
            name,
        },
        types::life::LIFE_EXECUTED => What::Executed(name),
        types::life::LIFE_LEFT => What::Left,
        types::life::LIFE_ENDED => What::Ended(name),
        _ => return None,
    };
    Some(Event {
        time_ns: event.time_ns,
        pid: event.tgid,
        what,
    })
}

fn comm(bytes: &[i8; 16]) -> String {
    let bytes = bytes.map(i8::cast_unsigned);
    let end = bytes.iter().position(|byte| *byte == 0);
    String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]).into_owned()
}
