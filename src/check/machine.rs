//! What the machine offers: kernel, rights, settings that forbid, programs that probes would hurt, memory.
//! Each question that can't be answered is a note of its own.

use std::time::Instant;

use super::Fact;
use crate::files::proc;
use crate::process::translators;
use crate::session;
use crate::tracer::{self, Attachment, Features, Storage, Tracer, Unwinder};

/// Bytes that a live block takes of the kernel's memory, measured with a million of them.
const BYTES_PER_BLOCK: u64 = 104;

pub fn facts() -> Vec<Fact> {
    let mut facts = vec![kernel(), rights()];
    let btf = tracer::has_type_information();
    facts.push(match btf {
        true => Fact::ok("type information", "the kernel has it (BTF)"),
        false => Fact::failed(
            "type information",
            "the kernel has none: run one that is built with CONFIG_DEBUG_INFO_BTF=y",
        ),
    });
    if btf {
        facts.extend(features());
    }
    let works = facts.iter().all(|fact| fact.state != super::State::Failed);
    if works {
        facts.extend(programs());
    }
    facts.extend(settings());
    facts.push(translating());
    facts.push(memory());
    facts
}

fn kernel() -> Fact {
    let system = rustix::system::uname();
    let text = |part: &std::ffi::CStr| part.to_string_lossy().into_owned();
    Fact::ok(
        "kernel",
        format!(
            "{} {}, {}",
            text(system.sysname()),
            text(system.release()),
            text(system.machine())
        ),
    )
}

fn rights() -> Fact {
    match tracer::missing_rights() {
        Ok(missing) if missing.is_empty() => Fact::ok("rights", "those that tracing needs"),
        Ok(missing) => Fact::failed(
            "rights",
            format!(
                "missing {}: run as root, or see docs/security.md for a group's recipe",
                missing.join(" and ")
            ),
        ),
        Err(error) => Fact::failed("rights", format!("{error:#}")),
    }
}

fn features() -> Vec<Fact> {
    let features = match Features::detect() {
        Ok(features) => features,
        Err(error) => return vec![Fact::failed("features", format!("{error:#}"))],
    };
    let probes = match features.attachment {
        Attachment::Session => Fact::ok("probes", "sessions, the cheapest kind (Linux 6.13)"),
        Attachment::Multi => Fact::ok("probes", "one link per object (Linux 6.6)"),
        Attachment::Single => Fact::note(
            "probes",
            "one link per function, which takes longer to attach (Linux 5.15)",
        ),
        Attachment::Plain => Fact::note(
            "probes",
            "a program per function, which takes longer to attach (Linux 5.10)",
        ),
    };
    let maps = match features.growing_maps {
        true => Fact::ok("tables", "grow as blocks come (Linux 6.1)"),
        false => Fact::note(
            "tables",
            "are taken whole at the start, as --max-allocs says",
        ),
    };
    vec![probes, maps]
}

/// Loads the programs as for a process, and drops them.
fn programs() -> Vec<Fact> {
    let begun = Instant::now();
    let mut storage = Storage::default();
    match Tracer::load(&mut storage, session::default_config()) {
        Ok(tracer) => {
            let took = begun.elapsed().as_millis();
            let stacks = match tracer.unwinder() {
                Unwinder::Tables => Fact::ok("stacks", "by unwind tables, without frame pointers"),
                Unwinder::FramePointers => Fact::note("stacks", "by frame pointers"),
                Unwinder::NoTables(why) => {
                    Fact::note("stacks", format!("by frame pointers only: {why}"))
                }
            };
            vec![
                Fact::ok("programs", format!("the kernel takes them, in {took} ms")),
                stacks,
            ]
        }
        Err(error) => vec![Fact::failed("programs", format!("{error:#}"))],
    }
}

/// What administrators forbid. None of it hinders root, but each explains a refusal.
fn settings() -> Vec<Fact> {
    let read = |path: &str| {
        let text = proc::text(path).ok()?;
        Some(text.trim().to_owned())
    };
    let mut facts = Vec::new();
    if let Some(text) = read("/sys/kernel/security/lockdown") {
        let mode = text.split(['[', ']']).nth(1).unwrap_or(&text);
        facts.push(match mode {
            "none" => Fact::ok("lockdown", "none"),
            "confidentiality" => Fact::failed(
                "lockdown",
                "confidentiality: the kernel lets no program read memory",
            ),
            mode => Fact::note("lockdown", format!("{mode}: tracing works as root")),
        });
    }
    let numbers = [
        (
            "unprivileged BPF",
            "/proc/sys/kernel/unprivileged_bpf_disabled",
            "unprivileged_bpf_disabled",
        ),
        (
            "perf events",
            "/proc/sys/kernel/perf_event_paranoid",
            "perf_event_paranoid",
        ),
        ("Yama", "/proc/sys/kernel/yama/ptrace_scope", "ptrace_scope"),
        (
            "kernel addresses",
            "/proc/sys/kernel/kptr_restrict",
            "kptr_restrict",
        ),
    ];
    for (about, path, name) in numbers {
        if let Some(number) = read(path) {
            let strict = about == "Yama" && number == "3";
            let says = format!("{name} is {number}");
            facts.push(match strict {
                true => Fact::note(about, format!("{says}: no memory of others can be read")),
                false => Fact::ok(about, says),
            });
        }
    }
    facts
}

/// Programs that die of breakpoints in what they read as code.
fn translating() -> Fact {
    let running = translators::running();
    let shown: Vec<String> = running
        .iter()
        .take(5)
        .map(|(pid, name)| format!("{name} ({pid})"))
        .collect();
    match shown.is_empty() {
        true => Fact::ok("translators", "none runs (valgrind, qemu's user mode, …)"),
        false => Fact::note(
            "translators",
            format!(
                "{} run: probes are set process by process while they do",
                shown.join(", ")
            ),
        ),
    }
}

fn memory() -> Fact {
    let blocks = u64::from(session::default_config().max_allocations);
    let most = (blocks * BYTES_PER_BLOCK) >> 20;
    Fact::ok(
        "memory",
        format!(
            "at most about {most} MiB for the {blocks} live blocks that --max-allocs allows if nothing else is said"
        ),
    )
}
