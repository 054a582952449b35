/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/*
 * What the user asked for: constants that the tracer sets before load, so that the verifier removes the
 * code of options that are not in use. And the counters of what was lost. No maps, no logic.
 */
#ifndef CONFIG_BPF_H
#define CONFIG_BPF_H

#include "core_types.bpf.h"
#include "interpreter.h"
#include "memleak.h"
#include "unwind.h"

/* What the probes' cookies stand for. Written by the tracer before a probe that needs it is attached. */
volatile struct function functions[MAX_FUNCTIONS] = {};

/* Of each object that holds an allocator, in no order. Written as `functions` is. */
volatile struct allocator_code allocator_code[MAX_ALLOCATOR_OBJECTS] = {};

/* Allocators of `allocator_files` whose object lacks a function of its own that maps: they call another's. */
volatile __u32 allocators_that_call = 0;

/* Only blocks of these sizes in bytes are recorded, both limits included. */
const volatile __u64 min_size = 0;
const volatile __u64 max_size = ~0ULL;

/* A call for more bytes than this can fail: where it would throw, its return is not trapped. */
const volatile __u64 max_throwing_size = ~0ULL;

/* An allocation is recorded when a random u32 is below this; 0 records all. */
const volatile __u32 sample_below = 0;

/*
 * Poisson sampling: an allocation is recorded when one of its bytes is a sample, and samples are this many
 * bytes apart on average; 0 turns it off. In sixteenths of a byte, and times ln 2: see `next_sample`.
 */
const volatile __u64 sample_distance = 0;

/* log2(1 + i/256), in units of 2^-24. */
#define LOG2_STEPS 256
const volatile __u32 log2_table[LOG2_STEPS + 1] = {};

/* Keep `combined_allocs` up to date. */
const volatile bool count_combined = false;

/* Report anonymous mappings through `range_events`. */
const volatile bool track_mappings = true;

/* Send every call to `call_events`. */
const volatile bool trace_calls = false;

/* Entry programs decide whether the return is trapped (session programs); otherwise every return is. */
const volatile bool return_trap_is_optional = false;

/* The kernel gives probes the current task, with memory of their own (Linux 5.11): `threads` is in use, and
 * not `threads_by_id`. */
const volatile bool has_task_storage = true;

/* Frames to keep per stack, at most MAX_STACK_DEPTH. */
const volatile __u32 max_stack_depth = MAX_STACK_DEPTH;

/* Unwind with the tables of the traced processes; otherwise by frame pointers alone. */
const volatile bool unwind_with_tables = false;

/* Name the frames that interpreters run; takes tables. */
const volatile bool walk_interpreters = false;

/* The kernel has bpf_find_vma (Linux 5.17). */
const volatile bool can_find_mappings = false;

/* The kernel tells a task's registers (Linux 5.15). */
const volatile bool can_read_registers = false;

/* Walks that come to a file without a table yet are handed to the tracer; so are those of a process that is
 * not described yet, where mappings can't be asked for. */
const volatile bool defer_walks = false;

/* The kernel's own allocations are traced, and not those of processes. */
const volatile bool trace_kernel = false;

/* memleak's pid namespace, by the number of its inode; 0: the initial one. */
const volatile __u32 pid_namespace = 0;

/* More than one process can be traced: `traced_processes` says which are. */
const volatile bool many_processes = false;

/* The one process that is traced; 0: more than one can be, or the kernel is. */
const volatile __u32 single_tgid = 0;

/* The probes are in other processes as well. */
const volatile bool filter_single = false;

/* Children of traced processes are traced as well. */
const volatile bool follow_forks = false;

/* Traced processes stay so when they execute a program that is not wanted for itself. */
const volatile bool follow_execs = false;

/* Every process that executes a program is traced. */
const volatile bool trace_all = false;

/* Slots of `traced_cgroups` in use. */
const volatile __u32 cgroup_count = 0;

/*
 * Names of processes that are traced: an automaton whose states are bits. A character takes each state that
 * `name_steps` has to the next one, and leaves those that `name_loops` has where they are.
 */
const volatile __u64 name_start = 0;
const volatile __u64 name_loops = 0;
const volatile __u64 name_accept = 0;
const volatile __u64 name_steps[256] = {};

/* memleak's own process, which is never traced, and whose allocations in the kernel are left out. */
const volatile __u32 own_tgid = 0;

/* Bytes of a page. */
const volatile __u32 page_bytes = 4096;

/* Which slot of `struct combined` takes changes: the lowest bit counts. Written by the tracer. */
volatile __u32 epoch = 0;

/* How often the tracer has changed what it says of processes' mappings: what was cached before is stale. */
volatile __u32 unwind_changes = 0;

/* How many pieces of interpreted code have ended. */
volatile __u32 code_ends = 0;

/* Processes that the only traced one has started. */
__u64 children_started = 0;

struct lost lost = {};

/* Stacks that end before their outermost frame, by enum stack_end. */
__u64 stacks_cut[STACK_ENDS] = {};

/* Stacks that lack frames that an interpreter runs, by enum interpreted_loss. */
__u64 interpreted_lost[INTERPRETED_LOSSES] = {};

#define count_lost(what) __sync_fetch_and_add(&lost.what, 1)

#endif
