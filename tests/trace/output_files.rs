//! What root writes in folders of others: never through their links, with nothing of their files' permissions.
//! Needs root, to be two users. What the outputs hold is other tests' matter.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use crate::support::process::Finished;
use crate::support::{fixture, memleak, require_root};
use tempfile::TempDir;

const OUTPUTS: [&str; 5] = ["--html", "--json", "--folded", "--flamegraph", "--pprof"];
const RECORDING: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/tests/fixtures/recordings/service.jsonl"
);
/// A user that owns nothing else.
const SOMEBODY: u32 = 65534;

/// A folder with a precious file, and one in it that everybody may write to.
fn folders() -> (TempDir, PathBuf, PathBuf) {
    require_root();
    let folder = tempfile::tempdir().expect("a folder");
    let shared = folder.path().join("shared");
    fs::create_dir(&shared).expect("a folder");
    fs::set_permissions(&shared, Permissions::from_mode(0o1777)).expect("a mode");
    let precious = folder.path().join("precious");
    fs::write(&precious, "precious").expect("a file");
    (folder, shared, precious)
}

fn report(option: &str, path: &Path) -> Finished {
    let path = path.to_str().expect("text");
    memleak::run(["report", RECORDING, option, path])
}

fn record(path: &Path) -> Finished {
    let path = path.to_str().expect("text");
    let program = fixture::c("exit_now");
    memleak::run(["--record", path, "--", program.to_str().expect("text")])
}

/// Permissions, and whether root owns it.
fn owned(path: &Path) -> (u32, bool) {
    let file = fs::symlink_metadata(path).expect("a file");
    (file.mode() & 0o7777, file.uid() == 0)
}

#[test]
fn anothers_link_is_replaced_not_followed() {
    let (_folder, shared, precious) = folders();
    let link = shared.join("x");
    for option in OUTPUTS.into_iter().chain(["--record"]) {
        let _ = fs::remove_file(&link);
        symlink(&precious, &link).expect("a link");
        lchown(&link, Some(SOMEBODY), Some(SOMEBODY)).expect("an owner");
        let finished = match option {
            "--record" => record(&link),
            _ => report(option, &link),
        };
        assert!(finished.status.success(), "{option}: {finished:#?}");
        assert_eq!(
            fs::read(&precious).expect("a file"),
            b"precious",
            "{option}"
        );
        assert!(
            fs::symlink_metadata(&link).expect("a file").is_file(),
            "{option}"
        );
    }
}

#[test]
fn anothers_link_to_a_folder_is_refused() {
    let (folder, shared, _) = folders();
    let link = shared.join("here");
    symlink(folder.path(), &link).expect("a link");
    lchown(&link, Some(SOMEBODY), Some(SOMEBODY)).expect("an owner");
    let finished = report("--json", &link.join("out"));
    assert_eq!(finished.status.code(), Some(1), "{finished:#?}");
    let expected = "here in it is another user's symbolic link";
    assert!(finished.stderr[0].ends_with(expected), "{finished:#?}");
    assert!(!folder.path().join("out").exists());
    lchown(&link, Some(0), Some(0)).expect("an owner");
    assert!(report("--json", &link.join("out")).status.success());
    assert!(folder.path().join("out").exists());
}

#[test]
fn nothing_of_anothers_permissions_is_taken_over() {
    let (_folder, shared, _) = folders();
    let path = shared.join("x");
    for mode in [0o666, 0o4777, 0o6755] {
        for option in OUTPUTS.into_iter().chain(["--record"]) {
            let _ = fs::remove_file(&path);
            fs::write(&path, "").expect("a file");
            chown(&path, Some(SOMEBODY), Some(SOMEBODY)).expect("an owner");
            fs::set_permissions(&path, Permissions::from_mode(mode)).expect("a mode");
            let (finished, expected) = match option {
                "--record" => (record(&path), 0o600),
                _ => (report(option, &path), 0o644),
            };
            assert!(finished.status.success(), "{option}: {finished:#?}");
            assert_eq!(owned(&path), (expected, true), "{option} over {mode:o}");
        }
    }
}

#[test]
fn ones_own_file_keeps_its_permissions() {
    let (_folder, _, precious) = folders();
    fs::set_permissions(&precious, Permissions::from_mode(0o4640)).expect("a mode");
    assert!(report("--json", &precious).status.success());
    assert_eq!(owned(&precious), (0o640, true));
    assert!(record(&precious).status.success());
    assert_eq!(owned(&precious), (0o640, true));
}

#[test]
fn a_recording_onto_anothers_file_is_refused() {
    let (_folder, _, precious) = folders();
    chown(&precious, Some(SOMEBODY), Some(SOMEBODY)).expect("an owner");
    let finished = record(&precious);
    assert_eq!(finished.status.code(), Some(1), "{finished:#?}");
    let expected = format!(
        "memleak: failed to record: {} is another user's file; remove it, or name another",
        precious.display()
    );
    assert_eq!(finished.stderr, [expected]);
    assert_eq!(fs::read(&precious).expect("a file"), b"precious");
}

#[test]
fn a_second_name_of_a_file_is_not_written_through() {
    let (_folder, shared, precious) = folders();
    let name = shared.join("x");
    fs::hard_link(&precious, &name).expect("a name");
    assert!(record(&name).status.success());
    assert_eq!(fs::read(&precious).expect("a file"), b"precious");
}

#[test]
fn streams_and_devices_are_outputs_as_before() {
    require_root();
    for path in ["-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"] {
        let finished = report("--json", Path::new(path));
        assert!(finished.status.success(), "{path}: {finished:#?}");
        assert!(
            finished.stdout.concat().starts_with('{'),
            "{path}: {finished:#?}"
        );
    }
    assert!(report("--json", Path::new("/dev/null")).status.success());
}
