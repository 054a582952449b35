//! Which stacks grow, how fast, and when the memory is used up: verdicts over the snapshots' figures.
//! The statistics live in `trend`; nothing here formats or looks at symbols.

/// What a stack's outstanding bytes did over the snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// They rise, and still rose at the end: a leak, or a cache that has not filled yet.
    Growing,
    /// They stay where they are, or stopped rising.
    Plateau,
    /// They rise and fall back again and again.
    Sawtooth,
    /// They fall.
    Shrinking,
    /// Fewer than three snapshots, or too few to prove anything.
    TooShort,
}

impl Verdict {
    /// The name used in every output.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Growing => "growing",
            Verdict::Plateau => "plateau",
            Verdict::Sawtooth => "sawtooth",
            Verdict::Shrinking => "shrinking",
            Verdict::TooShort => "too short",
        }
    }
}

/// A slope with its uncertainty, in bytes per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Theil–Sen estimate: the median of the slopes between all pairs of snapshots.
    pub bytes_per_s: f64,
    /// Lower end of its 95 % interval.
    pub low: f64,
    /// Upper end of its 95 % interval.
    pub high: f64,
}

/// What one stack's series shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Growth {
    /// The judgement.
    pub verdict: Verdict,
    /// Whether bytes rose in every consecutive snapshot since the stack first appeared, three or more of them.
    pub continuous: bool,
    /// The trend; `None` when there are fewer than two points.
    pub rate: Option<Rate>,
    /// Two-sided p of the Mann–Kendall test against "no trend"; 1 when it could not be made.
    pub p_value: f64,
    /// Snapshots judged.
    pub points: usize,
    /// Nanoseconds between the first and the last of them.
    pub span_ns: u64,
    /// Bytes in the first of them.
    pub first_bytes: u64,
    /// Bytes in the last of them.
    pub last_bytes: u64,
    /// For a growing stack: seconds until the target's headroom is used up at this rate, where a limit is known.
    pub exhausted_in_s: Option<f64>,
}

/// A verdict and the stack it is about.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StackGrowth {
    /// Index into the recording's stacks.
    pub stack: usize,
    /// What its series shows.
    pub growth: Growth,
}
