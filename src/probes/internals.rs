//! Which code of an object is its allocator's own: what maps memory from there maps it for the allocator.
//! Names and addresses in, ranges of the file out; nothing about calls or stacks.

use std::ops::Range;

use super::families::{LIBC, owner};
use super::symbols::Symbols;

/// Pieces of code that an object can have at the most.
pub const MOST_PIECES: usize = 16;

/// Code that lies between two functions of one allocator is its own up to this length, in bytes.
const MOST_BETWEEN: u64 = 4096;

/// The C library's function that maps threads' stacks, which are the program's: glibc marks these with MAP_STACK, and
/// its function for it has no name in a stripped library; musl does it right there.
const MAPS_STACKS: &str = "pthread_create";

/// Functions of an allocator that map memory, or that those that do can be inlined into. What a compiler adds behind a
/// dot does not count.
const NAMES: &[&str] = &[
    // glibc
    "sysmalloc",
    "sysmalloc_mmap",
    "sysmalloc_mmap_fallback",
    "new_heap",
    "alloc_new_heap",
    "shrink_heap",
    "heap_trim",
    "_int_new_arena",
    "arena_get2",
    "tcache_init",
    "ptmalloc_init",
    "_int_malloc",
    "_int_realloc",
    "_int_memalign",
    "_int_free",
    "malloc",
    "calloc",
    "realloc",
    "free",
    // musl
    "alloc_group",
    "alloc_slot",
    "alloc_meta",
    "__malloc_alloc_meta",
    "__libc_malloc_impl",
    "__expand_heap",
    "__simple_malloc",
];

/// Parts of names that tell an allocator's functions: its prefix, or its namespace as C++ mangles it.
const PARTS: &[&str] = &[
    "pages_map",
    "pages_commit",
    "pages_boot",
    "pages_trim",
    "unix_mmap",
    "_mi_",
    "8tcmalloc",
    "17tcmalloc_internal",
    "SysAllocator",
    "LowLevelAlloc",
    "5scudo",
    "6__asan",
    "11__sanitizer",
    "15partition_alloc",
    "8snmalloc",
];

/// The allocator's own code in an object, as ranges of its file in bytes; at most [`MOST_PIECES`], ascending. Of the C
/// library and of a library that brings its own `malloc`, that is all; of what else holds an allocator, the functions
/// that are known to map for it.
pub fn allocator_code(symbols: &Symbols<'_>) -> Vec<Range<u64>> {
    let malloc = symbols.find("malloc");
    match malloc.filter(|_| !symbols.is_program()) {
        Some(malloc) => {
            let whole = symbols.file_range(&malloc);
            let is_libc = owner(symbols) == Some(LIBC);
            let stacks = symbols.find(MAPS_STACKS).filter(|_| is_libc);
            let hole = stacks.map(|of| of.file_offset..of.file_offset + of.size);
            whole.map_or_else(Vec::new, |whole| without(whole, hole))
        }
        None => by_name(symbols),
    }
}

fn without(whole: Range<u64>, hole: Option<Range<u64>>) -> Vec<Range<u64>> {
    let Some(hole) = hole.filter(|hole| whole.start <= hole.start && hole.end <= whole.end) else {
        return vec![whole];
    };
    let mut pieces = vec![whole.start..hole.start, hole.end..whole.end];
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

fn by_name(symbols: &Symbols<'_>) -> Vec<Range<u64>> {
    let functions = symbols
        .names()
        .filter(|name| is_internal(name))
        .filter_map(|name| symbols.find(name));
    let pieces = functions.map(|of| of.file_offset..of.file_offset + of.size);
    join(pieces.collect())
}

fn is_internal(name: &str) -> bool {
    let plain = name.split('.').next().unwrap_or(name);
    NAMES.contains(&plain)
        || PARTS.iter().any(|part| name.contains(part))
        || name.starts_with("mi_")
}

/// Joins pieces that touch, and then those that lie closest, until there are few enough.
fn join(mut pieces: Vec<Range<u64>>) -> Vec<Range<u64>> {
    pieces.sort_by_key(|piece| (piece.start, piece.end));
    for most_between in [0, 16, 64, 256, 1024, MOST_BETWEEN] {
        let mut joined: Vec<Range<u64>> = Vec::new();
        for piece in pieces {
            match joined.last_mut() {
                Some(last) if piece.start <= last.end + most_between => {
                    last.end = last.end.max(piece.end);
                }
                _ => joined.push(piece),
            }
        }
        pieces = joined;
        if pieces.len() <= MOST_PIECES {
            break;
        }
    }
    pieces.truncate(MOST_PIECES);
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code_of(path: &str) -> (Vec<Range<u64>>, Option<super::super::symbols::Function>) {
        let path = format!("/usr/lib/{}-linux-{path}", std::env::consts::ARCH);
        let data = std::fs::read(&path).unwrap_or_else(|e| panic!("failed to read {path}: {e}"));
        let symbols = Symbols::parse(&data).unwrap();
        (allocator_code(&symbols), symbols.find(MAPS_STACKS))
    }

    #[test]
    fn all_of_a_c_library_is_its_allocators_but_what_maps_stacks() {
        for path in ["gnu/libc.so.6", "musl/libc.so"] {
            let (code, stacks) = code_of(path);
            let stacks = stacks.expect("it makes threads");
            assert_eq!(code.len(), 2, "{path}: {code:x?}");
            assert_eq!(code[0].end, stacks.file_offset, "{path}");
            assert_eq!(code[1].start, stacks.file_offset + stacks.size, "{path}");
        }
    }

    #[test]
    fn all_of_an_allocators_library_is_its_own() {
        for path in [
            "gnu/libjemalloc.so.2",
            "gnu/libmimalloc.so.2",
            "gnu/libtcmalloc.so.4",
        ] {
            let (code, _) = code_of(path);
            assert_eq!(code.len(), 1, "{path}: {code:x?}");
        }
        assert_eq!(code_of("gnu/libstdc++.so.6").0, []);
    }

    #[test]
    fn internals_are_known_by_name_whatever_the_compiler_adds() {
        for name in [
            "sysmalloc_mmap.isra.0",
            "alloc_new_heap",
            "_rjem_je_pages_map",
            "mi_os_alloc",
        ] {
            assert!(is_internal(name), "{name}");
        }
        for name in [
            "main",
            "mmap",
            "pthread_create",
            "my_free",
            "semi_free",
            "allocate_stack",
        ] {
            assert!(!is_internal(name), "{name}");
        }
    }

    #[test]
    fn pieces_that_lie_close_are_joined_when_there_are_too_many() {
        let few = join(vec![30..40, 0..10, 10..20]);
        assert_eq!(few, [0..20, 30..40]);
        let many = join((0..40).map(|i| i * 20..i * 20 + 10).collect());
        assert_eq!((many.len(), many[0].end), (1, 790));
        let far: Vec<Range<u64>> = (0..40).map(|i| i * 100_000..i * 100_000 + 10).collect();
        assert_eq!(join(far.clone()), far[..MOST_PIECES]);
    }
}
