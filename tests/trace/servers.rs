//! Servers of Debian under real commands: redis with its jemalloc, PostgreSQL with a process for each connection.
//! The workers of nginx are followed in processes.rs.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::memleak::{self, ALL_STACKS, NEVER, finish_well};
use crate::support::process::Running;
use crate::support::report::{Held, all_reports};
use crate::support::{fixture, require_root};
use rustix::process::Signal;
use tempfile::TempDir;

/// Keys that stay, and the length of each one's value.
const KEYS: u64 = 211;
const VALUE: u64 = 3001;
/// What redis asks its allocator for to keep such a value: five bytes of header before it and a zero behind.
const VALUE_BYTES: u64 = VALUE + 6;

/// A redis server that listens on a socket in `folder` alone, and keeps nothing on disk.
fn start_redis(folder: &Path, socket: &Path) -> Running {
    let mut command = Command::new("redis-server");
    command.args(["--port", "0", "--save", "", "--daemonize", "no", "--dir"]);
    command.arg(folder).arg("--unixsocket").arg(socket);
    let mut redis = Running::spawn(&mut command);
    redis.stdout_line("word of its socket", |line| {
        line.contains("ready to accept connections")
    });
    redis
}

/// Every kind of command that redis-benchmark knows, from twenty clients.
fn start_benchmark(socket: &Path) -> Running {
    let mut command = Command::new("redis-benchmark");
    command.arg("-s").arg(socket);
    command.args(["-c", "20", "-n", "2000", "-r", "500", "-q"]);
    Running::spawn(&mut command)
}

/// Sets keys to values of the odd size, each from a connection of its own.
fn set_keys(socket: &Path) {
    for key in 0..KEYS {
        let mut stream = UnixStream::connect(socket).expect("failed to connect to redis");
        let value = "v".repeat(VALUE as usize);
        let key = format!("kept:{key:04}");
        let command = format!("*3\r\n$3\r\nSET\r\n$9\r\n{key}\r\n${VALUE}\r\n{value}\r\n");
        stream
            .write_all(command.as_bytes())
            .expect("failed to ask redis");
        let mut answer = [0; 5];
        stream.read_exact(&mut answer).expect("no answer of redis");
        assert_eq!(&answer, b"+OK\r\n");
    }
}

#[test]
fn what_redis_keeps_under_a_load_of_commands_is_found_in_its_jemalloc() {
    require_root();
    let folder = TempDir::new().expect("a folder");
    let socket = folder.path().join("socket");
    let redis = start_redis(folder.path(), &socket);
    let options = ["-a", "-o", "0", "-T", ALL_STACKS];
    let tracer = memleak::attach(redis.pid(), &options, NEVER);
    let benchmark = start_benchmark(&socket);
    set_keys(&socket);
    finish_well(benchmark);
    tracer.signal(Signal::INT);
    let finished = finish_well(tracer);

    let report = all_reports(&finished.stdout);
    // everything else that it keeps is small, or a table
    let values: Vec<_> = report
        .allocations
        .iter()
        .filter(|block| block.size == VALUE_BYTES)
        .collect();
    let stderr = &finished.stderr;
    assert_eq!(values.len() as u64, KEYS, "{stderr:#?}");
    for value in values {
        assert!(value.rest.contains("allocator = jemalloc"), "{value:?}");
    }
    for function in ["createStringObject", "processMultibulkBuffer", "main"] {
        let made = report.sum(|stack| {
            stack.held == Held::each(KEYS, VALUE_BYTES)
                && stack.frames.iter().any(|frame| frame.symbol == function)
        });
        let named: Vec<_> = report
            .stacks
            .iter()
            .filter(|stack| stack.held.bytes >= VALUE_BYTES)
            .collect();
        assert_eq!(
            made,
            Held::each(KEYS, VALUE_BYTES),
            "{function}: {named:#?} {stderr:#?}"
        );
    }
}

/// The newest of the folders with PostgreSQL's programs, as Debian installs them.
fn postgresql() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed");
    let versions = versions.map(|entry| entry.expect("a version").path().join("bin"));
    versions.max().expect("a version of PostgreSQL")
}

/// A command of PostgreSQL's own user, since its server refuses to work for root.
fn as_postgres(folder: &Path, program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
    command.arg("--").arg(program).current_dir(folder);
    command
}

/// A new database cluster in `folder`.
fn make_cluster(folder: &Path) {
    let user = fs::metadata("/var/lib/postgresql").expect("PostgreSQL is installed");
    chown(folder, Some(user.uid()), Some(user.gid())).expect("failed to give a folder away");
    let mut initdb = as_postgres(folder, &postgresql().join("initdb"));
    initdb.args(["-D", "data", "-A", "trust", "-N"]);
    finish_well(Running::spawn(&mut initdb));
}

/// A PostgreSQL server that takes the cube root from a library that leaks, on a socket in `folder` alone.
fn start_postgres(folder: &Path) -> Running {
    // where its user may read it
    let library = folder.join("preloaded_leak.so");
    fs::copy(
        fixture::c_with("preloaded_leak", &["-shared", "-fPIC", "-ldl"]),
        &library,
    )
    .expect("failed to copy a library");
    fs::set_permissions(&library, fs::Permissions::from_mode(0o755)).expect("a mode");
    let mut command = as_postgres(folder, &postgresql().join("postgres"));
    command.env("LD_PRELOAD", &library);
    command.args(["-D", "data", "-c", "listen_addresses=", "-k"]);
    let mut server = Running::spawn(command.arg(folder));
    server.stderr_line("word of the server", |line| {
        line.contains("ready to accept connections")
    });
    server
}

/// A session that takes some cube roots; then it ends, or lasts. Gives the number of its process in the server.
fn take_roots(folder: &Path, roots: u64, lasts: bool) -> (u32, Running) {
    let mut command = Command::new("psql");
    command.args(["-U", "postgres", "-d", "postgres", "-AtX", "-h"]);
    command.arg(folder);
    let take = format!("select 'roots', count(cbrt(i)) from generate_series(1, {roots}) i");
    for query in ["select 'backend', pg_backend_pid()", take.as_str()] {
        command.args(["-F", " ", "-c", query]);
    }
    if lasts {
        command.args(["-c", "select pg_sleep(3600)"]);
    }
    let mut session = Running::spawn(&mut command);
    let backend = session.expect_number("backend");
    assert_eq!(session.expect_number("roots"), roots);
    (u32::try_from(backend).expect("a pid"), session)
}

#[test]
fn the_backends_of_postgresql_are_followed() {
    require_root();
    let folder = TempDir::new().expect("a folder");
    make_cluster(folder.path());
    let server = start_postgres(folder.path());
    let tracer = memleak::attach(server.pid(), &["-f", "-o", "0", "-T", ALL_STACKS], NEVER);
    let (first, ends) = take_roots(folder.path(), 5, false);
    let (second, lasts) = take_roots(folder.path(), 7, true);
    finish_well(ends);
    tracer.signal(Signal::INT);
    let finished = finish_well(tracer);
    drop(lasts);
    server.signal(Signal::INT);
    finish_well(server);

    let report = all_reports(&finished.stdout);
    let stderr = &finished.stderr;
    let (five, seven) = (Held::each(5, 6789), Held::each(7, 6789));
    assert_eq!(report.made_by(first, "leak_per_root"), five, "{stderr:#?}");
    assert_eq!(
        report.made_by(second, "leak_per_root"),
        seven,
        "{stderr:#?}"
    );
    for caller in ["dcbrt", "PostmasterMain", "main"] {
        let through = report.sum(|stack| {
            let names = |name: &str| stack.frames.iter().any(|frame| frame.symbol == name);
            names("leak_per_root") && names(caller)
        });
        assert_eq!(through, Held::each(12, 6789), "{caller}: {stderr:#?}");
    }
    for backend in [first, second] {
        let named = |process: &&crate::support::report::Process| process.pid == backend;
        let process = report.processes.iter().find(named);
        assert_eq!(
            process.map(|process| process.name.as_str()),
            Some("postgres")
        );
    }
}
