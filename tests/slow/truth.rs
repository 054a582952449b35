//! Ground truth: what memleak says is outstanding at a program's end is what Valgrind says is in use at exit.
//! Slow, and it needs the packages of `scripts/install-packages.sh test`: `make test-truth` runs it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::memleak::{ALL_STACKS, NEVER};
use crate::support::process::{Finished, Running};
use crate::support::report::{Held, parse};
use crate::support::{fixture, require_root};
use tempfile::TempDir;

/// Every fixture: its arguments, and why it cannot match, where it cannot.
///
/// Newlines without end are its input. Anonymous mappings are left out, because Valgrind does not count them.
const FIXTURES: &[(&str, &[&str], Result<(), &str>)] = &[
    (
        "aligned_freed.c",
        &[],
        Err("Valgrind 3.19 aborts on pvalloc"),
    ),
    ("arguments.c", &["one", "two words"], Ok(())),
    ("by_thread.c", &[], Ok(())),
    (
        "ci_leak.c",
        &[],
        Err("a fixture of another test file, which has its own truth"),
    ),
    ("lost_kinds.c", &[], Err("waits for the end of its input")),
    ("leaky_extension.c", &[], Err("a library, no program")),
    ("scribble.c", &[], Err("a library, no program")),
    (
        "service.c",
        &[],
        Err("a fixture of another test file, which has its own truth"),
    ),
    (
        "stack_chain.c",
        &[],
        Err("links with stack_chain_lib, which its own test file builds"),
    ),
    ("stack_chain_lib.c", &[], Err("a library, no program")),
    ("new_in_foo.cpp", &[], Ok(())),
    ("getline_leak.c", &[], Ok(())),
    ("plugin.c", &[], Err("a library, no program")),
    ("watched.c", &[], Err("never ends")),
    (
        "plugin_host.c",
        &[],
        Err("loads plugins, which its own test file builds"),
    ),
    (
        "jit.c",
        &[],
        Err("Valgrind runs generated code in its own way, and the perf map is another process's"),
    ),
    (
        "rust_leaks.rs",
        &[],
        Err("links with rust_leaks_ffi, which its own test file builds"),
    ),
    ("rust_leaks_ffi.c", &[], Err("a part of rust_leaks.rs")),
    (
        "churn.c",
        &["10", "10"],
        Err("what it frees and makes depends on time"),
    ),
    ("crowd.c", &["10"], Err("what it leaks is its children's")),
    (
        "first_free.c",
        &["4"],
        Err("what it is about is glibc's own mappings, and Valgrind's allocator makes others"),
    ),
    (
        "hooked.c",
        &["malloc", "relative"],
        Err("it writes over code, which Valgrind has translated before"),
    ),
    (
        "launcher.c",
        &[],
        Err("what is allocated is the program's that it executes"),
    ),
    (
        "main_thread_ends.c",
        &[],
        Err("it takes a newline for each allocation, and Valgrind waits for its first thread"),
    ),
    (
        "many_plugins.c",
        &[],
        Err("loads plugins, which its own test file builds"),
    ),
    (
        "code_comes_and_goes.c",
        &[],
        Err("the files that it maps are in a folder that its own test makes"),
    ),
    ("scattered_code.c", &["10"], Ok(())),
    (
        "huge_text.c",
        &[],
        Err("it writes over code, which Valgrind has translated before"),
    ),
    (
        "maps_code.c",
        &[],
        Err("the code that it runs is in a file that its own test makes"),
    ),
    (
        "named_apart.c",
        &[],
        Err("what it is about is the names in a file that lies apart"),
    ),
    (
        "odd_names.c",
        &[],
        Err("it takes a newline for each allocation"),
    ),
    (
        "quiet.c",
        &[],
        Err("it allocates nothing, so that there is nothing to compare"),
    ),
    ("same_number.c", &[], Err("what it leaks is its children's")),
    (
        "signals.c",
        &["own", "1000"],
        Err("its handlers map pages, which Valgrind does not count"),
    ),
    ("demo.c", &[], Ok(())),
    (
        "dies_inside.c",
        &[],
        Err("it stops inside glibc's malloc, which Valgrind replaces"),
    ),
    (
        "execs.c",
        &[],
        Err("Valgrind does not follow a program that replaces itself"),
    ),
    ("exit_now.c", &[], Ok(())),
    ("exit_now.c", &["7"], Ok(())),
    ("exit_now.c", &["abort"], Ok(())),
    ("failures.c", &[], Ok(())),
    ("first_in_thread.c", &[], Ok(())),
    ("forgets.rs", &[], Ok(())),
    ("fork_free.c", &[], Ok(())),
    (
        "forks_inside.c",
        &[],
        Err("it stops inside glibc's malloc, which Valgrind replaces"),
    ),
    ("hot_loop.c", &["1000"], Ok(())),
    ("inlined.c", &[], Ok(())),
    ("kinds.c", &["malloc", "30001"], Ok(())),
    ("kinds.c", &["calloc", "30001"], Ok(())),
    ("kinds.c", &["realloc", "30001"], Ok(())),
    ("kinds.c", &["reallocarray", "30001"], Ok(())),
    ("kinds.c", &["posix_memalign", "30001"], Ok(())),
    ("kinds.c", &["memalign", "30001"], Ok(())),
    ("kinds.c", &["valloc", "30001"], Ok(())),
    (
        "kinds.c",
        &["pvalloc", "30001"],
        Err("Valgrind 3.19 aborts on pvalloc"),
    ),
    ("kinds.c", &["aligned_alloc", "30001"], Ok(())),
    ("known_leak.c", &[], Ok(())),
    ("large.c", &[], Ok(())),
    (
        "longjmp.c",
        &["same"],
        Err("it stops inside glibc's malloc, which Valgrind replaces"),
    ),
    ("mangled.cpp", &[], Ok(())),
    ("many_live.c", &["50000"], Ok(())),
    ("mmap_ranges.c", &["reservation"], Ok(())),
    (
        "own_allocator.c",
        &[],
        Err("Valgrind takes its malloc over; tracing it needs -O, see trace.rs"),
    ),
    (
        "realloc_cases.c",
        &[],
        Err("it insists on glibc's realloc in place, and Valgrind's always moves"),
    ),
    ("sizes.c", &[], Ok(())),
    ("soak.c", &["7", "1", "100000"], Ok(())),
    ("stacks.c", &[], Ok(())),
    ("stream.c", &[], Ok(())),
    (
        "threads8.c",
        &[],
        Err("how many threads overlap, and so need a vector for TLS, depends on time"),
    ),
    (
        "trillion.c",
        &[],
        Err("Valgrind's realloc copies, here a tebibyte"),
    ),
    (
        "two_threads.c",
        &[],
        Err("whether its threads overlap depends on time"),
    ),
    (
        "vdso_interrupted.c",
        &[],
        Err("Valgrind hides the vDSO from programs"),
    ),
    ("grows_unseen.c", &[], Ok(())),
    ("on_demand.c", &["4001"], Ok(())),
    (
        "operators.cpp",
        &[],
        Err("libstdc++ rounds the sizes of aligned new up, and Valgrind's does not"),
    ),
    ("pool.c", &[], Ok(())),
    ("setuid.c", &[], Ok(())),
    (
        "filtered.c",
        &[],
        Err("Valgrind needs system calls that it forbids itself"),
    ),
    ("forks.c", &[], Ok(())),
    ("throws.cpp", &[], Err("Valgrind aborts where new fails")),
    ("short_lives.c", &["3"], Ok(())),
    ("preloaded_leak.c", &[], Err("a library, no program")),
    (
        "plugin_allocator.c",
        &[],
        Err("loads an allocator's library, which Valgrind does not count"),
    ),
    ("plugin_early.c", &[], Err("a library, no program")),
    (
        "plugin_swap.c",
        &[],
        Err("loads plugins, which its own test file builds"),
    ),
    (
        "young.c",
        &[],
        Err("what it frees and makes depends on time"),
    ),
];

/// Programs of Debian on the files that `Scene` makes, deterministic under Valgrind alone.
///
/// gcc is traced without its children, as Valgrind traces it; cc1 is one of them.
const PROGRAMS: &[&[&str]] = &[
    &["/usr/bin/sort", "--parallel=1", "-n", "numbers"],
    &[
        "/usr/bin/gawk",
        "{ s += $1; seen[$1 % 10]++ } END { print s, length(seen) }",
        "numbers",
    ],
    &["/usr/bin/sqlite3", ":memory:", ".read script.sql"],
    &["/usr/bin/git", "-C", "repository", "log", "--stat"],
    &["/usr/bin/xz", "--keep", "--force", "numbers"],
    &[
        "/usr/bin/perl",
        "-e",
        "$h{$_ % 97} .= 'x' x $_ for 1..2000; $s = \\%h; $h{self} = $s; print 1",
    ],
    &["/usr/bin/bc", "--mathlib", "--quiet", "sums.bc"],
    &["/usr/bin/dc", "-e", "2 1000 ^ p"],
    &["/usr/bin/jq", ".b", "value.json"],
    &["/usr/bin/file", "source.c"],
    &["/usr/bin/gcc", "-E", "-o", "source.i", "source.c"],
    &["/usr/bin/m4", "-DX=1", "source.c"],
    &["/usr/bin/grep", "--count", "1.*2", "numbers"],
    &["/usr/bin/sed", "-n", "s/1\\(.\\)/\\1/p", "numbers"],
    &["/usr/bin/find", "repository", "-name", "file*"],
    &[
        "/usr/bin/tar",
        "--create",
        "--file",
        "archive.tar",
        "numbers",
    ],
    &["/usr/bin/diff", "source.c", "value.json"],
    &["/usr/bin/make", "-n", "-f", "/dev/null", "-p"],
    &["/usr/bin/objdump", "--disassemble", "/usr/bin/true"],
    &["/usr/bin/ls", "-l", "/usr"],
    &[
        "/usr/bin/bash",
        "-c",
        "for i in {1..100}; do a[i]=$i; done; echo ${#a[@]}",
    ],
];

/// A directory with the files that the programs read, and the environment that Valgrind gives them.
struct Scene {
    directory: TempDir,
    environment: Vec<(OsString, OsString)>,
}

impl Scene {
    fn new() -> Scene {
        let directory = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: String| {
            fs::write(directory.path().join(name), text).expect("a file");
        };
        let numbers: Vec<String> = (0..3000)
            .map(|i: u32| (i * 7919 % 3001).to_string())
            .collect();
        write("numbers", numbers.join("\n") + "\n");
        write("newlines", "\n".repeat(100));
        write(
            "source.c",
            "#include <stddef.h>\nint main(void) { return 0; }\n".to_owned(),
        );
        write(
            "value.json",
            "{\"a\": [1, 2, 3], \"b\": {\"c\": null}}\n".to_owned(),
        );
        write("sums.bc", "2^1000; scale=20; 4*a(1)\nquit\n".to_owned());
        write(
            "script.sql",
            "create table t(a,b); insert into t values(1,2),(3,4); select sum(a) from t;\n"
                .to_owned(),
        );
        make_repository(&directory.path().join("repository"));
        let environment = environment_under_valgrind(directory.path());
        Scene {
            directory,
            environment,
        }
    }

    /// A command in the scene, with newlines for its input.
    fn run(&self, program: &str, with: impl FnOnce(&mut Command)) -> Finished {
        let mut command = Command::new(program);
        command.current_dir(self.directory.path()).env_clear();
        with(&mut command);
        let newlines = File::open(self.directory.path().join("newlines")).expect("a file");
        Running::spawn_reading(&mut command, newlines).wait()
    }

    /// What Valgrind says is in use at the program's exit.
    fn in_use_at_exit(&self, argv: &[&str]) -> Held {
        let log = self.directory.path().join("valgrind.log");
        let finished = self.run("valgrind", |command| {
            command
                .envs(plain_environment())
                .args(["--run-libc-freeres=no", "--run-cxx-freeres=no"])
                // Logs of the program's children get names of their own.
                .arg(format!("--log-file={}.%p", log.display()))
                .args(argv);
        });
        let logs = fs::read_dir(self.directory.path()).expect("a directory");
        let mut logs: Vec<(u32, PathBuf)> = logs
            .filter_map(|entry| {
                let path = entry.expect("an entry").path();
                let pid = path
                    .to_str()?
                    .strip_prefix(log.to_str()?)?
                    .strip_prefix('.')?
                    .parse();
                Some((pid.ok()?, path))
            })
            .collect();
        logs.sort();
        // The process itself is older than its children.
        let own = logs
            .first()
            .unwrap_or_else(|| panic!("no log: {finished:#?}"));
        let text = fs::read_to_string(&own.1).expect("a log");
        for (_, path) in &logs {
            fs::remove_file(path).expect("a log");
        }
        parse_in_use(&text).unwrap_or_else(|| panic!("{argv:?}: {text}\n{finished:#?}"))
    }

    /// What memleak says is outstanding when the program has ended.
    fn outstanding(&self, argv: &[&str]) -> (Held, Finished) {
        let finished = self.run(env!("CARGO_BIN_EXE_memleak"), |command| {
            command
                .envs(self.environment.iter().map(|(name, value)| (name, value)))
                .args(["--no-mmap", "-o", "0", "-T", ALL_STACKS])
                .args(["--stack-storage-size", "20000", NEVER, "--"])
                .args(argv);
        });
        let report = parse(&finished.stdout).pop();
        let report = report.unwrap_or_else(|| panic!("no report: {finished:#?}"));
        (report.total(), finished)
    }
}

/// What every program gets: nothing that depends on who runs the tests.
fn plain_environment() -> [(&'static str, &'static str); 5] {
    [
        ("PATH", "/usr/bin:/bin"),
        ("LC_ALL", "C"),
        ("HOME", "/nonexistent"),
        ("GIT_CONFIG_NOSYSTEM", "1"),
        ("PERL_HASH_SEED", "0"),
    ]
}

/// Valgrind adds variables to a program's environment, which many programs copy to their heap. memleak's program
/// gets the very same: the libraries preloaded in there do nothing outside Valgrind.
fn environment_under_valgrind(directory: &Path) -> Vec<(OsString, OsString)> {
    let output = Command::new("valgrind")
        .current_dir(directory)
        .env_clear()
        .envs(plain_environment())
        .args(["-q", "--log-file=/dev/null", "/usr/bin/env", "--null"])
        .output()
        .expect("valgrind is there: see scripts/install-packages.sh");
    let variables = output
        .stdout
        .split(|byte| *byte == 0)
        .filter(|bytes| !bytes.is_empty());
    variables
        .map(|bytes| {
            let equals = bytes
                .iter()
                .position(|byte| *byte == b'=')
                .expect("NAME=value");
            let text = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
            (text(&bytes[..equals]), text(&bytes[equals + 1..]))
        })
        .collect()
}

fn make_repository(path: &Path) {
    let git = |arguments: &[&str]| {
        let output = Command::new("/usr/bin/git")
            .envs(plain_environment())
            .envs([
                ("GIT_AUTHOR_DATE", "1700000000 +0000"),
                ("GIT_COMMITTER_DATE", "1700000000 +0000"),
            ])
            .args(["-c", "user.name=a", "-c", "user.email=a@example.org", "-C"])
            .arg(path)
            .args(arguments)
            .output()
            .expect("git is there: see scripts/install-packages.sh");
        assert!(output.status.success(), "{output:?}");
    };
    fs::create_dir(path).expect("a directory");
    git(&["init", "--quiet"]);
    for i in 0..5 {
        fs::write(path.join(format!("file{i}")), "text\n".repeat(i + 1)).expect("a file");
        git(&["add", "."]);
        git(&["commit", "--quiet", "--message", &format!("commit {i}")]);
    }
}

/// `==7==     in use at exit: 1,234 bytes in 1 blocks`
fn parse_in_use(log: &str) -> Option<Held> {
    let line = log
        .lines()
        .find_map(|line| line.split_once("in use at exit: "))?
        .1;
    let (bytes, rest) = line.split_once(" bytes in ")?;
    let figure = |text: &str| text.replace(',', "").parse().ok();
    Some(Held::new(
        figure(bytes)?,
        figure(rest.strip_suffix(" blocks")?)?,
    ))
}

/// Compares both tools on one program; says what differs.
fn compare(scene: &Scene, argv: &[&str]) -> Result<(), String> {
    let truth = scene.in_use_at_exit(argv);
    let (outstanding, finished) = scene.outstanding(argv);
    println!(
        "{:>12} bytes in {:>6} blocks: {}",
        truth.bytes,
        truth.count,
        argv.join(" ")
    );
    if outstanding == truth {
        return Ok(());
    }
    Err(format!(
        "{argv:?}: Valgrind says {truth:?}, memleak {outstanding:?}\n{:#?}",
        finished.stderr
    ))
}

fn assert_none(failures: &[String]) {
    assert!(
        failures.is_empty(),
        "{} differ:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

#[test]
#[ignore = "slow, and needs Valgrind: run by `make test-truth`"]
fn fixtures_hold_what_valgrind_says() {
    let _machine = crate::support::serial();
    require_root();
    let scene = Scene::new();
    let mut failures = Vec::new();
    for (source, arguments, comparable) in FIXTURES {
        if let Err(why) = comparable {
            println!("not compared: {source} {}: {why}", arguments.join(" "));
            continue;
        }
        let (name, suffix) = source.rsplit_once('.').expect("a suffix");
        let program = match suffix {
            "c" => fixture::c(name),
            "cpp" => fixture::cpp(name),
            _ => fixture::rust(name),
        };
        let argv = [&[program.to_str().expect("text")], *arguments].concat();
        failures.extend(compare(&scene, &argv).err());
    }
    assert_none(&failures);
}

#[test]
#[ignore = "slow, and needs Valgrind: run by `make test-truth`"]
fn real_programs_hold_what_valgrind_says() {
    let _machine = crate::support::serial();
    require_root();
    let scene = Scene::new();
    let failures: Vec<String> = PROGRAMS
        .iter()
        .filter_map(|argv| compare(&scene, argv).err())
        .collect();
    assert_none(&failures);
}

#[test]
fn every_fixture_is_compared_or_has_a_reason() {
    let _machine = crate::support::serial();
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let missing: Vec<String> = fs::read_dir(sources)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").file_name())
        .map(|name| name.into_string().expect("text"))
        // Headers are no programs, and directories hold fixtures of other areas.
        .filter(|name| {
            [".c", ".cpp", ".rs"]
                .iter()
                .any(|suffix| name.ends_with(suffix))
        })
        .filter(|name| !FIXTURES.iter().any(|(source, ..)| source == name))
        .collect();
    assert!(missing.is_empty(), "in no row: {missing:?}");
}
