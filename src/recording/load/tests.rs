//! Every form of log is told from the others and read to the figure.

use super::*;
use crate::model::run::{Source, TargetKind};

fn load(text: &str) -> Loaded {
    read_any(text.as_bytes()).unwrap()
}

/// Bytes, allocations and innermost frame.
type Held = (u64, u64, String);

/// What a log says, in short: per snapshot its second, then per figure bytes, count and innermost frame.
fn summary(loaded: &Loaded) -> Vec<(u64, Vec<Held>)> {
    let stacks = &loaded.recording.stacks;
    let innermost = |stack: u32| {
        let frame = stacks[stack as usize]
            .frames
            .as_ref()
            .and_then(|frames| frames.first())?;
        let module = frame
            .module
            .as_ref()
            .map(|module| module.name())
            .unwrap_or_default();
        let name = frame
            .function
            .as_ref()
            .map(|function| function.name.clone())
            .unwrap_or_default();
        Some(format!(
            "{:x} {name}+{:x} [{module}]",
            frame.address, frame.function_offset
        ))
    };
    let figures = |snapshot: &crate::model::run::SnapshotRecord| {
        let figure = |f: &crate::model::run::Figure| {
            (f.bytes, f.count, innermost(f.stack).unwrap_or_default())
        };
        snapshot.figures.iter().map(figure).collect()
    };
    loaded
        .recording
        .snapshots
        .iter()
        .map(|s| (s.elapsed_ns / 1_000_000_000, figures(s)))
        .collect()
}

/// The example in memleak.py's documentation, with its blanks for tabs.
const DOCUMENTED: &str = "\
# ./memleak -p $(pidof allocs) -a
Attaching to pid 5193, Ctrl+C to quit.
[11:16:33] Top 2 stacks with outstanding allocations:
        addr = 948cd0 size = 16
        addr = 948d10 size = 16
        64 bytes in 4 allocations from stack
                 main+0x6d [allocs]
                 __libc_start_main+0xf0 [libc-2.21.so]

[11:16:34] Top 2 stacks with outstanding allocations:
        160 bytes in 10 allocations from stack
                 main+0x6d [allocs]
                 __libc_start_main+0xf0 [libc-2.21.so]


Each entry printed is a set of allocations that originate from the same call
stack, and that weren't freed yet.
";

#[test]
fn the_documented_example_without_addresses_is_read() {
    let loaded = load(DOCUMENTED);
    let header = &loaded.recording.header;
    assert_eq!(header.source, Source::MemleakPy);
    assert_eq!(
        (header.target.kind, header.target.pid),
        (TargetKind::Process, Some(5193))
    );
    let main = || "0 main+6d [allocs]".to_owned();
    assert_eq!(
        summary(&loaded),
        [(0, vec![(64, 4, main())]), (1, vec![(160, 10, main())])]
    );
    assert_eq!(loaded.recording.stacks.len(), 1);
    assert_eq!(
        loaded.recording.stacks[0].frames.as_ref().map(Vec::len),
        Some(2)
    );
    assert!(
        loaded.recording.snapshots[0].complete,
        "one stack of two asked for"
    );
}

#[test]
fn frames_with_addresses_and_source_locations_are_read() {
    let text = "[23:59:59] Top 1 stacks with outstanding allocations:\n\
                \t80 bytes in 5 allocations from stack\n\
                \t\t0x000055dde4ed4181\tmain+0x6d [allocs] src/a b.c:12\n\
                \t\t0x00007fbd5c4a124a\t[unknown] [libfoo.so]\n\
                \t\t0x0000000000000007\t[unknown]\n\
                [00:00:04] Top 1 stacks with outstanding allocations:\n";
    let loaded = load(text);
    assert_eq!(loaded.recording.header.source, Source::Text);
    assert_eq!(
        summary(&loaded),
        [
            (0, vec![(80, 5, "55dde4ed4181 main+6d [allocs]".to_owned())]),
            (5, vec![])
        ]
    );
    let frames = loaded.recording.stacks[0].frames.clone().unwrap();
    let location = frames[0]
        .function
        .as_ref()
        .and_then(|function| function.location.clone())
        .unwrap();
    assert_eq!(
        (location.file.to_str(), location.line),
        (Some("src/a b.c"), Some(12))
    );
    assert_eq!(
        frames[1]
            .module
            .as_ref()
            .map(|module| module.name())
            .as_deref(),
        Some("libfoo.so")
    );
    assert_eq!(
        (frames[2].address, &frames[2].function, &frames[2].module),
        (7, &None, &None)
    );
    assert!(!loaded.recording.snapshots[0].complete && loaded.recording.snapshots[1].complete);
}

#[test]
fn our_inlined_frames_estimates_and_lost_stacks_are_read() {
    let text = "[00:00:01] Top 10 stacks with outstanding allocations:\n\
                \t~8 bytes in ~1 allocations from stack\n\
                \t\t[stack not stored]\n\
                \t~80 bytes in ~5 allocations from stack\n\
                \t\t0x0000000000000011\tleak<int> [inlined] src/a.c:5\n\
                \t\t0x0000000000000011\tmain+0x6d [allocs] src/a.c\n\
                \t\t0x0000000000000012\t[unknown] [vdso]\n\
                Growing stacks, by proven rate:\n\
                \t+1 B/s over 3 s, 80 B in 5 blocks: main [allocs]\n";
    let loaded = load(text);
    assert!(loaded.recording.snapshots[0].estimated);
    let frames = |at: usize| loaded.recording.stacks[at].frames.as_deref();
    assert_eq!(frames(0), None);
    let frames = frames(1).unwrap();
    assert_eq!(frames.len(), 2);
    let place = |function: &crate::model::report::Function| {
        let location = function.location.clone().unwrap();
        (function.name.clone(), location.file, location.line)
    };
    assert_eq!(
        place(&frames[0].inlined[0]),
        ("leak<int>".into(), "src/a.c".into(), Some(5))
    );
    assert_eq!(
        place(frames[0].function.as_ref().unwrap()),
        ("main".into(), "src/a.c".into(), None)
    );
    assert_eq!(frames[1].module.as_ref().unwrap().name(), "[vdso]");
}

#[test]
fn every_form_of_libbpf_tools_is_read() {
    let text = "Attaching to pid 77, Ctrl+C to quit.\n\
                [7:5:3] Top 2 stacks with outstanding allocations:\n\
                900 bytes in 3 allocations from stack\n\
                \taddr = 0x55d0c2c2 size = 300\n\
                \t0 [<000055dde4ed4181>] leak(char const*)+0x1d /src/leak.cc:31\n\
                \t1 [<00007fbd5c4a124a>] __libc_start_call_main+0x7a /usr/lib/libc.so.6:0\n\
                \t2 [<0000000000000010>] <null sym>\n\
                40 bytes in 1 allocations from stack\n\
                \t0 [<0000000000000020>] f+0x1 [/opt/x]\n\
                \t1 [<0000000000000021>] [/opt/y]\n\
                \t2 [<0000000000000022>] ksym+0x2\n\
                [7:5:8] Top 1 stacks with outstanding allocations:\n\
                40 bytes in 1 allocations from stack\n\
                \t0 [<0000000000000020>] f+0x1 [/opt/x]\n\
                \t1 [<0000000000000021>] [/opt/y]\n\
                \t2 [<0000000000000022>] ksym+0x2\n\
                done\n";
    let loaded = load(text);
    assert_eq!(loaded.recording.header.source, Source::LibbpfTools);
    let small = || (40, 1, "20 f+1 [x]".to_owned());
    let big = (900, 3, "55dde4ed4181 leak(char const*)+1d []".to_owned());
    assert_eq!(
        summary(&loaded),
        [(0, vec![big, small()]), (5, vec![small()])]
    );
    let frames = loaded.recording.stacks[0].frames.clone().unwrap();
    assert_eq!(
        frames[1]
            .module
            .as_ref()
            .map(|module| module.name())
            .as_deref(),
        Some("libc.so.6")
    );
    assert_eq!(frames[2].function, None);
    assert!(
        loaded.recording.snapshots[1].complete,
        "fewer than the fullest report"
    );
}

#[test]
fn a_report_that_is_cut_off_is_left_out_with_a_warning() {
    let whole = "[00:00:01] Top 9 stacks with outstanding allocations:\n\t8 bytes in 1 allocations from stack\n\t\tf+0x1 [a]\n";
    let cut = format!(
        "{whole}[00:00:06] Top 9 stacks with outstanding allocations:\n\t8 bytes in 1 alloc"
    );
    let loaded = load(&cut);
    assert_eq!(loaded.recording.snapshots.len(), 1);
    assert!(loaded.recording.snapshots[0].complete);
    assert!(loaded.warnings[0].contains("cut off"));
}

#[test]
fn a_stack_that_was_lost_has_no_frames() {
    let text = "[00:00:01] Top 9 stacks with outstanding allocations:\n\
                \t8 bytes in 1 allocations from stack\n\t\tstack information lost\n";
    assert_eq!(load(text).recording.stacks[0].frames, None);
}

#[test]
fn foreign_files_are_refused() {
    let fails = |bytes: &[u8]| format!("{:#}", read_any(bytes).unwrap_err());
    assert!(fails(b"").contains("empty"));
    assert!(fails(b"\x7fELF\0\0").contains("neither"));
    assert!(fails(b"hello\nworld\n").contains("no report found"));
    assert!(fails(b"{\"hello\":1}").contains("not the header"));
}
