//! Walks up a stack outside of the kernel, a step at a time: what src/bpf/user/stack.bpf.h does there. Pure: rules and
//! memory are asked for, and no table, process or file is known here.

use super::Machine;
use super::rule::{Base, Rule, SavedLink, SavedRbp};

/// Where the kernel's rt_sigframe has the registers of the interrupted code, in bytes from the signal trampoline's
/// stack pointer.
struct SignalFrame {
    fp: u64,
    /// x30, where there is one.
    link: Option<u64>,
    sp: u64,
    pc: u64,
}

const X86_64_SIGNAL: SignalFrame = SignalFrame {
    fp: 120,
    link: None,
    sp: 160,
    pc: 168,
};
const AARCH64_SIGNAL: SignalFrame = SignalFrame {
    fp: 544,
    link: Some(552),
    sp: 560,
    pc: 568,
};

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
    /// What only aarch64 has.
    pub link: Link,
}

/// What a frame on aarch64 has besides, and does not mean anything elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// x30: the return address of code that has called nothing, so only where `pc` is no return address.
    pub register: u64,
    /// Whether the frame's stack pointer is not known but for a lower bound.
    pub sp_is_bound: bool,
    /// The bits of a return address that are no signature.
    pub mask: u64,
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
    match (Machine::NATIVE, rule) {
        (Machine::Aarch64, Rule::NoFde) => step_by_frame_record(frame, word),
        (Machine::Aarch64, Rule::Signal) => step_over_signal(frame, &AARCH64_SIGNAL, word),
        (_, Rule::Signal) => step_over_signal(frame, &X86_64_SIGNAL, word),
        (
            _,
            Rule::Record {
                base,
                offset,
                saved,
            },
        ) => step_by_record(frame, base, offset, saved, word),
        _ => step_on_x86_64(frame, rule, word),
    }
}

fn step_over_signal(
    frame: &Frame,
    at: &SignalFrame,
    word: impl Fn(u64) -> Option<u64>,
) -> Result<Frame, End> {
    let read = |offset: u64| word(frame.sp.wrapping_add(offset)).ok_or(End::Unreadable);
    Ok(Frame {
        bp: read(at.fp)?,
        sp: read(at.sp)?,
        pc: read(at.pc)?,
        is_return_address: false,
        link: Link {
            register: at.link.map_or(Ok(0), read)?,
            sp_is_bound: false,
            ..frame.link
        },
    })
}

/// Code of aarch64 without unwind information: where its caller's stack pointer is, a frame record does not tell.
fn step_by_frame_record(frame: &Frame, word: impl Fn(u64) -> Option<u64>) -> Result<Frame, End> {
    let sp = by_frame_pointer(frame)?;
    let read = |address: u64| word(address).ok_or(End::Unreadable);
    let bp = read(frame.bp)?;
    arrive(frame, sp, bp, read(frame.bp.wrapping_add(8))?, true)
}

fn step_by_record(
    frame: &Frame,
    base: Base,
    offset: u32,
    saved: SavedLink,
    word: impl Fn(u64) -> Option<u64>,
) -> Result<Frame, End> {
    let read = |address: u64| word(address).ok_or(End::Unreadable);
    let base = match (base, saved) {
        (Base::Fp, _) => frame.bp,
        (Base::Sp, _) if !frame.link.sp_is_bound => frame.sp,
        // a function that keeps a frame pointer keeps it at its record
        (Base::Sp, SavedLink::Record(slot)) => Some(frame.bp.wrapping_sub(slot.into()))
            .filter(|base| *base >= frame.sp)
            .ok_or(End::FramePointer)?,
        _ => return Err(End::FramePointer),
    };
    let cfa = base.wrapping_add(offset.into());
    let innermost = !frame.is_return_address;
    // only a function that has called none can do without a frame
    if cfa < frame.sp || cfa == frame.sp && !innermost {
        return Err(End::FramePointer);
    }
    let at = |slot: u32| base.wrapping_add(slot.into());
    let (bp, address) = match saved {
        SavedLink::Nothing if innermost => (frame.bp, frame.link.register),
        SavedLink::Nothing => return Err(End::FramePointer),
        SavedLink::Record(slot) => (read(at(slot))?, read(at(slot).wrapping_add(8))?),
        SavedLink::Link(slot) => (frame.bp, read(at(slot))?),
        SavedLink::LinkWithoutFp(slot) => (0, read(at(slot))?),
    };
    arrive(frame, cfa, bp, address, false)
}

/// The frame of the caller to which an address of aarch64 leads back.
fn arrive(frame: &Frame, sp: u64, bp: u64, address: u64, sp_is_bound: bool) -> Result<Frame, End> {
    match address & frame.link.mask {
        0 => Err(End::Complete),
        pc => Ok(Frame {
            pc,
            sp,
            bp,
            is_return_address: true,
            link: Link {
                register: 0,
                sp_is_bound,
                ..frame.link
            },
        }),
    }
}

fn step_on_x86_64(
    frame: &Frame,
    rule: Rule,
    word: impl Fn(u64) -> Option<u64>,
) -> Result<Frame, End> {
    let read = |address: u64| word(address).ok_or(End::Unreadable);
    let register = |base| match base {
        Base::Sp => frame.sp,
        Base::Fp => frame.bp,
    };
    let (cfa, bp_slot) = match rule {
        Rule::Stop => return Err(End::Complete),
        Rule::Unsupported | Rule::Signal | Rule::Record { .. } => return Err(End::Unsupported),
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
            link: frame.link,
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
        link: LINK,
    };
    const LINK: Link = Link {
        register: 0,
        sp_is_bound: false,
        mask: (1 << 48) - 1,
    };
    /// A signature that an address can carry.
    const SIGNED: u64 = 0x5a << 48;

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
            link: LINK,
        })
    }

    /// As a caller on aarch64 is found: its address carries a signature.
    fn signed(address: u64) -> Option<u64> {
        word(address).map(|word| word | SIGNED)
    }

    fn offset(base: Base, offset: i32, rbp: SavedRbp) -> Rule {
        Rule::Offset { base, offset, rbp }
    }

    #[test]
    fn the_frame_is_found_from_either_register() {
        let rule = offset(Base::Sp, 0x40, SavedRbp::Same);
        assert_eq!(step(&FRAME, rule, word), caller(0x1038, 0x1040, 0x1020));
        let rule = offset(Base::Fp, 0x10, SavedRbp::BelowCfa(0x10));
        assert_eq!(step(&FRAME, rule, word), caller(0x1028, 0x1030, 0x7_1020));
        let rule = offset(Base::Sp, 0x40, SavedRbp::Lost);
        assert_eq!(step(&FRAME, rule, word), caller(0x1038, 0x1040, 0));
    }

    #[test]
    fn the_frame_of_a_realigned_stack_is_found_through_memory() {
        let rule = Rule::Deref {
            base: Base::Fp,
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
        let interrupted = step_over_signal(&FRAME, &X86_64_SIGNAL, word).unwrap();
        assert_eq!(interrupted.pc, 0x7_10a8);
        assert_eq!(interrupted.code_address(), interrupted.pc);
        assert_eq!((interrupted.sp, interrupted.bp), (0x7_10a0, 0x7_1078));
        let interrupted = step_over_signal(&FRAME, &AARCH64_SIGNAL, word).unwrap();
        assert_eq!(interrupted.pc, 0x7_1238);
        assert_eq!((interrupted.sp, interrupted.bp), (0x7_1230, 0x7_1220));
        assert_eq!(interrupted.link.register, 0x7_1228);
    }

    #[test]
    fn on_aarch64_the_return_address_is_beside_the_frame_pointer_and_without_its_signature() {
        let by =
            |frame: &Frame, base, offset, saved| step_by_record(frame, base, offset, saved, signed);
        let with_bp = |bp| caller(0x1018, 0x1040, bp);
        assert_eq!(
            by(&FRAME, Base::Sp, 0x40, SavedLink::Record(0x10)),
            with_bp(0x7_1010 | SIGNED)
        );
        assert_eq!(
            by(&FRAME, Base::Sp, 0x40, SavedLink::Link(0x18)),
            with_bp(0x1020)
        );
        assert_eq!(
            by(&FRAME, Base::Sp, 0x40, SavedLink::LinkWithoutFp(0x18)),
            with_bp(0)
        );
        assert_eq!(
            by(&FRAME, Base::Fp, 0x20, SavedLink::Record(0)),
            caller(0x1028, 0x1040, 0x7_1020 | SIGNED)
        );
    }

    #[test]
    fn the_link_register_counts_in_the_innermost_frame_only() {
        let leaf = Frame {
            is_return_address: false,
            link: Link {
                register: 0x4321 | SIGNED,
                ..LINK
            },
            ..FRAME
        };
        let by = |frame: &Frame, offset| {
            step_by_record(frame, Base::Sp, offset, SavedLink::Nothing, signed)
        };
        let caller = by(&leaf, 0).unwrap();
        assert_eq!((caller.pc, caller.sp, caller.bp), (0x4321, 0x1000, 0x1020));
        assert_eq!(by(&caller, 16), Err(End::FramePointer));
        let saved = SavedLink::Link(0);
        let same = step_by_record(&caller, Base::Sp, 0, saved, signed);
        assert_eq!(same, Err(End::FramePointer), "it would lead nowhere");
    }

    #[test]
    fn behind_code_without_information_the_record_tells_the_stack_pointer() {
        let record = step_by_frame_record(&FRAME, word).unwrap();
        assert_eq!(
            (record.pc, record.sp, record.bp),
            (0x7_1028, 0x1030, 0x7_1020)
        );
        let unknown = Frame {
            sp: 0x1030,
            bp: 0x1100,
            ..record
        };
        let by = |base, saved| step_by_record(&unknown, base, 0x40, saved, word);
        let found = by(Base::Sp, SavedLink::Record(0x20)).unwrap();
        assert_eq!((found.pc, found.sp, found.bp), (0x7_1108, 0x1120, 0x7_1100));
        assert!(!found.link.sp_is_bound);
        assert!(by(Base::Fp, SavedLink::Record(0)).is_ok());
        assert_eq!(by(Base::Sp, SavedLink::Link(0)), Err(End::FramePointer));
    }

    #[test]
    fn frame_pointers_are_believed_as_far_as_they_make_sense() {
        let at = |bp| Frame { bp, ..FRAME };
        assert_eq!(
            step_on_x86_64(&FRAME, Rule::NoFde, word),
            caller(0x1028, 0x1030, 0x7_1020)
        );
        for (bp, end) in [
            (0, End::Complete),
            (0x1001, End::FramePointer),
            (0xff8, End::FramePointer),
            (u64::MAX - 7, End::FramePointer),
            (0x1ff8, End::Unreadable),
        ] {
            assert_eq!(
                step_on_x86_64(&at(bp), Rule::NoFde, word),
                Err(end),
                "{bp:x}"
            );
        }
    }

    #[test]
    fn a_walk_ends_at_the_root_and_where_a_step_would_not_lead_outwards() {
        assert_eq!(step(&FRAME, Rule::Stop, word), Err(End::Complete));
        assert_eq!(step(&FRAME, Rule::Unsupported, word), Err(End::Unsupported));
        let rule = offset(Base::Sp, 8, SavedRbp::Same);
        assert_eq!(step(&FRAME, rule, |_| Some(0)), Err(End::Complete));
        let rule = offset(Base::Fp, -0x20, SavedRbp::Same);
        assert_eq!(step(&FRAME, rule, word), Err(End::FramePointer));
    }
}
