//! Walks up a stack outside of the kernel, a step at a time: what src/bpf/user/stack.bpf.h does there. Pure: rules and
//! memory are asked for, and no table, process or file is known here.

use super::rule::{Base, Rule, SavedRbp};

// Registers of the interrupted code in the kernel's rt_sigframe, from the signal trampoline's stack pointer.
const SIGNAL_FRAME_RBP: u64 = 120;
const SIGNAL_FRAME_RSP: u64 = 160;
const SIGNAL_FRAME_RIP: u64 = 168;

/// Registers of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Where its code goes on.
    pub pc: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer register.
    pub bp: u64,
    /// Whether `pc` is behind a call, and not about to be executed.
    pub is_return_address: bool,
}

impl Frame {
    /// The address whose rule holds for this frame.
    pub fn code_address(&self) -> u64 {
        self.pc.wrapping_sub(u64::from(self.is_return_address))
    }
}

/// Why a walk ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The outermost frame is reached.
    Complete,
    /// No rule can express the frame.
    Unsupported,
    /// The memory that is needed is not there.
    Unreadable,
    /// There is no unwind information, and the frame pointer leads nowhere.
    FramePointer,
}

/// Goes to the caller of a frame. `word` reads eight bytes of its stack.
///
/// # Errors
/// Says why there is no caller to go to.
pub fn step(frame: &Frame, rule: Rule, word: impl Fn(u64) -> Option<u64>) -> Result<Frame, End> {
    let read = |address: u64| word(address).ok_or(End::Unreadable);
    let register = |base| match base {
        Base::Rsp => frame.sp,
        Base::Rbp => frame.bp,
    };
    let (cfa, bp_slot) = match rule {
        Rule::Stop => return Err(End::Complete),
        Rule::Unsupported => return Err(End::Unsupported),
        Rule::Signal => {
            return Ok(Frame {
                bp: read(frame.sp.wrapping_add(SIGNAL_FRAME_RBP))?,
                sp: read(frame.sp.wrapping_add(SIGNAL_FRAME_RSP))?,
                pc: read(frame.sp.wrapping_add(SIGNAL_FRAME_RIP))?,
                is_return_address: false,
            });
        }
        Rule::NoFde => (by_frame_pointer(frame)?, Slot::At(frame.bp)),
        Rule::Plt { threshold } => {
            let pushed = frame.pc % 16 >= u64::from(threshold);
            let size = 8 + 8 * u64::from(pushed);
            (frame.sp.wrapping_add(size), Slot::Same)
        }
        Rule::Offset { base, offset, rbp } => {
            let cfa = register(base).wrapping_add_signed(offset.into());
            (cfa, Slot::of(rbp, cfa, register(base)))
        }
        Rule::Deref {
            base,
            offset,
            add,
            rbp,
        } => {
            let cfa = read(register(base).wrapping_add_signed(offset.into()))?
                .wrapping_add(u64::from(add));
            (cfa, Slot::of(rbp, cfa, register(base)))
        }
    };
    if cfa <= frame.sp {
        return Err(End::FramePointer);
    }
    let bp = match bp_slot {
        Slot::Same => frame.bp,
        Slot::Lost => 0,
        Slot::At(address) => read(address)?,
    };
    match read(cfa.wrapping_sub(8))? {
        0 => Err(End::Complete),
        pc => Ok(Frame {
            pc,
            sp: cfa,
            bp,
            is_return_address: true,
        }),
    }
}

/// The CFA of code without unwind information, whose frame pointer is believed as far as it makes sense.
fn by_frame_pointer(frame: &Frame) -> Result<u64, End> {
    match frame.bp {
        // the ABI's mark of the outermost frame
        0 => Err(End::Complete),
        bp if bp < frame.sp || bp % 8 != 0 => Err(End::FramePointer),
        bp => Ok(bp.wrapping_add(16)),
    }
}

/// Where a caller's rbp is.
enum Slot {
    Same,
    Lost,
    At(u64),
}

impl Slot {
    fn of(rbp: SavedRbp, cfa: u64, base: u64) -> Self {
        match rbp {
            SavedRbp::Same => Slot::Same,
            SavedRbp::Lost => Slot::Lost,
            SavedRbp::BelowCfa(bytes) => Slot::At(cfa.wrapping_sub(bytes.into())),
            SavedRbp::AtBase(bytes) => Slot::At(base.wrapping_add_signed(bytes.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME: Frame = Frame {
        pc: 0x1234,
        sp: 0x1000,
        bp: 0x1020,
        is_return_address: true,
    };

    /// A stack on which each word says where it is.
    fn word(address: u64) -> Option<u64> {
        (address < 0x2000).then_some(address + 0x7_0000)
    }

    fn caller(pc_slot: u64, sp: u64, bp: u64) -> Result<Frame, End> {
        Ok(Frame {
            pc: pc_slot + 0x7_0000,
            sp,
            bp,
            is_return_address: true,
        })
    }

    fn offset(base: Base, offset: i32, rbp: SavedRbp) -> Rule {
        Rule::Offset { base, offset, rbp }
    }

    #[test]
    fn the_frame_is_found_from_either_register() {
        let rule = offset(Base::Rsp, 0x40, SavedRbp::Same);
        assert_eq!(step(&FRAME, rule, word), caller(0x1038, 0x1040, 0x1020));
        let rule = offset(Base::Rbp, 0x10, SavedRbp::BelowCfa(0x10));
        assert_eq!(step(&FRAME, rule, word), caller(0x1028, 0x1030, 0x7_1020));
        let rule = offset(Base::Rsp, 0x40, SavedRbp::Lost);
        assert_eq!(step(&FRAME, rule, word), caller(0x1038, 0x1040, 0));
    }

    #[test]
    fn the_frame_of_a_realigned_stack_is_found_through_memory() {
        let rule = Rule::Deref {
            base: Base::Rbp,
            offset: -8,
            add: 8,
            rbp: SavedRbp::AtBase(0),
        };
        let realigned = |address| match address {
            0x1018 => Some(0x1100),
            _ => word(address),
        };
        assert_eq!(
            step(&FRAME, rule, realigned),
            caller(0x1100, 0x1108, 0x7_1020)
        );
    }

    #[test]
    fn a_linkage_table_has_pushed_from_its_threshold_on() {
        let rule = Rule::Plt { threshold: 4 };
        assert_eq!(step(&FRAME, rule, word), caller(0x1008, 0x1010, 0x1020));
        let rule = Rule::Plt { threshold: 5 };
        assert_eq!(step(&FRAME, rule, word), caller(0x1000, 0x1008, 0x1020));
    }

    #[test]
    fn what_a_signal_interrupted_goes_on_where_it_was() {
        let interrupted = step(&FRAME, Rule::Signal, word).unwrap();
        assert_eq!(interrupted.pc, 0x7_10a8);
        assert_eq!(interrupted.code_address(), interrupted.pc);
        assert_eq!((interrupted.sp, interrupted.bp), (0x7_10a0, 0x7_1078));
    }

    #[test]
    fn frame_pointers_are_believed_as_far_as_they_make_sense() {
        let at = |bp| Frame { bp, ..FRAME };
        assert_eq!(
            step(&FRAME, Rule::NoFde, word),
            caller(0x1028, 0x1030, 0x7_1020)
        );
        for (bp, end) in [
            (0, End::Complete),
            (0x1001, End::FramePointer),
            (0xff8, End::FramePointer),
            (u64::MAX - 7, End::FramePointer),
            (0x1ff8, End::Unreadable),
        ] {
            assert_eq!(step(&at(bp), Rule::NoFde, word), Err(end), "{bp:x}");
        }
    }

    #[test]
    fn a_walk_ends_at_the_root_and_where_a_step_would_not_lead_outwards() {
        assert_eq!(step(&FRAME, Rule::Stop, word), Err(End::Complete));
        assert_eq!(step(&FRAME, Rule::Unsupported, word), Err(End::Unsupported));
        let rule = offset(Base::Rsp, 8, SavedRbp::Same);
        assert_eq!(step(&FRAME, rule, |_| Some(0)), Err(End::Complete));
        let rule = offset(Base::Rbp, -0x20, SavedRbp::Same);
        assert_eq!(step(&FRAME, rule, word), Err(End::FramePointer));
    }
}
