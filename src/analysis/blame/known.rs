//! Which functions and modules are known not to be the user's: allocators, their wrappers, libraries of languages.
//! A table and how to look things up in it; the order among stacks' calls is `blame`'s.

use super::Part;
use crate::analysis::identity::plain_name;
use crate::analysis::kernel_memory;
use crate::model::report::Location;

/// Modules of the C library, the loader and languages' libraries, by what their names begin with.
const RUNTIMES: [&str; 27] = [
    "libc.so",
    "libc-2",
    "libc.musl",
    "ld-linux",
    "ld-musl",
    "ld-2",
    "ld64.so",
    "libpthread",
    "libdl.so",
    "librt.so",
    "libanl",
    "libstdc++",
    "libc++",
    "libsupc++",
    "libgcc_s",
    "libffi.so",
    "libstd-",
    "libgfortran",
    "libgo.so",
    "libgphobos",
    "libphobos",
    "libswift",
    "libobjc",
    "libglib-2",
    "libgobject-2",
    "libgmodule-2",
    "libgthread-2",
];

/// Modules of allocators, and of tools that stand in for one.
const ALLOCATORS: [&str; 9] = [
    "libjemalloc",
    "libtcmalloc",
    "libmimalloc",
    "libasan",
    "liblsan",
    "libtbbmalloc",
    "libhoard",
    "libsnmalloc",
    "librpmalloc",
];

/// Modules of interpreters and virtual machines.
const INTERPRETERS: [&str; 17] = [
    "libpython",
    "libruby",
    "libperl",
    "libjvm",
    "libjli",
    "libjava.so",
    "libjimage",
    "libnode",
    "libv8",
    "libmono",
    "libcoreclr",
    "libclrjit",
    "libphp",
    "liblua",
    "libguile",
    "libtcl",
    "libmozjs",
];

/// Programs that run what is written in a language; a version may follow.
const INTERPRETING_PROGRAMS: [&str; 16] = [
    "python", "pypy", "perl", "ruby", "node", "nodejs", "java", "php", "php-fpm", "php-cgi", "lua",
    "luajit", "guile", "tclsh", "dotnet", "mono",
];

/// Namespaces and packages of languages' libraries, by what qualified names begin with.
const NAMESPACES: [&str; 17] = [
    "std::",
    "__gnu_cxx::",
    "__cxxabiv1::",
    "__gnu_debug::",
    "__gnu_parallel::",
    "hashbrown::",
    "__rustc",
    "runtime.",
    "runtime/",
    "reflect.",
    "java.",
    "javax.",
    "jdk.",
    "sun.",
    "Ljava/",
    "Ljdk/",
    "Lsun/",
];

/// Modules of Rust's `core` and `alloc`: crates and namespaces of others go by these two names as well.
const RUST_MODULES: [&str; 32] = [
    "alloc",
    "any",
    "array",
    "ascii",
    "borrow",
    "boxed",
    "cell",
    "char",
    "clone",
    "cmp",
    "collections",
    "convert",
    "default",
    "error",
    "ffi",
    "fmt",
    "future",
    "hash",
    "iter",
    "mem",
    "num",
    "ops",
    "option",
    "panicking",
    "ptr",
    "raw_vec",
    "rc",
    "result",
    "slice",
    "str",
    "string",
    "vec",
];

/// What virtual machines name code that nobody wrote, by its beginning.
const STUBS: [&str; 8] = [
    "Interpreter",
    "StubRoutines",
    "call_stub",
    "I2C/",
    "Builtin:",
    "BytecodeHandler:",
    "Stub:",
    "RegExp:",
];

/// Folders and files of languages' libraries, wherever they are installed: what is inlined from there is not the user's.
const FOLDERS: [&str; 9] = [
    "/include/c++/",
    "/c++/v1/",
    "/libstdc++-v3/",
    "/rust/deps/",
    "/rust/library/",
    "/rustlib/src/",
    "/go/src/runtime/",
    "<frozen ",
    "node:internal/",
];

/// Functions that allocate on behalf of their caller, by their whole name without leading underscores.
const ALLOCATE: [&str; 26] = [
    "malloc",
    "calloc",
    "realloc",
    "reallocf",
    "reallocarray",
    "memalign",
    "posix_memalign",
    "aligned_alloc",
    "valloc",
    "pvalloc",
    "zalloc",
    "strdup",
    "strndup",
    "memdup",
    "wcsdup",
    "asprintf",
    "vasprintf",
    "mmap",
    "mmap64",
    "mremap",
    "sbrk",
    "brk",
    "cfree",
    "free",
    "libc_malloc",
    "libc_calloc",
];

/// What wrappers put before one of those: `xmalloc`, `g_strdup`, `safe_calloc`.
const WRAPPERS: [&str; 27] = [
    "x",
    "xx",
    "z",
    "e",
    "s",
    "ck_",
    "ckd_",
    "safe_",
    "checked_",
    "must_",
    "emit_",
    "je_",
    "mi_",
    "tc_",
    "rp",
    "g_",
    "g_try_",
    "av_",
    "rte_",
    "apr_",
    "uv_",
    "CRYPTO_",
    "OPENSSL_",
    "sqlite3_",
    "ruby_x",
    "rb_",
    "interceptor_",
];

/// What wrappers call what C has no name for.
const WRAPPED: [&str; 18] = [
    "alloc",
    "malloc0",
    "malloc_n",
    "malloc0_n",
    "realloc_n",
    "mallocz",
    "malloc_array",
    "calloc_array",
    "nmalloc",
    "nrealloc",
    "2realloc",
    "2nrealloc",
    "charalloc",
    "memdup2",
    "strdup_printf",
    "strdup_vprintf",
    "strconcat",
    "strdupv",
];

/// Families of allocators' functions, by what their names begin with.
const FAMILIES: [&str; 52] = [
    "operator new",
    "operator delete",
    "_Zn",
    "__rust_alloc",
    "__rust_realloc",
    "__rdl_",
    "__rg_",
    "__rustc::",
    "rust_alloc",
    "<alloc::alloc::",
    "alloc::alloc::",
    "alloc::raw_vec::",
    "__gnu_cxx::new_allocator",
    "std::__new_allocator",
    "std::allocator",
    "g_slice_",
    "g_malloc",
    "g_realloc",
    "g_new",
    "mi_heap_",
    "mi_malloc",
    "je_arena_",
    "PyObject_Malloc",
    "PyObject_Calloc",
    "PyObject_Realloc",
    "_PyObject_",
    "PyMem_",
    "_PyMem_",
    "pymalloc_",
    "PyType_GenericAlloc",
    "_PyType_AllocNoTrack",
    "os::malloc",
    "os::realloc",
    "os::strdup",
    "AllocateHeap",
    "ReallocateHeap",
    "CHeapObj",
    "Arena::",
    "ruby_xmalloc",
    "ruby_xcalloc",
    "ruby_xrealloc",
    "objspace_x",
    "rb_gc_impl_",
    "Perl_safesys",
    "Perl_sv_grow",
    "_emalloc",
    "_safe_",
    "caml_alloc",
    "caml_stat_",
    "swift_alloc",
    "swift_slowAlloc",
    "talloc_",
];

/// Allocators of large programs, by their whole names.
const OWN_ALLOCATORS: [&str; 26] = [
    "zmalloc",
    "zcalloc",
    "zrealloc",
    "zstrdup",
    "ztrymalloc",
    "ztrycalloc",
    "ngx_alloc",
    "ngx_calloc",
    "ngx_palloc",
    "ngx_pcalloc",
    "ngx_pnalloc",
    "ngx_palloc_large",
    "apr_palloc",
    "apr_pcalloc",
    "apr_pstrdup",
    "sqlite3Malloc",
    "sqlite3MallocZero",
    "sqlite3DbMallocRaw",
    "sqlite3DbMallocRawNN",
    "sqlite3MemMalloc",
    "xmlStrdup",
    "xmlStrndup",
    "mem_malloc",
    "palloc",
    "uv__malloc",
    "uv__calloc",
];

/// Functions of the kernel that allocate on behalf of their caller, beside those that accounting knows.
const KERNEL: [&str; 24] = [
    "kvmalloc",
    "__kvmalloc",
    "kzalloc",
    "kcalloc",
    "krealloc",
    "__krealloc",
    "__do_krealloc",
    "kvrealloc",
    "kvzalloc",
    "kstrdup",
    "kstrndup",
    "kmemdup",
    "kvmemdup",
    "kmemdup_nul",
    "vmalloc",
    "__vmalloc",
    "vzalloc",
    "vmap",
    "kasprintf",
    "kvasprintf",
    "get_zeroed_page",
    "devm_k",
    "devres_alloc",
    "__get_vm_area_node",
];

/// Whose a function is: its name without parameters, the name of its module, and where it is in the source.
pub fn part(title: &str, module: &str, location: Option<&Location>) -> Part {
    let name = plain_name(title);
    if is_allocator(name, module) {
        return Part::Allocator;
    }
    if begins(module, &RUNTIMES) || is_of_library(name) || location.is_some_and(is_in_library) {
        return Part::Runtime;
    }
    if begins(name, &STUBS) {
        return Part::Interpreter;
    }
    // what a virtual machine compiled or runs has a name, but no object that holds it
    match module.is_empty() || module.starts_with('[') {
        true => Part::User,
        false => part_of_module(module),
    }
}

/// Whose a module is.
pub fn part_of_module(module: &str) -> Part {
    if begins(module, &ALLOCATORS) {
        return Part::Allocator;
    }
    if begins(module, &RUNTIMES) {
        return Part::Runtime;
    }
    match is_interpreter(module) || module.is_empty() {
        true => Part::Interpreter,
        false => Part::User,
    }
}

fn is_allocator(name: &str, module: &str) -> bool {
    let in_kernel = module.starts_with('[') && module != "[vdso]";
    let bare = name.trim_start_matches('_');
    begins(module, &ALLOCATORS)
        || begins(name, &FAMILIES)
        || name.ends_with("::operator new")
        || name.ends_with("::operator new[]")
        || OWN_ALLOCATORS.contains(&name)
        || ALLOCATE.contains(&bare)
        || is_wrapper(bare)
        || (in_kernel && (kernel_memory::is_allocator(name) || begins(name, &KERNEL)))
}

fn is_wrapper(name: &str) -> bool {
    let wraps = |prefix: &str| {
        name.strip_prefix(prefix)
            .is_some_and(|rest| ALLOCATE.contains(&rest) || WRAPPED.contains(&rest))
    };
    WRAPPERS.iter().any(|prefix| wraps(prefix))
}

fn is_interpreter(module: &str) -> bool {
    let program = |name: &str| {
        module
            .strip_prefix(name)
            .is_some_and(|version| version.chars().all(|c| c.is_ascii_digit() || c == '.'))
    };
    // what extends Python is called by a line of the user's
    let extends = module.contains(".cpython-3") || module.ends_with(".abi3.so");
    extends
        || begins(module, &INTERPRETERS)
        || INTERPRETING_PROGRAMS.iter().any(|name| program(name))
}

/// Whether a qualified name is in a language's library. Rust's generic functions say what they are for:
/// `<T as alloc::…>::f` is the library's, `<app::T as core::…>::f` the user's.
fn is_of_library(name: &str) -> bool {
    if let Some((own, of)) = name
        .strip_prefix('<')
        .and_then(|rest| rest.split_once(" as "))
    {
        let is_rusts = begins(of, &NAMESPACES) || is_rusts(of);
        return is_rusts && (!own.contains("::") || is_of_library(own));
    }
    let name = name.trim_start_matches(['<', '&', ':']);
    begins(name, &NAMESPACES) || is_rusts(name)
}

fn is_rusts(name: &str) -> bool {
    let path = name
        .strip_prefix("core::")
        .or_else(|| name.strip_prefix("alloc::"));
    let module = path.and_then(|path| path.split("::").next());
    module.is_some_and(|module| RUST_MODULES.contains(&module) || module == "sync")
}

fn is_in_library(location: &Location) -> bool {
    let file = location.file.to_string_lossy();
    // what pip and distributions install beside Python's own library is the user's
    let pythons = file.contains("/lib/python") && !file.contains("-packages/");
    let rusts = file.starts_with("/rustc/") && file.contains("/library/");
    pythons || rusts || FOLDERS.iter().any(|folder| file.contains(folder))
}

fn begins(text: &str, prefixes: &[&str]) -> bool {
    prefixes.iter().any(|prefix| text.starts_with(prefix))
}
