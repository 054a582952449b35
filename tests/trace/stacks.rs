//! Names and callers that are hard to get: no frame pointers, libraries that have gone, runtimes, generated code, debug
//! information that lies apart. Whether whole stacks are right is in unwinding.rs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::memleak::{self, ALL_STACKS, NEVER, finish_well, last_report, start};
use crate::support::process::{Finished, Running};
use crate::support::report::{Held, Report, Stack, is_header, parse};
use crate::support::{fixture, require_root};
use rustix::process::Signal;
use tempfile::TempDir;

const NO_FRAME_POINTERS: &[&str] = &["-O2", "-fomit-frame-pointer"];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// Runs a program that some test needs, and has to succeed.
fn run_tool(program: &str, arguments: &[&str], folder: &Path) {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap_or_else(|error| panic!("the test needs {program}: {error}"));
    assert!(
        output.status.success(),
        "{program} {arguments:?}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// The report on a command that leaks and ends by itself.
fn report_on(options: &[&str], program: &Path, arguments: &[&str]) -> (Report, Finished) {
    let options = [options, &["-T", ALL_STACKS]].concat();
    let finished = finish_well(start(&options, program, arguments));
    (last_report(&finished), finished)
}

fn symbols(stack: &Stack) -> Vec<&str> {
    stack
        .frames
        .iter()
        .map(|frame| frame.symbol.as_str())
        .collect()
}

/// The one stack that holds this.
fn stack_with(report: &Report, held: Held) -> &Stack {
    let found: Vec<_> = report.stacks.iter().filter(|s| s.held == held).collect();
    assert_eq!(found.len(), 1, "{held:?} in {report:#?}");
    found[0]
}

fn says(finished: &Finished, text: &str) -> bool {
    finished.stderr.iter().any(|line| line.contains(text))
}

#[test]
fn cpp_new_shows_its_callers_without_frame_pointers() {
    require_root();
    let program = fixture::cpp_with("new_in_foo", NO_FRAME_POINTERS);
    let (report, finished) = report_on(&[], &program, &[]);
    let names = symbols(stack_with(&report, Held::each(5, 333)));
    assert!(
        names
            .windows(3)
            .any(|names| names == ["foo", "bar", "main"]),
        "{report:#?}"
    );
    assert!(
        says(&finished, "unwound with tables, none cut short"),
        "{finished:#?}"
    );
}

#[test]
fn frame_pointers_alone_are_used_when_asked_for() {
    require_root();
    let program = fixture::cpp_with("new_in_foo", NO_FRAME_POINTERS);
    let (report, finished) = report_on(&["--unwind", "fp"], &program, &[]);
    let stack = stack_with(&report, Held::each(5, 333));
    assert!(!symbols(stack).contains(&"main"), "{report:#?}");
    assert!(
        says(&finished, "unwound by frame pointers"),
        "{finished:#?}"
    );
    assert!(!says(&finished, "warning"), "{finished:#?}");
}

#[test]
fn a_block_that_getline_makes_names_its_caller() {
    require_root();
    let program = fixture::c_with("getline_leak", NO_FRAME_POINTERS);
    let (report, _) = report_on(&[], &program, &[]);
    for function in ["read_a_line", "main"] {
        assert_eq!(report.through(function), Held::each(3, 120), "{report:#?}");
    }
}

/// Builds two plugins, whose functions have so many bytes of stack.
fn plugins(folder: &Path, room: [usize; 2]) -> [String; 2] {
    let source = fixtures().join("plugin.c");
    let build = |name: &str, room: usize| {
        let defines = [format!("-DLEAK={name}"), format!("-DROOM={room}")];
        let library = format!("{name}.so");
        let flags = ["-O1", "-fomit-frame-pointer", "-shared", "-fPIC"];
        let arguments = [
            "-Wl,--build-id",
            &defines[0],
            &defines[1],
            "-o",
            &library,
            source.to_str().unwrap(),
        ];
        run_tool("cc", &[&flags[..], &arguments].concat(), folder);
        folder.join(library).to_str().unwrap().to_owned()
    };
    [build("first_leak", room[0]), build("second_leak", room[1])]
}

/// Each plugin's block has its own function's name, and all of its callers'.
fn assert_plugins_are_told_apart(report: &Report) {
    for (size, name) in [(1111, "first_leak"), (2222, "second_leak")] {
        let stack = stack_with(report, Held::new(size, 1));
        assert_eq!(
            symbols(stack)[..4],
            [name, "plugin_run", "run", "main"],
            "{report:#?}"
        );
        assert_eq!(stack.frames[0].module, format!("{name}.so"), "{report:#?}");
    }
}

#[test]
fn a_plugin_that_takes_anothers_place_is_never_taken_for_it() {
    require_root();
    // with the same code, and with code whose frames the other's table gets wrong
    for room in [[64, 64], [64, 96], [96, 64]] {
        let folder = TempDir::new().unwrap();
        let [first, second] = plugins(folder.path(), room);
        let host = fixture::c_with("plugin_swap", &["-ldl"]);
        let (report, finished) = report_on(&[], &host, &[&first, &second]);
        assert_plugins_are_told_apart(&report);
        assert!(says(&finished, "none cut short"), "{finished:#?}");
    }
}

#[test]
fn a_plugin_that_has_gone_keeps_its_names_though_another_took_its_place() {
    require_root();
    for extra in [&[][..], &["delete"]] {
        let folder = TempDir::new().unwrap();
        let [first, second] = plugins(folder.path(), [64, 64]);
        let host = fixture::c_with("plugin_host", &["-ldl"]);
        let arguments = [&[first.as_str(), &second], extra].concat();
        let mut running = start(&["-T", ALL_STACKS, "0.1"], &host, &arguments);
        for _ in 0..2 {
            running.expect("loaded");
            // a whole report later, the mapping is known
            running.stdout_line("report", is_header);
            running.stdout_line("report", is_header);
            running.send_line();
        }
        let report = last_report(&finish_well(running));
        assert_plugins_are_told_apart(&report);
    }
}

#[test]
fn what_a_library_allocates_as_it_is_loaded_has_whole_stacks() {
    require_root();
    let folder = TempDir::new().unwrap();
    let source = fixtures().join("plugin_early.c");
    let flags = ["-shared", "-fPIC", "-o", "early.so"];
    let arguments = [NO_FRAME_POINTERS, &flags, &[source.to_str().unwrap()]].concat();
    run_tool("cc", &arguments, folder.path());
    let plugin = folder.path().join("early.so");
    let plugin = plugin.to_str().unwrap();
    let host = fixture::c_with("plugin_host", &["-ldl"]);
    let mut running = start(&["-T", ALL_STACKS, "0.1"], &host, &[plugin, plugin]);
    for _ in 0..2 {
        running.expect("early");
        // a whole report later, its table is known
        running.stdout_line("report", is_header);
        running.stdout_line("report", is_header);
        running.send_line();
        running.expect("loaded");
        running.send_line();
    }
    let finished = finish_well(running);
    let report = last_report(&finished);
    // each time with the same stack, but for the host's own call
    let held: Vec<Held> = report
        .stacks
        .iter()
        .filter(|stack| symbols(stack)[0] == "leak_early")
        .map(|stack| {
            assert_eq!(symbols(stack)[1], "begin", "{report:#?}");
            assert!(symbols(stack).ends_with(&["_start"]), "{report:#?}");
            stack.held
        })
        .collect();
    assert_eq!(held, [Held::each(50, 777); 2], "{report:#?}");
    assert!(says(&finished, "none cut short"), "{finished:#?}");
}

#[test]
fn bytearrays_of_python_name_what_made_them() {
    require_root();
    let script = "kept = [bytearray(1048577) for _ in range(4)]\nimport os; os._exit(0)";
    let (report, finished) = report_on(&[], Path::new("/usr/bin/python3"), &["-c", script]);
    let held = report.sum(|stack| {
        let names = symbols(stack);
        names.contains(&"PyByteArray_Resize") && names.contains(&"Py_BytesMain")
    });
    assert_eq!(held, Held::each(4, 1_048_578), "{finished:#?}");
}

#[test]
fn direct_buffers_of_java_name_what_made_them() {
    require_root();
    let folder = TempDir::new().unwrap();
    let source = fixtures().join("DirectBuffers.java");
    run_tool(
        "javac",
        &["-d", ".", source.to_str().unwrap()],
        folder.path(),
    );
    let classes = folder.path().to_str().unwrap();
    let arguments = ["-cp", classes, "-Xint", "DirectBuffers"];
    let options = ["-T", ALL_STACKS, "0.5"];
    let mut running = start(&options, Path::new("/usr/bin/java"), &arguments);
    running.expect("ready");
    // a whole report later, the tables of its libraries are known
    running.stdout_line("report", is_header);
    running.stdout_line("report", is_header);
    running.send_line();
    let report = last_report(&finish_well(running));
    let held = report.sum(|stack| {
        let names = symbols(stack);
        let made = names
            .iter()
            .any(|name| name.contains("Unsafe_AllocateMemory0"));
        made && names.contains(&"start_thread") && stack.held.bytes / stack.held.count > 1_234_567
    });
    assert_eq!(held.count, 4, "{report:#?}");
}

/// A cycle of Rc, mem::forget, Box::leak, a vector that grew, and C called through FFI.
#[test]
fn each_leak_of_a_rust_program_is_named() {
    require_root();
    let folder = TempDir::new().unwrap();
    let sources = fixtures();
    let (c, rust) = (
        sources.join("rust_leaks_ffi.c"),
        sources.join("rust_leaks.rs"),
    );
    let c_flags = ["-O2", "-g", "-fomit-frame-pointer", "-c", "-o", "ffi.o"];
    run_tool(
        "cc",
        &[&c_flags[..], &[c.to_str().unwrap()]].concat(),
        folder.path(),
    );
    let flags = ["--edition", "2024", "-g", "-O", "-C", "link-arg=ffi.o"];
    run_tool(
        "rustc",
        &[&flags[..], &[rust.to_str().unwrap()]].concat(),
        folder.path(),
    );
    let (report, _) = report_on(&[], &folder.path().join("rust_leaks"), &[]);
    for (function, held) in [
        ("rust_leaks::rc_cycle", Held::each(2, 1016)),
        ("rust_leaks::forget", Held::new(901, 1)),
        ("rust_leaks::leak_box", Held::new(801, 1)),
        ("rust_leaks::grow", Held::new(131_072, 1)),
        ("rust_leaks::call_c", Held::new(701, 1)),
    ] {
        assert_eq!(report.through(function), held, "{function}: {report:#?}");
    }
    assert_eq!(report.made_in("c_leak"), Held::new(701, 1), "{report:#?}");
}

#[test]
fn inlined_functions_are_left_out_on_demand() {
    require_root();
    let (report, _) = report_on(&["--no-inlines"], &fixture::c("inlined"), &[]);
    let frames = report.stacks.iter().flat_map(|stack| &stack.frames);
    assert!(
        frames
            .clone()
            .all(|frame| frame.module != "inlined" || frame.symbol != "inlined_leaker"),
        "{report:#?}"
    );
    let outer = frames.clone().any(|frame| frame.symbol == "outer_caller");
    assert!(outer, "{report:#?}");
}

#[cfg(target_arch = "x86_64")]
#[test]
fn code_of_the_vdso_has_the_names_of_its_functions() {
    require_root();
    let (report, finished) = report_on(&[], &fixture::c("vdso_interrupted"), &[]);
    let stack = stack_with(&report, Held::new(4567, 1));
    let names = symbols(stack);
    assert_eq!(names[..2], ["leak_in_handler", "on_signal"], "{report:#?}");
    // a pseudo name has its brackets already
    let of_vdso = stack.frames.iter().find(|frame| frame.module == "vdso");
    let of_vdso = of_vdso.unwrap_or_else(|| panic!("no frame in the vDSO: {report:#?}"));
    // it has two names
    assert!(of_vdso.symbol.ends_with("clock_gettime"), "{of_vdso:?}");
    assert!(
        names
            .windows(2)
            .any(|names| names == ["ask_the_time", "main"]),
        "{report:#?}"
    );
    assert!(says(&finished, "none cut short"), "{finished:#?}");
}

#[cfg(target_arch = "x86_64")]
#[test]
fn generated_code_has_the_name_that_its_map_tells() {
    require_root();
    let (report, finished) = report_on(&[], &fixture::c("jit"), &[]);
    let pid = finished.stdout[1]
        .split_whitespace()
        .find_map(|word| word.strip_suffix(',')?.parse::<u32>().ok())
        .expect("a pid");
    fs::remove_file(format!("/tmp/perf-{pid}.map")).unwrap();
    let stack = stack_with(&report, Held::new(4321, 1));
    assert_eq!(
        symbols(stack)[..3],
        ["generated code", "call_generated", "main"],
        "{report:#?}"
    );
    assert_eq!(stack.frames[0].module, "jit", "{report:#?}");
}

#[cfg(target_arch = "x86_64")]
#[test]
fn generated_code_below_another_root_has_the_name_that_the_map_there_tells() {
    require_root();
    let root = TempDir::new().unwrap();
    fs::create_dir(root.path().join("tmp")).unwrap();
    let program = fixture::c_with("jit", &["-static"]);
    fs::copy(program, root.path().join("jit")).unwrap();
    let mut chroot = Command::new("chroot");
    let mut target = Running::spawn(chroot.arg(root.path()).args(["/jit", "wait"]));
    target.expect("ready");
    let tracer = memleak::attach(target.pid(), &["-T", ALL_STACKS], NEVER);
    target.send_line();
    assert!(target.finish().status.success());
    let report = last_report(&finish_well(tracer));
    let stack = stack_with(&report, Held::new(4321, 1));
    assert_eq!(
        symbols(stack)[..3],
        ["generated code", "call_generated", "main"],
        "{report:#?}"
    );
    assert_eq!(stack.frames[0].module, "jit", "{report:#?}");
}

#[test]
fn files_that_only_the_targets_mount_namespace_has_are_named() {
    require_root();
    let folder = TempDir::new().unwrap();
    let [first, second] = plugins(folder.path(), [64, 64]);
    let host = fixture::c_with("plugin_host", &["-ldl"]);
    let hidden = folder.path().join("hidden");
    fs::create_dir(&hidden).unwrap();
    let script = r#"set -e; mount -t tmpfs none "$1"; cp "$2" "$3" "$1"; exec "$4" "$1/first_leak.so" "$1/second_leak.so""#;
    let arguments = [
        "-m",
        "sh",
        "-c",
        script,
        "sh",
        hidden.to_str().unwrap(),
        &first,
        &second,
        host.to_str().unwrap(),
    ];
    let options = ["-T", ALL_STACKS, "0.1"];
    let mut running = start(&options, Path::new("/usr/bin/unshare"), &arguments);
    for _ in 0..2 {
        running.expect("loaded");
        // a whole report later, the mapping is known
        running.stdout_line("report", is_header);
        running.stdout_line("report", is_header);
        running.send_line();
    }
    let report = last_report(&finish_well(running));
    assert_plugins_are_told_apart(&report);
    assert!(fs::read_dir(&hidden).unwrap().next().is_none());
}

/// A stripped program whose debug information is in prog.debug beside it, linked to.
fn split_program() -> TempDir {
    let folder = TempDir::new().unwrap();
    let folder_path = folder.path();
    let program = fixture::c_with("exit_now", &["-Wl,--build-id"]);
    fs::copy(program, folder_path.join("prog")).unwrap();
    for arguments in [
        &["--only-keep-debug", "prog", "prog.debug"][..],
        &["--strip-all", "prog"],
        &["--add-gnu-debuglink=prog.debug", "prog"],
    ] {
        run_tool("objcopy", arguments, folder_path);
    }
    folder
}

/// What the program's one leak is called, and where it stands.
fn name_of_leak(folder: &Path, options: &[&str]) -> (String, String) {
    let (report, _) = report_on(options, &folder.join("prog"), &[]);
    let frame = &stack_with(&report, Held::new(1234, 1)).frames[0];
    assert_eq!(frame.module, "prog", "{report:#?}");
    (frame.symbol.clone(), frame.location.clone())
}

fn assert_named(folder: &Path, options: &[&str]) {
    let (symbol, location) = name_of_leak(folder, options);
    assert_eq!(symbol, "leak_and_leave");
    let line = fixture::line_of("exit_now.c", "LEAK LINE");
    assert!(
        location.ends_with(&format!("exit_now.c:{line}")),
        "{location}"
    );
}

#[test]
fn debug_links_are_followed_beside_the_program_and_below_it() {
    require_root();
    let folder = split_program();
    let folder = folder.path();
    assert_named(folder, &[]);
    fs::create_dir(folder.join(".debug")).unwrap();
    fs::rename(folder.join("prog.debug"), folder.join(".debug/prog.debug")).unwrap();
    assert_named(folder, &[]);
}

/// As Fedora strips: the functions that are not exported are in a compressed symbol table that the program carries.
#[test]
fn functions_are_named_by_the_compressed_symbol_table_that_a_program_carries() {
    require_root();
    let folder = split_program();
    let folder = folder.path();
    run_tool("objcopy", &["--strip-debug", "prog.debug", "mini"], folder);
    run_tool("xz", &["mini"], folder);
    let section = "--add-section=.gnu_debugdata=mini.xz";
    run_tool(
        "objcopy",
        &["--remove-section=.gnu_debuglink", section, "prog"],
        folder,
    );
    fs::remove_file(folder.join("prog.debug")).unwrap();
    assert_eq!(name_of_leak(folder, &[]).0, "leak_and_leave");
    // a table that is cut short names nothing and does no harm
    let whole = fs::read(folder.join("mini.xz")).unwrap();
    fs::write(folder.join("mini.xz"), &whole[..whole.len() / 2]).unwrap();
    let update = "--update-section=.gnu_debugdata=mini.xz";
    run_tool("objcopy", &[update, "prog"], folder);
    assert_eq!(name_of_leak(folder, &[]).0, "[unknown]");
}

#[test]
fn a_debug_file_of_another_build_is_not_believed() {
    require_root();
    let folder = split_program();
    let folder = folder.path();
    let mut bytes = fs::read(folder.join("prog.debug")).unwrap();
    bytes.push(0);
    fs::write(folder.join("prog.debug"), bytes).unwrap();
    // without its build id only the checksum can tell
    run_tool(
        "objcopy",
        &["--remove-section=.note.gnu.build-id", "prog"],
        folder,
    );
    assert_eq!(name_of_leak(folder, &[]).0, "[unknown]");
}

#[test]
fn debug_files_are_found_by_build_id_below_the_users_folders() {
    require_root();
    let folder = split_program();
    let folder = folder.path();
    let elsewhere = TempDir::new().unwrap();
    let elsewhere = elsewhere.path();
    fs::create_dir(elsewhere.join("any")).unwrap();
    fs::rename(folder.join("prog.debug"), elsewhere.join("any/name")).unwrap();
    assert_eq!(name_of_leak(folder, &[]).0, "[unknown]");
    let empty = TempDir::new().unwrap();
    let folders = [empty.path(), elsewhere].map(|path| path.to_str().unwrap());
    assert_named(
        folder,
        &["--debug-dir", folders[0], "--debug-dir", folders[1]],
    );
}

#[test]
fn a_debug_folder_that_is_not_there_is_an_error() {
    require_root();
    let finished = memleak::run(["--debug-dir", "/no/such/folder", "-c", "true", NEVER]);
    assert_eq!(finished.status.code(), Some(1), "{finished:#?}");
    assert!(says(&finished, "/no/such/folder"), "{finished:#?}");
}

/// Who makes the root that a process sees can put any debug file there: what it says is believed for that process alone.
#[test]
fn a_debug_file_in_the_root_of_one_process_names_nothing_of_another() {
    require_root();
    let folder = TempDir::new().unwrap();
    let folder = folder.path();
    fs::copy(
        fixture::c_with("large", &["-Wl,--build-id"]),
        folder.join("prog"),
    )
    .unwrap();
    let id = build_id(&folder.join("prog"));
    let debug = folder.join("debug/.build-id").join(&id[..2]);
    fs::create_dir_all(&debug).unwrap();
    let debug = debug.join(format!("{}.debug", &id[2..]));
    let renamed = "--redefine-sym=large_malloc=anything_else";
    run_tool(
        "objcopy",
        &[renamed, "--strip-debug", "prog", debug.to_str().unwrap()],
        folder,
    );
    run_tool("strip", &["prog"], folder);

    let script = "mkdir -p /usr/lib/debug && mount --bind debug /usr/lib/debug && exec ./prog";
    let mut theirs = Command::new("unshare");
    theirs
        .args(["--mount", "sh", "-c", script])
        .current_dir(folder);
    let mut theirs = Running::spawn(&mut theirs);
    theirs.expect("ready");
    let mut ours = memleak::ready(&folder.join("prog"), &[]);
    let pids = format!("{},{}", theirs.pid(), ours.pid());
    let mut tracer = memleak::command();
    // the one whose root is its own comes first, and names what the other maps as well
    tracer.args(["-v", "-o", "0", "-T", ALL_STACKS, "-p", &pids, NEVER]);
    let mut tracer = memleak::armed(&mut tracer);
    let [their_pid, our_pid] = [theirs.pid(), ours.pid()];
    for process in [&mut theirs, &mut ours] {
        process.send_line();
        process.expect("done");
    }
    // what is mounted in their namespace goes with them
    tracer.signal(Signal::USR1);
    tracer.stdout_line("report", is_header);
    assert!(theirs.finish().status.success());
    assert!(ours.finish().status.success());
    let report = parse(&finish_well(tracer).stdout).remove(0);
    let named = |pid: u32| {
        let stacks = report.stacks.iter().filter(|stack| stack.pid == pid);
        let mut frames = stacks.flat_map(symbols);
        frames.any(|symbol| symbol == "anything_else")
    };
    assert!(named(their_pid), "{report:#?}");
    assert!(!named(our_pid), "{report:#?}");
}

/// The build id of a file, in hexadecimal digits.
fn build_id(path: &Path) -> String {
    let output = Command::new("readelf").arg("-n").arg(path).output();
    let output = String::from_utf8(output.unwrap().stdout).unwrap();
    let id = output
        .lines()
        .find_map(|line| line.split_once("Build ID: "));
    id.unwrap().1.trim().to_owned()
}
