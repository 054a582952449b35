//! Allocators other than the shared libc's: preloaded ones, bundled ones under a prefix, C++ operators, static programs,
//! Rust's, and objects named with -O. What libc's own calls come to is in exact_heap.rs.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::memleak::{self, NEVER, armed, finish_well, last_report, last_report_of};
use crate::support::process::{Finished, Running};
use crate::support::report::{Held, Report};
use crate::support::{fixture, require_root};

/// Debian: libjemalloc2, libgoogle-perftools4, libmimalloc2.0, libclang-rt-14-dev.
const PRELOADED: [(&str, &str); 5] = [
    ("libjemalloc.so.2", "jemalloc"),
    ("libtcmalloc.so.4", "tcmalloc"),
    ("libtcmalloc_minimal.so.4", "tcmalloc"),
    ("libmimalloc.so.2", "mimalloc"),
    (
        "/usr/lib/llvm-14/lib/clang/14.0.6/lib/linux/libclang_rt.scudo_standalone-x86_64.so",
        "scudo",
    ),
];

const MUSL: &str = concat!("/usr/lib/", "x86_64-linux-musl");

/// What memleak, attached with -v to a fixture with a library preloaded, said; and its last report.
fn attached_to_preloaded(
    library: &str,
    program: &Path,
    arguments: &[&str],
    options: &[&str],
) -> (Report, Finished) {
    let mut command = Command::new(program);
    command.args(arguments).env("LD_PRELOAD", library);
    let mut target = Running::spawn(&mut command);
    target.expect("ready");
    let tracer = memleak::attach(target.pid(), &[options, &["-T", "1000"]].concat(), NEVER);
    target.send_line();
    target.expect("done");
    assert!(target.finish().status.success());
    let finished = finish_well(tracer);
    (last_report(&finished), finished)
}

fn assert_named(finished: &Finished, allocator: &str, function: &str) {
    let named = finished.stderr.iter().any(|line| {
        let mut parts = line.split(": ").skip(2);
        parts.next() == Some(allocator)
            && parts
                .next()
                .is_some_and(|probe| probe.split([' ', '/']).any(|name| name == function))
    });
    assert!(named, "no {function} of {allocator} in {finished:#?}");
}

fn assert_sizes(report: &Report) {
    for (function, held) in [
        ("leak_small", Held::each(30, 17)),
        ("leak_middle", Held::each(20, 1001)),
        ("leak_large", Held::each(10, 10_007)),
    ] {
        assert_eq!(report.made_in(function), held, "{function} in {report:#?}");
    }
}

fn operators() -> PathBuf {
    fixture::cpp_with("operators", &["-std=c++17"])
}

fn assert_operators(report: &Report) {
    for (function, held) in [
        ("leak_new", Held::each(2, 1001)),
        ("leak_array", Held::new(3003, 1)),
        ("leak_nothrow", Held::new(3005, 1)),
        ("leak_array_nothrow", Held::new(3007, 1)),
        ("leak_aligned", Held::new(3009, 1)),
        ("leak_array_aligned", Held::new(3011, 1)),
        ("leak_aligned_nothrow", Held::new(3013, 1)),
        ("leak_array_aligned_nothrow", Held::new(3015, 1)),
        ("from_malloc", Held::new(5001, 1)),
    ] {
        let made = made_in_namespace(report, function);
        assert_eq!(made, held, "{function} in {report:#?}");
    }
    // what was deleted is gone, whichever form of delete was used
    assert_eq!(report.through("delete_again"), Held::default());
    assert_eq!(report.through("main").count, 10, "{report:#?}");
}

/// Functions of an unnamed namespace go by their plain names with debug information, and by longer ones without.
fn made_in_namespace(report: &Report, function: &str) -> Held {
    let plain = report.made_in(function);
    match plain.count {
        0 => report.made_in(&format!("(anonymous namespace)::{function}")),
        _ => plain,
    }
}

#[test]
fn preloaded_allocators_in_a_c_program() {
    require_root();
    let program = fixture::c("sizes");
    for (library, allocator) in PRELOADED {
        let (report, finished) = attached_to_preloaded(library, &program, &[], &[]);
        assert_sizes(&report);
        assert_eq!(report.through("main").count, 60, "{library}: {report:#?}");
        assert_named(&finished, allocator, "malloc");
        assert_named(&finished, "libc", "malloc");
    }
}

#[test]
fn each_function_of_a_preloaded_allocator() {
    require_root();
    let program = fixture::c("kinds");
    for (library, _) in PRELOADED {
        for kind in [
            "calloc",
            "realloc",
            "posix_memalign",
            "memalign",
            "aligned_alloc",
        ] {
            // scudo insists on multiples of the alignment there
            let size = if kind == "aligned_alloc" { 3584 } else { 3001 };
            let arguments = [kind, &size.to_string()];
            let (report, _) = attached_to_preloaded(library, &program, &arguments, &[]);
            let made = report.made_in(&format!("leak_{kind}"));
            assert_eq!(made, Held::new(size, 1), "{library}: {report:#?}");
            assert_eq!(report.total(), Held::new(size, 1), "{library}: {report:#?}");
        }
    }
}

#[test]
fn operators_that_an_allocator_defines_itself() {
    require_root();
    for (library, allocator) in PRELOADED {
        for options in [&[][..], &["-C"]] {
            let (report, finished) = attached_to_preloaded(library, &operators(), &[], options);
            assert_operators(&report);
            assert_named(&finished, allocator, "_Znwm");
            assert_named(&finished, allocator, "_ZdlPv");
        }
    }
}

#[test]
fn a_command_with_a_preloaded_allocator() {
    require_root();
    for (library, _) in PRELOADED {
        let mut command = memleak::command();
        command.env("LD_PRELOAD", library);
        command
            .args(["-v", "-T", "1000", NEVER, "--"])
            .arg(operators());
        let mut running = armed(&mut command);
        running.expect("ready");
        running.send_line();
        running.expect("done");
        assert_operators(&last_report(&finish_well(running)));
    }
}

/// Statically linked programs, whose allocator is among their own functions.
#[test]
fn static_programs_of_both_libcs() {
    require_root();
    let musl = |parts: &[&str]| -> Vec<String> {
        let own = [
            "-fno-stack-protector",
            "-nostdlib",
            "-nostdinc",
            "-isystem",
            "/usr/include/x86_64-linux-musl",
        ];
        own.iter().chain(parts).map(ToString::to_string).collect()
    };
    let start = |name: &str| format!("{MUSL}/{name}.o");
    let (rcrt1, crt1, crti, crtn) = (start("rcrt1"), start("crt1"), start("crti"), start("crtn"));
    let libc = format!("-Wl,--whole-archive,{MUSL}/libc.a,--no-whole-archive,-lgcc");
    let glibc = |flag: &str| vec![flag.to_owned()];
    for flags in [
        glibc("-static"),
        glibc("-static-pie"),
        musl(&["-static", "-no-pie", &crt1, &crti, &crtn, &libc]),
        musl(&["-static-pie", "-fPIE", &rcrt1, &crti, &crtn, &libc]),
    ] {
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let program = fixture::c_with("sizes", &flags);
        let report = last_report_of(&[], &program, &[]);
        assert_sizes(&report);
        assert_eq!(report.through("main").count, 60, "{flags:?}: {report:#?}");
        let report = memleak::last_report_attached(&[], &program, &[]);
        assert_eq!(report.total().count, 60, "{flags:?}: {report:#?}");
    }
}

/// A copy of a program, stripped, and the debug file that holds its symbols.
fn stripped(program: &Path, folder: &Path) -> (PathBuf, PathBuf) {
    let run = |command: &mut Command| assert!(command.status().expect("binutils").success());
    let (bare, debug) = (folder.join("bare"), folder.join("bare.debug"));
    run(Command::new("objcopy")
        .arg("--only-keep-debug")
        .arg(program)
        .arg(&debug));
    run(Command::new("strip").arg("-o").arg(&bare).arg(program));
    let mut link = std::ffi::OsString::from("--add-gnu-debuglink=");
    link.push(&debug);
    run(Command::new("objcopy").arg(link).arg(&bare));
    (bare, debug)
}

#[test]
fn a_stripped_static_program_is_refused_with_the_way_out() {
    require_root();
    let folder = tempfile::tempdir().expect("a folder");
    let program = fixture::c_with("sizes", &["-static"]);
    let (bare, debug) = stripped(&program, folder.path());
    let elsewhere = folder.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).expect("a folder");
    let moved = elsewhere.join("bare.debug");
    std::fs::rename(debug, &moved).expect("a file moves");

    let name = bare.to_str().expect("text");
    for arguments in [vec!["--", name], vec!["-O", name, "--", "true"]] {
        let finished = memleak::run(&arguments);
        assert_eq!(finished.status.code(), Some(1), "{finished:#?}");
        // what it becomes, or starts with -f, could have been probed: it is said at first and, if nothing came, at last
        for line in [finished.stderr.first(), finished.stderr.last()] {
            for word in [name, "statically linked and stripped", "--debug-dir"] {
                let has = line.is_some_and(|line| line.contains(word));
                assert!(has, "no {word:?} in {line:?}");
            }
        }
    }

    let report = last_report_of(
        &["--debug-dir", elsewhere.to_str().expect("text")],
        &bare,
        &[],
    );
    assert_sizes(&report);
}

#[test]
fn the_executable_of_a_process_can_be_named() {
    require_root();
    let program = fixture::c_with("sizes", &["-static"]);
    let mut target = memleak::ready(&program, &[]);
    let object = format!("/proc/{}/exe", target.pid());
    let tracer = memleak::attach(target.pid(), &["-O", &object], NEVER);
    target.send_line();
    target.expect("done");
    assert!(target.finish().status.success());
    let finished = finish_well(tracer);
    assert_sizes(&last_report(&finished));
    assert_named(&finished, "libc", "malloc");
}

#[test]
fn an_object_that_only_frees_is_refused() {
    require_root();
    let program = fixture::c_with("own_allocator", &["-fno-builtin", "-Dmalloc=take"]);
    let finished = memleak::run([Path::new("-O"), &program, Path::new("--"), &program]);
    assert_eq!(finished.status.code(), Some(1), "{finished:#?}");
    let [line] = &finished.stderr[..] else {
        panic!("{finished:#?}")
    };
    assert!(
        line.contains("has free but no function that allocates"),
        "{line}"
    );
}

/// jemalloc's functions renamed, as programs that bundle it have them; the archive's path.
fn bundled_jemalloc(prefix: &str) -> PathBuf {
    let names = [
        "malloc",
        "calloc",
        "realloc",
        "free",
        "posix_memalign",
        "aligned_alloc",
        "memalign",
        "valloc",
        "mallocx",
        "rallocx",
        "xallocx",
        "sallocx",
        "dallocx",
        "sdallocx",
        "nallocx",
        "malloc_usable_size",
        "mallctl",
    ];
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("jemalloc");
    std::fs::create_dir_all(&folder).expect("a folder");
    let archive = folder.join(format!("lib{prefix}.a"));
    let partial = folder.join(format!("lib{prefix}.{}.a", std::process::id()));
    let renamed = names.map(|name| format!("--redefine-sym={name}={prefix}{name}"));
    let status = Command::new("objcopy")
        .args(renamed)
        .arg(format!(
            "/usr/lib/{}-linux-gnu/libjemalloc_pic.a",
            std::env::consts::ARCH
        ))
        .arg(&partial)
        .status();
    assert!(status.expect("objcopy runs").success());
    std::fs::rename(partial, &archive).expect("a file moves");
    archive
}

/// As redis bundles it when it is built from source (`je_`), and as Rust's crate does.
#[test]
fn a_bundled_jemalloc_is_found_whatever_its_prefix() {
    require_root();
    for prefix in ["je_", "_rjem_", "ours_"] {
        let archive = bundled_jemalloc(prefix);
        let whole = format!(
            "-Wl,--whole-archive,{},--no-whole-archive",
            archive.display()
        );
        let malloc = format!("-Dmalloc={prefix}malloc");
        let libraries = "-Wl,--no-as-needed,-lstdc++,-lm,--as-needed";
        let program = fixture::c_with("sizes", &["-fno-builtin", &malloc, &whole, libraries]);
        let mut target = memleak::ready(&program, &[]);
        let tracer = memleak::attach(target.pid(), &[], NEVER);
        target.send_line();
        target.expect("done");
        assert!(target.finish().status.success());
        let finished = finish_well(tracer);
        let report = last_report(&finished);
        assert_sizes(&report);
        assert_eq!(report.through("main").count, 60, "{prefix}: {report:#?}");
        assert_named(&finished, "jemalloc", &format!("{prefix}malloc"));
        assert_named(&finished, "jemalloc", &format!("{prefix}sdallocx"));
    }
}

/// Rust names the functions, and its linker has left out of the allocator what the program does not call.
#[test]
fn rust_programs_with_a_crate_for_their_allocator() {
    require_root();
    for (program, allocator, function) in [
        ("with_jemalloc", "jemalloc", "_rjem_sdallocx"),
        ("with_mimalloc", "mimalloc", "mi_malloc_aligned"),
    ] {
        let program = fixture::cargo("rust_allocators", program);
        let mut target = memleak::ready(&program, &[]);
        let tracer = memleak::attach(target.pid(), &["-a"], NEVER);
        target.send_line();
        target.expect("done");
        assert!(target.finish().status.success());
        let finished = finish_well(tracer);
        let report = last_report(&finished);
        for (function, held) in [
            ("leak_boxes", Held::each(3, 1009)),
            ("leak_grown", Held::new(131_072, 1)),
            ("leak_zeroed", Held::each(5, 67)),
            ("leak_aligned", Held::new(4099, 1)),
        ] {
            let through = report.through(&format!("rust_allocators::{function}"));
            assert_eq!(through, held, "{function} in {finished:#?}");
        }
        assert_eq!(report.total().count, 10, "{finished:#?}");
        let blocks = finished
            .stdout
            .iter()
            .filter(|line| line.contains("addr = "));
        let named = format!("allocator = {allocator}");
        assert_eq!(
            blocks.filter(|line| line.ends_with(&named)).count(),
            10,
            "{finished:#?}"
        );
        assert_named(&finished, allocator, function);
    }
}

#[test]
fn an_allocator_that_is_opened_later_is_probed_from_then_on() {
    require_root();
    let program = fixture::c("plugin_allocator");
    let mut target = memleak::ready(&program, &["libmimalloc.so.2"]);
    let mut tracer = memleak::attach(target.pid(), &[], NEVER);
    target.send_line();
    target.expect("opened");
    tracer.stderr_line("word of the library", |line| {
        line.contains("probing ") && line.contains("libmimalloc.so.2")
    });
    target.send_line();
    target.expect("done");
    assert!(target.finish().status.success());
    let report = last_report(&finish_well(tracer));
    let made = report.made_in("leak_by_plugin");
    assert_eq!(made, Held::each(4, 2101), "{report:#?}");
}

#[test]
fn a_command_that_executes_a_static_program_is_probed_from_then_on() {
    require_root();
    let program = fixture::c_with("sizes", &["-static"]);
    let mut command = memleak::command();
    command.args(["-v", "-T", "1000", NEVER, "--", "sh", "-c", "exec \"$0\""]);
    let mut running = Running::spawn(command.arg(&program));
    running.expect("ready");
    running.stderr_line("word of the program", |line| {
        line.contains("probing ") && line.contains("/sizes: process ")
    });
    running.send_line();
    running.expect("done");
    assert_sizes(&last_report(&finish_well(running)));
}

#[test]
fn memory_that_grows_without_an_allocator_is_told() {
    require_root();
    let mut target = memleak::ready(&fixture::c("grows_unseen"), &[]);
    let mut tracer = memleak::attach(target.pid(), &[], "1");
    let told =
        |line: &str| line.contains("called no probed function") && line.contains("grew by 8");
    // an interval is compared with the one before
    tracer.stdout_line("first report", |line| line.contains("Top 10 stacks"));
    target.send_line();
    target.expect("done");
    tracer.stderr_line("word of the growth", told);
    assert!(target.finish().status.success());
    finish_well(tracer);
}
