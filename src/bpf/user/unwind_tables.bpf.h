/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/*
 * From an address of the current process to its unwind rule: the maps that hold the tables, the searches in
 * them, and the caches in front. Knows nothing of registers and frames.
 */
#ifndef UNWIND_TABLES_BPF_H
#define UNWIND_TABLES_BPF_H

#include "user/live_mappings.bpf.h"

/* What `rule_at` answers besides rules: no rule has these bits. */
#define RULE_UNKNOWN_CODE 7
#define RULE_UNREAD_CODE 6
/* What has been found while nothing is described, in place of a generation. */
#define UNDESCRIBED (1U << 31)
/* Rule::NoFde in src/unwind/rule.rs */
#define RULE_NO_FDE 0

/*
 * A process's unknown code is reported once in this time, which is what reading its mappings takes. While
 * that changes nothing (where frame pointers lead astray, say) the time doubles, up to about a second.
 */
#define UNKNOWN_CODE_INTERVAL_NS 4000000ULL
#define UNKNOWN_CODE_MAX_DOUBLINGS 8

/* Blocks of rows, made and filled by the tracer as files come. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1024);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
	__array(
		values, struct {
			__uint(type, BPF_MAP_TYPE_ARRAY);
			__uint(max_entries, 1);
			__uint(key_size, sizeof(__u32));
			__uint(value_size, sizeof(struct unwind_block));
		});
} unwind_blocks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 65536);
	__type(key, __u32);
	__type(value, __u64);
} unwind_pages SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct unwind_block);
} unwind_rules SEC(".maps");

/* By tgid. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, 1024);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
	__array(
		values, struct {
			__uint(type, BPF_MAP_TYPE_ARRAY);
			__uint(max_entries, 1);
			__uint(key_size, sizeof(__u32));
			__uint(value_size, sizeof(struct unwind_process));
		});
} unwind_processes SEC(".maps");

/* By tgid: how often its dynamic linker has changed what is mapped, or was about to. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, __u32);
	__type(value, __u32);
} code_changes SEC(".maps");

struct unknown_code_report {
	__u64 time_ns;
	__u32 generation; /* of the process then */
	__u32 doublings;
};

/* By tgid: how its unknown code was reported last. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1024);
	__type(key, __u32);
	__type(value, struct unknown_code_report);
} unknown_code_reports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} unknown_code_events SEC(".maps");

/* Types that no map or variable names would be missing from the skeleton. */
const volatile struct unknown_code_event unknown_code_event_type = {};
const volatile enum unwind_code unwind_code_type = UNWIND_TABLE;
const volatile enum stack_end stack_end_type = STACK_COMPLETE;
const volatile struct unwind_process *const unwind_process_type = NULL;

static __always_inline void report_unknown_code(const struct walk *walk)
{
	struct unknown_code_event event = {
		.tgid = tgid_of(current_task()),
		.address = walk->pc,
	};
	struct unknown_code_report report = {
		.time_ns = bpf_ktime_get_ns(),
		.generation = walk->generation,
	};
	struct unknown_code_report *last = bpf_map_lookup_elem(&unknown_code_reports, &event.tgid);

	if (last) {
		__u32 doublings = last->doublings;

		if (report.time_ns - last->time_ns < UNKNOWN_CODE_INTERVAL_NS << (doublings & 0xf))
			return;
		if (report.generation == last->generation)
			report.doublings = doublings + (doublings < UNKNOWN_CODE_MAX_DOUBLINGS);
	}
	bpf_map_update_elem(&unknown_code_reports, &event.tgid, &report, BPF_ANY);
	/* a full ring already asks for what this asks for */
	bpf_ringbuf_output(&unknown_code_events, &event, sizeof(event), 0);
}

/* What was described of the current process may be wrong from now on: it is to be described anew. */
static __always_inline void note_code_change(void)
{
	struct unknown_code_event event = {.tgid = tgid_of(current_task())};
	__u32 *changes, none = 0;

	bpf_map_update_elem(&code_changes, &event.tgid, &none, BPF_NOEXIST);
	changes = bpf_map_lookup_elem(&code_changes, &event.tgid);
	if (changes)
		__sync_fetch_and_add(changes, 1);
	/* after that, so that who sees this sees that as well */
	__sync_fetch_and_add(&unwind_changes, 1);
	if (bpf_map_lookup_elem(&unwind_processes, &event.tgid))
		bpf_ringbuf_output(&unknown_code_events, &event, sizeof(event), 0);
}

/* What is known of a task's process and of the program that it executes; NULL while nothing is. */
static __always_inline struct unwind_mappings *mappings_of(struct task_struct *task)
{
	__u32 tgid = tgid_of(task), zero = 0;
	void *map = bpf_map_lookup_elem(&unwind_processes, &tgid);
	struct unwind_process *process = map ? bpf_map_lookup_elem(map, &zero) : NULL;
	__u32 *changes = bpf_map_lookup_elem(&code_changes, &tgid);
	struct unwind_mappings *known;
	__u64 mm = address_space_of(task);

	if (!process)
		return NULL;
	if (!process->mm)
		process->mm = mm;
	known = &process->halves[process->active & 1];
	return process->mm == mm && known->changes == (changes ? *changes : 0) ? known : NULL;
}

/*
 * All ones where a <= b, else 0, for numbers below 2^63. A comparison would be a branch, and a search with
 * branches has too many paths for the verifier; the empty asm keeps clang from making it one again.
 */
static __always_inline __u64 mask_if_not_above(__u64 a, __u64 b)
{
	__u64 mask = (__s64)(a - b - 1) >> 63;

	barrier_var(mask);
	return mask;
}

/* The last mapping that begins at or below an address; the first where there is none. */
static __always_inline struct unwind_mapping *search_mappings(struct unwind_mappings *known, __u64 address)
{
	__u64 base = 0, step, last = known->count ? known->count - 1 : 0;

	for (step = UNWIND_MAPPINGS / 2; step; step >>= 1) {
		__u64 probe = base + step;
		__u64 begin = known->mappings[probe & (UNWIND_MAPPINGS - 1)].begin;

		base += step & mask_if_not_above(probe, last) & mask_if_not_above(begin, address);
	}
	return &known->mappings[base & (UNWIND_MAPPINGS - 1)];
}

/* The last row of a page at or below an offset; a page's first row is for offset 0. */
static __always_inline __u32 search_rows(const struct unwind_block *block, __u64 page, __u64 offset)
{
	__u64 base = (page >> UNWIND_PAGE_FIRST_SHIFT) & 0xffff;
	__u64 last = base + (page & 0xffff);
	__u64 target = offset << 16 | 0xffff;
	__u64 step;

	for (step = UNWIND_BLOCK_ROWS / 2; step; step >>= 1) {
		__u64 probe = base + step;
		__u64 row = block->words[probe & (UNWIND_BLOCK_ROWS - 1)];

		base += step & mask_if_not_above(probe, last) & mask_if_not_above(row, target);
	}
	return block->words[base & (UNWIND_BLOCK_ROWS - 1)];
}

/* The rule for an address of a file that has a table. */
static __always_inline __u32 rule_in_table(const struct unwind_mapping *mapping, __u64 address)
{
	__u64 in_file = address - mapping->bias;
	__u32 page_key = mapping->page_bias + (__u32)(in_file >> 16);
	__u64 *page = bpf_map_lookup_elem(&unwind_pages, &page_key);
	struct unwind_block *block, *rules;
	__u32 block_key, zero = 0;
	void *blocks;

	if (!page || !*page)
		return RULE_NO_FDE;
	block_key = *page >> UNWIND_PAGE_BLOCK_SHIFT;
	blocks = bpf_map_lookup_elem(&unwind_blocks, &block_key);
	if (!blocks)
		return RULE_NO_FDE;
	block = bpf_map_lookup_elem(blocks, &zero);
	rules = bpf_map_lookup_elem(&unwind_rules, &zero);
	if (!block || !rules)
		return RULE_NO_FDE;
	return rules->words[search_rows(block, *page, in_file & 0xffff) & (UNWIND_BLOCK_ROWS - 1)];
}

/* Whether the process's description has a mapping for an address. */
static __always_inline bool find_described(struct unwind_mapping *found, struct unwind_mappings *known,
					   __u64 address)
{
	struct unwind_mapping *mapping;

	if (!known)
		return false;
	mapping = search_mappings(known, address);
	if (address < mapping->begin || address >= mapping->end)
		return false;
	*found = *mapping;
	return true;
}

/* The first interpreter that is met in a process is the one whose frames are looked for. */
static __always_inline void note_interpreter(struct interpreted *interpreted,
					     const struct unwind_mapping *mapping)
{
	if (interpreted->row || !mapping->interpreter)
		return;
	interpreted->row = mapping->interpreter;
	interpreted->bias = mapping->bias;
	interpreted->due = 1;
}

/* The rule for an address of the current process, past the cache. `live`: mappings can be asked for. */
static __always_inline __u32 find_rule(__u64 address, bool live)
{
	struct unwind_mapping *mapping;
	struct task_struct *task;
	struct thread *thread;

	if (!unwind_with_tables)
		return RULE_NO_FDE;
	task = current_task();
	thread = thread_of(task, false);
	if (!thread)
		return RULE_NO_FDE;
	mapping = &thread->walk.mapping;
	if (address < mapping->begin || address >= mapping->end) {
		struct unwind_mappings *known = mappings_of(task);

		if (!find_described(mapping, known, address)) {
			__u32 generation = known ? known->generation : UNDESCRIBED | unwind_changes;
			__u32 code = live ? find_live(task, thread, address, generation) : UNWIND_NO_CODE;

			/* the tracer is about to describe the process: it has the time to ask who can't be
			 * asked here */
			if (!can_find_mappings && !known && defer_walks)
				return RULE_UNREAD_CODE;
			if (code == UNWIND_UNREAD)
				return RULE_UNREAD_CODE;
			if (code == UNWIND_NO_CODE)
				return RULE_UNKNOWN_CODE;
		}
	}
	if (live && walk_interpreters)
		note_interpreter(&thread->interpreted, mapping);
	return mapping->code == UNWIND_TABLE ? rule_in_table(mapping, address) : RULE_NO_FDE;
}

/*
 * Not static, so that the verifier looks at them once and not at each call. Two, since a kernel without
 * callbacks refuses a program that so much as mentions one.
 */
__noinline __u32 look_up_rule(__u64 address)
{
	return find_rule(address, true);
}

__noinline __u32 look_up_rule_plain(__u64 address)
{
	return find_rule(address, false);
}

/* The rule for an address of the current process. */
static __always_inline __u32 rule_at(struct walk *walk, __u64 address, bool live)
{
	/* multiples of the golden ratio lie as far apart as can be */
	const __u64 golden = 0x9e3779b97f4a7c15ULL;
	__u32 index = (address * golden) >> (64 - RULE_SET_BITS), rule;
	struct cached_rule *set = walk->rules[index & ((1 << RULE_SET_BITS) - 1)];
	__u64 tag = address + walk->generation * golden;
	int i;

	for (i = 0; i < RULES_PER_SET; i++) {
		if (set[i].tag == tag && walk->generation) {
			walk->table = set[i].table;
			return set[i].rule;
		}
	}
	rule = live ? look_up_rule(address) : look_up_rule_plain(address);
	if (rule == RULE_UNKNOWN_CODE || rule == RULE_UNREAD_CODE)
		return rule;
	walk->table = walk->mapping.code == UNWIND_TABLE ? walk->mapping.page_bias : 0;
	/* the older one goes */
	set[1] = set[0];
	set[0] = (struct cached_rule){.tag = tag, .rule = rule, .table = walk->table};
	return rule;
}

/* Makes the caches those of the process's present mappings; what is not described is not cached for long. */
static __always_inline void begin_lookups(struct task_struct *task, struct thread *thread)
{
	struct walk *walk = &thread->walk;
	__u64 mm = address_space_of(task);
	__u32 changes = unwind_changes, generation;
	struct unwind_mappings *known;

	if (walk->generation && walk->changes == changes && walk->mm == mm)
		return;
	known = mappings_of(task);
	generation = known ? known->generation : 0;
	if (walk->mm != mm)
		thread->interpreted.row = 0;
	walk->changes = changes;
	walk->mm = mm;
	if (generation && generation == walk->generation)
		return;
	walk->generation = generation;
	walk->mapping.begin = walk->mapping.end = 0;
}

#endif
