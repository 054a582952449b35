//! Who is to be traced, from what was typed: ids and names, commands, what makes a process a target; and which options go
//! with which target. How processes are looked for is the caller's business.

use std::ffi::OsString;
use std::path::PathBuf;

use super::{Choice, TargetOption, shell};
use crate::cli::Arguments;
use crate::process::Names;

/// Processes of one name that an error lists at the most.
const MAX_LISTED: usize = 20;

/// From this number on, one that stands alone is rather a process than seconds.
const LIKELY_PROCESS: f64 = 300.0;

/// Bytes of a process's name.
const MAX_NAME: usize = 15;

/// A number alone that is long for an interval and fits a process was meant as one.
pub(super) fn refuse_lone_number(arguments: &Arguments) -> Result<(), String> {
    let seconds = arguments.interval.seconds;
    match arguments.interval.bare && arguments.count.is_none() && seconds >= LIKELY_PROCESS {
        true => Err(format!(
            "did you mean -p {seconds}? To report on the kernel every {seconds} seconds, write {seconds}s"
        )),
        false => Ok(()),
    }
}

pub(super) fn validate_target(
    arguments: &Arguments,
    find: impl Fn(&str) -> Vec<u32>,
) -> Result<TargetOption, String> {
    if !arguments.pid.is_empty() {
        return Ok(TargetOption::Processes(process_ids(&arguments.pid, find)?));
    }
    if arguments.system {
        return Ok(TargetOption::Chosen(Choice::All));
    }
    if let Some(choice) = choice(&arguments.comm, &arguments.cgroup, &arguments.container)? {
        return Ok(TargetOption::Chosen(choice));
    }
    if let Some(command) = &arguments.command {
        let words = shell_words::split(command)
            .map_err(|_| format!("--command has an unclosed quote: {command}"))?;
        return match words.first().map(String::as_str) {
            None | Some("") => Err("--command must name a program to run".into()),
            Some(first) if shell::is_assignment(first) => Err(format!(
                "--command runs no shell, which {first} is for: put env before it, as in -c 'env {command}'"
            )),
            Some(_) => Ok(TargetOption::Command(
                words.into_iter().map(OsString::from).collect(),
            )),
        };
    }
    match arguments.program.first() {
        None => Ok(TargetOption::Kernel),
        Some(program) if program.is_empty() => {
            Err("-- must be followed by a program to run: the first word is empty".into())
        }
        Some(_) => Ok(TargetOption::Command(arguments.program.clone())),
    }
}

/// Ids or names in lists, with commas or, as pidof(1) has them, spaces between; none twice, by ascending id.
///
/// # Errors
/// When one is no id and no single process's name, or there is none.
pub fn process_ids(lists: &[String], find: impl Fn(&str) -> Vec<u32>) -> Result<Vec<u32>, String> {
    let words = lists
        .iter()
        .flat_map(|list| list.split([',', ' ', '\n', '\t']))
        .filter(|word| !word.is_empty());
    let mut pids = words
        .map(|word| match word.parse() {
            Ok(pid) if pid > 0 => Ok(pid),
            _ if word.starts_with(|first: char| first.is_ascii_digit() || first == '-') => Err(
                format!("--pid must be a process id above 0, or several as in -p 12,34: {word}"),
            ),
            _ => the_one_called(word, find(word)),
        })
        .collect::<Result<Vec<u32>, String>>()?;
    pids.sort_unstable();
    pids.dedup();
    match pids.is_empty() {
        true => Err("--pid must be a process id above 0, or a name: it is empty".into()),
        false => Ok(pids),
    }
}

/// The process of a name, if it is only one.
fn the_one_called(name: &str, pids: Vec<u32>) -> Result<u32, String> {
    match pids[..] {
        [pid] => Ok(pid),
        [] => Err(format!("--pid {name}: no process of that name runs")),
        _ => {
            let shown: Vec<String> = pids.iter().take(MAX_LISTED).map(u32::to_string).collect();
            let more = match pids.len() > MAX_LISTED {
                true => ", …",
                false => "",
            };
            Err(format!(
                "--pid {name}: {} processes have that name: choose with -p {}{more}, or trace all of them with --comm {name}",
                pids.len(),
                shown.join(",")
            ))
        }
    }
}

/// Whoever has one of these names, is in one of these cgroups, or runs in one of these containers; none where no list names
/// any.
pub(super) fn choice(
    comm: &[String],
    cgroups: &[PathBuf],
    containers: &[String],
) -> Result<Option<Choice>, String> {
    if !comm.is_empty() {
        let patterns = comm.to_vec();
        if patterns.iter().any(String::is_empty) {
            return Err("--comm must be a process's name or a glob: it is empty".into());
        }
        let long = patterns
            .iter()
            .find(|pattern| pattern.replace('*', "").len() > MAX_NAME);
        if let Some(pattern) = long {
            return Err(format!(
                "--comm {pattern} matches no process: the kernel keeps {MAX_NAME} characters of a name"
            ));
        }
        let names = Names::new(patterns.iter().map(String::as_str))
            .ok_or("--comm has too many patterns: 64 characters all in all")?;
        let names = Box::new(names);
        return Ok(Some(Choice::Names { patterns, names }));
    }
    if !cgroups.is_empty() {
        return Ok(Some(Choice::Cgroups(cgroups.to_vec())));
    }
    for id in containers {
        if id.is_empty() || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(format!(
                "--container must be a container's id, in hexadecimal, or its beginning: {id}"
            ));
        }
    }
    Ok((!containers.is_empty()).then(|| Choice::Containers(containers.to_vec())))
}

/// Refuses what would have no effect: options of the kernel with a process, and the other way round.
pub(super) fn refuse_other_target(arguments: &Arguments, kernel: bool) -> Result<(), String> {
    let of_the_kernel = [
        (arguments.cache.is_some(), "--cache"),
        (arguments.user_pages, "--user-pages"),
        (arguments.percpu, "--percpu"),
    ];
    let of_processes = [
        (!arguments.alloc.is_empty(), "--alloc"),
        (!arguments.realloc.is_empty(), "--realloc"),
        (!arguments.free.is_empty(), "--free"),
        (arguments.obj.is_some(), "--obj"),
        (!arguments.symbols_prefix.is_empty(), "--symbols-prefix"),
        (arguments.no_mmap, "--no-mmap"),
        (arguments.max_overhead.is_some(), "--max-overhead"),
        (arguments.follow, "--follow"),
        (arguments.lost.is_some(), "--lost"),
    ];
    let given = |options: &[(bool, &'static str)]| {
        options
            .iter()
            .find(|(given, _)| *given)
            .map(|(_, name)| *name)
    };
    match kernel {
        true => given(&of_processes).map_or(Ok(()), |name| {
            Err(format!(
                "{name} needs a process: name one with -p, or a command with -c"
            ))
        }),
        false => given(&of_the_kernel).map_or(Ok(()), |name| {
            Err(format!(
                "{name} is for the kernel's allocators: leave out the process or command"
            ))
        }),
    }
}
