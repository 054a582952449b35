//! `memleak report` over fixtures: every output format against golden files, and imports against their logs.
//! Needs no privileges. `MEMLEAK_BLESS=1` writes the golden files anew; look at the difference before committing it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

const RECORDING: &str = "recordings/service.jsonl";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn report(name: &str, options: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_memleak"));
    command
        .arg("report")
        .arg(fixture(name))
        .args(options)
        .output()
        .unwrap()
}

/// What the program prints when all is well.
fn stdout(name: &str, options: &[&str]) -> Vec<u8> {
    let output = report(name, options);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

fn text(name: &str, options: &[&str]) -> String {
    String::from_utf8(stdout(name, options)).unwrap()
}

fn json(name: &str, options: &[&str]) -> Value {
    let options: Vec<&str> = [options, &["--json", "-"]].concat();
    serde_json::from_slice(&stdout(name, &options)).unwrap()
}

fn compare_with_golden(golden: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(golden);
    if std::env::var_os("MEMLEAK_BLESS").is_some() {
        fs::write(&path, actual).unwrap();
    }
    let expected = fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; MEMLEAK_BLESS=1 writes it", path.display()));
    if expected != actual {
        let line = expected
            .lines()
            .zip(actual.lines())
            .take_while(|(a, b)| a == b)
            .count();
        let at = |text: &str| text.lines().nth(line).unwrap_or("end").to_owned();
        panic!(
            "{golden} differs in line {}:\n expected {}\n actual   {}",
            line + 1,
            at(&expected),
            at(actual)
        );
    }
}

#[test]
fn text_equals_its_golden_file() {
    compare_with_golden("service.txt", &text(RECORDING, &[]));
}

#[test]
fn json_equals_its_golden_file() {
    compare_with_golden("service.json", &text(RECORDING, &["--json", "-"]));
}

#[test]
fn folded_stacks_equal_their_golden_file() {
    compare_with_golden("service.folded", &text(RECORDING, &["--folded", "-"]));
}

#[test]
fn the_flame_graph_equals_its_golden_file() {
    compare_with_golden("service.svg", &text(RECORDING, &["--flamegraph", "-"]));
}

#[test]
fn the_flame_graph_shows_hostile_names_and_runs_none() {
    let svg = text(RECORDING, &["--flamegraph", "-"]);
    assert!(svg.contains("&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;:a b\\nc"));
    assert!(!svg.contains("<img"));
}

#[test]
fn the_profile_equals_its_golden_file_as_pprof_reads_it() {
    let folder = tempfile::tempdir().unwrap();
    compare_with_golden(
        "service.pprof",
        &pprof(&profile(folder.path(), RECORDING), &["-raw"]),
    );
}

/// Writes a fixture's profile.
fn profile(folder: &Path, name: &str) -> PathBuf {
    let path = folder.join("profile.pb.gz");
    stdout(name, &["--pprof", path.to_str().unwrap()]);
    path
}

fn pprof(profile: &Path, options: &[&str]) -> String {
    let output = Command::new("go")
        .args(["tool", "pprof", "-symbolize=none"])
        .args(options)
        .arg(profile)
        // Sandboxed builds have no home, which go wants for its cache and pprof for its settings.
        .env("HOME", profile.parent().unwrap())
        .env("GOFLAGS", "-mod=mod")
        .env("TZ", "UTC")
        .output()
        .expect("go runs: the package golang-go has it");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Allocations and bytes of every stack in the text report, sorted.
fn figures_of_text(text: &str) -> Vec<(u64, u64)> {
    let mut figures: Vec<(u64, u64)> = text
        .lines()
        .filter_map(figure_of_line)
        .map(|(b, c)| (c, b))
        .collect();
    figures.sort_unstable();
    figures
}

/// Bytes and allocations in a line such as "80 bytes in 5 allocations from stack".
fn figure_of_line(line: &str) -> Option<(u64, u64)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        [bytes, "bytes", "in", count, "allocations", "from", "stack"] => {
            Some((bytes.parse().ok()?, count.parse().ok()?))
        }
        _ => None,
    }
}

/// Allocations and bytes of every sample in `pprof -raw`: the last two values of its line.
fn figures_of_raw(raw: &str) -> Vec<(u64, u64)> {
    let samples = raw
        .lines()
        .skip_while(|line| *line != "Samples:")
        .take_while(|line| *line != "Locations");
    let mut figures: Vec<(u64, u64)> = samples
        .filter_map(|line| line.split_once(": "))
        .filter_map(|(values, _)| {
            let values: Option<Vec<u64>> = values
                .split_whitespace()
                .map(|value| value.parse().ok())
                .collect();
            let [.., count, bytes] = values?[..] else {
                return None;
            };
            Some((count, bytes))
        })
        .collect();
    figures.sort_unstable();
    figures
}

#[test]
fn pprof_agrees_with_the_text_report() {
    for name in [RECORDING, "logs/memleak-py.log", "logs/libbpf-tools.log"] {
        let folder = tempfile::tempdir().unwrap();
        let path = profile(folder.path(), name);
        let text = figures_of_text(&text(name, &["-T", "1000"]));
        assert!(!text.is_empty());
        assert_eq!(figures_of_raw(&pprof(&path, &["-raw"])), text, "{name}");
        let total: u64 = text.iter().map(|(_, bytes)| bytes).sum();
        let top = pprof(&path, &["-top", "-unit=B", "-nodefraction=0"]);
        assert!(
            top.contains(&format!("100% of {total}B total")),
            "{name}: {top}"
        );
    }
}

#[test]
fn pprof_top_names_the_functions_with_their_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let top = pprof(
        &profile(folder.path(), "logs/memleak-py.log"),
        &["-top", "-unit=B"],
    );
    let line = top
        .lines()
        .find(|line| line.ends_with("session_open"))
        .unwrap();
    assert_eq!(line.split_whitespace().next(), Some("7134B"), "{top}");
}

/// Per report of a log, its bytes and allocations, read by other means than the importers.
fn totals_of_log(log: &str) -> Vec<(u64, u64)> {
    let mut totals = Vec::new();
    for line in log.lines() {
        if line.contains("] Top ") {
            totals.push((0, 0));
        } else if let (Some((bytes, count)), Some(total)) =
            (figure_of_line(line), totals.last_mut())
        {
            *total = (total.0 + bytes, total.1 + count);
        }
    }
    totals
}

#[test]
fn imports_equal_the_figures_in_the_logs() {
    let logs = [
        ("logs/memleak-py.log", "memleak text output", 2),
        ("logs/memleak-py-show-allocs.log", "memleak text output", 2),
        ("logs/memleak-py-without-addresses.log", "memleak.py log", 2),
        ("logs/memleak-py-documented.log", "memleak.py log", 1),
        ("logs/libbpf-tools.log", "libbpf-tools memleak log", 3),
        (
            "logs/libbpf-tools-combined.log",
            "libbpf-tools memleak log",
            3,
        ),
    ];
    for (name, source, stacks) in logs {
        let (bytes, count) = *totals_of_log(&fs::read_to_string(fixture(name)).unwrap())
            .last()
            .unwrap();
        let json = json(name, &[]);
        assert_eq!(json["source"], source, "{name}");
        assert_eq!(json["totals"]["bytes"], bytes, "{name}");
        assert_eq!(json["totals"]["count"], count, "{name}");
        assert_eq!(json["totals"]["stacks"], stacks, "{name}");
        assert_eq!(json["time"], Value::Null, "{name} has no date");
    }
}

#[test]
fn our_own_text_is_read_back_to_the_same_figures() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.log");
    fs::write(&path, text(RECORDING, &["-T", "100"])).unwrap();
    let again = json(path.to_str().unwrap(), &[]);
    let original = json(RECORDING, &[]);
    let figures = |json: &Value| -> BTreeMap<String, u64> {
        let entries = json["entries"].as_array().unwrap();
        entries
            .iter()
            .map(|entry| (entry["count"].to_string(), entry["bytes"].as_u64().unwrap()))
            .collect()
    };
    assert_eq!(figures(&again), figures(&original));
}

#[test]
fn exactly_the_slow_leak_grows() {
    let json = json(RECORDING, &[]);
    let growing = json["growing"].as_array().unwrap();
    assert_eq!(growing.len(), 1);
    assert_eq!(
        growing[0]["frames"][0]["symbol"],
        "Session::open(int, char const*)"
    );
    assert_eq!(growing[0]["growth"]["bytes_per_s"], 60.0);
    assert_eq!(
        growing[0]["growth"]["exhausted_in_s"]
            .as_f64()
            .unwrap()
            .round(),
        166_667.0
    );
    let verdicts: Vec<&str> = json["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["growth"]["verdict"].as_str().unwrap())
        .collect();
    assert_eq!(
        verdicts,
        ["plateau", "plateau", "sawtooth", "growing", "plateau"]
    );
}

#[test]
fn growth_is_what_may_be_where_frees_were_missed() {
    let folder = tempfile::tempdir().unwrap();
    let recording = folder.path().join("missed.jsonl");
    let whole = fs::read_to_string(fixture(RECORDING)).unwrap();
    let doubtful = whole.replace("\"unfollowed\":1", "\"missed_frees\":1");
    assert_ne!(whole, doubtful);
    fs::write(&recording, doubtful).unwrap();
    let name = recording.to_str().unwrap();

    let listed = text(name, &[]);
    assert!(!listed.contains("Growing stacks"), "{listed}");
    let (_, growth) = listed
        .split_once("Stacks that may be growing, as frees were missed, by rate:\n")
        .unwrap();
    assert!(!growth.to_lowercase().contains("byte"), "{growth}");
    assert_eq!(json(name, &[])["growth_is_doubtful"], true);
    assert_eq!(json(RECORDING, &[])["growth_is_doubtful"], false);
    let gate = report(name, &["--fail-on", "growth"]);
    assert_eq!(gate.status.code(), Some(23));
    assert_eq!(
        String::from_utf8(gate.stderr).unwrap(),
        "memleak: warning: incomplete so far: 2 stacks not stored, raise --stack-storage-size; 1 free missed, their blocks were replaced\n\
         memleak: failed on growth: 1 stack of memory may grow, unless frees were missed\n"
    );
}

#[test]
fn the_growth_list_never_says_byte() {
    let text = text(RECORDING, &[]);
    let (_, growth) = text.split_once("Growing stacks").unwrap();
    assert!(!growth.to_lowercase().contains("byte"), "{growth}");
}

#[test]
fn a_gate_that_trips_says_which_and_why() {
    let output = report(
        RECORDING,
        &["--fail-on", "growth,bytes=64K", "--fail-on", "count=1000"],
    );
    assert_eq!(output.status.code(), Some(23));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(
        stderr,
        "memleak: warning: incomplete so far: 2 stacks not stored, raise --stack-storage-size; 1 C++ allocation not followed, so large that failing with an exception \
         could have ended the program\n\
         memleak: failed on growth: 1 stack of memory grows\n\
         memleak: failed on bytes=65536: 129884 bytes outstanding\n"
    );
    let output = report(RECORDING, &["--fail-on", "leak", "--error-exitcode", "7"]);
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(
        report(RECORDING, &["--fail-on", "bytes=1G"]).status.code(),
        Some(0)
    );
}

#[test]
fn suppressions_count_what_they_leave_out_and_pass_gates() {
    let folder = tempfile::tempdir().unwrap();
    let rules = folder.path().join("suppressions");
    fs::write(
        &rules,
        "# known\nleak:^Session::open\nleak:cache.cc\nleak:never\n",
    )
    .unwrap();
    let rules = rules.to_str().unwrap();
    let output = report(RECORDING, &["--suppressions", rules, "--fail-on", "growth"]);
    assert_eq!(output.status.code(), Some(0));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        stderr.contains("suppressed: 47900 bytes in 89 allocations, 2 whole stacks left out\n"),
        "{stderr}"
    );
    assert!(
        stderr.contains("suppressed by leak:^Session::open: 7900 bytes in 79 allocations"),
        "{stderr}"
    );
    let json = json(RECORDING, &["--suppressions", rules]);
    assert_eq!(json["suppressed"]["bytes"], 47_900);
    assert_eq!(json["totals"]["bytes"], 129_884 - 47_900);
    assert_eq!(json["entries"].as_array().unwrap().len(), 3);
}

#[test]
fn a_baseline_leaves_what_is_new_or_grew() {
    let itself = fixture(RECORDING);
    let json_itself = json(RECORDING, &["--baseline", itself.to_str().unwrap()]);
    assert_eq!(json_itself["totals"]["bytes"], 0);
    assert_eq!(json_itself["in_baseline"]["bytes"], 129_884);
    assert_eq!(json_itself["growing"].as_array().unwrap().len(), 0);

    // An earlier, shorter run in another place of memory: the cache was full, the leak had not come that far.
    let folder = tempfile::tempdir().unwrap();
    let old = folder.path().join("old.jsonl");
    let recording = fs::read_to_string(&itself).unwrap();
    let lines = recording
        .lines()
        .filter(|line| !line.contains("\"snapshot\""))
        .chain(
            recording
                .lines()
                .filter(|line| line.contains("\"snapshot\""))
                .take(12),
        );
    let moved: Vec<String> = lines.map(|line| line.replace("0x5555", "0x5666")).collect();
    fs::write(&old, moved.join("\n") + "\n").unwrap();
    let json = json(RECORDING, &["--baseline", old.to_str().unwrap()]);
    let figures: Vec<(u64, &str)> = json["entries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| {
            (
                entry["bytes"].as_u64().unwrap(),
                entry["frames"][0]["symbol"].as_str().unwrap_or(""),
            )
        })
        .collect();
    assert_eq!(
        figures,
        [(3600, "Session::open(int, char const*)"), (64, "")]
    );
}

#[test]
fn outputs_are_the_same_every_time() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str| -> Vec<Vec<u8>> {
        ["--json", "--folded", "--flamegraph", "--pprof"]
            .iter()
            .map(|option| {
                let path = folder.path().join(name);
                stdout(RECORDING, &[option, path.to_str().unwrap()]);
                fs::read(path).unwrap()
            })
            .collect()
    };
    assert!(run("a") == run("b"));
}

#[test]
fn the_profile_is_gzipped() {
    let folder = tempfile::tempdir().unwrap();
    let file = fs::File::open(profile(folder.path(), RECORDING)).unwrap();
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(file)
        .read_to_end(&mut bytes)
        .unwrap();
    assert!(bytes.windows(11).any(|window| window == b"inuse_space"));
}

fn fails(path: &Path, options: &[&str], status: i32, expected: &str) {
    let output = Command::new(env!("CARGO_BIN_EXE_memleak"))
        .arg("report")
        .arg(path)
        .args(options)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{stderr}");
    assert_eq!(stderr.trim_end().lines().count(), 1, "{stderr}");
    assert!(stderr.contains(expected), "{stderr}");
}

#[test]
fn errors_are_one_line_that_names_the_file() {
    let recording = fixture(RECORDING);
    fails(
        Path::new("/no/such/file"),
        &[],
        1,
        "failed to open /no/such/file: No such file",
    );
    fails(
        Path::new("/bin/sh"),
        &[],
        1,
        "failed to read /bin/sh: it is neither",
    );
    fails(Path::new("/"), &[], 1, "failed to read /");
    fails(
        &recording,
        &["--json", "/no/such/folder/x"],
        1,
        "there is no folder /no/such/folder",
    );
    fails(
        &recording,
        &["--json", "/dev/full"],
        1,
        "failed to write /dev/full: No space left on device",
    );
    fails(
        &recording,
        &["--pprof", "/dev/full"],
        1,
        "No space left on device",
    );
    fails(
        &recording,
        &["--flamegraph", "/dev/full"],
        1,
        "No space left on device",
    );
    fails(
        &recording,
        &["--baseline", "/no/such/file"],
        1,
        "/no/such/file",
    );
    fails(
        &recording,
        &["--suppressions", recording.to_str().unwrap()],
        1,
        "line 1",
    );
    fails(
        &recording,
        &["--text", "--json", "-"],
        1,
        "another output goes to the standard output",
    );
    fails(
        &recording,
        &["--fail-on", "nothing"],
        2,
        "expected growth, leak, lost, lost=SIZE, bytes=SIZE or count=N",
    );
    fails(
        &recording,
        &["--fail-on", "leak", "--error-exitcode", "0"],
        2,
        "--error-exitcode",
    );
    fails(
        &recording,
        &["--json", "-", "--html", "-"],
        1,
        "two outputs go there",
    );
}

#[test]
fn a_full_standard_output_is_an_error_and_a_closed_one_is_not() {
    let run = |stdout: Stdio| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_memleak"));
        let output = command
            .arg("report")
            .arg(fixture(RECORDING))
            .stdout(stdout)
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (status, stderr) = run(fs::File::options()
        .write(true)
        .open("/dev/full")
        .unwrap()
        .into());
    assert_eq!(
        (status, stderr.contains("No space left")),
        (Some(1), true),
        "{stderr}"
    );
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let (status, stderr) = run(writer.into());
    assert_eq!(status, Some(0), "{stderr}");
    assert!(
        stderr.starts_with("memleak: warning: incomplete so far"),
        "{stderr}"
    );
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

#[test]
fn a_damaged_recording_is_reported_as_far_as_it_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.jsonl");
    let whole = fs::read(fixture(RECORDING)).unwrap();
    fs::write(&path, &whole[..whole.len() - 40]).unwrap();
    let output = report(path.to_str().unwrap(), &["--json", "-"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.contains("cut off") && stderr.contains("after 23 snapshots"),
        "{stderr}"
    );
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["totals"]["bytes"], 125_488);
}

#[test]
fn a_gate_does_not_pass_for_want_of_reports() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("begun.jsonl");
    let whole = fs::read_to_string(fixture(RECORDING)).unwrap();
    let header = whole.lines().next().unwrap();
    fs::write(&path, format!("{header}\n")).unwrap();
    let output = report(path.to_str().unwrap(), &["--fail-on", "leak"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("there is no report in"), "{stderr}");
}

#[test]
fn several_files_are_parts_of_one_run() {
    let output = Command::new(env!("CARGO_BIN_EXE_memleak"))
        .arg("report")
        .args(
            [
                "logs/memleak-py-documented.log",
                "logs/memleak-py-documented.log",
            ]
            .map(fixture),
        )
        .args(["--json", "-"])
        .output()
        .unwrap();
    let json: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["entries"][0]["growth"]["snapshots"], 6);
    assert_eq!(json["duration_ns"], 25_000_000_000_u64);
}

#[test]
fn frames_without_names_are_named_from_debug_files() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("leaky");
    let arguments = [
        "-g",
        "-O0",
        "-Wl,--build-id=0x0123456789abcdef0123456789abcdef01234567",
        "-o",
    ];
    let source = fixture("logs/leaky.c");
    let status = Command::new("cc")
        .args(arguments)
        .arg(&program)
        .arg(source)
        .status()
        .unwrap();
    assert!(status.success());
    let symbols = Command::new("nm").arg(&program).output().unwrap();
    let symbols = String::from_utf8(symbols.stdout).unwrap();
    let address = symbols
        .lines()
        .find_map(|line| line.strip_suffix(" t slow_leak"))
        .unwrap();
    let offset = u64::from_str_radix(address, 16).unwrap() + 5;

    let recording = fs::read_to_string(fixture(RECORDING)).unwrap();
    let named = "\"file_offset\":\"0x1400\",\"symbol\":\"start_up\",\"symbol_offset\":8";
    assert!(recording.contains(named));
    let path = folder.path().join("stripped.jsonl");
    fs::write(
        &path,
        recording.replace(named, &format!("\"file_offset\":\"{offset:#x}\"")),
    )
    .unwrap();
    let text = text(
        path.to_str().unwrap(),
        &["--text", "--debug-dir", folder.path().to_str().unwrap()],
    );
    assert!(
        text.contains("\t0x0000555500001400\tslow_leak+0x5 [service] "),
        "{text}"
    );
    assert!(text.contains("leaky.c:"), "{text}");
}
