//! Tables of real files against an independent reader (readelf), and of broken files for survival.
//! Needs Debian's libc6, libstdc++6, libpython3.11, openjdk-17-jre-headless, libllvm14, libc6-dev, gcc, golang-go and binutils.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use super::rule::{Base, SavedRbp};
use super::*;

const LIB: &str = "/usr/lib/x86_64-linux-gnu";

fn read(path: impl AsRef<Path>) -> Vec<u8> {
    let path = path.as_ref();
    std::fs::read(path).unwrap_or_else(|error| panic!("the test needs {}: {error}", path.display()))
}

fn table(path: impl AsRef<Path>) -> Table {
    build(&read(path)[..]).unwrap()
}

/// Compiles `source` and gives the resulting file's bytes.
fn compile(source: &str, flags: &[&str]) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let (input, output) = (
        directory.path().join("test.c"),
        directory.path().join("test"),
    );
    std::fs::write(&input, source).unwrap();
    let status = Command::new("gcc")
        .args(flags)
        .arg("-o")
        .arg(&output)
        .arg(&input)
        .status()
        .expect("the test needs gcc");
    assert!(status.success());
    read(output)
}

fn offset(base: Base, offset: i32, rbp: SavedRbp) -> Rule {
    Rule::Offset { base, offset, rbp }
}

/// What has to hold for any table, or the BPF program would search wrongly.
fn check_shape(table: &Table) {
    for code in &table.code {
        let pages = (code.segment.end() - 1) / PAGE_SIZE - code.segment.vaddr / PAGE_SIZE + 1;
        assert_eq!(code.page_count() as u64, pages);
        for page in code.first_rows.windows(2) {
            let rows = &table.rows[page[0] as usize..page[1] as usize];
            assert_eq!(
                rows.first().map(|row| row >> 16),
                Some(0),
                "a page begins with offset 0"
            );
            assert!(rows.is_sorted_by(|a, b| a >> 16 < b >> 16));
            assert!(
                rows.iter()
                    .all(|row| ((row & 0xffff) as usize) < table.rules.codes().len())
            );
        }
    }
}

/// Share of a file's rows whose rule can be followed.
fn supported(table: &Table) -> f64 {
    let rule = |row: &u32| Rule::decode(table.rules.codes()[(row & 0xffff) as usize]);
    let bad = table
        .rows
        .iter()
        .filter(|row| rule(row) == Rule::Unsupported)
        .count();
    1.0 - bad as f64 / table.rows.len() as f64
}

/// `rsp+16`, `rbp+16`, `exp` and `c-16`, `u`, `s`, `exp` as readelf prints them.
fn in_readelf_terms(rule: Rule) -> (String, String) {
    let name = |base| if base == Base::Sp { "rsp" } else { "rbp" };
    let saved = |rbp| match rbp {
        SavedRbp::Same => "u".to_owned(),
        SavedRbp::BelowCfa(bytes) => format!("c-{bytes}"),
        SavedRbp::AtBase(_) | SavedRbp::Lost => "exp".to_owned(),
    };
    match rule {
        Rule::Offset { base, offset, rbp } => (format!("{}{offset:+}", name(base)), saved(rbp)),
        Rule::Deref { rbp, .. } => ("exp".to_owned(), saved(rbp)),
        other => (format!("{other:?}"), String::new()),
    }
}

/// Compares every row of a file with what `readelf --debug-dump=frames-interp` says; returns how many were compared.
/// Only rows that readelf's few columns can express count: no signal frames, no linkage table, no end markers.
fn compare_with_readelf(path: &str) -> usize {
    let table = table(path);
    let dump = Command::new("readelf")
        .args(["--debug-dump=frames-interp", path])
        .output()
        .expect("the test needs readelf");
    let text = String::from_utf8_lossy(&dump.stdout);
    let (mut columns, mut compared) = (Vec::new(), 0);
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.first() == Some(&"LOC") {
            columns = words;
            continue;
        }
        let Some(address) = words.first().filter(|word| word.len() == 16) else {
            continue;
        };
        // Lines of entry headers begin with a section offset, and have "FDE" or "CIE" behind it.
        if line.contains("CIE") || columns.len() != words.len() {
            continue;
        }
        let row: HashMap<&str, &str> = columns.iter().copied().zip(words.iter().copied()).collect();
        let address = u64::from_str_radix(address, 16).unwrap();
        let cfa = row["CFA"];
        let comparable = cfa.starts_with("rsp+") || cfa.starts_with("rbp+");
        if row["ra"] != "c-8" || !comparable || table.lookup(address).is_none() {
            continue;
        }
        let rbp = match row.get("rbp") {
            None | Some(&"s") => "u",
            Some(rbp) => rbp,
        };
        let rule = table.lookup(address).unwrap();
        assert_eq!(
            in_readelf_terms(rule),
            (cfa.to_owned(), rbp.to_owned()),
            "{path} at {address:#x}"
        );
        compared += 1;
    }
    compared
}

#[test]
fn rows_of_libc_are_what_readelf_says() {
    assert!(compare_with_readelf("/lib/x86_64-linux-gnu/libc.so.6") > 20_000);
}

#[test]
fn rows_of_libstdcxx_are_what_readelf_says() {
    assert!(compare_with_readelf(&format!("{LIB}/libstdc++.so.6")) > 20_000);
}

#[test]
fn libraries_of_debian_are_supported_almost_entirely() {
    let files = [
        (format!("{LIB}/libc.so.6"), 15_000),
        (format!("{LIB}/libstdc++.so.6"), 15_000),
        (format!("{LIB}/libpython3.11.so.1.0"), 20_000),
        (
            "/usr/lib/jvm/java-17-openjdk-amd64/lib/server/libjvm.so".to_owned(),
            100_000,
        ),
        (format!("{LIB}/libLLVM-14.so.1"), 500_000),
    ];
    for (path, rows) in files {
        let table = table(&path);
        check_shape(&table);
        assert!(table.rows.len() > rows, "{path}: {} rows", table.rows.len());
        assert!(supported(&table) > 0.999, "{path}: {}", supported(&table));
    }
}

#[test]
fn hand_written_parts_of_libc_have_their_special_rules() {
    let bytes = read(format!("{LIB}/libc.so.6"));
    let table = build(&bytes[..]).unwrap();
    let rules: Vec<Rule> = table
        .rules
        .codes()
        .iter()
        .map(|&code| Rule::decode(code))
        .collect();
    assert!(
        rules.contains(&Rule::Signal),
        "the trampoline that returns from signal handlers"
    );
    assert!(rules.contains(&Rule::Stop), "clone, the root of a thread");
}

/// A signal handler and a makecontext return to the first byte of a function that did not call them.
#[test]
fn a_byte_before_what_is_returned_to_and_never_calls_its_rule_holds() {
    let source = r#"__asm__(".text\n.balign 16\n.globl before\nbefore: .cfi_startproc\n ret\n .cfi_endproc\n"
        ".balign 16, 0x90\n.globl root\nroot: .cfi_startproc\n .cfi_undefined rip\n nop\n ret\n .cfi_endproc\n");
        int main(void) { return 0; }"#;
    let file = compile(source, &["-no-pie"]);
    let elf = object::read::elf::ElfFile64::<object::LittleEndian>::parse(&file[..]).unwrap();
    let address = |name: &str| {
        use object::{Object as _, ObjectSymbol as _};
        elf.symbol_by_name(name).unwrap().address()
    };
    let table = build(&file[..]).unwrap();
    assert_eq!(table.lookup(address("root") - 1), Some(Rule::Stop));
    let plain = offset(Base::Sp, 8, SavedRbp::Same);
    assert_eq!(table.lookup(address("before")), Some(plain));
    assert_eq!(table.lookup(address("root") - 2), Some(plain));
}

#[test]
fn a_static_program_has_its_root_marked() {
    let bytes = compile("int main(void) { return 0; }", &["-static", "-O2"]);
    let table = build(&bytes[..]).unwrap();
    check_shape(&table);
    let elf = object::read::elf::ElfFile64::<object::LittleEndian>::parse(&bytes[..]).unwrap();
    assert_eq!(table.lookup(object::Object::entry(&elf)), Some(Rule::Stop));
}

#[test]
fn a_realigned_stack_is_found_through_memory() {
    let source = "void *use(void *); int main(int n, char **v) { char a[64 * n] __attribute__((aligned(64))); \
                  struct { char b[64] __attribute__((aligned(64))); } s; use(&s); return use(a) != 0; } \
                  void *use(void *p) { __asm__ volatile(\"\" : : \"r\"(p) : \"memory\"); return p; }";
    let table = build(&*compile(
        source,
        &["-O2", "-fomit-frame-pointer", "-fno-inline"],
    ))
    .unwrap();
    let deref = table
        .rules
        .codes()
        .iter()
        .map(|&code| Rule::decode(code))
        .find(|rule| matches!(rule, Rule::Deref { .. }));
    assert!(
        matches!(
            deref,
            Some(Rule::Deref {
                base: Base::Fp,
                add: 0,
                rbp: SavedRbp::AtBase(0),
                ..
            })
        ),
        "{deref:?}"
    );
}

#[test]
fn a_lazy_linkage_table_has_its_rule() {
    let flags = ["-O2", "-Wl,-z,lazy", "-fcf-protection=none"];
    let table = build(&*compile(
        "#include <stdlib.h>\nint main(int n, char **v) { return malloc(n) != 0; }",
        &flags,
    ))
    .unwrap();
    let rules: Vec<Rule> = table
        .rules
        .codes()
        .iter()
        .map(|&code| Rule::decode(code))
        .collect();
    assert!(rules.contains(&Rule::Plt { threshold: 11 }), "{rules:?}");
}

#[test]
fn a_frame_of_half_a_megabyte_fits() {
    let source = "void use(void *p) { __asm__ volatile(\"\" : : \"r\"(p) : \"memory\"); } \
                  int main(void) { char frame[700000]; use(frame); return 0; }";
    let table = build(&*compile(
        source,
        &[
            "-O2",
            "-fomit-frame-pointer",
            "-fno-inline",
            "-fno-stack-clash-protection",
        ],
    ))
    .unwrap();
    let large = |rule| {
        matches!(
            rule,
            Rule::Offset {
                base: Base::Sp,
                offset: 700_000..,
                ..
            }
        )
    };
    assert!(
        table
            .rules
            .codes()
            .iter()
            .any(|&code| large(Rule::decode(code)))
    );
}

#[test]
fn debug_frame_serves_where_eh_frame_is_missing() {
    let source = "int deep(int n) { volatile char a[256]; a[n] = 1; return a[0]; } int main(void) { return deep(3); }";
    let flags = [
        "-O2",
        "-g",
        "-fno-asynchronous-unwind-tables",
        "-fno-inline",
        "-fomit-frame-pointer",
        "-fno-stack-protector",
    ];
    for more in [&["-gz=none"][..], &["-gz=zlib"][..]] {
        let bytes = compile(source, &[&flags[..], more].concat());
        let table = build(&bytes[..]).unwrap();
        check_shape(&table);
        let large = |rule| {
            matches!(
                rule,
                Rule::Offset {
                    base: Base::Sp,
                    offset: 128..,
                    ..
                }
            )
        };
        assert!(
            table
                .rules
                .codes()
                .iter()
                .any(|&code| large(Rule::decode(code))),
            "{more:?}"
        );
        assert!(
            table.rules.codes().contains(&Rule::Stop.encode()),
            "_start still has its .eh_frame"
        );
    }
}

#[test]
fn a_file_without_section_headers_is_read_through_its_program_headers() {
    let mut bytes = read(format!("{LIB}/libc.so.6"));
    let whole = build(&bytes[..]).unwrap();
    bytes[40..48].fill(0); // e_shoff
    bytes[60..64].fill(0); // e_shnum, e_shstrndx
    let stripped = build(&bytes[..]).unwrap();
    assert_eq!(stripped.rows, whole.rows);
    assert_eq!(stripped.code, whole.code);
}

#[test]
fn the_vdso_is_read_from_memory() {
    use std::os::unix::fs::FileExt;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let line = maps
        .lines()
        .find(|line| line.ends_with("[vdso]"))
        .expect("the kernel maps a vDSO");
    let (begin, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
    let begin = u64::from_str_radix(begin, 16).unwrap();
    let mut image = vec![0; (u64::from_str_radix(end, 16).unwrap() - begin) as usize];
    std::fs::File::open("/proc/self/mem")
        .unwrap()
        .read_exact_at(&mut image, begin)
        .unwrap();
    let table = build(&image[..]).unwrap();
    check_shape(&table);
    assert!(table.rows.len() > 20, "{}", table.rows.len());
}

#[test]
fn this_test_itself_a_rust_program_is_supported() {
    let table = table("/proc/self/exe");
    check_shape(&table);
    assert!(supported(&table) > 0.999);
    assert!(table.rows.len() > 1_000);
}

#[test]
fn a_go_program_is_supported() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("go_pure");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/go_pure.go");
    let status = Command::new("go")
        .arg("build")
        .arg("-o")
        .args([&program, &source])
        .env("GOCACHE", folder.path().join("cache"))
        .envs([("CGO_ENABLED", "0"), ("GOFLAGS", "-mod=mod")])
        .status()
        .expect("the test needs go");
    assert!(status.success());
    // Go writes a .debug_frame only, and compresses it
    let table = table(&program);
    check_shape(&table);
    assert!(table.rows.len() > 1_000, "{}", table.rows.len());
    // what is not are the frames of over 1 MiB that runtime.call1048576 and its ten larger kin can make
    assert!(supported(&table) > 0.995, "{}", supported(&table));
}

#[test]
fn a_gap_wider_than_padding_has_no_entry_and_the_pad_of_a_function_has() {
    let mut changes = Changes {
        changes: Vec::new(),
        covered_to: 0,
    };
    let mut rules = Dictionary::new();
    let rule = rules.intern(offset(Base::Sp, 8, SavedRbp::Same).encode());
    for (start, end) in [(0x1000, 0x1010), (0x101f, 0x1020), (0x1030, 0x1040)] {
        changes.begin(Entry::new(start, end));
        changes.add(start, rule);
        changes.covered_to = end;
    }
    let change = |address, rule| Change { address, rule };
    let no_fde = Dictionary::NO_FDE;
    assert_eq!(
        changes.finish(),
        [
            change(0, no_fde),
            change(0x1000, rule),
            change(0x1020, no_fde),
            change(0x1030, rule),
            change(0x1040, no_fde)
        ]
    );
}

#[test]
fn a_page_repeats_the_rule_in_force_at_its_start() {
    let segment = Segment {
        vaddr: 0x1_8000,
        file_offset: 0,
        size: 0x2_8000,
    };
    let change = |address, rule| Change { address, rule };
    let changes = [
        change(0x1_7000, 5),
        change(0x1_9000, 6),
        change(0x3_0000, 7),
        change(0x5_0000, 8),
    ];
    let mut rows = Vec::new();
    assert_eq!(pack(segment, &changes, &mut rows), [0, 2, 3, 4]);
    assert_eq!(rows, [5, 0x9000 << 16 | 6, 6, 7]);
}

#[test]
fn other_machines_are_told_from_broken_files() {
    let mut bytes = read(format!("{LIB}/libc.so.6"));
    bytes[18] = 243; // EM_RISCV
    assert_eq!(
        build(&bytes[..]).unwrap_err(),
        Error::UnsupportedMachine(243)
    );
    bytes[18] = 183; // EM_AARCH64
    assert_eq!(
        build_for(Machine::X86_64, &bytes[..]).unwrap_err(),
        Error::OtherMachine
    );
    assert!(matches!(
        build(&b"#!/bin/sh\n"[..]),
        Err(Error::Malformed(_))
    ));
    assert!(matches!(build(&[][..]), Err(Error::Malformed(_))));
}

/// A small file to break, with both frame sections, of which one is compressed.
fn victim() -> Vec<u8> {
    let flags = [
        "-O2",
        "-g",
        "-gz=zlib",
        "-fno-asynchronous-unwind-tables",
        "-Wl,-z,noseparate-code",
    ];
    compile("int main(int n, char **v) { return n; }", &flags)
}

#[test]
fn truncated_files_do_no_harm() {
    let bytes = victim();
    for length in (0..bytes.len()).step_by(37) {
        if let Ok(table) = build(&bytes[..length]) {
            check_shape(&table);
        }
    }
}

#[test]
fn corrupted_files_do_no_harm() {
    let original = victim();
    // A fixed linear congruential generator: the same damage each time.
    let mut random = 1u64;
    let mut next = || {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        random >> 33
    };
    for round in 0..2_000 {
        let mut bytes = original.clone();
        for _ in 0..1 + round % 16 {
            // Half of the damage goes to the headers, which matter most.
            let limit = if next() % 2 == 0 {
                1_024
            } else {
                bytes.len() as u64
            };
            let at = (next() % limit) as usize;
            bytes[at] = next() as u8;
        }
        if let Ok(table) = build(&bytes[..]) {
            check_shape(&table);
        }
    }
}

#[test]
fn corrupted_frames_of_libc_do_no_harm() {
    let original = read(format!("{LIB}/libc.so.6"));
    let image = elf::Image::parse(&original[..]).unwrap();
    let frames = image
        .eh_frame()
        .map(|(section, _)| gimli::Section::reader(&section).slice().as_ptr_range())
        .unwrap();
    let start = frames.start as usize - original.as_ptr() as usize;
    let length = frames.end as usize - frames.start as usize;
    for stride in [61, 257, 4_099] {
        let mut bytes = original.clone();
        for at in (start..start + length).step_by(stride) {
            bytes[at] = bytes[at].wrapping_mul(31).wrapping_add(stride as u8);
        }
        if let Ok(table) = build(&bytes[..]) {
            check_shape(&table);
        }
    }
}
