//! Logs of memleak.py in its older form, whose frames have no addresses.
//! Its newer form equals our own text output: see `import_text`.

use super::log::{self, LogBuilder, Top};
use crate::model::report::Frame;
use crate::model::run::Source;

/// A log of this form.
pub fn builder() -> LogBuilder {
    LogBuilder::new(Source::MemleakPy, Top::Asked)
}

/// The frame on a line such as "\t\tmain+0x6d \[allocs\]".
pub fn frame(line: &str, builder: &mut LogBuilder) -> Option<Frame> {
    (!log::is_lost_stack(line)).then(|| builder.make_frame(0, log::symbol(line), None))
}
