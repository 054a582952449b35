//! Hands a finished run to the user: filters it, writes the outputs that were asked for, judges the gates.
//! Shared by live runs and `memleak report`; the formats live in `output`, the judgement in `analysis`.

mod arguments;
mod file;
mod live;

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};

pub use self::arguments::{BuiltIn, Format, NamingArguments, OutputArguments, ServingArguments};
pub use self::live::{LiveArguments, LiveRun};
use crate::analysis::blame::Blame;
use crate::analysis::compare::Baseline;
use crate::analysis::findings::{self, Filter, Findings, Hidden};
use crate::analysis::gate::{self, Gate, Tripped};
use crate::analysis::growth::StackGrowth;
use crate::analysis::identity::Precision;
use crate::analysis::problems::{self, Problem};
use crate::analysis::suppress::Suppressions;
use crate::model::report::Entry;
use crate::model::run::{Reason, Recording};
use crate::output::{flamegraph, folded, github, html, json, junit, pprof, sarif};
use crate::recording::load;

/// What to do with a finished run.
#[derive(Debug)]
pub struct Publisher {
    arguments: OutputArguments,
    filter: Filter,
    blame: Blame,
}

/// What publishing came to.
#[derive(Debug, Default)]
pub struct Published {
    /// What the program should exit with, if a gate decides that.
    pub exit_code: Option<u8>,
    /// Sentences for the user, each a line for stderr.
    pub notes: Vec<String>,
}

impl Publisher {
    /// Reads the baseline and the suppressions, and looks whether the outputs' folders are there: a run that took
    /// hours should not end with a misspelt path.
    ///
    /// # Errors
    /// When one of those fails; the error is one line that names the file.
    pub fn new(arguments: OutputArguments) -> Result<Publisher> {
        let mut seen = BTreeSet::new();
        for path in arguments.files() {
            file::check_folder(path)?;
            ensure!(
                seen.insert(path),
                "failed to write {}: two outputs go there",
                path.display()
            );
        }
        ensure!(
            arguments.format.is_none() || !seen.contains(Path::new("-")),
            "failed to print annotations: another output goes to the standard output"
        );
        let filter = Filter {
            suppressions: suppressions(&arguments)?,
            baseline: baseline(&arguments)?,
            counts_runtimes: arguments.builtin_suppressions == BuiltIn::Off,
        };
        Ok(Publisher {
            blame: Blame::new(&arguments.blame_skip),
            arguments,
            filter,
        })
    }

    /// Who is to blame for stacks.
    pub fn blame(&self) -> &Blame {
        &self.blame
    }

    /// What to leave out of every report.
    pub fn filter(&self) -> &Filter {
        &self.filter
    }

    /// Whether something is left out of reports, or may be after a mark.
    pub fn may_filter(&self) -> bool {
        !self.filter.is_empty() || self.arguments.since_mark
    }

    /// Whether the run must be recorded for what was asked: for an output or a gate.
    pub fn needs_recording(&self) -> bool {
        self.arguments.files().next().is_some()
            || !self.arguments.fail_on.is_empty()
            || self.arguments.format.is_some()
    }

    /// Whether an output lists single blocks.
    pub fn lists_blocks(&self) -> bool {
        self.arguments.json.is_some()
    }

    /// Whether an output goes to the standard output, where no text report may then be.
    pub fn takes_stdout(&self) -> bool {
        self.arguments.files().any(|path| path == Path::new("-"))
    }

    /// Makes `entries` the baseline from here on, if only what comes after a mark is to be shown.
    pub fn mark(&mut self, entries: &[Entry]) {
        if self.arguments.since_mark {
            self.filter.baseline = Some(Baseline::new(entries, Precision::Line));
        }
    }

    /// Filters and judges a run.
    pub fn findings(&self, recording: &Recording) -> Findings {
        let mut filter = self.filter.clone();
        if self.arguments.since_mark {
            filter.baseline = last_mark(recording);
        }
        findings::findings(recording, &filter, &self.blame)
    }

    /// Writes the outputs and judges the gates.
    ///
    /// # Errors
    /// When an output cannot be written; the others have been tried all the same.
    pub fn publish(&self, recording: &Recording, findings: &Findings) -> Result<Published> {
        let tripped = gate::check(&self.arguments.fail_on, findings.outcome());
        let mut notes = self.filter_notes(findings);
        if self.arguments.since_mark && last_mark(recording).is_none() {
            notes
                .push("no mark was set, which SIGUSR2 does in a live run: all is shown".to_owned());
        }
        notes.extend(self.kept_note(findings));
        notes.extend(
            tripped
                .iter()
                .map(|tripped| format!("failed on {}: {}", tripped.gate, tripped.why)),
        );
        let exit_code = (!tripped.is_empty()).then_some(self.arguments.error_exitcode);
        let problems = problems::problems(findings, &tripped);
        self.write_all(recording, findings, &tripped, &problems)?;
        if self.arguments.format == Some(Format::Github) {
            write_github(findings, &problems, &tripped)?;
        }
        Ok(Published { exit_code, notes })
    }

    fn write_all(
        &self,
        recording: &Recording,
        findings: &Findings,
        tripped: &[Tripped],
        problems: &[Problem],
    ) -> Result<()> {
        let root = repository();
        let report = &findings.report;
        let duration_ns = recording.duration_ns();
        let arguments = &self.arguments;
        let results = [
            write(arguments.json.as_deref(), |mut out| {
                json::write(&recording.header, duration_ns, findings, tripped, &mut out)
            }),
            write(arguments.folded.as_deref(), |mut out| {
                folded::write(report, &mut out)
            }),
            write(arguments.flamegraph.as_deref(), |mut out| {
                flamegraph::write(report, &title(recording), &mut out)
            }),
            write(arguments.pprof.as_deref(), |mut out| {
                pprof::write(
                    report,
                    &findings.blame,
                    recording.header.source.is_dated(),
                    duration_ns,
                    &mut out,
                )
            }),
            write(arguments.sarif.as_deref(), |mut out| {
                sarif::write(findings, problems, &root, &mut out)
            }),
            write(arguments.junit.as_deref(), |mut out| {
                junit::write(&arguments.fail_on, tripped, findings, problems, &mut out)
            }),
            write(arguments.html.as_deref(), |mut out| {
                self.write_html(recording, findings, &mut out)
            }),
        ];
        results.into_iter().collect()
    }

    /// The page shows the run without what the filter leaves out.
    fn write_html(
        &self,
        recording: &Recording,
        findings: &Findings,
        mut out: &mut dyn Write,
    ) -> io::Result<()> {
        let mut notes = self.filter_notes(findings);
        if self.filter.baseline.is_some() || self.arguments.since_mark {
            notes.push(
                "Stacks that hold more than the baseline's are shown with all they hold."
                    .to_owned(),
            );
        }
        let hidden = self.hidden_stacks(recording, findings);
        let shown = (!hidden.is_empty()).then(|| recording.without_stacks(&hidden));
        let recording = shown.as_ref().unwrap_or(recording);
        let verdicts = findings.verdicts.iter();
        let growth: Vec<StackGrowth> = verdicts
            .filter(|verdict| !hidden.contains(&verdict.stack))
            .copied()
            .collect();
        let page = html::Page {
            recording,
            growth: &growth,
            groups: &findings.groups,
            together: findings.together,
            blame: &self.blame,
            notes: &notes,
        };
        html::write(&page, &mut out)
    }

    /// The stacks that the page leaves out of all its snapshots: those that the last report leaves out, and those
    /// that the suppressions name, wherever they are.
    fn hidden_stacks(&self, recording: &Recording, findings: &Findings) -> BTreeSet<usize> {
        let mut hidden: BTreeSet<usize> = findings.hidden_stacks.iter().copied().collect();
        if let Some(rules) = &self.filter.suppressions {
            let stacks = recording.stacks.iter().enumerate();
            let named =
                stacks.filter(|(_, stack)| rules.rule_for(stack.frames.as_deref()).is_some());
            hidden.extend(named.map(|(at, _)| at));
        }
        hidden
    }

    /// What the gate on leaks passes over is said.
    fn kept_note(&self, findings: &Findings) -> Option<String> {
        let kept = &findings.kept_by_runtimes;
        let judged = self.arguments.fail_on.contains(&Gate::Leak);
        (judged && kept.count > 0).then(|| {
            format!(
                "{} bytes in {} allocations that runtimes keep to the end are no leak \
                 (--builtin-suppressions=list names them, =off counts them)",
                kept.bytes, kept.count
            )
        })
    }

    fn filter_notes(&self, findings: &Findings) -> Vec<String> {
        let left_out = &findings.left_out;
        let mut notes = Vec::new();
        if self.filter.suppressions.is_some() {
            notes.push(format!("suppressed: {}", hidden(&left_out.suppressed)));
            let pattern = |(pattern, of): (&String, &Hidden)| {
                format!("suppressed by leak:{pattern}: {}", hidden(of))
            };
            notes.extend(left_out.by_pattern.iter().map(pattern));
        }
        if self.filter.baseline.is_some() || self.arguments.since_mark {
            notes.push(format!(
                "in the baseline already: {}",
                hidden(&left_out.known)
            ));
        }
        notes
    }
}

/// Prints annotations, and adds to the summary of the job if there is one.
fn write_github(findings: &Findings, problems: &[Problem], tripped: &[Tripped]) -> Result<()> {
    let root = repository();
    file::write(Path::new("-"), |mut out| {
        github::annotations(findings, problems, tripped, &root, &mut out)
    })?;
    let Some(path) = env::var_os("GITHUB_STEP_SUMMARY").filter(|path| !path.is_empty()) else {
        return Ok(());
    };
    let path = Path::new(&path);
    let append = || -> io::Result<()> {
        let mut text = Vec::new();
        github::summary(findings, problems, tripped, &root, &mut text)?;
        let mut file = fs::OpenOptions::new().append(true).open(path)?;
        file.write_all(&text)
    };
    append().with_context(|| format!("failed to add to the summary {}", path.display()))
}

/// Where the source is that is built and traced.
fn repository() -> PathBuf {
    let workspace = env::var_os("GITHUB_WORKSPACE").filter(|path| !path.is_empty());
    let here = || env::current_dir().unwrap_or_default();
    workspace.map_or_else(here, PathBuf::from)
}

/// What was there when a baseline was marked last.
fn last_mark(recording: &Recording) -> Option<Baseline> {
    let mark = recording
        .snapshots
        .iter()
        .rposition(|snapshot| snapshot.reason == Reason::Mark)?;
    Some(Baseline::new(
        &recording.report(mark)?.entries,
        Precision::Line,
    ))
}

fn hidden(hidden: &Hidden) -> String {
    match hidden {
        Hidden {
            bytes: 0, count: 0, ..
        } => "nothing".to_owned(),
        Hidden {
            stacks,
            bytes,
            count,
        } => {
            let plural = if *stacks == 1 { "" } else { "s" };
            format!("{bytes} bytes in {count} allocations, {stacks} whole stack{plural} left out")
        }
    }
}

fn title(recording: &Recording) -> String {
    let target = &recording.header.target;
    let what = match (target.command.first(), target.pid) {
        (Some(program), Some(pid)) => format!(" of {program} (pid {pid})"),
        (Some(program), None) => format!(" of {program}"),
        (None, Some(pid)) => format!(" of pid {pid}"),
        (None, None) => String::new(),
    };
    format!("Outstanding memory{what}")
}

fn write(
    path: Option<&Path>,
    content: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    path.map_or(Ok(()), |path| file::write(path, content))
}

fn suppressions(arguments: &OutputArguments) -> Result<Option<Suppressions>> {
    let Some(path) = &arguments.suppressions else {
        return Ok(None);
    };
    let name = path.display();
    let text =
        fs::read(path).with_context(|| format!("failed to read suppressions from {name}"))?;
    let rules = Suppressions::parse(&String::from_utf8_lossy(&text));
    Ok(Some(rules.map_err(|error| {
        anyhow!("failed to read suppressions from {name}: {error}")
    })?))
}

fn baseline(arguments: &OutputArguments) -> Result<Option<Baseline>> {
    let Some(path) = &arguments.baseline else {
        return Ok(None);
    };
    let loaded = load::load(path).context("failed to read the baseline")?;
    let last = loaded
        .recording
        .snapshots
        .len()
        .checked_sub(1)
        .and_then(|last| loaded.recording.report(last));
    let report = last.with_context(|| {
        format!(
            "failed to compare with {}: it holds no report",
            path.display()
        )
    })?;
    Ok(Some(Baseline::new(&report.entries, arguments.precision())))
}
