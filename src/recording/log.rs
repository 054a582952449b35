//! What the text logs of memleak and its kin share: headings, and reports collected one line at a time.
//! How each tool writes a frame is its importer's business; files are opened elsewhere.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::collect::Collector;
use crate::model::report::{Entry, Frame, Function, Location, Module};
use crate::model::run::{Figure, Header, Recording, SnapshotRecord, Source, Target, TargetKind};
use crate::model::snapshot::{Class, WallTime};

const DAY_S: i64 = 86_400;

/// Modules that are no files: logs put one pair of brackets around them, as around any module.
const PSEUDO_MODULES: [&str; 6] = ["kernel", "vdso", "vsyscall", "heap", "stack", "anon"];

/// What the number in "Top N stacks" says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Top {
    /// How many were asked for: a report with fewer lists every stack.
    Asked,
    /// How many are shown: a report with fewer than the fullest one lists every stack.
    Shown,
}

/// A heading "\[H:M:S\] Top N stacks with outstanding allocations:": seconds of the day, and N.
pub fn report_heading(line: &str) -> Option<(i64, usize)> {
    let (time, rest) = line.trim_start().strip_prefix('[')?.split_once("] Top ")?;
    let (top, rest) = rest.split_once(' ')?;
    if !rest.starts_with("stacks with outstanding allocations") {
        return None;
    }
    let mut parts = time.split(':').map(|part| part.parse::<u32>().ok());
    let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next()??);
    let valid = parts.next().is_none() && hour < 24 && minute < 60 && second <= 60;
    valid.then_some((
        i64::from(hour * 3600 + minute * 60 + second),
        top.parse().ok()?,
    ))
}

/// A heading "B bytes in N allocations from stack": bytes and allocations.
pub fn entry_heading(line: &str) -> Option<(u64, u64)> {
    let (bytes, rest) = line.trim_start().split_once(" bytes in ")?;
    let (count, _) = rest.split_once(" allocations from stack")?;
    // Our own text marks estimates with a tilde.
    let number = |text: &str| text.strip_prefix('~').unwrap_or(text).parse().ok();
    Some((number(bytes)?, number(count)?))
}

/// Whether an entry's heading says that its figures are estimates.
pub fn is_estimate(line: &str) -> bool {
    line.trim_start().starts_with('~')
}

/// What heads the part of a report that is one process's: "Process 4711 (nginx):", "Process 4711 (nginx), ended:".
pub fn process_heading(line: &str) -> Option<(u32, &str)> {
    let line = line.strip_prefix("Process ")?.strip_suffix(':')?;
    let (pid, name) = line
        .strip_suffix(", ended")
        .unwrap_or(line)
        .split_once(" (")?;
    Some((pid.parse().ok()?, name.strip_suffix(')')?))
}

/// A block of an entry, as `-a` prints it: "addr = 948cd0 size = 16".
pub fn is_block(line: &str) -> bool {
    line.trim_start().starts_with("addr = ")
}

/// What stands where the frames of a stack would be that could not be had: memleak.py's words, or ours.
pub fn is_lost_stack(line: &str) -> bool {
    matches!(line.trim(), "stack information lost" | "[stack not stored]")
}

/// What the first lines say about the target: "Attaching to pid 5193, Ctrl+C to quit."
pub fn target(line: &str) -> Option<Target> {
    let what = line.trim_start().strip_prefix("Attaching to ")?;
    let of = |kind| {
        Some(Target {
            kind,
            ..Target::default()
        })
    };
    if what.starts_with("all processes") {
        return of(TargetKind::System);
    }
    if ["pids ", "processes ", "the processes "]
        .iter()
        .any(|several| what.starts_with(several))
    {
        return of(TargetKind::Process);
    }
    if what.starts_with("kernel allocators") {
        return of(TargetKind::Kernel);
    }
    let digits = what
        .strip_prefix("pid ")?
        .split(|c: char| !c.is_ascii_digit())
        .next()?;
    Some(Target {
        kind: TargetKind::Process,
        pid: Some(digits.parse().ok()?),
        command: Vec::new(),
    })
}

/// What stands for a function and its module in a log, without the address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Symbol {
    /// The function's name; `None` when the log did not know it.
    pub name: Option<String>,
    /// Bytes from the function's first.
    pub offset: u64,
    /// What the log says of the module.
    pub module: Option<String>,
    /// What follows: a source location, in logs that have them.
    pub rest: String,
}

/// Takes "name+0x6d \[module\] rest" apart. Names may hold blanks and brackets, as those of C++ do.
pub fn symbol(text: &str) -> Symbol {
    if let Some(rest) = text.strip_prefix("[unknown]") {
        let (module, rest) = module_and_rest(rest.trim_start());
        return Symbol {
            module,
            rest,
            ..Symbol::default()
        };
    }
    if let Some((name, offset, rest)) = name_and_offset(text) {
        let (module, rest) = module_and_rest(rest.trim_start());
        return Symbol {
            name: Some(name.to_owned()),
            offset,
            module,
            rest,
        };
    }
    // Kernel frames of older logs have no offset.
    match text
        .strip_suffix(']')
        .and_then(|text| text.rsplit_once(" ["))
    {
        Some((name, module)) => Symbol {
            name: Some(name.to_owned()),
            module: Some(module.to_owned()),
            ..Symbol::default()
        },
        None => Symbol {
            name: Some(text.to_owned()),
            ..Symbol::default()
        },
    }
}

/// Splits at the last "+0x…" that ends a word.
fn name_and_offset(text: &str) -> Option<(&str, u64, &str)> {
    text.rmatch_indices("+0x").find_map(|(at, mark)| {
        let after = &text[at + mark.len()..];
        let end = after
            .find(|c: char| !c.is_ascii_hexdigit())
            .unwrap_or(after.len());
        let rest = &after[end..];
        let offset = u64::from_str_radix(&after[..end], 16).ok()?;
        (rest.is_empty() || rest.starts_with(' ')).then(|| (&text[..at], offset, rest))
    })
}

fn module_and_rest(text: &str) -> (Option<String>, String) {
    let Some(inner) = text.strip_prefix('[') else {
        return (None, text.to_owned());
    };
    match inner.split_once("] ") {
        Some((module, rest)) => (Some(module.to_owned()), rest.trim().to_owned()),
        None => (
            Some(inner.strip_suffix(']').unwrap_or(inner).to_owned()),
            String::new(),
        ),
    }
}

/// A source location "file:12"; `None` for anything else.
pub fn location(text: &str) -> Option<Location> {
    let (file, line) = text.rsplit_once(':')?;
    let line: u32 = line.parse().ok()?;
    (!file.is_empty()).then(|| Location {
        file: PathBuf::from(file),
        line: (line > 0).then_some(line),
    })
}

/// A log on its way to a recording.
pub struct LogBuilder {
    collector: Collector,
    modules: HashMap<String, Arc<Module>>,
    top: Top,
    asked: Vec<usize>,
    /// The report being read: its time and its entries.
    open: Option<(i64, Vec<Entry>)>,
    in_entry: bool,
    /// Functions inlined in the frame that comes next.
    inlined: Vec<Function>,
    estimated: bool,
    /// The process that the part of a report under way is about; 0 where there is one only.
    tgid: u32,
    /// Whether reports have parts for processes.
    by_process: bool,
    days: i64,
    first_s: Option<i64>,
    last_s: i64,
}

impl LogBuilder {
    /// A log of the tool `source`.
    pub fn new(source: Source, top: Top) -> LogBuilder {
        let header = Header {
            source,
            ..Header::default()
        };
        LogBuilder {
            collector: Collector::new(header),
            modules: HashMap::new(),
            top,
            asked: Vec::new(),
            open: None,
            in_entry: false,
            inlined: Vec::new(),
            estimated: false,
            tgid: 0,
            by_process: false,
            days: 0,
            first_s: None,
            last_s: 0,
        }
    }

    /// Takes one line; `frame` reads a line below an entry's heading.
    pub fn line(&mut self, line: &str, frame: impl Fn(&str, &mut LogBuilder) -> Option<Frame>) {
        if let Some((second, top)) = report_heading(line) {
            self.close_report();
            self.asked.push(top);
            self.tgid = 0;
            self.open = Some((self.unix_s(second), Vec::new()));
        } else if let Some((bytes, count)) = entry_heading(line) {
            self.estimated |= is_estimate(line);
            self.entry(bytes, count);
        } else if let Some((tgid, name)) = process_heading(line) {
            self.collector.name_process(tgid, name);
            self.in_entry = false;
            self.tgid = tgid;
            self.by_process = true;
        } else if let Some(target) = target(line) {
            self.collector.header_mut().target = target;
        } else if !line.starts_with([' ', '\t']) || line.trim().is_empty() {
            self.in_entry = false;
        } else if self.in_entry && !is_block(line) {
            let frame = frame(line.trim(), self);
            self.frame(line, frame);
        }
    }

    fn frame(&mut self, line: &str, frame: Option<Frame>) {
        let Some(entry) = self
            .open
            .as_mut()
            .and_then(|(_, entries)| entries.last_mut())
        else {
            return;
        };
        match frame {
            Some(frame) => entry.frames.get_or_insert_default().push(frame),
            None if is_lost_stack(line) => entry.frames = None,
            None => {}
        }
    }

    fn entry(&mut self, bytes: u64, count: u64) {
        let Some((_, entries)) = &mut self.open else {
            return;
        };
        let frames = Some(Vec::new());
        let class = Class::Heap;
        entries.push(Entry {
            allocator: None,
            tgid: self.tgid,
            class,
            bytes,
            count,
            oldest_ns: None,
            reach: None,
            frames,
        });
        self.in_entry = true;
        self.inlined.clear();
    }

    /// Takes a function that is inlined in the frame on a later line.
    pub fn push_inlined(&mut self, name: &str, location: Option<Location>) {
        self.inlined.push(Function {
            name: name.to_owned(),
            location,
        });
    }

    /// The frame that `symbol` at `address` (0 where the log gives none) stands for.
    pub fn make_frame(
        &mut self,
        address: u64,
        symbol: Symbol,
        location: Option<Location>,
    ) -> Frame {
        Frame {
            address,
            module: symbol.module.map(|name| self.module(name)),
            function: symbol.name.map(|name| Function { name, location }),
            function_offset: symbol.offset,
            language: None,
            inlined: std::mem::take(&mut self.inlined),
            file_offset: None,
        }
    }

    fn module(&mut self, name: String) -> Arc<Module> {
        let make = |name: &String| {
            let pseudo = PSEUDO_MODULES.contains(&name.as_str());
            let path = if pseudo {
                format!("[{name}]")
            } else {
                name.clone()
            };
            Arc::new(Module {
                path: PathBuf::from(path),
                build_id: None,
            })
        };
        Arc::clone(self.modules.entry(name).or_insert_with_key(make))
    }

    /// Seconds since 1970-01-01 of a log without dates. A clock that falls back by more than half a day has passed
    /// midnight; one that falls back by less was set, and stands still here.
    fn unix_s(&mut self, second_of_day: i64) -> i64 {
        let on_day = |days: i64| days.saturating_mul(DAY_S).saturating_add(second_of_day);
        let mut now = on_day(self.days);
        if now.saturating_add(DAY_S / 2) < self.last_s {
            self.days += 1;
            now = on_day(self.days);
        }
        self.last_s = self.last_s.max(now);
        self.last_s
    }

    /// Forgets the report being read: it was cut off.
    pub fn drop_open_report(&mut self) -> bool {
        self.asked.pop();
        self.in_entry = false;
        self.open.take().is_some()
    }

    fn close_report(&mut self) {
        self.in_entry = false;
        let Some((unix_s, entries)) = self.open.take() else {
            return;
        };
        let first_s = *self.first_s.get_or_insert(unix_s);
        let figures: Vec<Figure> = self
            .collector
            .rows(&entries)
            .into_iter()
            .map(|row| row.figure)
            .collect();
        self.collector.push_snapshot(SnapshotRecord {
            time: WallTime {
                unix_ns: unix_s.saturating_mul(1_000_000_000),
                utc_offset_s: 0,
            },
            elapsed_ns: unix_s.abs_diff(first_s).saturating_mul(1_000_000_000),
            figures,
            estimated: self.estimated,
            ..SnapshotRecord::default()
        });
    }

    /// The recording that the lines so far stand for.
    pub fn finish(mut self) -> Recording {
        self.close_report();
        let mut recording = self.collector.finish();
        let fullest = recording
            .snapshots
            .iter()
            .map(|snapshot| snapshot.figures.len())
            .max()
            .unwrap_or(0);
        for (snapshot, asked) in recording.snapshots.iter_mut().zip(self.asked) {
            let most = if self.top == Top::Asked {
                asked
            } else {
                fullest
            };
            // of several processes, a report can be on the few that have ended
            snapshot.complete = !self.by_process && snapshot.figures.len() < most;
        }
        recording
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_of_more_days_than_there_are_stays_at_the_end_of_time() {
        let heading = "[23:00:00] Top 10 stacks with outstanding allocations:";
        let mut log = LogBuilder::new(Source::LibbpfTools, Top::Asked);
        log.line(heading, |_, _| None);
        (log.days, log.last_s) = (i64::MAX / DAY_S, i64::MAX);
        log.line(heading, |_, _| None);
        let recording = log.finish();
        let times = recording.snapshots.iter();
        let times: Vec<_> = times.map(|s| (s.time.unix_ns, s.elapsed_ns)).collect();
        assert_eq!(times.last(), Some(&(i64::MAX, u64::MAX)));
        assert!(times.is_sorted());
    }

    #[test]
    fn headings_are_read_in_every_spelling() {
        let heading = |line| report_heading(line).unwrap();
        assert_eq!(
            heading("[11:16:33] Top 2 stacks with outstanding allocations:"),
            (40_593, 2)
        );
        assert_eq!(
            heading("[1:6:3] Top 10 stacks with outstanding allocations:"),
            (3963, 10)
        );
        assert_eq!(
            report_heading("[25:00:00] Top 2 stacks with outstanding allocations:"),
            None
        );
        assert_eq!(report_heading("[unknown] Top 2 stacks"), None);
        assert_eq!(
            entry_heading("\t80 bytes in 5 allocations from stack"),
            Some((80, 5))
        );
        assert_eq!(
            entry_heading("80 bytes in 5 allocations from stack"),
            Some((80, 5))
        );
        assert_eq!(
            entry_heading("\t-1 bytes in 5 allocations from stack"),
            None
        );
    }

    #[test]
    fn headings_of_processes_are_read() {
        assert_eq!(process_heading("Process 12 (nginx):"), Some((12, "nginx")));
        assert_eq!(
            process_heading("Process 7 (a (b), c), ended:"),
            Some((7, "a (b), c"))
        );
        for line in [
            "Process x (y):",
            "Process 1:",
            "Process 1 (y)",
            " Process 1 (y):",
        ] {
            assert_eq!(process_heading(line), None, "{line}");
        }
    }

    #[test]
    fn symbols_keep_blanks_and_brackets() {
        let parts = |text| {
            let Symbol {
                name,
                offset,
                module,
                rest,
            } = symbol(text);
            (
                name.unwrap_or_default(),
                offset,
                module.unwrap_or_default(),
                rest,
            )
        };
        let expect = |name: &str, offset, module: &str, rest: &str| {
            (name.to_owned(), offset, module.to_owned(), rest.to_owned())
        };
        assert_eq!(
            parts("main+0x6d [allocs]"),
            expect("main", 0x6d, "allocs", "")
        );
        assert_eq!(
            parts("operator new[](unsigned long)+0x1 [a b]"),
            expect("operator new[](unsigned long)", 1, "a b", "")
        );
        assert_eq!(
            parts("f() [clone .cold]+0x1 [x] src/f.c:12"),
            expect("f() [clone .cold]", 1, "x", "src/f.c:12")
        );
        assert_eq!(
            parts("sys_bpf [kernel]"),
            expect("sys_bpf", 0, "kernel", "")
        );
        assert_eq!(
            parts("[unknown] [libfoo.so]"),
            expect("", 0, "libfoo.so", "")
        );
        assert_eq!(parts("[unknown]"), expect("", 0, "", ""));
        assert_eq!(parts("name+0xzz"), expect("name+0xzz", 0, "", ""));
        assert_eq!(parts(""), expect("", 0, "", ""));
    }

    #[test]
    fn days_pass_at_midnight_and_not_when_a_clock_is_set_back() {
        let mut log = LogBuilder::new(Source::Text, Top::Asked);
        assert_eq!(
            [86_390, 5, 2, 20].map(|second| log.unix_s(second)),
            [86_390, 86_405, 86_405, 86_420]
        );
    }
}
