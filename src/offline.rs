//! `memleak report`: reads recordings and logs, on any machine and without privileges, and writes reports of them.
//! What it does with them it shares with live runs: see `publish`.

use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::analysis::Limits;
use crate::analysis::findings::Findings;
use crate::cli::ReportArguments;
use crate::model::report::Report;
use crate::model::run::Recording;
use crate::output::{growth, warning, write_text};
use crate::publish::Publisher;
use crate::recording::{join, load};
use crate::stderr::say;
use crate::symbolize::resolve;
use crate::symbolize::{DebugFiles, Servers};
use crate::visible::{self, Emphasis, Spelling, Visible};

/// Does what the arguments ask for. Returns the exit status.
///
/// # Errors
/// When a file cannot be read or written; the error is one line.
pub fn run(arguments: ReportArguments) -> Result<u8> {
    let publisher = Publisher::new(arguments.output.clone())?;
    let wants_text = arguments.text || arguments.output.files().next().is_none();
    if wants_text && publisher.takes_stdout() {
        bail!("failed to print the text report: another output goes to the standard output");
    }
    let mut recording = read(&arguments.files)?;
    // a build must not pass because there was nothing to judge
    if recording.snapshots.is_empty() && !arguments.output.fail_on.is_empty() {
        bail!(
            "failed to judge --fail-on: there is no report in {}",
            names(&arguments.files)
        );
    }
    for folder in &arguments.naming.debug_dirs {
        name_frames(&mut recording, folder)?;
    }
    if let Some(mut servers) = Servers::new(&arguments.naming.debuginfod, &recording) {
        let (named, unnamed) = resolve::resolve(&mut recording, &mut servers);
        if named + unnamed > 0 {
            say!(
                "{named} of {} unknown frames named from debuginfod",
                named + unnamed
            );
        }
    }
    let findings = publisher.findings(&recording);
    if wants_text {
        print_text(&findings, arguments.top)?;
        if let Some(warning) = warning(&findings.report.losses) {
            say!("warning: {warning}");
        }
        let look = findings.report.look.as_ref();
        if let Some(why) = look.and_then(|look| look.failed.as_ref()) {
            say!("warning: what is lost can't be told: {why}");
        }
    }
    let published = publisher.publish(&recording, &findings)?;
    published.notes.iter().for_each(|note| say!("{note}"));
    Ok(published.exit_code.unwrap_or(0))
}

fn read(files: &[PathBuf]) -> Result<Recording> {
    let mut parts = Vec::new();
    for path in files {
        let loaded = load::load(path)?;
        for warning in loaded.warnings {
            say!("warning: {}: {warning}", path.display());
        }
        parts.push(loaded.recording);
    }
    let recording = join::join(parts).context("failed to report: no file was named")?;
    if recording.snapshots.is_empty() {
        say!("warning: there is no report in {}", names(files));
    }
    Ok(recording)
}

fn names(files: &[PathBuf]) -> String {
    files
        .iter()
        .map(|path| path.display().to_string())
        .collect::<Vec<_>>()
        .join(", ")
}

fn name_frames(recording: &mut Recording, folder: &Path) -> Result<()> {
    let mut files = DebugFiles::below(folder)?;
    let (named, unnamed) = resolve::resolve(recording, &mut files);
    if named + unnamed > 0 {
        say!(
            "{named} of {} unknown frames named from {}",
            named + unnamed,
            folder.display()
        );
    }
    Ok(())
}

fn print_text(findings: &Findings, top: usize) -> Result<()> {
    let out = BufWriter::new(io::stdout().lock());
    let mut out = Visible::new(out, Spelling::Text).styled(visible::stdout_is_styled());
    let written = write_report(findings, top, &mut out).and_then(|()| out.flush());
    match written {
        // Whoever read our output has left: that is an end like any other.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("failed to write to the standard output"),
    }
}

fn write_report(findings: &Findings, top: usize, out: &mut impl Emphasis) -> io::Result<()> {
    let mut report: Report = findings.report.clone();
    report.top = top;
    let limits = Limits {
        stacks: top,
        processes: (!report.processes.is_empty()).then_some(usize::MAX),
    };
    limits.cut(&mut report.entries, |entry| (entry.tgid, entry.bytes));
    write_text(&report, &findings.blame, out)?;
    growth::write(
        &growth::List {
            groups: &findings.groups,
            together: findings.together,
            limit: findings.headroom.map(|headroom| headroom.limit),
            doubtful: findings.growth_is_doubtful(),
        },
        |tgid| {
            let name = report.process_name(tgid)?;
            Some(format!("pid {tgid} ({name})"))
        },
        out,
    )
}
