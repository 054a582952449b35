//! That names are found as they should be, and that nothing else opens files of others.
//! The files of the tests are made by them.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::process::Command;

use super::*;

const MOST: u64 = 1 << 20;

fn folder() -> (tempfile::TempDir, Root) {
    let folder = tempfile::tempdir().unwrap();
    let root = Root::at(folder.path()).unwrap();
    (folder, root)
}

fn read(opened: Opened) -> String {
    io::read_to_string(opened.into_file()).unwrap()
}

/// Both ways of finding a name must agree.
fn found(root: &Root, path: &str) -> Option<String> {
    let fast = root.open(Path::new(path), MOST).ok().map(read);
    let walked = resolve::walk(root.0.as_fd(), Path::new(path), Follow::All, |_| true)
        .and_then(|found| open_found(&found, MOST))
        .ok()
        .map(read);
    assert_eq!(fast, walked, "{path}");
    fast
}

#[test]
fn names_lead_nowhere_outside_of_the_root() {
    let (folder, root) = folder();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("sub")).unwrap();
    fs::write(at("passwd"), "inside").unwrap();
    symlink("../../../../passwd", at("sub/up")).unwrap();
    symlink("/passwd", at("sub/absolute")).unwrap();
    symlink("/proc/self/root/etc/passwd", at("sub/magic")).unwrap();
    symlink("/", at("sub/slash")).unwrap();
    symlink("round", at("round")).unwrap();
    for path in [
        "passwd",
        "/passwd",
        "sub/../passwd",
        "../../passwd",
        "sub/up",
        "sub/absolute",
        "sub/slash/passwd",
        "sub/./../passwd",
    ] {
        assert_eq!(found(&root, path).as_deref(), Some("inside"), "{path}");
    }
    for path in [
        "etc/passwd",
        "sub/magic",
        "round",
        "sub",
        "nothing",
        "passwd/x",
    ] {
        assert_eq!(found(&root, path), None, "{path}");
    }
}

#[test]
fn links_of_the_kernels_own_are_not_followed() {
    let root = Root::own().unwrap();
    for path in ["/proc/self/root/etc/passwd", "/proc/self/exe"] {
        assert!(root.open(Path::new(path), MOST).is_err(), "{path}");
    }
}

#[test]
fn only_regular_files_of_a_bounded_size_are_opened() {
    let (folder, root) = folder();
    let pipe = folder.path().join("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    symlink("/dev/zero", folder.path().join("device")).unwrap();
    fs::File::create(folder.path().join("sparse"))
        .unwrap()
        .set_len(MOST + 1)
        .unwrap();
    assert_eq!(found(&root, "pipe"), None);
    assert_eq!(found(&root, "device"), None);
    assert_eq!(found(&root, "sparse"), None);
    for path in [&pipe, Path::new("/dev/zero"), Path::new("/")] {
        assert!(open(path, MOST).is_err(), "{}", path.display());
    }
    let opened = root.open(Path::new("sparse"), MOST + 1).unwrap();
    assert_eq!(opened.size, MOST + 1);
    let again = open(&opened.path(), MOST + 1).unwrap();
    assert_eq!(again.identity, opened.identity);
}

#[test]
fn what_a_process_has_made_is_its_own_or_roots_and_no_link() {
    let (folder, root) = folder();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("map"), "x").unwrap();
    let owner = fs::metadata(at("map")).unwrap().uid();
    symlink("map", at("link")).unwrap();
    let open = |name: &str, owners: &[u32]| root.open_made_by(owners, Path::new(name), MOST);
    assert!(open("map", &[owner]).is_ok());
    assert!(open("link", &[owner]).is_err());
    fs::hard_link(at("map"), at("second")).unwrap();
    assert!(open("map", &[owner]).is_err());
    let mut status = fstat(&root.0).unwrap();
    for (uid, owners, owned) in [(0, &[7][..], true), (7, &[7], true), (8, &[7], false)] {
        status.st_uid = uid;
        assert_eq!(is_owned_by(&status, owners), owned, "{uid}");
    }
}

#[test]
fn what_others_may_write_is_not_trusted() {
    let root = Root::own().unwrap();
    assert!(root.open_trusted(Path::new("/etc/passwd"), MOST).is_ok());
    // everybody may write /tmp
    let folder = tempfile::tempdir_in("/tmp").unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "x").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(root.open(&file, MOST).is_ok());
    assert!(root.open_trusted(&file, MOST).is_err());
}

#[test]
fn whose_things_are_roots_alone_is_told_by_owner_and_mode() {
    let mut status = fstat(&Root::own().unwrap().0).unwrap();
    let regular = 0o100_000;
    let link = 0o120_000;
    for (uid, gid, mode, alone) in [
        (0, 0, regular | 0o644, true),
        (0, 0, regular | 0o664, true),
        (0, 5, regular | 0o664, false),
        (0, 5, regular | 0o644, true),
        (0, 0, regular | 0o646, false),
        (u32::MAX, 0, regular | 0o644, false),
        (0, 0, link | 0o777, true),
        (u32::MAX, 0, link | 0o777, false),
    ] {
        (status.st_uid, status.st_gid, status.st_mode) = (uid, gid, mode);
        assert_eq!(
            resolve::is_roots_alone(&status),
            alone,
            "{uid} {gid} {mode:o}"
        );
    }
}

#[test]
fn a_process_is_taken_at_its_word_for_its_users_files() {
    let user = rustix::process::geteuid().as_raw();
    assert!(owners(std::process::id()).contains(&user));
    assert!(owners(u32::MAX).is_empty());
}

/// Where files are opened by other ways than this room's, and why that is right.
const ELSEWHERE: &[(&str, &str)] = &[
    ("publish/file.rs", "writes what the user names"),
    (
        "publish/mod.rs",
        "the user's own list of suppressions, which may be a pipe",
    ),
    (
        "reader/child.rs",
        "reads descriptors that it was given, without rights",
    ),
    ("reader/pool.rs", "/proc"),
    (
        "recording/load.rs",
        "the user's own recording, which may be a pipe",
    ),
    ("session/outputs.rs", "/proc"),
    ("session/watch/look.rs", "/proc"),
    (
        "session/watch/window.rs",
        "a recording that memleak has just made",
    ),
    ("symbolize/kernel.rs", "/proc"),
    (
        "debuginfo/places.rs",
        "reads descriptors that it was given, without rights",
    ),
    ("symbolize/separate.rs", "/proc"),
    ("process/cgroups.rs", "/proc and cgroup folders"),
    (
        "process/command.rs",
        "looks for the user's own command as a shell does, and opens nothing",
    ),
    (
        "process/linked.rs",
        "looks where the user's own command is, and opens nothing",
    ),
    ("process/mappings/maps.rs", "/proc"),
    ("process/memory.rs", "/proc"),
    ("process/handle.rs", "/proc"),
    ("reachability/kernel_roots.rs", "/proc"),
    (
        "reachability/memory.rs",
        "/proc, the link to the target's own program there included",
    ),
    ("reachability/threads.rs", "/proc"),
    ("process/vdso.rs", "/proc"),
    ("tracer/kernel.rs", "/sys and memleak's own namespace"),
];

#[test]
fn files_of_others_are_opened_in_this_room_only() {
    const WAYS: &[&str] = &[
        "File::open(",
        "File::options(",
        "OpenOptions",
        "fs::read(",
        "fs::read_to_string(",
        "fs::metadata(",
        "canonicalize(",
        "Mmap::map(",
        ".exists()",
        "path.is_file()",
        "path().is_file()",
    ];
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut folders = vec![sources.clone()];
    let mut wrong = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path
                .strip_prefix(&sources)
                .unwrap()
                .to_str()
                .unwrap()
                .to_owned();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            if !name.ends_with(".rs") || name.ends_with("tests.rs") || name.starts_with("files/") {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            let code = text
                .split("#[cfg(test)]\nmod tests")
                .next()
                .unwrap_or_default();
            let uses = code
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"))
                .filter(|line| WAYS.iter().any(|way| line.contains(way)))
                .count();
            let listed = ELSEWHERE.iter().any(|(file, _)| *file == name);
            if listed != (uses > 0) {
                wrong.push(format!("{name}: {uses} uses"));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "open them by `files`, or list where that isn't so, with the reason:\n{}",
        wrong.join("\n")
    );
}
