//! What the runtimes of C, C++ and Rust keep to the end of every program, told by who allocates it: no leak, where lost can't
//! be told from held. Suppressions that users write are `suppress`'s.

use crate::model::report::Frame;

/// Something that a runtime keeps.
pub struct Kept {
    /// What it is, in words.
    pub what: &'static str,
    allocates: fn(&Stack<'_>) -> bool,
}

/// All that is known.
pub const KEPT: &[Kept] = &[
    Kept {
        what: "the buffers of C's standard streams (_IO_file_doallocate)",
        allocates: |stack| stack.passes(&["_IO_file_doallocate"]),
    },
    Kept {
        what: "stacks and thread-local memory of threads (pthread_create, _dl_allocate_tls)",
        allocates: |stack| {
            stack.passes(&["pthread_create", "pthread_create_2_1", "_dl_allocate_tls"])
        },
    },
    Kept {
        what: "functions to call at exit, locales and the environment (atexit, setlocale, setenv)",
        allocates: |stack| stack.passes(&["new_exitfn", "setlocale", "add_to_environ"]),
    },
    Kept {
        what: "what libstdc++ sets up for exceptions before main (72,704 bytes)",
        allocates: |stack| {
            stack.passes(&["_GLOBAL__sub_I__ZN9__gnu_cxx9__freeresEv"])
                || (stack.module(0).starts_with("libstdc++.so") && is_linker(&stack.module(1)))
        },
    },
    Kept {
        what: "what Rust's standard library sets up before main (std::rt::lang_start_internal)",
        allocates: |stack| {
            stack.passes(&["std::rt::lang_start_internal"])
                && !stack.passes(&["std::sys::backtrace::__rust_begin_short_backtrace"])
        },
    },
];

/// Whether a runtime allocates with this stack what it keeps.
pub fn keeps(frames: Option<&[Frame]>) -> bool {
    let stack = Stack(frames.unwrap_or_default());
    KEPT.iter().any(|kept| (kept.allocates)(&stack))
}

/// Frames, innermost first.
struct Stack<'a>(&'a [Frame]);

impl Stack<'_> {
    /// Whether it passes through one of some functions, whichever of its names a C library's has.
    fn passes(&self, functions: &[&str]) -> bool {
        let plain = |name: &str| {
            let name = name.trim_start_matches("__GI_").trim_start_matches("__");
            name.split("::h").next().is_some_and(|name| {
                functions
                    .iter()
                    .any(|function| *function == name || function.trim_start_matches("__") == name)
            })
        };
        let names = self.0.iter().flat_map(|frame| {
            let functions = frame.function.iter().chain(&frame.inlined);
            functions.map(|function| function.name.as_str())
        });
        names.into_iter().any(plain)
    }

    /// What a frame's object is called; nothing where that is not known.
    fn module(&self, at: usize) -> String {
        let module = self.0.get(at).and_then(|frame| frame.module.as_ref());
        module.map(|module| module.name()).unwrap_or_default()
    }
}

/// Whether an object is the dynamic linker, which calls what objects run before main.
fn is_linker(name: &str) -> bool {
    name.starts_with("ld-linux") || name.starts_with("ld-musl") || name.starts_with("ld64.so")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::model::report::{Function, Module};

    fn frame(name: &str, module: &str) -> Frame {
        Frame {
            module: Some(Arc::new(Module {
                path: module.into(),
                build_id: None,
            })),
            function: (!name.is_empty()).then(|| Function {
                name: name.into(),
                location: None,
            }),
            ..Frame::default()
        }
    }

    #[test]
    fn what_runtimes_keep_is_known_by_any_of_its_names() {
        for name in [
            "_IO_file_doallocate",
            "__GI__IO_file_doallocate",
            "pthread_create",
            "__pthread_create_2_1",
            "__GI__dl_allocate_tls",
            "__new_exitfn",
        ] {
            let stack = [frame("calloc", "/lib/ld.so"), frame(name, "/lib/libc.so.6")];
            assert!(keeps(Some(&stack)), "{name}");
        }
        for name in ["main", "my_pthread_create", "IO_file"] {
            assert!(!keeps(Some(&[frame(name, "/bin/app")])), "{name}");
        }
        assert!(!keeps(None));
    }

    #[test]
    fn only_what_is_set_up_before_main_is_a_runtimes() {
        let init = frame("call_init", "/lib64/ld-linux-x86-64.so.2");
        let pool = frame("", "/usr/lib/libstdc++.so.6.0.30");
        assert!(keeps(Some(&[pool.clone(), init.clone()])));
        assert!(!keeps(Some(&[pool.clone(), frame("main", "/bin/app")])));
        assert!(!keeps(Some(&[frame("grow", "/bin/app"), pool, init])));
        let start = frame("std::rt::lang_start_internal", "/bin/app");
        let body = frame(
            "std::sys::backtrace::__rust_begin_short_backtrace",
            "/bin/app",
        );
        assert!(keeps(Some(&[frame("init", "/bin/app"), start.clone()])));
        assert!(!keeps(Some(&[frame("app::main", "/bin/app"), body, start])));
    }
}
