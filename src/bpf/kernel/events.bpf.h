/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/*
 * What the kernel's own allocators do: slab objects, pages and per-CPU memory become blocks of process 0.
 * Runs in any context, so nothing here allocates; knows nothing of which tracepoint brought an event.
 */
#ifndef KERNEL_EVENTS_BPF_H
#define KERNEL_EVENTS_BPF_H

#include "accounting.bpf.h"
#include "events.bpf.h"
#include "kernel/stack.bpf.h"
#include "sampling.bpf.h"
#include "kernel/user_pages.bpf.h"

/* ___GFP_MOVABLE: pages whose users can be told that they moved, which is what processes and files hold. */
#define GFP_MOVABLE 0x08

/* Blocks freed at a time at the most; the kernel's own callers stay below. */
#define MAX_BULK 512

/* No map holds these as such: this puts them into the skeleton. */
const volatile enum memory memory_type = 0;
const volatile enum kernel_event kernel_event_type = 0;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sampler);
} kernel_sampler SEC(".maps");

/* What an event tells of a new block. */
struct kernel_block {
	__u64 address;
	__u64 size;
	__u64 cache; /* struct kmem_cache; 0: not known */
	__u32 memory;
	__u32 order; /* of pages */
	__u32 event;
};

static __always_inline bool is_own_process(void)
{
	return tgid_of(current_task()) == own_tgid;
}

static __always_inline bool kernel_sampler_picks(__u64 size)
{
	__u32 only = 0;
	struct sampler *sampler = bpf_map_lookup_elem(&kernel_sampler, &only);

	return sampler && sampler_picks(sampler, size);
}

/* All pages have one address space, whoever uses them. */
static __always_inline struct block_key kernel_key(__u64 address, __u32 memory)
{
	return (struct block_key){
		.address = address,
		.memory = memory == MEMORY_USER_PAGES ? MEMORY_PAGES : memory,
	};
}

static __always_inline void kernel_allocated(void *ctx, const struct kernel_block *new)
{
	struct block_key key = kernel_key(new->address, new->memory);
	struct block block = {.size = new->size, .function = KERNEL_BLOCK(new->memory, new->order)};
	bool wanted = new->size >= min_size &&new->size <= max_size &&kernel_sampler_picks(new->size);
	struct kernel_scratch *scratch;
	bool interrupted = false;

	if (!new->address)
		return;
	if (trace_calls && !is_own_process())
		send_call(new->event, new->size, new->address, 0, 0);
	scratch = wanted ? claim_scratch() : NULL;
	if (scratch) {
		find_kernel_stack(ctx, scratch, new->event, new->cache);
		interrupted = scratch->found.interrupted;
	}
	if (!wanted || (!interrupted && is_own_process())) {
		/* but what was there before is gone, seen or not */
		release_block(&key, &block);
		goto out;
	}
	block.time_ns = bpf_ktime_get_ns();
	block.tid = tid_of(current_task());
	if (scratch)
		block.stack = keep_kernel_stack(scratch, new->cache);
	else
		count_lost(stacks);
	record_block(&key, &block);
out:
	if (scratch)
		release_scratch(scratch);
}

static __always_inline void kernel_freed(__u64 address, __u32 memory, __u32 event)
{
	struct block_key key = kernel_key(address, memory);
	struct block block = {};

	if (!address)
		return;
	release_block(&key, &block);
	if (trace_calls && !is_own_process())
		send_call(event, block.size, address, 0, 0);
}

/* Pages of processes and files are many, and come and go by the thousand: where they aren't shown, neither
 * their stacks are taken nor room in `allocs`. */
static __always_inline void user_pages_allocated(const struct kernel_block *new)
{
	struct block_key key = kernel_key(new->address, new->memory);
	struct block old;

	if (!new->address)
		return;
	if (!is_own_process()) {
		if (trace_calls)
			send_call(new->event, new->size, new->address, 0, 0);
		count_user_pages(new->address, new->order);
	}
	release_block(&key, &old);
}

static __always_inline void pages_allocated(void *ctx, __u64 page, __u32 order, __u32 gfp)
{
	struct kernel_block new = {
		.address = page,
		.size = (__u64)page_bytes << (order & 31),
		.memory = gfp & GFP_MOVABLE ? MEMORY_USER_PAGES : MEMORY_PAGES,
		.order = order,
		.event = EVENT_PAGE_ALLOC,
	};

	if (can_count_user_pages() && new.memory == MEMORY_USER_PAGES)
		user_pages_allocated(&new);
	else
		kernel_allocated(ctx, &new);
}

/* Takes pages off a block of at least 2 to the power of `order` pages; returns whether there was one. */
static __always_inline bool take_pages(__u64 head, __u32 order, __u64 bytes)
{
	struct block_key key = kernel_key(head, MEMORY_PAGES);
	struct block *block = bpf_map_lookup_elem(&allocs, &key);
	__u64 less = -bytes;
	struct block old;

	if (!block || KERNEL_BLOCK_ORDER(block->function) < order || block->size < bytes)
		return false;
	if (block->size == bytes)
		return release_block(&key, &old);
	__sync_fetch_and_add(&block->size, less);
	if (count_combined) {
		struct combined_key totals = combined_key_of(0, block);
		struct combined *combined = bpf_map_lookup_elem(&combined_allocs, &totals);

		if (combined)
			/* the count stays: clang makes an addition of 0 an operation that Linux 5.10 lacks */
			__sync_fetch_and_add(&combined->bytes[epoch & 1], less);
	}
	return true;
}

/*
 * Pages can be freed in parts (alloc_pages_exact gives the rest back at once): what is not the head of a
 * block may lie in a larger one, whose head is aligned to its size. The first struct page is aligned to more
 * than that.
 */
static __always_inline void pages_freed(__u64 page, __u32 order)
{
	__u64 bytes = (__u64)page_bytes << (order & 31);
	__u64 page_struct = bpf_core_type_size(struct page);
	__u32 larger;

	if (trace_calls && !is_own_process())
		send_call(EVENT_PAGE_FREE, bytes, page, 0, 0);
	if (uncount_user_pages(page, order) || take_pages(page, order, bytes))
		return;
	if (page_struct & (page_struct - 1))
		return;
	for (larger = 1; larger <= MAX_ORDER; larger++) {
		__u64 head = page & ~((page_struct << larger) - 1);

		if (larger > order && head != page && take_pages(head, larger, bytes))
			return;
	}
}

/* The kernel passes the block itself, or (before 6.4) its offset before the head. */
static __always_inline void freed_after_grace_period(__u64 head, __u64 block)
{
	kernel_freed(block < 4096 ? head - block : block, MEMORY_SLAB, EVENT_RCU_FREE);
}

/* Not static, so that the verifier looks at it once and not for each of them. */
__noinline int freed_one_of_many(__u64 address)
{
	kernel_freed(address, MEMORY_SLAB, EVENT_BULK_FREE);
	return 0;
}

static __always_inline void freed_in_bulk(__u64 count, __u64 blocks)
{
	__u32 i;

	for (i = 0; i < MAX_BULK && i < count; i++) {
		__u64 address = 0;

		bpf_probe_read_kernel(&address, sizeof(address), (void *)(blocks + i * sizeof(address)));
		freed_one_of_many(address);
	}
}

#endif
