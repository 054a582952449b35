//! Targets that somebody made to mislead, hang or exhaust memleak, or to reach others through it.
//! What programs suffer without anybody's intent is in safety.rs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::memleak::{self, NEVER, finish_well, last_report};
use crate::support::report::Held;
use crate::support::{fixture, require_root};

/// Runs a tool of which the test needs the result.
fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Traces a hooked function's process through 50 calls of the hook.
fn assert_hook_survives(function: &str, kind: &str) {
    let program = fixture::c("hooked");
    let mut target = memleak::ready(&program, &[function, kind]);
    let tracer = memleak::attach(target.pid(), &[], NEVER);
    target.send_line();
    target.expect("done");
    assert!(target.finish().status.success(), "{function} {kind}");
    let finished = finish_well(tracer);
    let told = |line: &String| line.contains("not probed") && line.contains(function);
    assert!(finished.stderr.iter().any(told), "{finished:#?}");
    let report = last_report(&finished);
    assert_eq!(report.made_in("leak"), Held::each(3, 1303), "{report:#?}");
}

#[test]
fn functions_that_the_target_has_changed_in_memory_are_not_probed() {
    require_root();
    let _machine = crate::support::serial();
    for kind in ["absolute", "relative", "push", "register"] {
        assert_hook_survives("malloc", kind);
    }
    for function in ["free", "mmap"] {
        assert_hook_survives(function, "absolute");
    }
}

/// Traces the program to its end, which must come.
fn assert_traced(program: &Path, prepare: impl FnOnce(u32)) -> crate::support::process::Finished {
    let mut target = memleak::ready(program, &[]);
    prepare(target.pid());
    let tracer = memleak::attach(target.pid(), &[], NEVER);
    target.send_line();
    target.expect("done");
    assert!(target.finish().status.success());
    finish_well(tracer)
}

#[test]
fn a_perf_map_that_is_a_pipe_or_a_link_is_not_opened() {
    require_root();
    let _machine = crate::support::serial();
    let program = fixture::c("named_apart");
    let secret = tempfile::NamedTempFile::new().unwrap();
    fs::write(secret.path(), "0 7fffffffffffffff root_only_secret\n").unwrap();
    for to in [None, Some(secret.path()), Some(Path::new("/dev/zero"))] {
        let mut map = PathBuf::new();
        let finished = assert_traced(&program, |pid| {
            map = PathBuf::from(format!("/tmp/perf-{pid}.map"));
            match to {
                None => run("mkfifo", &[text(&map)]),
                Some(to) => std::os::unix::fs::symlink(to, &map).unwrap(),
            }
        });
        fs::remove_file(map).unwrap();
        let report = last_report(&finished);
        assert_eq!(
            report.made_in("name_in_the_file"),
            Held::each(3, 1307),
            "{to:?}"
        );
        assert!(
            !finished.stdout.join("\n").contains("root_only_secret"),
            "{to:?}"
        );
    }
}

#[test]
fn a_debug_link_to_a_pipe_a_device_or_an_endless_file_is_passed_over() {
    require_root();
    let _machine = crate::support::serial();
    let whole = fixture::c("named_apart");
    let folder = tempfile::tempdir().unwrap();
    let (program, debug) = (
        folder.path().join("linked"),
        folder.path().join("linked.debug"),
    );
    fs::write(&debug, "x").unwrap();
    let link = format!("--add-gnu-debuglink={}", text(&debug));
    run(
        "objcopy",
        &["--strip-debug", &link, text(&whole), text(&program)],
    );
    let make: [&dyn Fn(); 3] = [
        &|| run("mkfifo", &[text(&debug)]),
        &|| std::os::unix::fs::symlink("/dev/zero", &debug).unwrap(),
        &|| {
            fs::File::create(&debug)
                .unwrap()
                .set_len(200 << 30)
                .unwrap()
        },
    ];
    for make in make {
        fs::remove_file(&debug).unwrap();
        make();
        let report = last_report(&assert_traced(&program, |_| {}));
        assert_eq!(report.made_in("name_in_the_file"), Held::each(3, 1307));
    }
}
