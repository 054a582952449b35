//! Who is a target when the user names a name, a cgroup, a container or everything: as rules for the tracer, and as the
//! processes that fit now.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Result;

use crate::options::{Choice, TargetOption};
use crate::process::cgroups::Cgroup;
use crate::process::{Names, is_kernel_thread, name, running};
use crate::reader;
use crate::tracer::ProcessFilter;

/// What makes a process join those that are traced, or stay.
#[derive(Clone, Debug, Default)]
pub struct Rules {
    /// Being a child of one.
    pub children: bool,
    /// Being one of them before, whatever it executes.
    pub executed: bool,
    /// Executing a program at all.
    pub all: bool,
    /// Executing one under such a name.
    pub names: Option<Names>,
    /// Executing one in a certain cgroup, which only the kernel knows.
    pub cgroups: bool,
}

impl Rules {
    /// Whether a process that executes a program under a name is wanted for that alone.
    pub fn wants(&self, name: &str) -> bool {
        self.all
            || self
                .names
                .as_ref()
                .is_some_and(|names| names.match_name(name))
    }
}

/// Who is a target.
#[derive(Debug, Default)]
pub struct Chosen {
    /// Rules for those that come later.
    pub rules: Rules,
    cgroups: Vec<Cgroup>,
}

impl Chosen {
    /// Finds the cgroups that the user means.
    ///
    /// # Errors
    /// When there is no such cgroup or container, or more than one.
    pub fn new(target: &TargetOption, follow: bool) -> Result<Self> {
        let mut chosen = Self::default();
        chosen.rules.children = follow;
        chosen.rules.executed = true;
        let TargetOption::Chosen(choice) = target else {
            return Ok(chosen);
        };
        // who is forked from a target has its name and its cgroup
        chosen.rules.children = true;
        match choice {
            Choice::Names { names, .. } => {
                chosen.rules.executed = follow;
                chosen.rules.names = Some(*names.clone());
            }
            Choice::Cgroups(paths) => {
                let opened = paths.iter().map(|path| Cgroup::open(path));
                chosen.cgroups = opened.collect::<Result<_>>()?;
            }
            Choice::Containers(ids) => {
                let found = ids.iter().map(|id| Cgroup::of_container(id));
                chosen.cgroups = found.collect::<Result<_>>()?;
            }
            Choice::All => chosen.rules.all = true,
        }
        chosen.rules.cgroups = chosen.cgroups.iter().any(Cgroup::tells_of_members);
        Ok(chosen)
    }

    /// The rules as the tracer takes them.
    ///
    /// # Errors
    /// When a cgroup can't be opened.
    pub fn filter(&self) -> Result<ProcessFilter> {
        let mut cgroups = Vec::new();
        for cgroup in &self.cgroups {
            cgroups.extend(cgroup.descriptor()?);
        }
        Ok(ProcessFilter {
            children: self.rules.children,
            executed: self.rules.executed,
            all: self.rules.all,
            names: self.rules.names.clone(),
            cgroups,
        })
    }

    /// The processes that fit now, but memleak.
    pub fn members(&self) -> BTreeSet<u32> {
        let mut members = self.candidates();
        members.retain(|pid| name(*pid).is_some_and(|name| self.fits(&name)));
        members.retain(|pid| !reader::is_memleak(*pid));
        members.retain(|pid| !is_kernel_thread(*pid));
        members
    }

    /// The processes that fit now if their names do.
    pub fn candidates(&self) -> BTreeSet<u32> {
        match self.rules.all || self.rules.names.is_some() {
            true => running().into_iter().collect(),
            false => self.cgroups.iter().flat_map(Cgroup::members).collect(),
        }
    }

    /// Whether one of these fits that has a name.
    pub fn fits(&self, name: &str) -> bool {
        !self.cgroups.is_empty() || self.rules.wants(name)
    }

    /// Who joins without a word of it: those that are moved to a cgroup and execute nothing there.
    pub fn latecomers(&self) -> BTreeSet<u32> {
        match self.cgroups.is_empty() {
            true => BTreeSet::new(),
            false => self.members(),
        }
    }

    /// The cgroups that are traced.
    pub fn folders(&self) -> impl Iterator<Item = &Path> {
        self.cgroups.iter().map(Cgroup::folder)
    }
}
