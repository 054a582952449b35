//! The command: parses, runs, and ends with a status. What runs is in the library.

// eprint! panics where it can't write; reports go through writers whose errors are handled

use std::process::ExitCode;

use clap::Parser as _;
use clap::error::ErrorKind;

use memleak::stderr::say;
use memleak::{cli, offline, options, reader, session};

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
    if let Some(cli::Command::Report(report)) = arguments.mode {
        return match offline::run(*report) {
            Ok(status) => ExitCode::from(status),
            Err(error) => fail(&format!("{error:#}"), 1),
        };
    }
    let options = match options::validate(arguments) {
        Ok(options) => options,
        Err(message) => return fail(&message, USAGE),
    };
    match session::run(&options) {
        Ok(status) => ExitCode::from(status),
        Err(error) => fail(&format!("{error:#}"), 1),
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
    let help = match error.kind() {
        // as after -p $(pidof nginx)
        ErrorKind::UnknownArgument if names_processes() => {
            "several processes go into one list, as in -p 12,34; see memleak --help"
        }
        _ => "see memleak --help",
    };
    fail(&format!("{message} ({help})"), USAGE)
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
