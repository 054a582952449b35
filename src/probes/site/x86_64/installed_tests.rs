//! Sites in the allocators that systems really run, judged by objdump's reading of them and not by ours.
//! They need the objects of `OBJECTS` and objdump, and fail where one is missing.

use super::*;
use std::collections::BTreeMap;
use std::process::Command;

/// Debian: libc6, libjemalloc2, libgoogle-perftools4, libmimalloc2.0, libstdc++6, musl.
const OBJECTS: [&str; 6] = [
    "/usr/lib/x86_64-linux-gnu/libc.so.6",
    "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2",
    "/usr/lib/x86_64-linux-gnu/libtcmalloc.so.4",
    "/usr/lib/x86_64-linux-gnu/libmimalloc.so.2",
    "/usr/lib/x86_64-linux-gnu/libstdc++.so.6",
    "/usr/lib/x86_64-linux-musl/libc.so",
];

/// Always judged; of an object's other functions, an even spread is.
const ALLOCATORS: [&str; 14] = [
    "malloc",
    "free",
    "calloc",
    "realloc",
    "reallocarray",
    "posix_memalign",
    "aligned_alloc",
    "memalign",
    "valloc",
    "pvalloc",
    "mmap",
    "munmap",
    "mremap",
    "memcpy",
];

/// An object and objdump's listing of it: address to instruction text (AT&T syntax).
struct Listing {
    data: Vec<u8>,
    names: Vec<String>,
    lines: BTreeMap<u64, String>,
    /// Where a branch or call goes to, and where it stands.
    targets: BTreeMap<u64, u64>,
}

impl Listing {
    fn read(path: &str) -> Self {
        let data = std::fs::read(path).unwrap_or_else(|e| panic!("failed to read {path}: {e}"));
        let output = Command::new("objdump")
            .args(["-d", "-w", "--no-show-raw-insn", path])
            .output()
            .expect("failed to run objdump");
        assert!(output.status.success(), "objdump failed on {path}");
        let text = String::from_utf8(output.stdout).unwrap();
        let mut listing = Self {
            data,
            names: Vec::new(),
            lines: BTreeMap::new(),
            targets: BTreeMap::new(),
        };
        text.lines().for_each(|line| listing.add(line));
        assert!(
            listing.lines.len() > 1000,
            "objdump shows no code in {path}"
        );
        listing
    }

    fn add(&mut self, line: &str) {
        if let Some(name) = line.strip_suffix(">:").and_then(|l| l.split_once('<')) {
            let plain = name.1.split('@').next().unwrap_or_default();
            self.names.push(plain.to_string());
        } else if let Some((address, text)) = line.split_once(":\t") {
            let Ok(address) = u64::from_str_radix(address.trim(), 16) else {
                return;
            };
            if let Some(target) = direct_target(text) {
                self.targets.insert(target, address);
            }
            self.lines.insert(address, text.to_string());
        }
    }
}

/// `je 1234 <free+0x10>` goes to 0x1234.
fn direct_target(text: &str) -> Option<u64> {
    let mut words = text.split_whitespace().skip_while(|word| *word == "bnd");
    let mnemonic = words.next()?;
    let branches = mnemonic.starts_with('j') || mnemonic.starts_with("call");
    branches
        .then(|| u64::from_str_radix(words.next()?, 16).ok())
        .flatten()
}

/// What is asked of a site, with the question's own reading of the code.
fn check(listing: &Listing, function: &Function, contract: Contract, site: &Site) {
    let at = format!("{} at {:#x}: {site}", function.name, function.address);
    let address = function.address + site.offset;
    assert!(site.offset < function.size, "{at}: past its end");
    let text = listing
        .lines
        .get(&address)
        .unwrap_or_else(|| panic!("{at}: no instruction there"));
    let kept = matches!(site.why, Why::Kept(_));
    assert_eq!(kept, !is_emulated(text), "{at}: `{text}`");
    if site.offset == 0 {
        return;
    }
    assert!(!text.starts_with("call"), "{at}: moved to a call");
    let mut last = "";
    for (_, skipped) in listing.lines.range(function.address..address) {
        let exit = skipped.starts_with("je ") && contract.null_is_ignored;
        assert!(
            keeps_arguments(skipped, contract.arguments)
                || exit && last.starts_with("test   %rdi,%rdi"),
            "{at}: skips `{skipped}`"
        );
        last = skipped;
    }
    if let Some((target, from)) = listing.targets.range(function.address + 1..=address).next() {
        panic!("{at}: the branch at {from:#x} goes to {target:#x}");
    }
}

/// By its text: a push of a general register, a short nop, or a direct jump or call.
fn is_emulated(text: &str) -> bool {
    let text = text.trim();
    text.starts_with("push   %r") && !text.contains("fs") && !text.contains("gs")
        || matches!(text, "nop" | "xchg   %ax,%ax" | "data16 nop")
        || direct_target(text).is_some() && !text.starts_with("jrcxz") && !text.starts_with("jecxz")
}

/// By its text: an instruction of the kinds that prologues have, and none of the leading argument
/// registers nor the stack pointer is where it writes to.
fn keeps_arguments(text: &str, arguments: usize) -> bool {
    let text = text.split('#').next().unwrap_or_default().trim();
    let text = text.strip_prefix("lock ").unwrap_or(text);
    let (mnemonic, operands) = text.split_once(' ').unwrap_or((text, ""));
    let is = |names: &[&str]| names.iter().any(|name| mnemonic.starts_with(name));
    if mnemonic == "cmpxchg" || is(&["xchg", "xadd"]) {
        return operands
            .split(',')
            .all(|operand| !is_kept(operand, arguments));
    }
    if is(&["test", "cmp", "endbr64", "nop", "ucomis", "comis"]) {
        return true;
    }
    if matches!(mnemonic, "mul" | "mull" | "div" | "divl" | "imul" | "idiv") {
        return arguments < 3; // rdx, the third, takes half of the result
    }
    let writes_last_operand = [
        "mov", "lea", "xor", "and", "or", "sub", "add", "shr", "shl", "sar", "neg", "not", "set",
        "cmov", "inc", "dec", "sbb", "rol", "ror", "bswap", "btr", "pxor", "pshuf", "punpck",
        "pcmpeq", "muls", "cvt", "cltq", "cwtl", "f",
    ];
    let destination = operands.rsplit(',').next().unwrap_or_default();
    is(&writes_last_operand) && !is_kept(destination, arguments)
}

fn is_kept(operand: &str, arguments: usize) -> bool {
    let registers: [&[&str]; 6] = [
        &["%rdi", "%edi", "%di", "%dil"],
        &["%rsi", "%esi", "%si", "%sil"],
        &["%rdx", "%edx", "%dx", "%dl", "%dh"],
        &["%rcx", "%ecx", "%cx", "%cl", "%ch"],
        &["%r8", "%r8d", "%r8w", "%r8b"],
        &["%r9", "%r9d", "%r9w", "%r9b"],
    ];
    let operand = operand.trim();
    let argument = registers[..arguments]
        .iter()
        .any(|names| names.contains(&operand));
    argument || matches!(operand, "%rsp" | "%esp")
}

#[test]
fn functions_of_the_installed_allocators_have_sound_sites() {
    for path in OBJECTS {
        let listing = Listing::read(path);
        let symbols = Symbols::parse(&listing.data).unwrap();
        let step = listing.names.len() / 50 + 1;
        let mut judged = 0;
        for (index, name) in listing.names.iter().enumerate() {
            if index % step != 0 && !ALLOCATORS.contains(&name.as_str()) {
                continue;
            }
            let Some(function) = symbols.find(name) else {
                continue; // a section, or an object without .symtab
            };
            for contract in [Contract::UNKNOWN, Contract::FREE] {
                let site = choose(&symbols, &function, contract);
                check(&listing, &function, contract, &site);
                judged += 1;
            }
        }
        assert!(judged > 10, "only {judged} functions found in {path}");
    }
}

/// The functions that run most, in the allocators whose code lets a probe move.
#[test]
fn malloc_and_free_are_never_single_stepped() {
    for path in OBJECTS {
        let data = std::fs::read(path).unwrap_or_else(|e| panic!("failed to read {path}: {e}"));
        let symbols = Symbols::parse(&data).unwrap();
        for (name, contract) in [("malloc", Contract::reads(1)), ("free", Contract::FREE)] {
            let Some(function) = symbols.find(name) else {
                assert!(path.contains("libstdc++"), "no {name} in {path}");
                continue;
            };
            let site = choose(&symbols, &function, contract);
            let kept = matches!(site.why, Why::Kept(_));
            // mimalloc's malloc moves its size to another register at once.
            let expected = path.contains("mimalloc") && name == "malloc";
            assert_eq!(kept, expected, "{name} in {path}: {site}");
        }
    }
}
