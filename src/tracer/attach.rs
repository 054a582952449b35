//! Probes become links: one per object where the kernel can, else one per function.
//! Which functions and where is decided in `probes`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use libbpf_rs::{Link, ProgramMut, UprobeMultiOpts, UprobeOpts};

use super::kernel::Attachment;
use super::skel::MemleakProgs;
use crate::files::Opened;
use crate::probes::{Operation, Probe};

/// The functions to probe in one object.
#[derive(Clone, Debug)]
pub struct ObjectProbes {
    /// The object's file.
    pub file: Arc<Opened>,
    /// The path to show.
    pub shown: PathBuf,
    /// The functions, each with its row in the table that the programs read.
    pub probes: Vec<(u32, Probe)>,
}

/// Watches what happens to threads between calls: their ends, and signals.
///
/// # Errors
/// Fails when the kernel refuses.
pub fn attach_threads(programs: &MemleakProgs<'_>) -> Result<[Link; 3]> {
    let attach = |program: &ProgramMut<'_>, tracepoint: &str| {
        program
            .attach_raw_tracepoint(tracepoint)
            .with_context(|| format!("failed to attach to the tracepoint `{tracepoint}`"))
    };
    Ok([
        attach(&programs.thread_exit, "sched_process_exit")?,
        attach(&programs.signal_deliver, "signal_deliver")?,
        attach(&programs.program_begins, "sched_process_exec")?,
    ])
}

/// Watches the function of a file with which an interpreter ends code, by its offset in bytes, in a process.
///
/// # Errors
/// Fails when the kernel refuses.
pub fn attach_code_end(
    programs: &MemleakProgs<'_>,
    pid: u32,
    file: &Path,
    offset: u64,
) -> Result<Link> {
    programs
        .code_end
        .attach_uprobe(false, i32::try_from(pid)?, file, usize::try_from(offset)?)
        .with_context(|| format!("failed to watch the interpreter {}", file.display()))
}

/// Watches a dynamic linker, at the offset in its file of the function that it calls for debuggers' sake, in the process
/// `pid`, or, without one, in every process.
///
/// # Errors
/// Fails when the kernel refuses.
pub fn attach_code_change(
    programs: &MemleakProgs<'_>,
    pid: Option<u32>,
    linker: &Path,
    offset: u64,
) -> Result<Link> {
    let pid = pid.map_or(-1, |pid| i32::try_from(pid).unwrap_or(-1));
    programs
        .code_change
        .attach_uprobe(false, pid, linker, usize::try_from(offset)?)
        .with_context(|| format!("failed to watch the dynamic linker {}", linker.display()))
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
    let (frees, others): (Vec<&(u32, Probe)>, Vec<_>) = object
        .probes
        .iter()
        .partition(|(_, probe)| frees_its_first(probe));
    // a free is over at its entry
    let returning: Vec<&(u32, Probe)> = others
        .iter()
        .copied()
        .filter(|(_, probe)| probe.signature.operation != Operation::Free)
        .collect();
    let attach_all = |program: &ProgramMut<'_>, probes: &[&(u32, Probe)], session, retprobe| {
        if probes.is_empty() {
            return Ok(None);
        }
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
            .attach_uprobe_multi_with_opts(pid, object.file.path(), "", options)
            .map(Some)
            .with_context(|| refused(&object.shown, probes))
    };
    match attachment {
        Attachment::Session => {
            let free = attach_all(&programs.user_free_multi, &frees, false, false)?;
            let session = attach_all(&programs.user_session, &others, true, false)?;
            Ok(free.into_iter().chain(session).collect())
        }
        Attachment::Multi => {
            let free = attach_all(&programs.user_free_multi, &frees, false, false)?;
            let leave = attach_all(&programs.user_leave_multi, &returning, false, true)?;
            let enter = attach_all(&programs.user_enter_multi, &others, false, false)?;
            Ok(free.into_iter().chain(leave).chain(enter).collect())
        }
        Attachment::Single | Attachment::Plain => {
            let cookies = attachment == Attachment::Single;
            let by_row = programs_by_row(programs);
            let mut links = Vec::new();
            let leave = if cookies {
                &programs.user_leave_single
            } else {
                &programs.user_leave_plain
            };
            for probe in returning {
                links.push(attach_one(leave, pid, object, probe, true, cookies)?);
            }
            for probe in all {
                let enter = if cookies && frees_its_first(&probe.1) {
                    &programs.user_free_single
                } else if cookies {
                    &programs.user_enter_single
                } else {
                    by_row.get(probe.0 as usize).with_context(|| {
                        format!(
                            "too many functions to probe on this kernel: at most {}; \
                             name one object with -O",
                            by_row.len()
                        )
                    })?
                };
                links.push(attach_one(enter, pid, object, probe, false, cookies)?);
            }
            Ok(links)
        }
    }
}

/// The functions that have a program of their own.
fn frees_its_first(probe: &Probe) -> bool {
    probe.signature.operation == Operation::Free && probe.signature.block == Some(1)
}

/// Whether a program is one that this way of attaching needs.
pub fn uses(attachment: Attachment, program: &str) -> bool {
    let of_a_row = |name: &str| {
        name.strip_prefix("user_enter_")
            .is_some_and(|row| row.parse::<u32>().is_ok())
    };
    match attachment {
        _ if matches!(
            program,
            "thread_exit" | "signal_deliver" | "code_change" | "code_end" | "program_begins"
        ) =>
        {
            true
        }
        Attachment::Session => matches!(
            program,
            "user_session" | "user_free_multi" | "empty_session"
        ),
        _ if matches!(program, "empty_enter" | "empty_leave") => true,
        Attachment::Multi => {
            matches!(
                program,
                "user_enter_multi" | "user_leave_multi" | "user_free_multi"
            )
        }
        Attachment::Single => {
            matches!(
                program,
                "user_enter_single" | "user_leave_single" | "user_free_single"
            )
        }
        Attachment::Plain => program == "user_leave_plain" || of_a_row(program),
    }
}

/// The entry programs of the first rows of the table of functions, for probes that carry no cookie.
pub fn programs_by_row<'p, 'obj>(programs: &'p MemleakProgs<'obj>) -> [&'p ProgramMut<'obj>; 16] {
    [
        &programs.user_enter_0,
        &programs.user_enter_1,
        &programs.user_enter_2,
        &programs.user_enter_3,
        &programs.user_enter_4,
        &programs.user_enter_5,
        &programs.user_enter_6,
        &programs.user_enter_7,
        &programs.user_enter_8,
        &programs.user_enter_9,
        &programs.user_enter_10,
        &programs.user_enter_11,
        &programs.user_enter_12,
        &programs.user_enter_13,
        &programs.user_enter_14,
        &programs.user_enter_15,
    ]
}

fn attach_one(
    program: &ProgramMut<'_>,
    pid: i32,
    object: &ObjectProbes,
    (row, probe): &(u32, Probe),
    retprobe: bool,
    with_cookie: bool,
) -> Result<Link> {
    // a return probe belongs to the function, not to an instruction within
    let offset = if retprobe {
        probe.function_offset
    } else {
        probe.offset()
    };
    let options = UprobeOpts {
        cookie: if with_cookie { u64::from(*row) } else { 0 },
        retprobe,
        ..UprobeOpts::default()
    };
    program
        .attach_uprobe_with_opts(pid, object.file.path(), offset as usize, options)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_of_attaching_loads_its_own_programs() {
        let loaded = |attachment| {
            let names = [
                "user_session",
                "user_free_multi",
                "user_free_single",
                "user_enter_multi",
                "user_leave_multi",
                "user_enter_single",
                "user_leave_single",
                "user_leave_plain",
                "user_enter_0",
                "user_enter_15",
                "empty_session",
                "empty_leave",
            ];
            names
                .into_iter()
                .filter(|name| uses(attachment, name))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            loaded(Attachment::Session),
            ["user_session", "user_free_multi", "empty_session"]
        );
        assert_eq!(
            loaded(Attachment::Multi),
            [
                "user_free_multi",
                "user_enter_multi",
                "user_leave_multi",
                "empty_leave"
            ]
        );
        assert_eq!(
            loaded(Attachment::Single),
            [
                "user_free_single",
                "user_enter_single",
                "user_leave_single",
                "empty_leave"
            ]
        );
        assert_eq!(
            loaded(Attachment::Plain),
            [
                "user_leave_plain",
                "user_enter_0",
                "user_enter_15",
                "empty_leave"
            ]
        );
    }
}
