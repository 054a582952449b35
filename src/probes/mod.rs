//! Which functions are probed and where: the functions of an ELF object, the instruction in each.
//! Bytes in, offsets out: no I/O, no BPF, nothing about what a probe does once it is hit.

pub mod site;
pub mod symbols;
