//! Allocator functions that the user names with --alloc, --realloc and --free.
//! How such a description is read is tested beside its parser.

use std::path::Path;

use crate::support::memleak::{self, last_report_attached, last_report_of};
use crate::support::report::{Held, Report};
use crate::support::{fixture, require_root};

/// All functions of the fixture's pool.
const POOL: [&str; 14] = [
    "--alloc",
    "take:size=1",
    "--alloc",
    "pool_alloc:size=2",
    "--alloc",
    "obj_new:size=const:64",
    "--alloc",
    "arena_calloc:size=1*2",
    "--alloc",
    "get:out=1,size=2",
    "--realloc",
    "pool_realloc:ptr=1,size=2",
    "--free",
    "pool_free:ptr=1",
];

fn assert_pool(report: &Report) {
    for (function, held) in [
        ("leak_from_pool", Held::each(5, 101)),
        ("leak_object", Held::each(3, 64)),
        ("leak_array", Held::each(2, 77)),
        ("leak_by_pointer", Held::new(203, 1)),
        ("resize", Held::new(307, 1)),
        ("leak_own", Held::new(4001, 1)),
        ("through_pointer", Held::new(1004, 2)),
    ] {
        assert_eq!(report.made_in(function), held, "{function} in {report:#?}");
    }
    // the pool's chunks are no blocks of their own
    assert_eq!(report.through("main").count, 15, "{report:#?}");
}

#[test]
fn a_pool_is_counted_block_by_block() {
    require_root();
    let program = fixture::c("pool");
    for more in [&[][..], &["-C"], &["--probe-at", "symbol"]] {
        let options = [&POOL, more].concat();
        assert_pool(&last_report_of(&options, &program, &[]));
        assert_pool(&last_report_attached(&options, &program, &[]));
    }
}

#[test]
fn the_object_can_be_named() {
    require_root();
    let program = fixture::c("pool");
    let named: Vec<String> = POOL
        .iter()
        .map(|word| match word.starts_with("--") {
            true => (*word).to_owned(),
            false => format!("{}!{word}", program.display()),
        })
        .collect();
    let named: Vec<&str> = named.iter().map(String::as_str).collect();
    assert_pool(&last_report_of(&named, &program, &[]));
    let libc = [
        "--alloc",
        "c!malloc:size=1",
        "--free",
        "libc.so.6!free:ptr=1",
    ];
    let report = last_report_of(&libc, &program, &[]);
    assert_eq!(
        report.made_in("leak_own"),
        Held::new(4001, 1),
        "{report:#?}"
    );
}

#[test]
fn without_its_functions_a_pool_is_its_chunks() {
    require_root();
    let report = last_report_of(&[], &fixture::c("pool"), &[]);
    assert_eq!(
        report.through("main"),
        Held::new((1 << 16) + 4001 + 501, 3),
        "{report:#?}"
    );
}

#[test]
fn json_and_listed_blocks_name_the_allocator() {
    require_root();
    let folder = tempfile::tempdir().expect("a folder");
    let json = folder.path().join("report.json");
    let mut options = POOL.to_vec();
    options.extend(["-a", "--json", json.to_str().expect("text")]);
    let report = last_report_of(&options, &fixture::c("pool"), &[]);
    let listed = |size: u64| -> Vec<&str> {
        let blocks = report.allocations.iter().filter(|block| block.size == size);
        blocks
            .map(|block| {
                block
                    .rest
                    .split_once("allocator = ")
                    .map_or("", |(_, name)| name)
            })
            .collect()
    };
    assert_eq!(listed(101), ["pool_alloc"; 5], "{report:#?}");
    assert_eq!(listed(307), ["pool_realloc"], "{report:#?}");
    assert_eq!(listed(4001), [""], "{report:#?}");
    assert_eq!(listed(501), [""], "{report:#?}");
    assert_eq!(listed(503), ["take"], "{report:#?}");

    let text = std::fs::read_to_string(json).expect("a document");
    let document: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let of_bytes = |bytes: u64| {
        let entries = document["entries"].as_array().expect("entries");
        let entry = entries.iter().find(|entry| entry["bytes"] == bytes);
        entry.unwrap_or_else(|| panic!("no {bytes} bytes in {document:#}"))["allocator"].clone()
    };
    assert_eq!(of_bytes(505), "pool_alloc");
    assert_eq!(of_bytes(203), "get");
    assert_eq!(of_bytes(4001), serde_json::Value::Null);
    assert_eq!(of_bytes(501), serde_json::Value::Null);
    assert_eq!(of_bytes(503), "take");
}

/// Asserts that memleak refuses options, with one line that holds each of `words`.
fn assert_refused(options: &[&str], status: i32, words: &[&str]) {
    let program = fixture::c("pool");
    let arguments = options
        .iter()
        .map(Path::new)
        .chain([Path::new("--"), &program]);
    let finished = memleak::run(arguments);
    assert_eq!(finished.status.code(), Some(status), "{finished:#?}");
    let line = finished.stderr.first().expect("a line");
    for word in words {
        assert!(line.contains(word), "no {word:?} in {finished:#?}");
    }
}

#[test]
fn what_is_not_there_or_not_understood_is_refused() {
    require_root();
    assert_refused(
        &["--alloc", "pool_take:size=2"],
        1,
        &[
            "--alloc",
            "no object of the target has a function pool_take",
        ],
    );
    assert_refused(
        &["--free", "c!pool_free:ptr=1"],
        1,
        &["--free", "libc.so.6 has no function pool_free"],
    );
    assert_refused(
        &["--free", "/no/such/object!pool_free:ptr=1"],
        1,
        &["failed to open /no/such/object"],
    );
    assert_refused(&["--alloc", "pool_alloc:size=7"], 2, &["1 to 6"]);
    assert_refused(
        &["--realloc", "pool_realloc:ptr=1"],
        2,
        &["size is missing"],
    );
    assert_refused(&["--alloc", "pool_alloc"], 2, &["pool_alloc:size=2"]);
}
