//! The skeleton that libbpf-cargo generates of the BPF object, and which of its structs are plain bytes.
//! Nothing else: what the maps mean is known elsewhere.

include!(concat!(env!("OUT_DIR"), "/memleak.skel.rs"));

// SAFETY: these structs consist of integers only, without padding: memleak.h keeps them so.
unsafe impl plain::Plain for types::block_key {}
// SAFETY: as above.
unsafe impl plain::Plain for types::block {}
// SAFETY: as above.
unsafe impl plain::Plain for types::combined_key {}
// SAFETY: as above.
unsafe impl plain::Plain for types::combined {}
// SAFETY: as above.
unsafe impl plain::Plain for types::stack {}
// SAFETY: as above.
unsafe impl plain::Plain for types::cache_name {}
// SAFETY: as above.
unsafe impl plain::Plain for types::range_event {}
// SAFETY: as above; unwind.h keeps these so.
unsafe impl plain::Plain for types::unknown_code_event {}
// SAFETY: as above.
unsafe impl plain::Plain for types::deferred_walk {}
// SAFETY: as above.
unsafe impl plain::Plain for types::unwind_process {}
// SAFETY: as above.
unsafe impl plain::Plain for types::unwind_file_key {}
// SAFETY: as above.
unsafe impl plain::Plain for types::unwind_file {}
// SAFETY: as above; interpreter.h keeps these so.
unsafe impl plain::Plain for types::interpreter {}
// SAFETY: as above.
unsafe impl plain::Plain for types::code_head {}
// SAFETY: as above.
unsafe impl plain::Plain for types::code_key {}
// SAFETY: as above.
unsafe impl plain::Plain for types::program_start {}
// SAFETY: as above.
unsafe impl plain::Plain for types::life_event {}
// SAFETY: as above.
unsafe impl plain::Plain for types::call_event {}
// SAFETY: as above.
unsafe impl plain::Plain for types::activity {}
