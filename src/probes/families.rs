//! Which allocators an object holds, told by the names of its functions, and the rows of the table that each brings.
//! No bytes of code and no files; names in, rows with full names out.

use std::sync::Arc;

use super::symbols::Symbols;
use super::table::{
    Argument, C_EXTENSIONS, C_INTERFACE, C23, MAPPINGS, MIMALLOC, OPERATORS, Operation, RUST, Row,
    Signature, TCMALLOC,
};

/// The name of the C library's own allocator.
pub const LIBC: &str = "libc";

/// A function to look for in an object.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its full name.
    pub name: String,
    /// How to read a call of it.
    pub signature: Signature,
    /// The allocator that it belongs to.
    pub allocator: Arc<str>,
    /// Whether its lack is worth a word.
    pub expected: bool,
    /// Whether it matters only where nothing else allocates: it calls another allocator as a rule.
    pub last_resort: bool,
}

/// Functions that tell whose the plain `malloc` beside them is. Those marked `true` are the same function.
const OWNERS: &[(&str, bool, &str)] = &[
    ("mallocx", false, "jemalloc"),
    ("tc_malloc", true, "tcmalloc"),
    ("TCMallocInternalMalloc", true, "tcmalloc"),
    (
        "MallocExtension_Internal_GetNumericProperty",
        false,
        "tcmalloc",
    ),
    ("mi_malloc", true, "mimalloc"),
    ("__scudo_print_stats", false, "scudo"),
    ("__asan_init", false, "asan"),
    ("__libc_malloc", false, LIBC),
    ("__libc_start_main", false, LIBC),
    ("__libc_init", false, LIBC),
];

/// The functions that an object may have, those of the plain C interface first. `file` is its name, and goes for an
/// allocator's where nothing tells that; with a `prefix` only what goes by it is looked for.
pub fn members(symbols: &Symbols<'_>, file: &str, prefix: &str) -> Vec<Member> {
    let mut members = Members::default();
    if prefix.is_empty() {
        members.add_plain(symbols, file);
        for prefix in jemalloc_prefixes(symbols) {
            members.add_c_interface(&prefix, "jemalloc", false);
            members.add(&prefix, C_EXTENSIONS, "jemalloc");
        }
        if symbols.find("tc_malloc").is_some() {
            members.add("", TCMALLOC, "tcmalloc");
        }
        if has_mimalloc(symbols) {
            members.add_mimalloc();
        }
        members.add_rust(symbols);
    } else {
        let allocator = prefix.trim_matches('_');
        members.add_c_interface(prefix, allocator, true);
        members.add(prefix, C_EXTENSIONS, allocator);
        match prefix {
            "tc_" => members.add("", TCMALLOC, allocator),
            "mi_" => members.add_mimalloc(),
            _ => {}
        }
    }
    members.0
}

/// The functions for anonymous mappings.
pub fn mapping_members() -> Vec<Member> {
    let mut members = Members::default();
    members.add("", MAPPINGS, LIBC);
    for member in &mut members.0 {
        member.expected = true;
    }
    members.0
}

#[derive(Default)]
struct Members(Vec<Member>);

impl Members {
    fn add(&mut self, prefix: &str, rows: &[Row], allocator: &str) {
        self.extend(rows.iter().map(|row| (prefix, row, 0)), allocator);
    }

    /// Adds rows with their prefixes, and with arguments before theirs.
    fn extend<'a>(
        &mut self,
        rows: impl Iterator<Item = (&'a str, &'a Row, Argument)>,
        allocator: &str,
    ) {
        let allocator: Arc<str> = allocator.into();
        self.0.extend(rows.map(|(prefix, row, extra)| Member {
            name: format!("{prefix}{}", row.name),
            signature: row.signature.behind(extra),
            allocator: Arc::clone(&allocator),
            expected: false,
            last_resort: false,
        }));
    }

    fn add_c_interface(&mut self, prefix: &str, allocator: &str, expected: bool) {
        let begin = self.0.len();
        self.add(prefix, C_INTERFACE, allocator);
        for member in &mut self.0[begin..] {
            member.expected = expected;
        }
        self.add(prefix, C23, allocator);
    }

    /// The C interface without a prefix, and what belongs to the same allocator. Beside the C library's malloc, C++'s
    /// operators are those of libstdc++, which call it: an allocator's own they are only beside its own malloc.
    fn add_plain(&mut self, symbols: &Symbols<'_>, file: &str) {
        let owner = owner(symbols).unwrap_or(file);
        self.add_c_interface("", owner, true);
        if symbols.find("malloc").is_none() || owner == LIBC {
            return;
        }
        self.add("", OPERATORS, owner);
        if owner != file {
            self.add("", C_EXTENSIONS, owner);
        }
    }

    fn add_mimalloc(&mut self) {
        self.add("mi_", MIMALLOC, "mimalloc");
        // a heap is no argument of a free, and mi_heap_new makes a heap
        let with_heap = MIMALLOC
            .iter()
            .filter(|row| row.signature.operation != Operation::Free && row.name != "new");
        for prefix in ["mi_heap_", "mi_theap_"] {
            self.extend(with_heap.clone().map(|row| (prefix, row, 1)), "mimalloc");
        }
    }

    /// Rust's functions lead to another allocator, mostly: they are probed where the program says that it brings one,
    /// or where nothing else is found.
    fn add_rust(&mut self, symbols: &Symbols<'_>) {
        let begin = self.0.len();
        for prefix in ["__rust_", "__rg_", "__rdl_"] {
            self.add(prefix, RUST, "rust");
        }
        for member in &mut self.0[begin..] {
            member.last_resort = symbols.find("__rg_alloc").is_none();
        }
    }
}

/// Whose the object's plain `malloc` is; none where nothing tells.
pub fn owner(symbols: &Symbols<'_>) -> Option<&'static str> {
    let malloc = symbols.find("malloc")?;
    OWNERS
        .iter()
        .find(|(name, same, _)| {
            symbols
                .find(name)
                .is_some_and(|found| !same || found.file_offset == malloc.file_offset)
        })
        .map(|(_, _, owner)| *owner)
}

/// A linker can leave out what the program does not call: that is all but the aligned functions in a Rust program.
fn has_mimalloc(symbols: &Symbols<'_>) -> bool {
    symbols.find("mi_free").is_some()
        && ["mi_malloc", "mi_malloc_aligned", "mi_zalloc_aligned"]
            .iter()
            .any(|name| symbols.find(name).is_some())
}

/// jemalloc can be built with any prefix, and only it has `mallocx`. Of the functions beside it a linker leaves what the
/// program calls, which in Rust is `sdallocx` and not `free`.
fn jemalloc_prefixes(symbols: &Symbols<'_>) -> Vec<String> {
    let mut prefixes: Vec<String> = symbols
        .names()
        .filter_map(|name| name.strip_suffix("mallocx"))
        .filter(|prefix| !prefix.is_empty())
        .filter(|prefix| {
            ["free", "dallocx", "sdallocx"]
                .iter()
                .any(|name| symbols.find(&format!("{prefix}{name}")).is_some())
        })
        .map(str::to_owned)
        .collect();
    prefixes.sort();
    prefixes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn installed(name: &str) -> Vec<u8> {
        let path = format!("/usr/lib/{}-linux-{name}", std::env::consts::ARCH);
        std::fs::read(&path).unwrap_or_else(|error| panic!("failed to read {path}: {error}"))
    }

    #[test]
    fn installed_allocators_are_told_by_their_functions() {
        for (name, expected) in [
            ("gnu/libc.so.6", Some(LIBC)),
            ("musl/libc.so", Some(LIBC)),
            ("gnu/libjemalloc.so.2", Some("jemalloc")),
            ("gnu/libtcmalloc.so.4", Some("tcmalloc")),
            ("gnu/libtcmalloc_minimal.so.4", Some("tcmalloc")),
            ("gnu/libmimalloc.so.2", Some("mimalloc")),
            ("gnu/libstdc++.so.6", None),
        ] {
            let data = installed(name);
            assert_eq!(owner(&Symbols::parse(&data).unwrap()), expected, "{name}");
        }
    }

    #[test]
    fn operators_are_looked_for_beside_an_allocators_own_malloc_only() {
        for (name, expected) in [
            ("gnu/libc.so.6", false),
            ("gnu/libjemalloc.so.2", true),
            ("gnu/libtcmalloc.so.4", true),
            ("gnu/libmimalloc.so.2", true),
        ] {
            let data = installed(name);
            let symbols = Symbols::parse(&data).unwrap();
            let found = members(&symbols, "file", "")
                .iter()
                .any(|member| member.name == "_Znwm");
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn a_heap_goes_before_the_other_arguments() {
        let mut all = Members::default();
        all.add_mimalloc();
        let signature = |name: &str| {
            let mut found = all.0.iter().filter(|member| member.name == name);
            found.next().map(|member| member.signature)
        };
        let calloc = signature("mi_heap_calloc").unwrap();
        assert_eq!((calloc.count, calloc.size), (Some(2), Some(3)));
        let realloc = signature("mi_heap_realloc").unwrap();
        assert_eq!((realloc.block, realloc.size), (Some(2), Some(3)));
        assert_eq!(signature("mi_heap_free"), None);
        assert_eq!(signature("mi_heap_new"), None);
        assert!(signature("mi_free").is_some());
    }
}
