//! `memleak check`: what this machine offers for tracing and what it lacks, and, for a process, what would be probed and how
//! good stacks and names will be. Changes nothing: no probe is set, and what is loaded to try it is dropped.

mod machine;
mod target;

use std::io::{self, Write};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::cli::CheckArguments;
use crate::process::named;
use crate::reader;
use crate::visible;

/// What a fact means for tracing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    /// As it should be, or neither good nor bad.
    Ok,
    /// Tracing works, but something is lacking, or is to be known.
    Note,
    /// Tracing does not work.
    Failed,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            State::Ok => "ok",
            State::Note => "note",
            State::Failed => "failed",
        }
    }
}

/// One thing that was found out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Fact {
    /// The process that it is about; none: the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    /// What it is about, in a word or two.
    about: &'static str,
    state: State,
    /// A sentence without its full stop.
    says: String,
}

impl Fact {
    fn new(about: &'static str, state: State, says: impl Into<String>) -> Self {
        Self {
            pid: None,
            about,
            state,
            says: says.into(),
        }
    }

    fn ok(about: &'static str, says: impl Into<String>) -> Self {
        Self::new(about, State::Ok, says)
    }

    fn note(about: &'static str, says: impl Into<String>) -> Self {
        Self::new(about, State::Note, says)
    }

    fn failed(about: &'static str, says: impl Into<String>) -> Self {
        Self::new(about, State::Failed, says)
    }
}

/// Finds out and prints. Returns the exit status: 0 when tracing would work, 1 when it would not.
///
/// # Errors
/// When the processes can't be told, or the standard output can't be written.
pub fn run(arguments: &CheckArguments) -> Result<u8> {
    let pids = match arguments.pid.is_empty() {
        true => Vec::new(),
        false => crate::options::process_ids(&arguments.pid, named).map_err(anyhow::Error::msg)?,
    };
    reader::start();
    let mut facts = machine::facts();
    let works = facts.iter().all(|fact| fact.state != State::Failed);
    for pid in pids {
        let found = match works {
            true => target::facts(pid),
            false => Vec::new(),
        };
        facts.extend(found.into_iter().map(|fact| Fact {
            pid: Some(pid),
            ..fact
        }));
    }
    let mut out = io::stdout().lock();
    match arguments.json {
        true => print_json(&facts, &mut out),
        false => print(&facts, &mut out),
    }
    .context("failed to write to the standard output")?;
    let failed = facts.iter().any(|fact| fact.state == State::Failed);
    Ok(u8::from(failed))
}

fn print(facts: &[Fact], out: &mut impl Write) -> io::Result<()> {
    let mut pid = None;
    for fact in facts {
        if fact.pid != pid {
            pid = fact.pid;
            writeln!(out, "process {}:", pid.unwrap_or_default())?;
        }
        let (state, about) = (fact.state.name(), fact.about);
        writeln!(out, "{state:<7} {about:<18} {}", visible::line(&fact.says))?;
    }
    out.flush()
}

fn print_json(facts: &[Fact], out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, facts)?;
    writeln!(out)?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fact_is_a_line_and_hides_nothing() {
        let facts = [
            Fact::ok("kernel", "Linux 6.18"),
            Fact {
                pid: Some(12),
                ..Fact::note("name", "evil\u{1b}[2Jname")
            },
        ];
        let mut text = Vec::new();
        print(&facts, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(!text.contains('\u{1b}'), "{text}");
        assert!(text.contains("process 12:\nnote    name"), "{text}");
    }
}
