//! The command: parses, runs, and ends with a status. What runs is in the library.

// eprint! panics where it can't write; reports go through writers whose errors are handled

use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory as _, Parser as _};

use memleak::analysis::runtimes;
use memleak::stderr::say;
use memleak::{check, cli, man, offline, options, process, reader, session};

/// What a usage error ends with.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    if let Some(status) = reader::serve_if_asked() {
        return status;
    }
    let arguments = match cli::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage_error(&error),
    };
    let output = match &arguments.mode {
        Some(cli::Command::Report(report)) => &report.output,
        _ => &arguments.live.output,
    };
    if output.lists_suppressions() {
        return end(list_suppressions());
    }
    let finished = match arguments.mode {
        Some(cli::Command::Report(report)) => offline::run(*report),
        Some(cli::Command::Watch(watch)) => return watch_all(*watch),
        Some(cli::Command::Check(check)) => check::run(&check),
        Some(cli::Command::Man { folder }) => man::write(&folder).map(|()| 0),
        Some(cli::Command::Completions { shell }) => print_completions(shell),
        None => return trace(arguments),
    };
    end(finished)
}

/// What a command ends with, once its error is told.
fn end(finished: Result<u8>) -> ExitCode {
    match finished {
        Ok(status) => ExitCode::from(status),
        Err(error) => fail(&format!("{error:#}"), 1),
    }
}

fn watch_all(arguments: cli::WatchArguments) -> ExitCode {
    match options::validate_watch(arguments) {
        Ok(options) => end(session::watch::run(&options)),
        Err(message) => fail(&message, USAGE),
    }
}

fn trace(arguments: cli::Arguments) -> ExitCode {
    let alone = std::env::args_os().len() == 2;
    let options = match options::validate(arguments, process::named, alone) {
        Ok(options) => options,
        Err(message) => return fail(&message, USAGE),
    };
    end(session::run(&options))
}

fn print_completions(shell: clap_complete::Shell) -> Result<u8> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut cli::Arguments::command(), "memleak", &mut text);
    print(&text)
}

fn list_suppressions() -> Result<u8> {
    let lines = runtimes::KEPT.iter().map(|kept| format!("{}\n", kept.what));
    print(lines.collect::<String>().as_bytes())
}

/// Whoever read our output and has left is no error.
fn print(text: &[u8]) -> Result<u8> {
    match io::stdout().write_all(text) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("failed to write to the standard output")
        }
        _ => Ok(0),
    }
}

/// Help and version go to stdout as clap writes them; an error is one line.
fn usage_error(error: &clap::Error) -> ExitCode {
    if matches!(
        error.kind(),
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion
    ) {
        return match error.print() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    // what is wrong, with the possible values if there are any; tips and usage follow an empty line
    let text = error.render().to_string();
    let paragraph: Vec<&str> = text
        .lines()
        .take_while(|line| !line.is_empty())
        .map(str::trim)
        .collect();
    let message = paragraph.join(" ");
    let message = message.strip_prefix("error: ").unwrap_or(&message);
    // what the standard library says of a number that is none
    let message = message.replace("invalid digit found in string", "expected a whole number");
    let argument = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    let unexpected = argument(ContextKind::InvalidArg).unwrap_or_default();
    let help = match argument(ContextKind::SuggestedArg) {
        Some(similar) => format!("did you mean {similar}? "),
        // as after -p $(pidof nginx)
        None if unexpected.parse::<u32>().is_ok() && names_processes() => {
            "several processes go into one list, as in -p 12,34; ".to_owned()
        }
        None => String::new(),
    };
    // a command of memleak's has a help of its own
    let first = std::env::args_os().nth(1).unwrap_or_default();
    let root = cli::Arguments::command();
    let mode = root.get_subcommands().find(|mode| first == mode.get_name());
    let command = mode.map_or("memleak".to_owned(), |mode| {
        format!("memleak {}", mode.get_name())
    });
    fail(&format!("{message} ({help}see {command} --help)"), USAGE)
}

/// Whether -p is among the arguments.
fn names_processes() -> bool {
    let mut arguments = std::env::args_os();
    arguments.any(|argument| argument == "-p" || argument == "--pid")
}

fn fail(message: &str, status: u8) -> ExitCode {
    say!("{message}");
    ExitCode::from(status)
}
