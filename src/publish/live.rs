//! What a live run does with its reports besides printing them: recording, and outputs and gates at its end.
//! Waits for nothing and reads no clock; the session hands it finished reports.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;

use super::{OutputArguments, Published, Publisher, ServingArguments, file};
use crate::analysis::blame::Blame;
use crate::analysis::findings::Filter;
use crate::model::report::{ListedAllocation, Report};
use crate::model::run::Header;
use crate::output::json;
use crate::recording::collect::{Collector, Moment};
use crate::recording::write::Writer;

/// Snapshots that a run without end keeps for its outputs; there the older ones are thinned out.
const MOST_SNAPSHOTS: usize = 1024;

/// Options that only live runs have.
#[derive(Args, Clone, Debug, Default, PartialEq)]
pub struct LiveArguments {
    /// Record the run, for memleak report; - is the standard output
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub record: Option<PathBuf>,

    /// Write every report as it comes, as JSON on a line of its own; - is the standard output
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub json_lines: Option<PathBuf>,

    /// Where reports can be seen while the run goes on.
    #[command(flatten)]
    pub serving: ServingArguments,

    /// Leave out the list of growing stacks, which ends reports from the third on
    #[arg(long, help_heading = "Report")]
    pub no_growth: bool,

    /// Outputs, comparison and gates.
    #[command(flatten)]
    pub output: OutputArguments,
}

/// A live run on its way to its outputs.
pub struct LiveRun {
    publisher: Publisher,
    collector: Collector,
    file: Option<(PathBuf, Writer<Box<dyn Write>>)>,
    lines: Option<(PathBuf, Box<dyn Write>)>,
    /// Stacks that a line lists.
    top: usize,
    /// The blocks of the last report, which recordings don't keep.
    blocks: Vec<ListedAllocation>,
}

impl LiveRun {
    /// Opens the recording and reads what reports are compared with.
    ///
    /// # Errors
    /// When one of the files cannot be read or written.
    pub fn open(arguments: &LiveArguments, header: Header) -> Result<LiveRun> {
        let publisher = Publisher::new(arguments.output.clone())?;
        let streams = [&arguments.record, &arguments.json_lines];
        let to_stdout = streams.into_iter().flatten().filter(|path| is_stdout(path));
        let others = usize::from(publisher.takes_stdout());
        ensure!(
            to_stdout.count() + others <= 1,
            "failed to write to the standard output: two outputs go there"
        );
        let file = match &arguments.record {
            Some(path) => {
                let begin = |out| Writer::new(out, &header);
                Some((path.clone(), file::record(path, begin)?))
            }
            None => None,
        };
        let lines = match &arguments.json_lines {
            Some(path) => Some((path.clone(), file::record(path, Ok)?)),
            None => None,
        };
        let collector = Collector::new(header).with_most_snapshots(MOST_SNAPSHOTS);
        Ok(LiveRun {
            publisher,
            collector,
            file,
            lines,
            top: usize::MAX,
            blocks: Vec::new(),
        })
    }

    /// Has lines of JSON list no more than so many stacks.
    pub fn with_top(mut self, top: usize) -> LiveRun {
        self.top = top;
        self
    }

    /// Whether [`LiveRun::push`] must get a report of every stack; without that, nothing needs all their names.
    pub fn needs_reports(&self) -> bool {
        self.file.is_some() || self.lines.is_some() || self.publisher.needs_recording()
    }

    /// Whether what is shown depends on every stack's name: a report must then be complete before it is filtered.
    pub fn needs_names(&self) -> bool {
        self.needs_reports() || self.publisher.may_filter()
    }

    /// Whether an output goes to the standard output, where no text report may then be.
    pub fn takes_stdout(&self) -> bool {
        let is_taken = |path: Option<&PathBuf>| path.is_some_and(|path| is_stdout(path));
        self.publisher.takes_stdout()
            || is_taken(self.file.as_ref().map(|(path, _)| path))
            || is_taken(self.lines.as_ref().map(|(path, _)| path))
    }

    /// Takes the next report, which must list every stack, as the tracer has it: before any filter.
    ///
    /// # Errors
    /// When the recording cannot be written. It then ends there, with what was written before; the run can go on,
    /// and later reports are taken without an error.
    pub fn push(&mut self, report: &Report, moment: Moment) -> Result<()> {
        self.collector.push(report, moment);
        if self.publisher.lists_blocks() || self.lines.is_some() {
            self.blocks.clone_from(&report.allocations);
        }
        let line = self.write_line();
        let recorded = self.record();
        if !self.publisher.needs_recording() && self.lines.is_none() {
            self.collector.forget_snapshots();
        }
        line.and(recorded)
    }

    /// Writes the last report as a line.
    fn write_line(&mut self) -> Result<()> {
        let Some((path, mut out)) = self.lines.take() else {
            return Ok(());
        };
        let recording = self.collector.recording();
        let mut findings = self.publisher.findings(recording);
        findings.cut(self.top);
        findings.report.allocations.clone_from(&self.blocks);
        let written = json::write_line(
            &recording.header,
            recording.duration_ns(),
            &findings,
            &mut out,
        );
        written
            .and_then(|()| out.flush())
            .with_context(|| format!("failed to write {}: its lines end here", path.display()))?;
        self.lines = Some((path, out));
        Ok(())
    }

    fn record(&mut self) -> Result<()> {
        let Some((path, mut writer)) = self.file.take() else {
            return Ok(());
        };
        let recording = self.collector.recording();
        if let Some(last) = recording.snapshots.last() {
            let written = writer.append(recording, last);
            written.with_context(|| {
                format!(
                    "failed to write {}: the recording ends here",
                    path.display()
                )
            })?;
        }
        self.file = Some((path, writer));
        Ok(())
    }

    /// Marks a baseline: with `--since-mark`, later reports show only what came after `report`.
    pub fn mark(&mut self, report: &Report) {
        self.publisher.mark(&report.entries);
    }

    /// Who is to blame for stacks.
    pub fn blame(&self) -> &Blame {
        self.publisher.blame()
    }

    /// What to leave out of what is shown.
    pub fn filter(&self) -> &Filter {
        self.publisher.filter()
    }

    /// What to show of a report that lists every stack, all smallest first: cut it to the top ones afterwards.
    pub fn shown(&self, report: Report) -> Report {
        self.publisher.filter().apply(report).0
    }

    /// Writes the outputs and judges the gates.
    ///
    /// # Errors
    /// When an output cannot be written.
    pub fn finish(self) -> Result<Published> {
        if !self.publisher.needs_recording() {
            return Ok(Published::default());
        }
        let recording = self.collector.finish();
        let mut findings = self.publisher.findings(&recording);
        findings.report.allocations = self.blocks;
        self.publisher.publish(&recording, &findings)
    }
}

fn is_stdout(path: &Path) -> bool {
    path == Path::new("-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::report::{Entry, Frame, Function};
    use crate::model::snapshot::Class;
    use crate::recording::load::load;

    fn report(bytes: u64) -> Report {
        let function = Some(Function {
            name: "leak".into(),
            location: None,
        });
        let frames = Some(vec![Frame {
            address: 1,
            function,
            ..Frame::default()
        }]);
        let class = Class::Heap;
        let entry = Entry {
            allocator: None,
            tgid: 1,
            class,
            bytes,
            count: 1,
            oldest_ns: None,
            reach: None,
            frames,
        };
        Report {
            entries: vec![entry],
            total_bytes: bytes,
            total_count: 1,
            total_stacks: 1,
            ..Report::default()
        }
    }

    fn moment(second: u64) -> Moment {
        Moment {
            elapsed_ns: second * 1_000_000_000,
            ..Moment::default()
        }
    }

    #[test]
    fn every_report_is_in_the_file_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.jsonl");
        let arguments = LiveArguments {
            record: Some(path.clone()),
            ..LiveArguments::default()
        };
        let mut run = LiveRun::open(&arguments, Header::default()).unwrap();
        assert!(run.needs_reports());
        for second in 1..4 {
            run.push(&report(second), moment(second)).unwrap();
            let loaded = load(&path).unwrap();
            assert_eq!(loaded.recording.snapshots.len() as u64, second);
            assert!(loaded.warnings.is_empty());
        }
        assert_eq!(run.finish().unwrap().exit_code, None);
    }

    #[test]
    fn a_full_disk_ends_the_recording_and_not_the_run() {
        let arguments = LiveArguments {
            record: Some("/dev/full".into()),
            ..LiveArguments::default()
        };
        let error = LiveRun::open(&arguments, Header::default())
            .map(|_| ())
            .unwrap_err();
        assert!(
            format!("{error:#}").contains("failed to write /dev/full: No space left"),
            "{error:#}"
        );
    }

    #[test]
    fn one_output_at_most_goes_to_the_standard_output() {
        let output = OutputArguments {
            html: Some("-".into()),
            ..OutputArguments::default()
        };
        let both = |output: OutputArguments, json_lines: Option<&str>| LiveArguments {
            record: Some("-".into()),
            json_lines: json_lines.map(PathBuf::from),
            output,
            ..LiveArguments::default()
        };
        let refused = |arguments| {
            let error = LiveRun::open(&arguments, Header::default()).err();
            error.is_some_and(|error| error.to_string().contains("two outputs go there"))
        };
        assert!(refused(both(output, None)));
        assert!(refused(both(OutputArguments::default(), Some("-"))));
    }

    #[test]
    fn every_report_is_a_line_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("run.jsonl");
        let arguments = LiveArguments {
            json_lines: Some(path.clone()),
            ..LiveArguments::default()
        };
        let mut run = LiveRun::open(&arguments, Header::default()).unwrap();
        assert!(run.needs_reports() && !run.takes_stdout());
        for second in 1..8 {
            run.push(&report(100 * second), moment(second)).unwrap();
            let text = std::fs::read_to_string(&path).unwrap();
            assert_eq!(text.lines().count() as u64, second);
            let last = text.lines().last().unwrap();
            let line: serde_json::Value = serde_json::from_str(last).unwrap();
            assert_eq!(line["totals"]["bytes"], 100 * second);
            assert_eq!(line["entries"][0]["blame"]["function"], "leak");
            let growing = line["growth"]["functions"].as_array().unwrap().len();
            assert_eq!(growing, usize::from(second > 2));
        }
    }

    #[test]
    fn a_mark_hides_what_was_there_before() {
        let output = OutputArguments {
            since_mark: true,
            ..OutputArguments::default()
        };
        let arguments = LiveArguments {
            output,
            ..LiveArguments::default()
        };
        let mut run = LiveRun::open(&arguments, Header::default()).unwrap();
        assert!(!run.needs_reports());
        assert_eq!(run.shown(report(100)).total_bytes, 100);
        run.mark(&report(100));
        assert_eq!(run.shown(report(100)).entries.len(), 0);
        assert_eq!(run.shown(report(130)).total_bytes, 30);
    }
}
