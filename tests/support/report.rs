//! Reads memleak's text report back into figures, with a parser of the tests' own.
//! Shares no code with what it checks; lines that the traced program printed in between are passed over.

/// One report: a header and what followed it.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The N of "Top N stacks".
    pub top: u64,
    /// The stacks, in the order printed.
    pub stacks: Vec<Stack>,
    /// The processes whose parts there are, in the order printed; none when one process is traced.
    pub processes: Vec<Process>,
    /// The `addr = …` lines of -a, in the order printed.
    pub allocations: Vec<Allocation>,
}

/// The heading of a process's part of a report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// What it is called.
    pub name: String,
    /// Whether this is its last report.
    pub ended: bool,
}

/// One stack of a report.
#[derive(Clone, Debug)]
pub struct Stack {
    /// The process whose part it is in; 0 when one process is traced.
    pub pid: u32,
    /// Bytes and allocations.
    pub held: Held,
    /// Whether the figures carry the `~` of an estimate.
    pub estimated: bool,
    /// Frames, innermost first, with inlined ones as frames of their own.
    pub frames: Vec<Frame>,
    /// Lines among the frames that are no frames, such as `[stack not stored]`.
    pub notes: Vec<String>,
}

/// Outstanding memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Bytes outstanding.
    pub bytes: u64,
    /// Allocations outstanding.
    pub count: u64,
}

/// One line of a stack.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    /// The function, or `[unknown]`.
    pub symbol: String,
    /// What stands in brackets behind it, without them; `inlined` for an inlined frame.
    pub module: String,
    /// `file:line`, or nothing.
    pub location: String,
}

/// One `addr = … size = …` line.
#[derive(Clone, Debug)]
pub struct Allocation {
    /// Where the block begins.
    pub address: u64,
    /// Bytes.
    pub size: u64,
    /// What follows the size on the line: thread and age.
    pub rest: String,
}

impl Held {
    /// Bytes in a number of allocations.
    pub fn new(bytes: u64, count: u64) -> Held {
        Held { bytes, count }
    }

    /// `count` allocations of `size` bytes each.
    pub fn each(count: u64, size: u64) -> Held {
        Held {
            bytes: count * size,
            count,
        }
    }
}

impl Report {
    /// What all its stacks hold.
    pub fn total(&self) -> Held {
        self.sum(|_| true)
    }

    /// What the stacks hold that were made in `function`: it called the allocator, or what did is inlined into it.
    pub fn made_in(&self, function: &str) -> Held {
        self.sum(|stack| stack.caller() == Some(function))
    }

    /// What the stacks hold that pass through `function` anywhere.
    pub fn through(&self, function: &str) -> Held {
        self.sum(|stack| stack.frames.iter().any(|frame| frame.symbol == function))
    }

    /// What a process's stacks hold that were made in `function`.
    pub fn made_by(&self, pid: u32, function: &str) -> Held {
        self.sum(|stack| stack.pid == pid && stack.caller() == Some(function))
    }

    /// The process of a name; there must be only one.
    pub fn process(&self, name: &str) -> &Process {
        let mut found = self.processes.iter().filter(|process| process.name == name);
        let (one, more) = (found.next(), found.next());
        assert!(one.is_some() && more.is_none(), "not one {name}: {self:#?}");
        one.expect("just looked")
    }

    /// What the stacks hold for which `wanted` is true.
    pub fn sum(&self, wanted: impl Fn(&Stack) -> bool) -> Held {
        let mut sum = Held::default();
        for stack in self.stacks.iter().filter(|stack| wanted(stack)) {
            sum.bytes += stack.held.bytes;
            sum.count += stack.held.count;
        }
        sum
    }
}

impl Stack {
    /// The function that called the allocator, or that what did is inlined into.
    fn caller(&self) -> Option<&str> {
        let caller = self.frames.iter().find(|frame| frame.module != "inlined");
        caller.map(|frame| frame.symbol.as_str())
    }
}

/// The reports in a memleak's standard output, in order.
pub fn parse(lines: &[String]) -> Vec<Report> {
    let mut reports: Vec<Report> = Vec::new();
    for line in lines {
        if let Some(top) = header(line) {
            reports.push(Report {
                top,
                ..Report::default()
            });
            continue;
        }
        let Some(report) = reports.last_mut() else {
            continue;
        };
        if let Some(process) = process(line) {
            report.processes.push(process);
        } else if let Some(allocation) = allocation(line) {
            report.allocations.push(allocation);
        } else if let Some(mut stack) = stack(line) {
            stack.pid = report.processes.last().map_or(0, |process| process.pid);
            report.stacks.push(stack);
        } else if let (Some(text), Some(stack)) =
            (line.strip_prefix("\t\t"), report.stacks.last_mut())
        {
            match frame(text) {
                Some(frame) => stack.frames.push(frame),
                None => stack.notes.push(text.to_owned()),
            }
        }
    }
    reports
}

/// All that a run reported, as one report: last reports of processes come when these end.
pub fn all_reports(lines: &[String]) -> Report {
    let mut all = Report::default();
    for report in parse(lines) {
        all.processes.extend(report.processes);
        all.stacks.extend(report.stacks);
        all.allocations.extend(report.allocations);
    }
    all
}

/// Whether a line begins a report. A program's unfinished line may stand before it.
pub fn is_header(line: &str) -> bool {
    header(line).is_some()
}

/// The N of `[HH:MM:SS] Top N stacks with outstanding allocations:`.
fn header(line: &str) -> Option<u64> {
    let (before, after) = line.split_once("] Top ")?;
    let time = &before[before.rfind('[')? + 1..];
    let is_time = time.len() == 8
        && time.bytes().enumerate().all(|(i, byte)| match i {
            2 | 5 => byte == b':',
            _ => byte.is_ascii_digit(),
        });
    let top = after.strip_suffix(" stacks with outstanding allocations:")?;
    if is_time { top.parse().ok() } else { None }
}

/// `Process 4711 (nginx), ended:`
fn process(line: &str) -> Option<Process> {
    let text = line.strip_prefix("Process ")?.strip_suffix(':')?;
    let (text, ended) = match text.strip_suffix(", ended") {
        Some(text) => (text, true),
        None => (text, false),
    };
    let (pid, name) = text.strip_suffix(')')?.split_once(" (")?;
    Some(Process {
        pid: pid.parse().ok()?,
        name: name.to_owned(),
        ended,
    })
}

/// `\taddr = 948cd0 size = 16 …`
fn allocation(line: &str) -> Option<Allocation> {
    let text = line.trim_start_matches('\t').strip_prefix("addr = ")?;
    let (address, text) = text.split_once(" size = ")?;
    let end = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    Some(Allocation {
        address: u64::from_str_radix(address, 16).ok()?,
        size: text[..end].parse().ok()?,
        rest: text[end..].trim().to_owned(),
    })
}

/// `\t80 bytes in 5 allocations from stack`, each figure with a `~` before it when estimated.
fn stack(line: &str) -> Option<Stack> {
    let text = line.strip_prefix('\t')?;
    let (bytes, text) = text.split_once(" bytes in ")?;
    let (count, _) = text.split_once(" allocations from stack")?;
    let figure = |text: &str| text.trim_start_matches('~').parse::<u64>().ok();
    Some(Stack {
        pid: 0,
        held: Held::new(figure(bytes)?, figure(count)?),
        estimated: bytes.starts_with('~'),
        frames: Vec::new(),
        notes: Vec::new(),
    })
}

/// `0x000055dde4ed4181\tmain+0x6d [allocs] allocs.c:7`, the address empty or left out for inlined frames.
fn frame(text: &str) -> Option<Frame> {
    let text = text.trim_start();
    let text = match text.strip_prefix("0x") {
        Some(rest) => rest.split_once('\t')?.1,
        None if text.contains(" [inlined]") => text,
        None => return None,
    };
    // Symbols hold spaces and brackets (`operator new[](unsigned long)`), so look for the module's from the end.
    let open = text
        .rfind(" [")
        .map(|at| at + 1)
        .or_else(|| text.find('['))?;
    let close = open + text[open..].find(']')?;
    let (symbol, module) = if open == 0 {
        (&text[..=close], "")
    } else {
        (text[..open].trim_end(), &text[open + 1..close])
    };
    Some(Frame {
        symbol: without_offset(symbol).to_owned(),
        module: module.to_owned(),
        location: text[close + 1..].trim().to_owned(),
    })
}

/// A symbol without its `+0x…`.
fn without_offset(symbol: &str) -> &str {
    match symbol.rsplit_once("+0x") {
        Some((name, offset)) if offset.bytes().all(|byte| byte.is_ascii_hexdigit()) => name,
        _ => symbol,
    }
}
