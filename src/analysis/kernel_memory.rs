//! Whose memory the kernel's allocations are, told from the functions that made them (design: counted once).
//! The slab allocator takes pages and blocks for itself, which must not count beside the objects in them.

use crate::model::report::Frame;
use crate::model::snapshot::Class;

/// Where an allocation belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Account {
    /// Under its own class, or, where the stack tells more than the tracer knew, under another one.
    Class(Class),
    /// Nowhere: it backs allocations that are counted themselves.
    Backing,
}

/// Entry points of the page allocator, which is left before its caller tells who wants the pages.
const PAGE_ALLOCATOR: [&str; 10] = [
    "alloc_pages",
    "__alloc_pages",
    "alloc_frozen_pages",
    "__alloc_frozen_pages",
    "alloc_page_interleave",
    "get_page_from_freelist",
    "get_free_pages",
    "__get_free_pages",
    "folio_alloc",
    "__folio_alloc",
];

/// Functions through which the slab allocator takes pages, for slabs and for blocks too large for them.
const SLAB_PAGES: [&str; 13] = [
    "alloc_slab_page",
    "allocate_slab",
    "new_slab",
    "__slab_alloc",
    "___slab_alloc",
    "refill_objects",
    "kmalloc_order",
    "kmalloc_large",
    "__kmalloc",
    "___kmalloc",
    "kmem_cache_alloc",
    "__kmem_cache_alloc",
    "kmalloc",
];

/// Functions through which the slab allocator takes blocks for its own records.
const SLAB_RECORDS: [&str; 8] = [
    "alloc_slab_obj_exts",
    "alloc_slab_cgroups",
    "memcg_alloc_slab_cgroups",
    "memcg_alloc_page_obj_cgroups",
    "alloc_empty_sheaf",
    "__alloc_empty_sheaf",
    "__pcs_replace_empty_main",
    "allocate_slab",
];

/// Entry points of kmalloc and of the caches.
const SLAB_ALLOCATOR: [&str; 5] = [
    "kmalloc",
    "__kmalloc",
    "___kmalloc",
    "__do_kmalloc",
    "kmem_cache_alloc",
];

/// Functions of the per-CPU allocator.
const PERCPU: [&str; 2] = ["pcpu_", "alloc_percpu"];

/// Functions that fill the page cache: not all of its pages can be moved, by which the others are known.
const PAGE_CACHE: [&str; 5] = [
    "filemap_alloc_folio",
    "__filemap_get_folio",
    "pagecache_get_page",
    "__page_cache_alloc",
    "page_cache_ra",
];

/// Judges an allocation by its frames. `percpu` says whether per-CPU memory is counted by itself.
pub fn account(class: Class, frames: &[Frame], percpu: bool) -> Account {
    let asks = |prefixes: &[&str], passed: &[&str]| {
        let mut functions = frames
            .iter()
            .map(|frame| frame.function.as_ref().map_or("", |f| f.name.as_str()));
        functions
            .find(|name| !starts_with(name, passed))
            .is_some_and(|name| starts_with(name, prefixes))
    };
    match class {
        Class::Page if asks(&SLAB_PAGES, &PAGE_ALLOCATOR) => Account::Backing,
        Class::Page if percpu && asks(&PERCPU, &PAGE_ALLOCATOR) => Account::Backing,
        Class::Page if asks(&PAGE_CACHE, &PAGE_ALLOCATOR) => Account::Class(Class::UserPages),
        Class::Slab if asks(&SLAB_RECORDS, &SLAB_ALLOCATOR) => Account::Backing,
        class => Account::Class(class),
    }
}

/// Whether a function of the kernel allocates on behalf of its caller.
pub fn is_allocator(name: &str) -> bool {
    let tables: [&[&str]; 5] = [
        &PAGE_ALLOCATOR,
        &SLAB_PAGES,
        &SLAB_RECORDS,
        &SLAB_ALLOCATOR,
        &PERCPU,
    ];
    tables.iter().any(|table| starts_with(name, table))
}

fn starts_with(name: &str, prefixes: &[&str]) -> bool {
    prefixes.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::report::Function;

    fn stack(names: &str) -> Vec<Frame> {
        let frame = |name: &str| Frame {
            function: Some(Function {
                name: name.into(),
                location: None,
            }),
            ..Frame::default()
        };
        names.split(' ').map(frame).collect()
    }

    fn page(names: &str) -> Account {
        account(Class::Page, &stack(names), false)
    }

    #[test]
    fn pages_of_slabs_and_of_large_blocks_are_counted_with_those() {
        for names in [
            "__alloc_pages alloc_pages allocate_slab ___slab_alloc kmem_cache_alloc caller",
            "__alloc_frozen_pages_noprof alloc_pages_mpol new_slab ___slab_alloc caller",
            "__alloc_frozen_pages_noprof ___kmalloc_large_node __kmalloc_noprof caller",
            "__alloc_pages kmalloc_order kmalloc_order_trace caller",
        ] {
            assert_eq!(page(names), Account::Backing, "{names}");
        }
    }

    #[test]
    fn pages_of_others_count_even_if_a_slab_wanted_memory_further_out() {
        for names in [
            "__alloc_pages_noprof leak_pages call_timer_fn",
            "__alloc_pages_noprof writeback shrink_slab try_to_free_pages __alloc_pages_noprof allocate_slab",
        ] {
            assert_eq!(page(names), Account::Class(Class::Page), "{names}");
        }
    }

    #[test]
    fn pages_of_files_are_user_pages() {
        assert_eq!(
            page("__alloc_pages_noprof alloc_pages_mpol folio_alloc_noprof"),
            Account::Class(Class::Page)
        );
        assert_eq!(
            page("__alloc_pages alloc_pages __page_cache_alloc page_cache_ra_unbounded"),
            Account::Class(Class::UserPages)
        );
    }

    #[test]
    fn the_slab_allocators_records_are_its_own() {
        let slab = |names| account(Class::Slab, &stack(names), false);
        assert_eq!(
            slab("__kmalloc_cache_noprof __alloc_empty_sheaf kmem_cache_alloc_noprof caller"),
            Account::Backing
        );
        assert_eq!(
            slab("__kmalloc_flags_noprof __pcs_replace_empty_main kmem_cache_alloc_noprof caller"),
            Account::Backing
        );
        assert_eq!(
            slab("kmem_cache_alloc_noprof alloc_pipe_info"),
            Account::Class(Class::Slab)
        );
    }

    #[test]
    fn pages_of_percpu_memory_count_once() {
        let names = stack("__alloc_pages pcpu_alloc_pages pcpu_populate_chunk");
        assert_eq!(account(Class::Page, &names, true), Account::Backing);
        assert_eq!(
            account(Class::Page, &names, false),
            Account::Class(Class::Page)
        );
    }
}
