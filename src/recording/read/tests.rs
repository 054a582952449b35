//! What is written is read back, and what is damaged is read as far as it is whole.

use super::*;
use crate::model::losses::Losses;
use crate::model::snapshot::Look;
use crate::recording::write::Writer;

fn module() -> Arc<Module> {
    Arc::new(Module {
        path: "/usr/lib/a\tb\"c\n.so".into(),
        build_id: Some(vec![0xde, 0xad, 0x0f]),
    })
}

fn sample() -> Recording {
    let at = |line| {
        Some(Location {
            file: "a b.c".into(),
            line,
        })
    };
    let frame = Frame {
        address: u64::MAX,
        module: Some(module()),
        file_offset: Some(1 << 60),
        function: Some(Function {
            name: "f<a, \"b\">\n\u{1F600}".into(),
            location: at(Some(7)),
        }),
        function_offset: 0x6d,
        language: None,
        inlined: vec![
            Function {
                name: "g".into(),
                location: at(None),
            },
            Function {
                name: "h".into(),
                location: None,
            },
        ],
    };
    let unknown = Frame {
        address: 5,
        ..Frame::default()
    };
    let stack = |tgid, frames| StackRecord {
        allocator: None,
        tgid,
        class: Class::Heap,
        frames,
    };
    let figure = |stack, bytes| Figure {
        stack,
        bytes,
        count: 2,
        oldest_ns: Some(9),
    };
    let snapshot = SnapshotRecord {
        time: WallTime {
            unix_ns: 1_700_000_000_123_456_789,
            utc_offset_s: -3600,
        },
        elapsed_ns: 5_000_000_000,
        reason: Reason::Demand,
        figures: vec![figure(0, u64::MAX), figure(2, 1)],
        complete: true,
        reach: (0..2)
            .map(|at| Reach {
                lost: Amount {
                    bytes: at,
                    count: 1,
                },
                ..Reach::default()
            })
            .collect(),
        look: Some(Look {
            stood_ns: 5,
            interrupted: vec!["epoll_wait".into()],
            failed: Some("why".into()),
            ..Look::default()
        }),
        estimated: true,
        losses: Losses {
            allocations: 1,
            allocation_bytes: 2,
            stacks: 3,
            missed_frees: 5,
            ..Losses::default()
        },
        rss_bytes: Some(4096),
        headroom: Some(Headroom {
            bytes: 77,
            limit: Limit::Cgroup,
        }),
    };
    let last = SnapshotRecord {
        complete: false,
        ..SnapshotRecord::default()
    };
    Recording {
        header: Header {
            tool: "memleak 0.1.0".into(),
            command: vec!["memleak".into(), "-p".into(), "7".into()],
            host: Host {
                name: "h".into(),
                kernel: "6.1".into(),
                machine: "x86_64".into(),
            },
            target: Target {
                kind: TargetKind::Process,
                pid: Some(7),
                command: vec!["./a b".into()],
            },
            started: Some(WallTime {
                unix_ns: 1,
                utc_offset_s: 2,
            }),
            interval_ns: Some(5_000_000_000),
            page_size: Some(4096),
            source: Source::Recording,
        },
        stacks: vec![
            stack(7, Some(vec![frame, unknown])),
            stack(7, None),
            stack(8, Some(vec![])),
        ],
        processes: [(7, "one (1)".into()), (8, "two".into())].into(),
        ended: [(8, 3)].into(),
        snapshots: vec![
            snapshot.clone(),
            SnapshotRecord {
                elapsed_ns: 6_000_000_000,
                ..last
            },
        ],
    }
}

fn written(recording: &Recording) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes, &recording.header).unwrap();
    let snapshots = recording.snapshots.iter();
    snapshots.for_each(|snapshot| writer.append(recording, snapshot).unwrap());
    bytes
}

#[test]
fn what_is_written_is_read_back() {
    let loaded = read(written(&sample()).as_slice()).unwrap();
    assert_eq!(loaded.warnings, Vec::<String>::new());
    assert_eq!(loaded.recording, sample());
}

#[test]
fn a_file_cut_anywhere_is_read_up_to_the_cut() {
    let whole = written(&sample());
    let header = whole.iter().position(|&byte| byte == b'\n').unwrap();
    for cut in 0..whole.len() {
        match read(&whole[..cut]) {
            Err(_) => assert!(cut < header, "cut at {cut}"),
            Ok(loaded) => {
                let sample = sample();
                assert!(sample.snapshots.starts_with(&loaded.recording.snapshots));
                assert!(sample.stacks.starts_with(&loaded.recording.stacks));
            }
        }
    }
    let loaded = read(&whole[..whole.len() - 10]).unwrap();
    assert_eq!(loaded.recording.snapshots.len(), 1);
    assert!(
        loaded.warnings[0].contains("cut off") && loaded.warnings[0].contains("1 snapshots"),
        "{loaded:?}"
    );
}

fn fails_with(file: &str, expected: &str) {
    let error = format!("{:#}", read(file.as_bytes()).unwrap_err());
    assert!(error.contains(expected), "{error}");
}

#[test]
fn a_foreign_file_is_refused_with_a_reason() {
    fails_with("", "not the header");
    fails_with("\u{0}\u{1}ELF", "not the header");
    fails_with("{\"a\":1}\n", "not the header");
    fails_with(
        "{\"type\":\"header\",\"format\":\"other\",\"version\":1}\n",
        "its format is \"other\"",
    );
    fails_with(
        "{\"type\":\"header\",\"format\":\"memleak-recording\",\"version\":2}\n",
        "use a newer memleak",
    );
}

fn damaged_by(line: &str) -> String {
    let mut file = written(&sample());
    file.extend_from_slice(line.as_bytes());
    file.extend_from_slice(b"\n{\"type\":\"header\"}\n");
    let loaded = read(file.as_slice()).unwrap();
    assert_eq!(loaded.recording, sample());
    loaded.warnings.concat()
}

#[test]
fn lines_that_contradict_the_file_end_the_reading() {
    let snapshot = |columns: &str| {
        format!("{{\"type\":\"snapshot\",\"unix_ns\":1,\"elapsed_ns\":7000000000,{columns}}}")
    };
    assert!(
        damaged_by(&snapshot(r#""stack":[9],"bytes":[1],"count":[1]"#)).contains("not described")
    );
    assert!(
        damaged_by(&snapshot(r#""stack":[0],"bytes":[1,2],"count":[1]"#))
            .contains("different lengths")
    );
    assert!(
        damaged_by(&snapshot(r#""stack":[1,0],"bytes":[1,2],"count":[1,1]"#))
            .contains("out of order")
    );
    assert!(
        damaged_by(
            r#"{"type":"snapshot","unix_ns":1,"elapsed_ns":1,"stack":[],"bytes":[],"count":[]}"#
        )
        .contains("backwards")
    );
    assert!(
        damaged_by(r#"{"type":"stack","id":9,"tgid":1,"class":"heap","frames":null}"#)
            .contains("out of order")
    );
    assert!(
        damaged_by(r#"{"type":"stack","id":3,"tgid":1,"class":"ham","frames":null}"#)
            .contains("class")
    );
    assert!(
        damaged_by(
            r#"{"type":"stack","id":3,"tgid":1,"class":"heap","frames":[{"address":"xyz"}]}"#
        )
        .contains("hex")
    );
    assert!(damaged_by("garbage").contains("is damaged"));
    assert!(damaged_by("\u{fffd}").contains("is damaged"));
}

#[test]
fn unknown_lines_and_empty_ones_are_skipped() {
    assert!(damaged_by("{\"type\":\"note\",\"text\":\"later\"}\n\n").contains("a second header"));
}
