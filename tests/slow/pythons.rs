//! Python as Debian's suites have it, each version within its own root: its frames are those that it tells of itself.
//! Fetches packages by name, which takes a minute the first time; what is compared is in `support::pythons`.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::memleak::{ALL_STACKS, NEVER, attach, finish_well, last_report};
use crate::support::process::Running;
use crate::support::pythons::{compare, script};
use crate::support::require_root;

/// Programs, and the roots within which they run.
fn unpacked() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pythons");
    let tool = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/pythons.py");
    let output = Command::new(tool).arg(folder).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let lines = String::from_utf8(output.stdout).unwrap();
    let fields = lines.lines().filter_map(|line| line.split_once(' '));
    fields
        .map(|(program, root)| (program.to_owned(), root.to_owned()))
        .collect()
}

#[test]
fn frames_of_debians_versions_are_those_that_they_tell() {
    require_root();
    let versions = unpacked();
    assert_eq!(versions.len(), 3, "{versions:?}");
    for (program, root) in versions {
        let root = Path::new(&root);
        fs::copy(script("frames.py"), root.join("frames.py")).unwrap();
        let mut command = Command::new("chroot");
        command.arg(root).args([&program, "/frames.py"]);
        let mut target = Running::spawn(&mut command);
        target.expect("ready");
        let tracer = attach(target.pid(), &["-T", ALL_STACKS], NEVER);
        target.send_line();
        target.expect("done");
        target.send_line();
        let lines = target.finish().stdout;
        let finished = finish_well(tracer);
        eprintln!("{program}");
        compare(&last_report(&finished), &lines);
        let lost = |line: &String| line.contains("the interpreter's frames");
        assert!(
            !finished.stderr.iter().any(lost),
            "{program}: {finished:#?}"
        );
    }
}
