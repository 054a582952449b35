//! The command: parses, runs, and ends with a status. What runs is in the library.

// eprint! panics where it can't write; reports go through writers whose errors are handled

use std::io::Write as _;
use std::process::ExitCode;

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
        return list_suppressions();
    }
    match arguments.mode {
        Some(cli::Command::Report(report)) => {
            return match offline::run(*report) {
                Ok(status) => ExitCode::from(status),
                Err(error) => fail(&format!("{error:#}"), 1),
            };
        }
        Some(cli::Command::Check(check)) => {
            return match check::run(&check) {
                Ok(status) => ExitCode::from(status),
                Err(error) => fail(&format!("{error:#}"), 1),
            };
        }
        Some(cli::Command::Man { folder }) => {
            return match man::write(&folder) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => fail(&format!("{error:#}"), 1),
            };
        }
        Some(cli::Command::Completions { shell }) => return print_completions(shell),
        None => {}
    }
    let alone = std::env::args_os().len() == 2;
    let options = match options::validate(arguments, process::named, alone) {
        Ok(options) => options,
        Err(message) => return fail(&message, USAGE),
    };
    match session::run(&options) {
        Ok(status) => ExitCode::from(status),
        Err(error) => fail(&format!("{error:#}"), 1),
    }
}

fn print_completions(shell: clap_complete::Shell) -> ExitCode {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut cli::Arguments::command(), "memleak", &mut text);
    match std::io::stdout().write_all(&text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("failed to write completions: {error}"), 1),
    }
}

fn list_suppressions() -> ExitCode {
    let mut out = std::io::stdout();
    let written = runtimes::KEPT
        .iter()
        .try_for_each(|kept| writeln!(out, "{}", kept.what));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
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
    let command = match std::env::args_os().nth(1) {
        Some(first) if first == "report" => "memleak report",
        _ => "memleak",
    };
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
