//! What the unwinder is told of processes' code, and what it asks for: tables, mappings, walks to finish. The tables
//! themselves are kept in `unwind_tables`.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use libbpf_rs::{MapCore as _, MapFlags};

use super::deferred::Found;
use super::unwind_tables::Meanwhile;
use super::{CodeMapping, DeferredWalk, FileId, TableUsage, Tracer, Unwinder, attach};
use crate::files::Kept;

impl Tracer<'_> {
    /// Whether stacks are unwound with tables, which [`Tracer::load_tables`] and [`Tracer::set_code`] provide.
    pub fn wants_tables(&self) -> bool {
        self.unwinder == Unwinder::Tables
    }

    /// How stacks are unwound.
    pub fn unwinder(&self) -> &Unwinder {
        &self.unwinder
    }

    /// Loads the unwind tables of files that processes are going to map. `progress` is told now and then how many of how
    /// many are built.
    ///
    /// # Errors
    /// Fails when the kernel refuses memory.
    pub fn load_tables(
        &mut self,
        files: impl Iterator<Item = (FileId, Arc<Kept>)>,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<()> {
        // what the programs report while tables are being built must not find a full ring
        let mut drained = Ok(());
        let mut meanwhile = Meanwhile {
            tick: &mut || drained = self.events.drain(),
            progress: &mut progress,
        };
        self.tables.load_files(files, &mut meanwhile).and(drained)
    }

    /// Tells the unwinder what code a process maps now. `changes` is what [`Tracer::code_changes`] said before that was
    /// looked at.
    ///
    /// # Errors
    /// Fails when the kernel refuses memory.
    pub fn set_code(
        &mut self,
        pid: u32,
        mappings: &[CodeMapping],
        changes: u32,
        mut progress: impl FnMut(usize, usize),
    ) -> Result<()> {
        // what the programs report while tables are being built must not find a full ring
        let mut drained = Ok(());
        let mut meanwhile = Meanwhile {
            tick: &mut || drained = self.events.drain(),
            progress: &mut progress,
        };
        let result = self
            .tables
            .set_process(pid, mappings, changes, &mut meanwhile);
        if let Some(data) = self.skel.maps.bss_data.as_deref_mut() {
            data.unwind_changes = data.unwind_changes.wrapping_add(1);
        }
        result.and(drained)
    }

    /// Forgets files that are open no longer.
    ///
    /// # Errors
    /// Fails when the kernel refuses.
    pub fn forget_files(&mut self, files: impl Iterator<Item = (u64, u64)>) -> Result<()> {
        let mut forgotten = 0;
        for id in files {
            self.tables.forget_file(id)?;
            forgotten += 1;
        }
        // what is cached of them is stale
        if forgotten > 0
            && let Some(data) = self.skel.maps.bss_data.as_deref_mut()
        {
            data.unwind_changes = data.unwind_changes.wrapping_add(1);
        }
        Ok(())
    }

    /// Whether the unwinder can ask the kernel for what it was not told of.
    pub fn finds_mappings(&self) -> bool {
        let rodata = &self.skel.maps.rodata_data;
        rodata
            .as_ref()
            .is_some_and(|rodata| rodata.can_find_mappings)
    }

    /// What the unwind tables hold and cost so far.
    pub fn table_usage(&self) -> TableUsage {
        self.tables.usage()
    }

    /// Takes the processes in which the unwinder has met code that it wasn't told of.
    ///
    /// # Errors
    /// Fails when the ring can't be read.
    pub fn take_unknown_code(&mut self) -> Result<BTreeSet<u32>> {
        self.events.drain()?;
        Ok(self.events.take_unknown_code())
    }

    /// Takes the walks that came to files whose tables were not loaded. [`Tracer::finish_walk`] is to be called with each,
    /// once it is known what was mapped when they were made.
    ///
    /// # Errors
    /// Fails when the ring can't be read.
    pub fn take_deferred_walks(&mut self) -> Result<Vec<DeferredWalk>> {
        self.events.drain()?;
        Ok(self.events.take_deferred_walks())
    }

    /// Finishes a walk; `code_at` tells what was mapped at an address then.
    ///
    /// # Errors
    /// Fails when the kernel refuses memory.
    pub fn finish_walk(
        &mut self,
        walk: DeferredWalk,
        code_at: impl Fn(u64) -> Option<CodeMapping>,
    ) -> Result<()> {
        // others must not find a full ring meanwhile
        self.events.drain()?;
        let mut drained = Ok(());
        let mut meanwhile = Meanwhile {
            tick: &mut || drained = self.events.drain(),
            progress: &mut |_, _| {},
        };
        let mut refused = None;
        let depth = self.config.max_depth as usize;
        self.finished.finish(walk, depth, |address| {
            let Some(mapping) = code_at(address) else {
                return Found::Nothing;
            };
            self.tables
                .rule_at(&mapping, address, &mut meanwhile)
                .unwrap_or_else(|error| {
                    refused = Some(error);
                    Found::Nothing
                })
        });
        refused.map_or(drained, Err)
    }

    /// Watches a dynamic linker at the offset of its [`debug_hook`](crate::probes::debug_hook), in one process or in all,
    /// so that what is known of a process's code is not used once the linker has changed it.
    ///
    /// # Errors
    /// Fails when the kernel refuses.
    pub fn watch_linker(&mut self, linker: &Path, offset: u64, pid: Option<u32>) -> Result<()> {
        let programs = &self.skel.progs;
        self.guarded(pid, || {
            Ok(vec![attach::attach_code_change(
                programs, pid, linker, offset,
            )?])
        })
    }

    /// How often a process's dynamic linker has changed what is mapped, for [`Tracer::set_code`].
    ///
    /// # Errors
    /// Fails when the map can't be read.
    pub fn code_changes(&self, pid: u32) -> Result<u32> {
        let changes = &self.skel.maps.code_changes;
        let value = changes
            .lookup(&pid.to_ne_bytes(), MapFlags::ANY)
            .context("failed to read how often code has changed")?;
        let number = value.and_then(|bytes| bytes.try_into().ok());
        Ok(number.map_or(0, u32::from_ne_bytes))
    }
}
