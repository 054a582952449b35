//! Files of a target that were made to hurt whoever reads them: what the target allocates is reported all the same, and
//! the reading costs a bounded amount of time and memory, and nobody but the reader.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use crate::support::elf::{self, CODE, Section, section};
use crate::support::memleak::{self, ALL_STACKS, NEVER, finish_well, last_report};
use crate::support::process::{Finished, Running};
use crate::support::report::Held;
use crate::support::{fixture, require_root};
use flate2::Compression;
use flate2::write::ZlibEncoder;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

/// What the fixture leaves.
const LEFT: Held = Held {
    bytes: 3 * 4001,
    count: 3,
};

/// More memory than memleak needs for any file, in KiB.
const MEMORY: &str = "300000";

/// Attaches to a process that calls malloc through code of the file, with little memory. What was left must be found,
/// and nothing but the file may suffer.
fn trace(file: &Path) -> Finished {
    require_root();
    let mut target = memleak::ready(&fixture::c("maps_code"), &[path_of(file)]);
    let tracer = attach(target.pid());
    target.send_line();
    target.expect("done");
    finish_well(target);
    let finished = finish_well(tracer);
    let report = last_report(&finished);
    assert_eq!(report.made_in("leak_through_file"), LEFT, "{finished:#?}");
    let longest = finished
        .stdout
        .iter()
        .chain(&finished.stderr)
        .map(String::len)
        .max();
    assert!(longest < Some(6000), "a line of {longest:?} bytes");
    finished
}

fn attach(pid: u32) -> Running {
    let mut command = Command::new("sh");
    let limited = format!("ulimit -d {MEMORY}; exec \"$@\"");
    command.args(["-c", &limited, "sh"]);
    command.arg(memleak::command().get_program());
    command.args(["-v", "-T", ALL_STACKS, "-p", &pid.to_string(), NEVER]);
    memleak::armed(&mut command)
}

/// Writes a file with these sections. It goes with the folder.
fn written(sections: &[Section]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("hostile.so");
    fs::write(&path, elf::file(sections, &[])).expect("a file");
    (folder, path)
}

fn path_of(file: &Path) -> &str {
    file.to_str().expect("UTF-8")
}

/// The name under which the file's code is reported.
fn name_in_file(finished: &Finished) -> String {
    let report = last_report(finished);
    let mut frames = report.stacks.iter().flat_map(|stack| &stack.frames);
    let frame = frames.find(|frame| frame.module == "hostile.so");
    frame.expect("a frame of the file's").symbol.clone()
}

/// Whether a line on standard error names the file.
fn is_warned_of(finished: &Finished, file: &Path) -> bool {
    let named = |line: &String| {
        line.starts_with("memleak: warning: reading ") && line.contains(path_of(file))
    };
    finished.stderr.iter().any(named)
}

/// A line table for all of the code.
fn one_line() -> Vec<u8> {
    let mut header = vec![1, 1, 1, 251, 14, 13, 0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 1, 0];
    header.extend(b"f.c\0\0\0\0\0");
    // begin at the code, one row, 4096 bytes on, the end
    let mut program = vec![0, 9, 2];
    program.extend(CODE.to_le_bytes());
    program.extend([1, 2, 0x80, 0x20, 0, 1, 1]);
    let length = (header.len() as u32).to_le_bytes();
    let table = [&[4, 0], &length[..], &header, &program].concat();
    [&(table.len() as u32).to_le_bytes()[..], &table].concat()
}

fn uleb(mut number: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number > 0x7f {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

/// A section that inflates to so many MiB of zeros.
fn bomb(name: &'static str, mib: u64) -> Section {
    let mut deflated = ZlibEncoder::new(Vec::new(), Compression::best());
    for _ in 0..mib {
        deflated.write_all(&[0; 1 << 20]).expect("memory");
    }
    // ELFCOMPRESS_ZLIB, the size, the alignment
    let header = [1, mib << 20, 1].map(u64::to_le_bytes).concat();
    Section {
        flags: 0x800,
        ..section(name, [header, deflated.finish().expect("memory")].concat())
    }
}

#[test]
fn a_harmless_file_has_its_name() {
    let (_folder, file) = written(&elf::named("harmless_call"));
    let finished = trace(&file);
    assert_eq!(name_in_file(&finished), "harmless_call");
    assert!(!is_warned_of(&finished, &file), "{finished:#?}");
}

/// Debug information as a tree of 300,000 levels takes the reader's stack: the symbol table has the name still.
#[test]
fn deep_debug_information_costs_itself() {
    const DEPTH: usize = 300_000;
    // a unit, a function with a name, an inlined function with more inside
    let mut abbreviations = vec![1, 0x11, 1, 0x11, 0x01, 0x12, 0x07, 0x10, 0x17, 0, 0];
    abbreviations.extend([2, 0x2e, 1, 0x03, 0x08, 0x11, 0x01, 0x12, 0x07, 0, 0]);
    abbreviations.extend([3, 0x1d, 1, 0, 0, 0]);
    let range = [CODE, 0x1000].map(u64::to_le_bytes).concat();
    let mut unit = vec![4, 0, 0, 0, 0, 0, 8, 1];
    unit.extend(&range);
    unit.extend([0; 4]);
    unit.extend(b"\x02outer\0");
    unit.extend(&range);
    unit.extend(std::iter::repeat_n(3, DEPTH));
    unit.extend(std::iter::repeat_n(0, DEPTH + 2));
    let info = [&(unit.len() as u32).to_le_bytes()[..], &unit].concat();
    let mut sections = elf::named("deep_call").to_vec();
    sections.push(section(".debug_info", info));
    sections.push(section(".debug_abbrev", abbreviations));
    sections.push(section(".debug_line", one_line()));
    let (_folder, file) = written(&sections);
    let finished = trace(&file);
    assert_eq!(name_in_file(&finished), "deep_call");
    assert!(is_warned_of(&finished, &file), "{finished:#?}");
    let lost = |line: &String| line.contains("1 file not read to their end");
    assert!(finished.stderr.iter().any(lost), "{finished:#?}");
}

#[test]
fn sections_that_inflate_to_gigabytes_cost_themselves() {
    let mut sections = elf::named("packed_call").to_vec();
    sections.push(bomb(".debug_info", 2048));
    sections.push(section(".debug_abbrev", vec![0]));
    sections.push(bomb(".debug_frame", 2048));
    let (_folder, file) = written(&sections);
    let finished = trace(&file);
    assert_eq!(name_in_file(&finished), "packed_call");
    assert!(is_warned_of(&finished, &file), "{finished:#?}");
}

/// A file of a few KiB on the disk that claims gigabytes.
#[test]
fn sections_and_segments_of_holes_are_not_read() {
    require_root();
    const SIZE: u64 = 3 << 30;
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("hostile.so");
    for (claimed, segments) in [
        (".eh_frame", vec![]),
        (".none", vec![(0x10_0000, 0x2000, SIZE)]),
        (".none", vec![(0x10_0000, 0x2000, 15 << 40)]),
    ] {
        let mut sections = elf::named("sparse_call").to_vec();
        sections.push(Section {
            flags: 2,
            address: 0x10_0000,
            claims: Some((1 << 20, SIZE)),
            ..section(claimed, Vec::new())
        });
        fs::write(&file, elf::file(&sections, &segments)).expect("a file");
        let opened = File::options().write(true).open(&file).expect("a file");
        opened.set_len(SIZE + (2 << 20)).expect("a sparse file");
        assert_eq!(name_in_file(&trace(&file)), "sparse_call");
    }
}

/// Each argument of the template is the one before, twice: the name in full has a million times its bytes.
#[test]
fn names_that_explode_stay_mangled() {
    let digit = |index: u32| char::from_digit(index, 36).expect("a digit");
    let mut name = String::from("_Z1fI1aIiiE");
    for index in 1..22 {
        let last = digit(index).to_ascii_uppercase();
        name.push_str(&format!("S0_IS{last}_S{last}_E"));
    }
    name.push_str("Evv");
    let (_folder, file) = written(&elf::named(&name));
    assert_eq!(name_in_file(&trace(&file)), name);
}

#[test]
fn names_of_megabytes_are_cut() {
    let (_folder, file) = written(&elf::named(&"n".repeat(5_000_000)));
    let name = name_in_file(&trace(&file));
    assert_eq!(name.len(), 4096);
    assert!(name.ends_with("n[cut]"), "{name}");
}

/// Names that are the ends of one another, a symbol for each: whoever looks for the end of each takes minutes.
#[test]
fn symbols_that_share_one_long_name_are_passed_over() {
    const COUNT: u32 = 1_000_000;
    let mut names = vec![b'a'; COUNT as usize + 2];
    names[0] = 0;
    names[COUNT as usize + 1] = 0;
    let functions = (0..COUNT).map(|index| (1 + index, CODE, 1));
    let (_folder, file) = written(&elf::symbols(functions, names));
    trace(&file);
}

/// A million instructions that 50,000 functions begin with.
#[test]
fn unwind_information_that_takes_hours_to_read_is_passed_over() {
    const ADDRESS: u64 = 0x10_0000;
    let mut common = vec![0, 0, 0, 0, 1, b'z', b'R', 0, 1, 0x78, 16, 1, 0x1b];
    common.extend([0x0c, 7, 8, 0x90, 1]);
    common.extend([0x0e, 0x10].repeat(500_000));
    common.resize(common.len().next_multiple_of(4), 0);
    let mut bytes = [&(common.len() as u32).to_le_bytes()[..], &common].concat();
    for _ in 0..50_000 {
        let here = bytes.len() as u64;
        bytes.extend(16u32.to_le_bytes());
        bytes.extend((here as u32 + 4).to_le_bytes());
        bytes.extend(((CODE as i64 - (ADDRESS + here + 8) as i64) as i32).to_le_bytes());
        bytes.extend(8u32.to_le_bytes());
        bytes.extend([0; 4]);
    }
    bytes.extend([0; 4]);
    let mut sections = elf::named("unwound_call").to_vec();
    sections.push(Section {
        flags: 2,
        address: ADDRESS,
        ..section(".eh_frame", bytes)
    });
    let (_folder, file) = written(&sections);
    let finished = trace(&file);
    assert_eq!(name_in_file(&finished), "unwound_call");
    assert!(!is_warned_of(&finished, &file), "{finished:#?}");
}

/// As `cp new old` does.
#[test]
fn a_file_that_is_cut_while_it_is_read_ends_nobody() {
    let mut names = vec![0];
    let functions: Vec<(u32, u64, u64)> = (0..200_000)
        .map(|index| {
            let name = names.len() as u32;
            names.extend(format!("f{index}\0").as_bytes());
            (name, CODE, 1)
        })
        .collect();
    let (_folder, file) = written(&elf::symbols(functions.into_iter(), names));
    let whole = fs::read(&file).expect("a file");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut opened = File::options().append(true).open(&file).expect("a file");
            while !done.load(Ordering::Relaxed) {
                opened.set_len(2 * CODE).expect("a shorter file");
                opened
                    .write_all(&whole[2 * CODE as usize..])
                    .expect("a longer file");
            }
        });
        trace(&file);
        done.store(true, Ordering::Relaxed);
    });
}

fn pid(number: u32) -> Pid {
    Pid::from_raw(number.cast_signed()).expect("a pid")
}

#[test]
fn the_reader_has_no_rights_and_ends_with_memleak() {
    let (_folder, file) = written(&elf::named("harmless_call"));
    require_root();
    let target = memleak::ready(&fixture::c("maps_code"), &[path_of(&file)]);
    let tracer = attach(target.pid());
    let reader = memleak::reader_of(tracer.pid());
    let status = fs::read_to_string(format!("/proc/{reader}/status")).expect("its status");
    let field = |name: &str| -> Vec<&str> {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.expect("a field").split_whitespace().collect()
    };
    for capabilities in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        assert_eq!(field(capabilities), ["0000000000000000"], "{capabilities}");
    }
    assert_eq!(field("NoNewPrivs:"), ["1"]);
    assert_eq!(field("Seccomp:"), ["2"]);
    assert_eq!(field("Uid:"), ["65534"; 4]);
    assert_eq!(field("Groups:"), [""; 0]);
    let root = fs::read_link(format!("/proc/{reader}/root")).expect("its root");
    assert_ne!(root, Path::new("/"), "it sees files");
    let open = fs::read_dir(format!("/proc/{reader}/fd")).expect("its descriptors");
    for descriptor in open {
        let target = fs::read_link(descriptor.expect("a descriptor").path()).expect("a link");
        let target = target.to_string_lossy();
        assert!(
            target == "/dev/null" || target.starts_with("socket:"),
            "{target}"
        );
    }
    let watched = pidfd_open(pid(reader), PidfdFlags::empty()).expect("a reader");
    tracer.signal(Signal::KILL);
    let mut ended = [PollFd::from_borrowed_fd(watched.as_fd(), PollFlags::IN)];
    poll(&mut ended, None).expect("the reader's end");
}

/// Whoever kills it costs nobody anything.
#[test]
fn a_reader_that_is_killed_is_started_again() {
    let (_folder, file) = written(&elf::named("harmless_call"));
    require_root();
    let mut target = memleak::ready(&fixture::c("maps_code"), &[path_of(&file)]);
    let tracer = attach(target.pid());
    kill_process(pid(memleak::reader_of(tracer.pid())), Signal::KILL).expect("a reader");
    target.send_line();
    target.expect("done");
    finish_well(target);
    let finished = finish_well(tracer);
    assert_eq!(name_in_file(&finished), "harmless_call");
    assert!(!is_warned_of(&finished, &file), "{finished:#?}");
}

/// Writes a file whose one function has a rule of its own for each of its bytes.
fn with_rules(count: u32, first: u64) -> Vec<u8> {
    const ADDRESS: u64 = 0x100_0000;
    let mut common = vec![0, 0, 0, 0, 1, b'z', b'R', 0, 1, 0x78, 16, 1, 0x1b];
    common.extend([0x0c, 7, 8, 0x90, 1]);
    common.resize(common.len().next_multiple_of(4), 0);
    let mut bytes = [&(common.len() as u32).to_le_bytes()[..], &common].concat();
    // the code is a frame of its own
    let mut rules = vec![0x0d, 6];
    for rule in 0..u64::from(count) {
        rules.extend([0x41, 0x0e]);
        rules.extend(uleb(8 * (first + rule) + 16));
    }
    rules.resize(rules.len().next_multiple_of(4), 0);
    let here = bytes.len() as u64;
    let start = (CODE as i64 + 0x100 - (ADDRESS + here + 8) as i64) as i32;
    bytes.extend((13 + rules.len() as u32 + 3).to_le_bytes());
    bytes.extend((here as u32 + 4).to_le_bytes());
    bytes.extend(start.to_le_bytes());
    bytes.extend(count.to_le_bytes());
    bytes.push(0);
    bytes.extend(rules);
    bytes.extend([0; 3]);
    bytes.extend([0; 4]);
    let mut sections = elf::named("many_rules").to_vec();
    sections.push(Section {
        flags: 2,
        address: ADDRESS,
        ..section(".eh_frame", bytes)
    });
    elf::file(&sections, &[(0x2000, 0x2000, u64::from(count))])
}

/// A user's files that have more unwind rules than there is room for leave others theirs.
#[test]
fn rules_of_one_users_file_do_not_take_the_room_of_others() {
    require_root();
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("hostile.so");
    fs::write(&file, with_rules(66_000, 1)).expect("a file");
    std::os::unix::fs::chown(&file, Some(65534), None).expect("another's file");
    let mut target = memleak::ready(&fixture::c("maps_code"), &[path_of(&file)]);
    let mut command = memleak::command();
    let pid = target.pid().to_string();
    command.args(["-v", "-f", "-T", ALL_STACKS, "-p", &pid, NEVER]);
    let tracer = memleak::armed(&mut command);
    target.send_line();
    target.expect("done");
    finish_well(target);
    let finished = finish_well(tracer);
    let refused = |line: &String| {
        line.contains(path_of(&file)) && line.contains("unwind rules more than there is room for")
    };
    assert!(finished.stderr.iter().any(refused), "{finished:#?}");
    let rules = finished.stderr.iter().find_map(|line| {
        let (before, _) = line.split_once(" rules of ")?;
        before.rsplit(' ').next()?.parse::<u32>().ok()
    });
    assert!(rules < Some(20_000), "{finished:#?}");
}
