//! An allocator call as `--trace` shows it. Data only.

/// One call of a probed function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// When it returned (free: began), in ns of CLOCK_MONOTONIC.
    pub time_ns: u64,
    /// The process.
    pub tgid: u32,
    /// The thread.
    pub tid: u32,
    /// The thread's name.
    pub comm: String,
    /// The function.
    pub function: String,
    /// Bytes asked for; of free, the bytes of the block if it is known.
    pub size: u64,
    /// What it gave, 0 or an error of mmap where it failed; what free was given.
    pub address: u64,
    /// What realloc, munmap or mremap was given; else 0.
    pub old_address: u64,
    /// The error that posix_memalign returned, else 0.
    pub error: i32,
}
