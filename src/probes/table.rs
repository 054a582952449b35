//! The functions that are probed, as rows: what each does and which of its arguments say so.
//! Adding an allocator means adding rows; nothing here looks at an object or attaches anything.

/// What a function does to memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signature {
    /// What the function does.
    pub operation: Operation,
    /// The argument that holds the size in bytes.
    pub size: Option<Argument>,
    /// The argument that multiplies the size.
    pub count: Option<Argument>,
    /// The argument that holds the block to free or to resize.
    pub block: Option<Argument>,
    /// The argument that points to where the new block's address is stored; else it is returned.
    pub out: Option<Argument>,
}

/// A function to probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its name, without a prefix.
    pub name: &'static str,
    /// How to read a call of it.
    pub signature: Signature,
}

const fn row(name: &'static str, operation: Operation) -> Row {
    let signature = Signature {
        operation,
        size: None,
        count: None,
        block: None,
        out: None,
    };
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

/// The C library's allocator. The prefix of `--symbols-prefix` goes before these names.
pub const HEAP: &[Row] = &[
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

/// The C library's calls for anonymous mappings; always without a prefix.
pub const MAPPINGS: &[Row] = &[
    row("mmap", Operation::Mmap),
    row("mmap64", Operation::Mmap),
    row("munmap", Operation::Munmap),
    row("mremap", Operation::Mremap),
];
