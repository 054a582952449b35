//! The table of probed functions, by which one program serves all of them: a row for each, and the allocators that they
//! belong to. Knows nothing of how probes are attached.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};

use super::skel::types;
use super::{Attachment, Tracer};
use crate::probes::{LIBC, Operation, Probe};

impl Tracer<'_> {
    /// The number of an allocator, which is added if it is new; 0 for the C library's.
    fn number_allocator(&mut self, allocator: &Arc<str>) -> u32 {
        if &**allocator == LIBC {
            return 0;
        }
        let known = self.allocators.iter().position(|known| known == allocator);
        let index = known.unwrap_or_else(|| {
            self.allocators.push(Arc::clone(allocator));
            self.allocators.len() - 1
        });
        u32::try_from(index + 1).unwrap_or(0)
    }

    /// Puts a function into the table that the programs read; gives its row.
    pub(super) fn describe(&mut self, probe: &Probe) -> Result<u32> {
        // without cookies each row takes a program, of which there are few: functions that are alike share one
        if self.attachment == Attachment::Plain
            && let Some(row) = self.functions.iter().position(|known| known.is_like(probe))
        {
            self.functions[row].share(probe);
            return Ok(u32::try_from(row).unwrap_or(u32::MAX));
        }
        let allocator = self.number_allocator(&probe.allocator);
        let data = self
            .skel
            .maps
            .bss_data
            .as_deref_mut()
            .context("the programs' table of functions is missing")?;
        let row = self.functions.len();
        ensure!(
            row < data.functions.len(),
            "too many functions to probe: at most {}",
            data.functions.len()
        );
        let signature = probe.signature;
        data.functions[row] = types::function {
            op: operation(signature.operation),
            size: signature.size.unwrap_or(0),
            count: signature.count.unwrap_or(0),
            block: signature.block.unwrap_or(0),
            out: signature.out.unwrap_or(0),
            constant_size: signature.constant_size,
            allocator,
            throws: signature.throws.into(),
            zero: 0,
            length: u32::try_from(probe.length).unwrap_or(u32::MAX),
        };
        self.functions.push(probe.clone());
        Ok(u32::try_from(row).unwrap_or(u32::MAX))
    }
}

fn operation(operation: Operation) -> types::op {
    match operation {
        Operation::Allocate => types::op::OP_ALLOCATE,
        Operation::Reallocate => types::op::OP_REALLOCATE,
        Operation::Free => types::op::OP_FREE,
        Operation::Mmap => types::op::OP_MMAP,
        Operation::Munmap => types::op::OP_MUNMAP,
        Operation::Mremap => types::op::OP_MREMAP,
    }
}
