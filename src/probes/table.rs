//! The functions that are probed, as rows: what each does and which of its arguments say so.
//! Adding an allocator means adding rows; which of them an object gets is decided in `families`.

use serde::{Deserialize, Serialize};

/// What a function does to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// Gives a block.
    Allocate,
    /// Takes a block and gives another, perhaps in the same place.
    Reallocate,
    /// Takes a block back.
    Free,
    /// mmap(2).
    Mmap,
    /// munmap(2).
    Munmap,
    /// mremap(2).
    Mremap,
}

/// A function's number among its arguments, from 1 to 6.
pub type Argument = u8;

/// How to read a call of one function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// What the function does.
    pub operation: Operation,
    /// The argument that holds the size in bytes; none: every call asks for `constant_size`.
    pub size: Option<Argument>,
    /// The size in bytes that no argument holds.
    pub constant_size: u64,
    /// The argument that multiplies the size.
    pub count: Option<Argument>,
    /// The argument that holds the block to free or to resize.
    pub block: Option<Argument>,
    /// The argument that points to where the new block's address is stored; else it is returned.
    pub out: Option<Argument>,
    /// Whether a call that fails throws an exception.
    pub throws: bool,
}

/// A function to probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its name, without a prefix.
    pub name: &'static str,
    /// How to read a call of it.
    pub signature: Signature,
}

impl Signature {
    /// A call of which no argument is read.
    pub const fn new(operation: Operation) -> Self {
        Self {
            operation,
            size: None,
            constant_size: 0,
            count: None,
            block: None,
            out: None,
            throws: false,
        }
    }

    /// The same call behind `extra` more arguments.
    pub fn behind(self, extra: Argument) -> Self {
        let shift = |argument: Option<Argument>| argument.map(|argument| argument + extra);
        Self {
            size: shift(self.size),
            count: shift(self.count),
            block: shift(self.block),
            out: shift(self.out),
            ..self
        }
    }
}

const fn row(name: &'static str, operation: Operation) -> Row {
    let signature = Signature::new(operation);
    Row { name, signature }
}

const fn allocate(name: &'static str, size: Argument) -> Row {
    let mut row = row(name, Operation::Allocate);
    row.signature.size = Some(size);
    row
}

const fn reallocate(name: &'static str, block: Argument, size: Argument) -> Row {
    let mut row = row(name, Operation::Reallocate);
    row.signature.block = Some(block);
    row.signature.size = Some(size);
    row
}

const fn free(name: &'static str, block: Argument) -> Row {
    let mut row = row(name, Operation::Free);
    row.signature.block = Some(block);
    row
}

const fn counted(mut row: Row, count: Argument) -> Row {
    row.signature.count = Some(count);
    row
}

const fn stored(mut row: Row, out: Argument) -> Row {
    row.signature.out = Some(out);
    row
}

const fn throwing(mut row: Row) -> Row {
    row.signature.throws = true;
    row
}

/// The interface of the C library's allocator, which most others share. A prefix can go before these names.
pub const C_INTERFACE: &[Row] = &[
    allocate("malloc", 1),
    counted(allocate("calloc", 2), 1),
    reallocate("realloc", 1, 2),
    counted(reallocate("reallocarray", 1, 3), 2),
    stored(allocate("posix_memalign", 3), 1),
    allocate("memalign", 2),
    allocate("aligned_alloc", 2),
    allocate("valloc", 1),
    allocate("pvalloc", 1),
    free("free", 1),
    free("cfree", 1),
];

/// What C23 adds to it.
pub const C23: &[Row] = &[free("free_sized", 1), free("free_aligned_sized", 1)];

/// What some allocators have beside the C library's functions, under the same prefix.
pub const C_EXTENSIONS: &[Row] = &[
    // jemalloc(3); Google's tcmalloc has sdallocx as well
    allocate("mallocx", 1),
    reallocate("rallocx", 1, 2),
    free("dallocx", 1),
    free("sdallocx", 1),
    // mimalloc and scudo have these from BSD and Android
    reallocate("reallocf", 1, 2),
    free("vfree", 1),
];

/// tcmalloc, as gperftools export it.
pub const TCMALLOC: &[Row] = &[
    allocate("tc_malloc", 1),
    allocate("tc_malloc_skip_new_handler", 1),
    counted(allocate("tc_calloc", 2), 1),
    reallocate("tc_realloc", 1, 2),
    stored(allocate("tc_posix_memalign", 3), 1),
    allocate("tc_memalign", 2),
    allocate("tc_valloc", 1),
    allocate("tc_pvalloc", 1),
    free("tc_free", 1),
    free("tc_free_sized", 1),
    free("tc_cfree", 1),
    throwing(allocate("tc_new", 1)),
    allocate("tc_new_nothrow", 1),
    throwing(allocate("tc_newarray", 1)),
    allocate("tc_newarray_nothrow", 1),
    throwing(allocate("tc_new_aligned", 1)),
    allocate("tc_new_aligned_nothrow", 1),
    throwing(allocate("tc_newarray_aligned", 1)),
    allocate("tc_newarray_aligned_nothrow", 1),
    free("tc_delete", 1),
    free("tc_delete_sized", 1),
    free("tc_delete_nothrow", 1),
    free("tc_delete_aligned", 1),
    free("tc_delete_sized_aligned", 1),
    free("tc_delete_aligned_nothrow", 1),
    free("tc_deletearray", 1),
    free("tc_deletearray_sized", 1),
    free("tc_deletearray_nothrow", 1),
    free("tc_deletearray_aligned", 1),
    free("tc_deletearray_sized_aligned", 1),
    free("tc_deletearray_aligned_nothrow", 1),
];

/// mimalloc, without `mi_`. Those that give or resize a block come as `heap_…` and `theap_…` as well, with the heap
/// before the other arguments.
pub const MIMALLOC: &[Row] = &[
    allocate("malloc", 1),
    allocate("malloc_small", 1),
    allocate("zalloc", 1),
    allocate("zalloc_small", 1),
    counted(allocate("calloc", 2), 1),
    counted(allocate("mallocn", 2), 1),
    reallocate("realloc", 1, 2),
    counted(reallocate("reallocn", 1, 3), 2),
    counted(reallocate("reallocarray", 1, 3), 2),
    reallocate("reallocf", 1, 2),
    reallocate("rezalloc", 1, 2),
    counted(reallocate("recalloc", 1, 3), 2),
    reallocate("expand", 1, 2),
    allocate("malloc_aligned", 1),
    allocate("malloc_aligned_at", 1),
    allocate("zalloc_aligned", 1),
    allocate("zalloc_aligned_at", 1),
    counted(allocate("calloc_aligned", 2), 1),
    counted(allocate("calloc_aligned_at", 2), 1),
    reallocate("realloc_aligned", 1, 2),
    reallocate("realloc_aligned_at", 1, 2),
    reallocate("rezalloc_aligned", 1, 2),
    reallocate("rezalloc_aligned_at", 1, 2),
    counted(reallocate("recalloc_aligned", 1, 3), 2),
    counted(reallocate("recalloc_aligned_at", 1, 3), 2),
    stored(allocate("posix_memalign", 3), 1),
    allocate("memalign", 2),
    allocate("aligned_alloc", 2),
    allocate("valloc", 1),
    allocate("pvalloc", 1),
    throwing(allocate("new", 1)),
    allocate("new_nothrow", 1),
    throwing(allocate("new_aligned", 1)),
    allocate("new_aligned_nothrow", 1),
    throwing(counted(allocate("new_n", 2), 1)),
    reallocate("new_realloc", 1, 2),
    counted(reallocate("new_reallocn", 1, 3), 2),
    throwing(allocate("alloc_new", 1)),
    throwing(counted(allocate("alloc_new_n", 2), 1)),
    free("free", 1),
    free("free_size", 1),
    free("free_size_aligned", 1),
    free("free_aligned", 1),
    free("cfree", 1),
];

/// C++ `operator new` and `operator delete`, plain and for arrays, in all forms of the standard and with tcmalloc's
/// hints (Itanium ABI, 64 bits).
pub const OPERATORS: &[Row] = &[
    throwing(allocate("_Znwm", 1)),
    throwing(allocate("_Znam", 1)),
    allocate("_ZnwmRKSt9nothrow_t", 1),
    allocate("_ZnamRKSt9nothrow_t", 1),
    throwing(allocate("_ZnwmSt11align_val_t", 1)),
    throwing(allocate("_ZnamSt11align_val_t", 1)),
    allocate("_ZnwmSt11align_val_tRKSt9nothrow_t", 1),
    allocate("_ZnamSt11align_val_tRKSt9nothrow_t", 1),
    throwing(allocate("_Znwm12__hot_cold_t", 1)),
    throwing(allocate("_Znam12__hot_cold_t", 1)),
    allocate("_ZnwmRKSt9nothrow_t12__hot_cold_t", 1),
    allocate("_ZnamRKSt9nothrow_t12__hot_cold_t", 1),
    throwing(allocate("_ZnwmSt11align_val_t12__hot_cold_t", 1)),
    throwing(allocate("_ZnamSt11align_val_t12__hot_cold_t", 1)),
    allocate("_ZnwmSt11align_val_tRKSt9nothrow_t12__hot_cold_t", 1),
    allocate("_ZnamSt11align_val_tRKSt9nothrow_t12__hot_cold_t", 1),
    throwing(allocate("__size_returning_new", 1)),
    throwing(allocate("__size_returning_new_aligned", 1)),
    throwing(allocate("__size_returning_new_hot_cold", 1)),
    throwing(allocate("__size_returning_new_aligned_hot_cold", 1)),
    free("_ZdlPv", 1),
    free("_ZdaPv", 1),
    free("_ZdlPvm", 1),
    free("_ZdaPvm", 1),
    free("_ZdlPvRKSt9nothrow_t", 1),
    free("_ZdaPvRKSt9nothrow_t", 1),
    free("_ZdlPvSt11align_val_t", 1),
    free("_ZdaPvSt11align_val_t", 1),
    free("_ZdlPvmSt11align_val_t", 1),
    free("_ZdaPvmSt11align_val_t", 1),
    free("_ZdlPvSt11align_val_tRKSt9nothrow_t", 1),
    free("_ZdaPvSt11align_val_tRKSt9nothrow_t", 1),
];

/// Rust's global allocator, without `__rust_`, `__rg_` (the program's own) or `__rdl_` (the standard library's).
pub const RUST: &[Row] = &[
    allocate("alloc", 1),
    allocate("alloc_zeroed", 1),
    reallocate("realloc", 1, 4),
    free("dealloc", 1),
];

/// The C library's calls for anonymous mappings; always without a prefix.
pub const MAPPINGS: &[Row] = &[
    row("mmap", Operation::Mmap),
    row("mmap64", Operation::Mmap),
    row("munmap", Operation::Munmap),
    row("mremap", Operation::Mremap),
];
