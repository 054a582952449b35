//! Programs that translate the code of others and run that: valgrind, qemu's user mode and the like. They read a probe's
//! breakpoint as the program's own code and die of it, so that no probe may be where they look.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;

use super::handle::running as running_processes;
use crate::files::proc;

/// Valgrind's tools run as `memcheck-amd64-linux`.
const VALGRIND_TOOLS: [&str; 11] = [
    "memcheck",
    "cachegrind",
    "callgrind",
    "helgrind",
    "drd",
    "massif",
    "dhat",
    "lackey",
    "none",
    "exp-bbv",
    "exp-sgcheck",
];

/// Programs of the name `qemu-…` that translate no user's program.
const QEMU_TOOLS: [&str; 10] = [
    "system-",
    "img",
    "nbd",
    "io",
    "ga",
    "storage-daemon",
    "bridge-helper",
    "pr-helper",
    "edid",
    "keymap",
];

/// Other translators, and the programs that start one.
const OTHERS: [&str; 14] = [
    "valgrind",
    "valgrind.bin",
    "drrun",
    "drmemory",
    "drcachesim",
    "pin",
    "pinbin",
    "box64",
    "box86",
    "FEX",
    "FEXInterpreter",
    "FEXLoader",
    "fexec",
    "rosetta",
];

/// Libraries that a translator puts into the process that it runs in.
const LIBRARIES: [&str; 3] = ["libdynamorio.so", "vgpreload_", "libpindwarf.so"];

/// Whether a program is a translator, by the last part of its file's path.
pub fn is_translator(file: &[u8]) -> bool {
    let Ok(file) = std::str::from_utf8(file) else {
        return false;
    };
    let qemu = file.strip_prefix("qemu-");
    qemu.is_some_and(|rest| !QEMU_TOOLS.iter().any(|tool| rest.starts_with(tool)))
        || OTHERS.contains(&file)
        || VALGRIND_TOOLS.iter().any(|tool| {
            let rest = file
                .strip_prefix(tool)
                .and_then(|rest| rest.strip_prefix('-'));
            rest.is_some_and(|rest| rest.ends_with("-linux"))
        })
}

/// The translator that a process is, by its file's name, or by what it maps.
pub fn translator(pid: u32) -> Option<String> {
    let executable = fs::read_link(proc::folder(pid).join("exe")).unwrap_or_default();
    let name = executable.file_name().unwrap_or_default();
    if is_translator(name.as_bytes()) {
        return Some(name.to_string_lossy().into_owned());
    }
    let maps = proc::text(proc::folder(pid).join("maps")).unwrap_or_default();
    let library = LIBRARIES.iter().find(|library| maps.contains(**library));
    library.map(|library| (*library).to_owned())
}

/// The translators that run now, with their processes.
pub fn running() -> Vec<(u32, String)> {
    let found = running_processes()
        .into_iter()
        .filter(|pid| *pid != std::process::id());
    found
        .filter_map(|pid| Some((pid, translator(pid)?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn translators_are_known_by_their_names() {
        for name in [
            "memcheck-amd64-linux",
            "none-x86-linux",
            "exp-bbv-arm64-linux",
            "valgrind",
            "valgrind.bin",
            "qemu-x86_64",
            "qemu-aarch64-static",
            "drrun",
            "pinbin",
            "box64",
            "FEXInterpreter",
        ] {
            assert!(is_translator(name.as_bytes()), "{name}");
        }
        for name in [
            "qemu-system-x86_64",
            "qemu-img",
            "memcheck",
            "memcheck-linux-tool",
            "none",
            "nginx",
            "spin",
            "",
        ] {
            assert!(!is_translator(name.as_bytes()), "{name}");
        }
        assert!(!is_translator(b"qemu-\xff"));
    }

    #[test]
    fn this_test_is_none() {
        assert_eq!(translator(std::process::id()), None);
    }
}
