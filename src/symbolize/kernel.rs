//! From kernel addresses to frames with names, by what /proc/kallsyms and /proc/modules say.
//! blazesym does not tell which module a symbol of kallsyms belongs to, so that the table is read here.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context as _, Result};

use crate::files::proc;
use crate::model::report::{Frame, Function, Module};

const SYMBOLS: &str = "/proc/kallsyms";
const MODULES: &str = "/proc/modules";

/// Bytes behind its start that a symbol can cover where nothing tells the end: BPF programs and trampolines.
const LONGEST_UNBOUNDED: u64 = 1 << 16;

/// Frames in front of the allocator's own at the most: the program, and how the tracepoint came to it.
const MOST_TRACING_FRAMES: usize = 6;

/// Names kernel addresses, those of modules that have been unloaded since as well.
pub struct KernelSymbols {
    /// Newest last.
    tables: Vec<Table>,
    modules: String,
}

#[derive(Default)]
struct Table {
    /// By address.
    symbols: Vec<Symbol>,
    /// What `Symbol::owner` stands for.
    owners: Vec<Owner>,
    /// The bounds of the kernel's unwind table.
    bounds: HashMap<String, u64>,
}

struct Symbol {
    address: u64,
    name: Box<str>,
    owner: usize,
}

struct Owner {
    module: Arc<Module>,
    /// Where its code is, if that is known.
    range: Option<Range<u64>>,
}

impl KernelSymbols {
    /// Reads the tables as they are now.
    ///
    /// # Errors
    /// Fails when the kernel shows none.
    pub fn read() -> Result<Self> {
        let mut symbols = Self {
            tables: Vec::new(),
            modules: String::new(),
        };
        symbols.refresh()?;
        Ok(symbols)
    }

    /// Whether addresses can be named at all: the kernel shows zeros to those whom it does not trust with them.
    pub fn is_empty(&self) -> bool {
        self.tables.iter().all(|table| table.symbols.is_empty())
    }

    /// Reads the tables again if modules have come or gone; what is known of those that have gone stays known.
    ///
    /// # Errors
    /// Fails when they can't be read.
    pub fn refresh(&mut self) -> Result<()> {
        // a kernel can do without modules
        let modules = proc::text(MODULES).unwrap_or_default();
        if !self.tables.is_empty() && modules == self.modules {
            return Ok(());
        }
        let failed = || format!("failed to read {SYMBOLS}");
        let file = File::open(SYMBOLS).with_context(failed)?;
        let table = Table::read(BufReader::new(file), &modules).with_context(failed)?;
        if let Some(last) = self.tables.last_mut() {
            last.keep_modules();
        }
        self.tables.push(table);
        self.modules = modules;
        Ok(())
    }

    /// The address of one of the symbols that bound the kernel's unwind table.
    pub fn data(&self, name: &str) -> Option<u64> {
        let address = *self.tables.first()?.bounds.get(name)?;
        (address > 0).then_some(address)
    }

    /// The code of a function.
    pub fn function(&self, name: &str) -> Option<Range<u64>> {
        let symbols = &self.tables.first()?.symbols;
        let at = symbols.iter().position(|symbol| &*symbol.name == name)?;
        symbols
            .get(at)
            .map(|symbol| symbol.address..end_of(&symbols[at..]))
    }

    /// The code through which interrupts come, hard and soft: by address, and neighbours as one.
    pub fn interrupt_entries(&self) -> Vec<Range<u64>> {
        let mut entries: Vec<Range<u64>> = Vec::new();
        let Some(table) = self.tables.first() else {
            return entries;
        };
        for (at, symbol) in table.symbols.iter().enumerate() {
            if !is_interrupt_entry(&symbol.name) {
                continue;
            }
            let end = end_of(&table.symbols[at..]);
            match entries.last_mut() {
                Some(last) if last.end >= symbol.address => last.end = last.end.max(end),
                _ => entries.push(symbol.address..end),
            }
        }
        entries
    }

    /// Names the frames of a stack, given as return addresses, from the allocator outwards.
    pub fn frames(&self, stack: &[u64]) -> Vec<Frame> {
        let frames: Vec<Frame> = stack.iter().map(|address| self.frame(*address)).collect();
        let tracing = frames
            .iter()
            .take(MOST_TRACING_FRAMES)
            .rposition(is_tracing)
            .map_or(0, |last| last + 1);
        frames.into_iter().skip(tracing).collect()
    }

    fn frame(&self, address: u64) -> Frame {
        // The return address is behind the call, and may belong to the next function: look at the call.
        let call = address.saturating_sub(1);
        let found = self.tables.iter().rev().find_map(|table| table.find(call));
        let Some((symbol, module)) = found else {
            return Frame {
                address,
                ..Frame::default()
            };
        };
        Frame {
            address,
            module: Some(Arc::clone(module)),
            function: Some(Function {
                name: symbol.name.to_string(),
                location: None,
            }),
            function_offset: address - symbol.address,
            ..Frame::default()
        }
    }
}

impl Table {
    /// Reads lines such as `ffffffffc0000000 t name\t[module]`.
    fn read(lines: impl BufRead, modules: &str) -> io::Result<Self> {
        let ranges: HashMap<&str, Range<u64>> = modules.lines().filter_map(module_range).collect();
        let mut table = Self::default();
        let mut numbers: HashMap<String, usize> = HashMap::new();
        let mut end_of_kernel = 0;
        for line in lines.lines() {
            let line = line?;
            let mut words = line.split_ascii_whitespace();
            let (Some(address), Some(kind), Some(name)) =
                (words.next(), words.next(), words.next())
            else {
                continue;
            };
            let address = u64::from_str_radix(address, 16).unwrap_or(0);
            let module = words.next().unwrap_or("[kernel]");
            if name == "_end" {
                end_of_kernel = address;
            }
            if name.ends_with("_orc_unwind") || name.ends_with("_orc_unwind_ip") {
                table.bounds.insert(name.to_owned(), address);
            }
            if address == 0 || !matches!(kind, "t" | "T" | "w" | "W") {
                continue;
            }
            let owner = match numbers.get(module) {
                Some(owner) => *owner,
                None => {
                    let owner = table.owners.len();
                    let bare = module.trim_matches(['[', ']']);
                    table
                        .owners
                        .push(Owner::new(module, ranges.get(bare).cloned()));
                    numbers.insert(module.to_owned(), owner);
                    owner
                }
            };
            table.symbols.push(Symbol {
                address,
                name: name.into(),
                owner,
            });
        }
        table.symbols.sort_by_key(|symbol| symbol.address);
        if let Some(kernel) = numbers.get("[kernel]") {
            let first = table.symbols.first().map_or(0, |symbol| symbol.address);
            table.owners[*kernel].range = (end_of_kernel > 0).then_some(first..end_of_kernel);
        }
        Ok(table)
    }

    fn find(&self, address: u64) -> Option<(&Symbol, &Arc<Module>)> {
        let after = self
            .symbols
            .partition_point(|symbol| symbol.address <= address);
        let last = self.symbols.get(after.checked_sub(1)?)?;
        // of aliases, the first that the kernel lists
        let first = self
            .symbols
            .partition_point(|symbol| symbol.address < last.address);
        let symbol = self.symbols.get(first)?;
        let owner = self.owners.get(symbol.owner)?;
        let covered = match &owner.range {
            Some(range) => range.contains(&address),
            None => address - symbol.address < LONGEST_UNBOUNDED,
        };
        covered.then_some((symbol, &owner.module))
    }

    /// Forgets the kernel proper, which later tables know as well.
    fn keep_modules(&mut self) {
        let owners = &self.owners;
        self.symbols.retain(|symbol| {
            owners
                .get(symbol.owner)
                .is_some_and(|owner| owner.module.name() != "[kernel]")
        });
    }
}

impl Owner {
    fn new(name: &str, range: Option<Range<u64>>) -> Self {
        Self {
            module: Arc::new(Module {
                path: name.into(),
                build_id: None,
            }),
            range,
        }
    }
}

/// Where the first of some symbols ends: at the next address that has one.
fn end_of(symbols: &[Symbol]) -> u64 {
    let begin = symbols.first().map_or(0, |symbol| symbol.address);
    let mut later = symbols.iter().map(|symbol| symbol.address);
    later.find(|address| *address > begin).unwrap_or(begin)
}

/// Functions of x86-64 and aarch64 that run the handlers of an interrupt; exceptions such as page faults are none,
/// for what they do is done for the code that they came in.
fn is_interrupt_entry(name: &str) -> bool {
    const SOFT: [&str; 2] = ["__do_softirq", "handle_softirqs"];
    const HARD: [&str; 5] = [
        "asm_common_interrupt",
        "asm_spurious_interrupt",
        "el1h_64_irq",
        "el1_irq",
        "el0t_64_irq",
    ];
    SOFT.contains(&name) || HARD.contains(&name) || name.starts_with("asm_sysvec_")
}

/// Name and place of a line of /proc/modules: `name size references users state 0xffffffffc0000000`.
fn module_range(line: &str) -> Option<(&str, Range<u64>)> {
    let mut words = line.split_ascii_whitespace();
    let name = words.next()?;
    let size: u64 = words.next()?.parse().ok()?;
    let base = words.nth(3)?.strip_prefix("0x")?;
    let base = u64::from_str_radix(base, 16).ok()?;
    (base > 0).then(|| (name, base..base.saturating_add(size)))
}

/// Frames of memleak's own program and of how a tracepoint came to it.
fn is_tracing(frame: &Frame) -> bool {
    frame.function.as_ref().is_some_and(|function| {
        ["bpf_prog_", "bpf_trace_run", "__bpf_trace_", "__traceiter_"]
            .iter()
            .any(|prefix| function.name.starts_with(prefix))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
ffffffff81000000 T _stext
ffffffff81000100 T bpf_trace_run2
ffffffff81000200 T kmalloc
ffffffff81000300 d data
ffffffff81000400 T caller
ffffffff81000400 T alias
ffffffff81001000 B _end
ffffffffc0000000 t leak\t[leaky]
ffffffffc0100000 t bpf_prog_12_kmalloc\t[bpf]
";

    fn table() -> KernelSymbols {
        let modules = "leaky 4096 0 - Live 0xffffffffc0000000 (OE)\n";
        KernelSymbols {
            tables: vec![Table::read(TABLE.as_bytes(), modules).unwrap()],
            modules: modules.into(),
        }
    }

    fn names(symbols: &KernelSymbols, stack: &[u64]) -> Vec<String> {
        let name = |frame: Frame| match (frame.function, frame.module) {
            (Some(function), Some(module)) => format!(
                "{}+{:#x} {}",
                function.name,
                frame.function_offset,
                module.name()
            ),
            _ => "?".to_owned(),
        };
        symbols.frames(stack).into_iter().map(name).collect()
    }

    #[test]
    fn code_of_the_kernel_and_of_modules_is_named() {
        assert_eq!(
            names(
                &table(),
                &[
                    0xffff_ffff_8100_0210,
                    0xffff_ffff_8100_0500,
                    0xffff_ffff_c000_0010
                ]
            ),
            [
                "kmalloc+0x10 [kernel]",
                "caller+0x100 [kernel]",
                "leak+0x10 [leaky]"
            ]
        );
    }

    #[test]
    fn what_lies_outside_of_everything_is_unknown() {
        assert_eq!(
            names(
                &table(),
                &[0x10, 0xffff_ffff_8100_1001, 0xffff_ffff_c000_1001]
            ),
            ["?", "?", "?"]
        );
    }

    #[test]
    fn a_return_address_belongs_to_the_function_before_it() {
        assert_eq!(
            names(&table(), &[0xffff_ffff_8100_0400]),
            ["kmalloc+0x200 [kernel]"]
        );
    }

    #[test]
    fn the_tracers_own_frames_are_left_out() {
        let stack = [
            0xffff_ffff_c010_0010,
            0xffff_ffff_8100_0110,
            0xffff_ffff_8100_0210,
        ];
        assert_eq!(names(&table(), &stack), ["kmalloc+0x10 [kernel]"]);
    }

    #[test]
    fn modules_that_have_gone_keep_their_names() {
        let mut symbols = table();
        symbols.tables[0].keep_modules();
        symbols
            .tables
            .push(Table::read(&TABLE.as_bytes()[..200], "").unwrap());
        assert_eq!(
            names(&symbols, &[0xffff_ffff_c000_0010]),
            ["leak+0x10 [leaky]"]
        );
    }

    #[test]
    fn interrupts_come_through_a_few_pieces_of_code() {
        let lines = "\
ffffffff81000000 T asm_exc_page_fault
ffffffff81000040 T asm_common_interrupt
ffffffff81000080 T asm_sysvec_apic_timer_interrupt
ffffffff810000c0 T asm_exc_nmi
ffffffff81000400 t handle_softirqs
ffffffff81000800 T caller
";
        let symbols = KernelSymbols {
            tables: vec![Table::read(lines.as_bytes(), "").unwrap()],
            modules: String::new(),
        };
        assert_eq!(
            symbols.interrupt_entries(),
            [
                0xffff_ffff_8100_0040..0xffff_ffff_8100_00c0,
                0xffff_ffff_8100_0400..0xffff_ffff_8100_0800,
            ]
        );
    }

    #[test]
    fn hidden_addresses_give_an_empty_table() {
        let table = Table::read("0000000000000000 T _stext\n".as_bytes(), "").unwrap();
        assert!(table.symbols.is_empty());
    }
}
