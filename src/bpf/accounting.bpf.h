/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/*
 * What is live: records blocks and releases them, each exactly once, with the totals per stack.
 * Knows nothing of probes or of who allocates.
 */
#ifndef ACCOUNTING_BPF_H
#define ACCOUNTING_BPF_H

#include "process.bpf.h"

/* Sizes of the maps are set before load. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1000000);
	__type(key, struct block_key);
	__type(value, struct block);
} allocs SEC(".maps");

/* Of one process it only grows: who has seen that a stack is stored need not look again. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 10240);
	__type(key, __u64);
	__type(value, struct stack);
} stack_traces SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 10240);
	__type(key, struct combined_key);
	__type(value, struct combined);
} combined_allocs SEC(".maps");

/* Keeps a stack that process `tgid` uses; gives its identity, STACK_NOT_STORED when there is no room. */
static __always_inline __u64 store_stack(struct stack *stack, __u64 hash, __u32 tgid)
{
	struct stack *known = bpf_map_lookup_elem(&stack_traces, &hash);
	long err;

	if (many_processes) {
		/* it must not go with the process that stored it */
		stack->tgid = tgid;
		if (known && known->tgid != stack->tgid)
			known->tgid = stack->tgid;
	}
	if (known)
		return hash;
	err = bpf_map_update_elem(&stack_traces, &hash, stack, BPF_NOEXIST);
	if (!err || err == -EEXIST)
		return hash;
	count_lost(stacks);
	return STACK_NOT_STORED;
}

/* The key of the totals that a block belongs to. */
static __always_inline struct combined_key combined_key_of(__u32 tgid, const struct block *block)
{
	return (struct combined_key){
		.stack = block->stack,
		.tgid = tgid,
		.memory = trace_kernel ? KERNEL_BLOCK_MEMORY(block->function) : MEMORY_HEAP,
	};
}

/* The totals of a stack, made if need be. NULL when there is no room. */
static __always_inline struct combined *combined_of(const struct combined_key *key)
{
	const struct combined zero = {};
	struct combined *combined = bpf_map_lookup_elem(&combined_allocs, key);

	if (combined)
		return combined;
	bpf_map_update_elem(&combined_allocs, key, &zero, BPF_NOEXIST);
	return bpf_map_lookup_elem(&combined_allocs, key);
}

static __always_inline void add_to_combined(struct combined *combined, __s64 bytes, __s64 count)
{
	__u32 slot = epoch & 1;

	__sync_fetch_and_add(&combined->bytes[slot], bytes);
	__sync_fetch_and_add(&combined->count[slot], count);
}

/* The totals that a new block is counted under, from then on and when it is released. */
static __always_inline struct combined *choose_combined(__u32 tgid, struct block *block)
{
	struct combined_key key = combined_key_of(tgid, block);
	struct combined *combined = combined_of(&key);

	if (combined || block->stack == STACK_NOT_STORED)
		return combined;
	count_lost(stacks);
	key.stack = block->stack = STACK_NOT_STORED;
	return combined_of(&key);
}

/*
 * Takes a live block out. The copy is made first: once deleted, an element can be reused at once.
 * Returns whether the block was known.
 */
static __always_inline bool release_block(const struct block_key *key, struct block *block)
{
	struct block *found = bpf_map_lookup_elem(&allocs, key);

	if (!found)
		return false;
	*block = *found;
	if (bpf_map_delete_elem(&allocs, key))
		return false;
	if (count_combined) {
		struct combined_key totals = combined_key_of(key->tgid, block);
		struct combined *combined = bpf_map_lookup_elem(&combined_allocs, &totals);

		if (combined)
			add_to_combined(combined, -(__s64)block->size, -1);
	}
	return true;
}

/*
 * The same where nobody wants to know what the block was. Looking first pays where most blocks are unknown:
 * a look takes no lock.
 */
static __always_inline bool drop_block(const struct block_key *key)
{
	bool few_are_recorded = sample_below || sample_distance || min_size || max_size != ~0ULL;
	struct block block;

	if (count_combined || few_are_recorded)
		return release_block(key, &block);
	return !bpf_map_delete_elem(&allocs, key);
}

/* Puts a live block in. One at the same address means that its free was missed: it is replaced. */
static __always_inline void record_block(const struct block_key *key, struct block *block)
{
	struct combined *combined = count_combined ? choose_combined(key->tgid, block) : NULL;
	long err = bpf_map_update_elem(&allocs, key, block, BPF_NOEXIST);

	if (err == -EEXIST) {
		struct block old;

		if (release_block(key, &old))
			count_lost(missed_frees);
		err = bpf_map_update_elem(&allocs, key, block, BPF_NOEXIST);
	}
	if (err) {
		count_lost(blocks);
		__sync_fetch_and_add(&lost.block_bytes, block->size);
		return;
	}
	if (combined)
		add_to_combined(combined, block->size, 1);
}

#endif
