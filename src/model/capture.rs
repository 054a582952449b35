//! How a run was told to capture: which share of the allocations, and by which way up the stack.
//! Data only; what may be typed for it is the command line's.

/// How many of the allocations are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sampling {
    /// All.
    All,
    /// One in this many, at least 2, whatever their sizes.
    Rate(u32),
    /// Those that hold a sample, of which there is one in this many bytes on average.
    Bytes(u32),
}

/// How stacks are unwound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unwind {
    /// With tables where the kernel takes the unwinder, else by frame pointers.
    Auto,
    /// With tables, or not at all.
    Tables,
    /// By frame pointers.
    FramePointers,
}
