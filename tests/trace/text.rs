//! Names that would move a terminal's cursor, reorder a line or end it, wherever they come from and go to. Needs root.
//! What else the reports say is other tests' matter.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::memleak::{ALL_STACKS, NEVER, finish_well};
use crate::support::process::{Finished, Running};
use crate::support::{fixture, memleak, require_root};
use tempfile::TempDir;

/// Ten bytes, as many as `leak_large` has: escape, end of line, end of a title, C1, a right-to-left override.
const NAME: &str = "\x1b\n\x07\u{9b}\u{202e}\x7fx";
const SPELLED: &str = "\\x1b\\n\\x07\\u{9b}\\u{202e}\\x7fx";

/// The fixture `sizes` under such a name, in a folder and with a function of such names.
fn hostile() -> (TempDir, PathBuf) {
    require_root();
    let folder = tempfile::tempdir().expect("a folder");
    let inner = folder.path().join(NAME);
    fs::create_dir(&inner).expect("a folder");
    let fixture = fixture::c("sizes");
    let mut bytes = fs::read(&fixture).expect("the program");
    let places: Vec<usize> = (0..bytes.len())
        .filter(|at| bytes[*at..].starts_with(b"leak_large\0"))
        .collect();
    assert!(!places.is_empty());
    for at in places {
        bytes[at..at + NAME.len()].copy_from_slice(NAME.as_bytes());
    }
    let program = inner.join(NAME);
    fs::copy(&fixture, &program).expect("a copy");
    fs::write(&program, bytes).expect("the program");
    (folder, program)
}

/// Traces it as a command, or attached.
fn trace(program: &Path, options: &[&str], attached: bool) -> Finished {
    let options = [options, &["-T", ALL_STACKS]].concat();
    let (mut target, tracer);
    if attached {
        target = memleak::ready(program, &[]);
        tracer = memleak::attach(target.pid(), &options, NEVER);
        target.send_line();
        target.expect("done");
        target.finish();
        return finish_well(tracer);
    }
    target = memleak::start(&[&options[..], &[NEVER]].concat(), program, &[]);
    target.expect("ready");
    target.send_line();
    target.expect("done");
    finish_well(target)
}

fn is_hidden(character: char) -> bool {
    (character.is_control() && character != '\t') || "\u{202e}\u{200b}\u{2028}".contains(character)
}

fn assert_harmless(finished: &Finished) {
    for line in finished.stdout.iter().chain(&finished.stderr) {
        assert!(!line.contains(is_hidden), "{line:?}");
    }
}

#[test]
fn no_name_moves_the_cursor_in_any_report() {
    let (_folder, program) = hostile();
    for (options, attached) in [
        (&["-v"][..], false),
        (&["-t", "-a"], false),
        (&["-f", "-v"], false),
        (&["-f", "-t"], true),
        (&["-C"], true),
    ] {
        let finished = trace(&program, options, attached);
        assert_harmless(&finished);
        let name = format!("\t{SPELLED}+0x");
        let named = finished.stdout.iter().any(|line| line.contains(&name));
        assert!(named, "{options:?}: {finished:#?}");
        let of_file = format!(" [{SPELLED}]");
        let named = finished.stdout.iter().any(|line| line.contains(&of_file));
        assert!(named, "{options:?}: {finished:#?}");
    }
}

#[test]
fn no_message_moves_it() {
    let (folder, program) = hostile();
    let name = program.to_str().expect("text");
    let missing = folder.path().join(format!("no{NAME}"));
    let missing = missing.to_str().expect("text");
    for arguments in [
        &["report", missing][..],
        &[name],
        &["-p", NAME],
        &["--json", &format!("{missing}/{NAME}"), "--", name],
        &["-c", missing],
        &["-O", missing, "--", name],
        &["--alloc", NAME, "--", name],
        &["--fail-on", NAME, "--", name],
        &[&format!("--{NAME}")],
    ] {
        let finished = memleak::run(arguments);
        assert_ne!(finished.status.code(), Some(0), "{finished:#?}");
        assert_harmless(&finished);
        assert_eq!(finished.stderr.len(), 1, "{finished:#?}");
    }
}

#[test]
fn no_file_holds_what_would() {
    let (folder, program) = hostile();
    let outputs = ["json", "html", "folded", "flamegraph", "record"];
    let path = |output: &str| {
        folder
            .path()
            .join(output)
            .to_str()
            .expect("text")
            .to_owned()
    };
    let mut command = memleak::command();
    for output in outputs {
        command.args([format!("--{output}"), path(output)]);
    }
    command.args([NEVER, "--"]).arg(&program);
    let mut tracer = Running::spawn(&mut command);
    tracer.expect("ready");
    tracer.send_line();
    tracer.expect("done");
    finish_well(tracer);
    for output in outputs {
        let text = fs::read_to_string(path(output)).expect("UTF-8");
        let line = text.lines().find(|line| line.contains(is_hidden));
        assert_eq!(line, None, "{output}");
    }
    let json: serde_json::Value =
        serde_json::from_slice(&fs::read(path("json")).expect("a file")).expect("JSON");
    assert!(
        json.to_string()
            .contains(&serde_json::to_string(NAME).expect("JSON")[1..])
    );
    // the recording has the name itself, the text is read as it stands
    let text = memleak::run(["report", &path("record")]);
    assert_harmless(&text);
    let log = path("log");
    fs::write(&log, text.stdout.join("\n") + "\n").expect("a file");
    let again = memleak::run(["report", &log]);
    let frames = |report: &Finished| -> Vec<String> {
        let lines = report.stdout.iter();
        lines
            .filter(|line| line.starts_with("\t\t"))
            .cloned()
            .collect()
    };
    assert_eq!(frames(&again), frames(&text));
    assert!(frames(&again).iter().any(|frame| frame.contains(SPELLED)));
}
