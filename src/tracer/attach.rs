//! Probes become links: one per object where the kernel can, else one per function.
//! Which functions and where is decided in `probes`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use libbpf_rs::{Link, ProgramMut, UprobeMultiOpts, UprobeOpts};

use super::kernel::Attachment;
use super::skel::MemleakProgs;
use crate::probes::{Operation, Probe};

/// The functions to probe in one object.
#[derive(Clone, Debug)]
pub struct ObjectProbes {
    /// A path that leads to the object's file.
    pub path: PathBuf,
    /// The path to show.
    pub shown: PathBuf,
    /// The functions, each with its row in the table that the programs read.
    pub probes: Vec<(u32, Probe)>,
}

/// Attaches the probes of one object in the process `pid`, or, without one, in every process.
///
/// # Errors
/// Names the function and the object that the kernel refused.
pub fn attach(
    programs: &MemleakProgs<'_>,
    attachment: Attachment,
    pid: Option<u32>,
    object: &ObjectProbes,
) -> Result<Vec<Link>> {
    let pid = pid.map_or(-1, |pid| i32::try_from(pid).unwrap_or(-1));
    let all: Vec<&(u32, Probe)> = object.probes.iter().collect();
    // a free is over at its entry
    let returning: Vec<&(u32, Probe)> = object
        .probes
        .iter()
        .filter(|(_, probe)| probe.signature.operation != Operation::Free)
        .collect();
    let attach_all = |program: &ProgramMut<'_>, probes: &[&(u32, Probe)], session, retprobe| {
        let options = UprobeMultiOpts {
            offsets: probes
                .iter()
                .map(|(_, probe)| probe.offset() as usize)
                .collect(),
            cookies: probes.iter().map(|(row, _)| u64::from(*row)).collect(),
            session,
            retprobe,
            ..UprobeMultiOpts::default()
        };
        program
            .attach_uprobe_multi_with_opts(pid, &object.path, "", options)
            .with_context(|| refused(&object.shown, probes))
    };
    match attachment {
        Attachment::Session => Ok(vec![attach_all(&programs.user_session, &all, true, false)?]),
        Attachment::Multi => {
            let leave = attach_all(&programs.user_leave_multi, &returning, false, true)?;
            let enter = attach_all(&programs.user_enter_multi, &all, false, false)?;
            Ok(vec![leave, enter])
        }
        Attachment::Single => {
            let mut links = Vec::new();
            for (program, probes, retprobe) in [
                (&programs.user_leave_single, returning, true),
                (&programs.user_enter_single, all, false),
            ] {
                for probe in probes {
                    links.push(attach_one(program, pid, object, probe, retprobe)?);
                }
            }
            Ok(links)
        }
    }
}

fn attach_one(
    program: &ProgramMut<'_>,
    pid: i32,
    object: &ObjectProbes,
    (row, probe): &(u32, Probe),
    retprobe: bool,
) -> Result<Link> {
    // a return probe belongs to the function, not to an instruction within
    let offset = if retprobe {
        probe.function_offset
    } else {
        probe.offset()
    };
    let options = UprobeOpts {
        cookie: u64::from(*row),
        retprobe,
        ..UprobeOpts::default()
    };
    program
        .attach_uprobe_with_opts(pid, &object.path, offset as usize, options)
        .with_context(|| {
            format!(
                "failed to attach `{}` in {}",
                probe.name,
                object.shown.display()
            )
        })
}

fn refused(path: &Path, probes: &[&(u32, Probe)]) -> String {
    let names: Vec<&str> = probes
        .iter()
        .map(|(_, probe)| probe.name.as_str())
        .collect();
    format!(
        "failed to attach `{}` in {}",
        names.join("`, `"),
        path.display()
    )
}
