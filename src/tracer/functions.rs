//! The table of probed functions, by which one program serves all of them: a row for each, and the allocators that they
//! belong to. Knows nothing of how probes are attached.

use std::sync::Arc;

use anyhow::{Context as _, Result, bail, ensure};
use libbpf_rs::{MapCore as _, MapFlags};

use super::skel::types;
use super::{Attachment, Tracer, owner, unwind_tables};
use crate::discovery::ObjectPlan;
use crate::probes::{LIBC, Operation, Probe};

impl Tracer<'_> {
    /// Whether what is to be probed in an object is in the table already: another process maps it.
    pub(super) fn is_described(&self, object: &ObjectPlan) -> bool {
        let file = object.file.identity();
        let known = file.and_then(|file| self.described.get(&file));
        known.is_some_and(|known| known.iter().map(|(_, probe)| probe).eq(&object.plan.probes))
    }

    /// Puts what is to be probed in an object into the table; gives the functions with their rows.
    pub(super) fn describe_object(&mut self, object: &ObjectPlan) -> Result<Vec<(u32, Probe)>> {
        let file = object.file.identity();
        if self.is_described(object)
            && let Some(known) = file.and_then(|file| self.described.get(&file))
        {
            return Ok(known.clone());
        }
        if let Some(why) = self.refusal(object) {
            bail!(why);
        }
        self.function_quota
            .take(owner(object), object.plan.probes.len());
        let code = self.describe_code(object)?;
        let mut probes = Vec::new();
        for probe in &object.plan.probes {
            probes.push((self.describe(probe, code)?, probe.clone()));
        }
        if let Some(file) = file {
            self.described.insert(file, probes.clone());
        }
        Ok(probes)
    }

    /// Tells the programs where an object's allocator maps memory from; gives the row of that, from 1; 0: none.
    fn describe_code(&mut self, object: &ObjectPlan) -> Result<u32> {
        let code = &object.plan.allocator_code;
        let data = self
            .skel
            .maps
            .bss_data
            .as_deref_mut()
            .context("the programs' table of allocators is missing")?;
        // what found no room is told by the calls that are under way
        let Some(row) = data.allocator_code.get_mut(self.objects) else {
            return Ok(0);
        };
        if code.is_empty() {
            return Ok(0);
        }
        for (piece, range) in row.pieces.iter_mut().zip(code) {
            piece.begin = range.start;
            piece.size = range.end - range.start;
            row.count += 1;
        }
        self.objects += 1;
        let row = u32::try_from(self.objects)?;
        if let Some(identity) = object.file.identity() {
            let key = unwind_tables::file_key(identity)?;
            self.skel
                .maps
                .allocator_files
                .update(&key, &row.to_ne_bytes(), MapFlags::ANY)
                .context("failed to write the map `allocator_files`")?;
            data.allocators_that_call += u32::from(!object.plan.maps());
        }
        Ok(row)
    }

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

    /// Puts a function into the table that the programs read; gives its row. `code` is the row of its object's allocator.
    fn describe(&mut self, probe: &Probe, code: u32) -> Result<u32> {
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
            code,
            offset: probe.offset(),
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
