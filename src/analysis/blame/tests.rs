//! Who is blamed, stack by stack, innermost function first.

use super::*;
use crate::model::report::Function;

fn frame(name: &str, module: &str, file: Option<&str>) -> Frame {
    let location = file.map(|file| Location {
        file: file.into(),
        line: Some(7),
    });
    Frame {
        address: 0x1000,
        module: (!module.is_empty()).then(|| {
            Arc::new(Module {
                path: module.into(),
                build_id: None,
            })
        }),
        function: (!name.is_empty()).then(|| Function {
            name: name.into(),
            location,
        }),
        file_offset: Some(0x20),
        ..Frame::default()
    }
}

/// Names of functions of `/bin/app`, or `name @ module`, with addresses of their own.
fn blamed(names: &[&str]) -> String {
    blamed_by(&Blame::default(), names)
}

fn blamed_by(blame: &Blame, names: &[&str]) -> String {
    let frames = names.iter().zip(1..).map(|(name, address)| {
        let (name, module) = name.split_once(" @ ").unwrap_or((name, "/bin/app"));
        Frame {
            address,
            ..frame(name, module, None)
        }
    });
    let frames: Vec<Frame> = frames.collect();
    blame.culprit(&frames).unwrap().function
}

#[test]
fn wrappers_and_runtimes_are_passed_over() {
    let cases: &[(&[&str], &str)] = &[
        (
            &[
                "operator new(unsigned long) @ /lib/libstdc++.so.6",
                "f(int)",
                "main",
            ],
            "f",
        ),
        (
            &[
                "PyByteArray_Resize @ /usr/bin/python3.11",
                "leak_memory @ [python]",
                "PyEval_EvalCode @ /usr/bin/python3.11",
                "main @ /usr/bin/python3.11",
            ],
            "leak_memory",
        ),
        (
            &[
                "ffi_call @ /lib/libffi.so.8",
                "_call_function_pointer @ /usr/lib/python3.11/lib-dynload/_ctypes.cpython-311-x86_64-linux-gnu.so",
                "Server.call_c @ [python]",
            ],
            "Server.call_c",
        ),
        (
            &["strdup @ /lib/libc.so.6", "xstrdup", "load_users", "main"],
            "load_users",
        ),
        (&["xcalloc", "table_grow", "main"], "table_grow"),
        (
            &[
                "g_malloc0 @ /lib/libglib-2.0.so.0",
                "on_click",
                "g_closure_invoke @ /lib/libgobject-2.0.so.0",
                "main",
            ],
            "on_click",
        ),
        (
            &[
                "void std::vector<app::T, std::allocator<app::T> >::_M_realloc_insert<app::T const&>(app::T const&)",
                "app::push(app::T const&)",
            ],
            "app::push",
        ),
        (
            &[
                "std::shared_ptr<app::T> std::make_shared<app::T, int&>(int&)",
                "app::Server::open(int)",
            ],
            "app::Server::open",
        ),
        (
            &[
                "typename std::enable_if<true, void>::type std::f<int>(int)",
                "main",
            ],
            "main",
        ),
        (
            &[
                "std::vector<int, std::allocator<int> > app::range<int>(int)",
                "main",
            ],
            "app::range<int>",
        ),
        (
            &[
                "std::shared_ptr<app::T> (anonymous namespace)::make<app::T>()",
                "main",
            ],
            "(anonymous namespace)::make<app::T>",
        ),
        (
            &[
                "app::Matrix app::operator+<double>(app::Matrix const&, app::Matrix const&)",
                "main",
            ],
            "app::operator+<double>",
        ),
        (
            &[
                "alloc::raw_vec::RawVec<T,A>::grow_one",
                "<T as alloc::slice::hack::ConvertVec>::to_vec",
                "<app::Cache as core::clone::Clone>::clone",
                "app::main",
            ],
            "<app::Cache as core::clone::Clone>::clone",
        ),
        (
            &[
                "__rdl_alloc",
                "<alloc::string::String as core::clone::Clone>::clone",
                "app::remember",
                "main",
            ],
            "app::remember",
        ),
        (
            &[
                "_PyObject_Malloc",
                "list_resize @ /usr/lib/libpython3.11.so.1.0",
                "build_table @ /app/ext.so",
                "_PyEval_EvalFrameDefault @ /usr/lib/libpython3.11.so.1.0",
            ],
            "build_table",
        ),
        (
            &[
                "os::malloc(unsigned long) @ /jvm/libjvm.so",
                "Unsafe_AllocateMemory0 @ /jvm/libjvm.so",
                "Lapp/Leak;::grow @ ",
                "JavaCalls::call @ /jvm/libjvm.so",
            ],
            "Lapp/Leak;::grow",
        ),
        (
            &[
                "runtime.mallocgc",
                "runtime.newobject",
                "main.leak",
                "main.main",
            ],
            "main.leak",
        ),
        (
            &[
                "__kmalloc_noprof @ [kernel]",
                "kstrdup @ [kernel]",
                "ext4_fill_super @ [ext4]",
                "vfs_get_tree @ [kernel]",
            ],
            "ext4_fill_super",
        ),
        (
            &[
                "__alloc_pages_noprof @ [kernel]",
                "alloc_pages_mpol @ [kernel]",
                "vmalloc_user_noprof @ [kernel]",
                "io_ring_init @ [kernel]",
            ],
            "io_ring_init",
        ),
        (
            &[
                "kmem_cache_alloc_noprof(dentry) @ [kernel]",
                "d_alloc @ [kernel]",
            ],
            "d_alloc",
        ),
        (
            &[
                "operator new(unsigned long)",
                "core::Engine::load(int)",
                "main",
            ],
            "core::Engine::load",
        ),
        (&["leak_malloc", "main"], "leak_malloc"),
        (&["malloc_many", "main"], "malloc_many"),
    ];
    for (stack, expected) in cases {
        assert_eq!(blamed(stack), *expected, "{stack:?}");
    }
}

#[test]
fn without_a_function_of_the_users_the_best_of_the_rest_is_blamed() {
    assert_eq!(
        blamed(&[
            "PyMem_Malloc @ /usr/bin/python3.11",
            "set_add_entry @ /usr/bin/python3.11"
        ]),
        "set_add_entry"
    );
    assert_eq!(
        blamed(&["strdup @ /lib/libc.so.6", "setlocale @ /lib/libc.so.6"]),
        "setlocale"
    );
    assert_eq!(blamed(&["malloc @ /lib/libc.so.6"]), "malloc");
    assert_eq!(
        blamed(&[" @ /opt/app/server", "main"]),
        "[unknown] server+0x20"
    );
    assert_eq!(blamed(&[" @ ", "main"]), "main");
    assert_eq!(Blame::default().culprit(&[]), None);
}

#[test]
fn what_comes_from_a_librarys_headers_is_no_matter_of_names() {
    let frames = [
        Frame {
            address: 1,
            ..frame(
                "helper",
                "/bin/app",
                Some("/usr/include/c++/12/bits/stl_vector.h"),
            )
        },
        Frame {
            address: 2,
            ..frame("app::fill", "/bin/app", Some("/src/fill.cpp"))
        },
    ];
    let culprit = Blame::default().culprit(&frames).unwrap();
    assert_eq!(culprit.function, "app::fill");
    assert_eq!(culprit.place().as_deref(), Some("fill.cpp:7"));
    assert_eq!(culprit.module.unwrap().name(), "app");
}

#[test]
fn the_user_can_pass_over_more() {
    let rule = |glob: &str| Blame::new(&[glob.to_owned()]);
    let stack = [
        "pool_get",
        "Arr::grow(int)",
        "serve @ /lib/libserve.so",
        "main",
    ];
    assert_eq!(blamed(&stack), "pool_get");
    assert_eq!(blamed_by(&rule("pool_*"), &stack), "Arr::grow");
    let rules = Blame::new(&["pool_*".into(), "Arr::*".into(), "libserve*".into()]);
    assert_eq!(blamed_by(&rules, &stack), "main");
}
