/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/*
 * Stacks of the kernel: captured, cut where an interrupt came in, stored, and recognized when they come
 * again. Runs in any context, so nothing here allocates; knows nothing of what is allocated.
 */
#ifndef KERNEL_STACK_BPF_H
#define KERNEL_STACK_BPF_H

#include "accounting.bpf.h"
#include "kernel/walk.bpf.h"

/* A task, its soft interrupt, its interrupt and one more may be in the middle of a stack on one CPU. */
#define KERNEL_CONTEXTS 4

/*
 * Code through which interrupts come: what lies further out on a stack was interrupted, and has no part in
 * what the interrupt does. The kernel's own stack depot cuts stacks there too (filter_irq_stacks). Unused
 * ones are empty.
 */
#define MAX_INTERRUPT_ENTRIES 4
const volatile struct code_range interrupt_entries[MAX_INTERRUPT_ENTRIES] = {};

/* By the lower bits of its fingerprint; a stack with others in common takes another's place. */
#define KNOWN_STACKS 16384

struct known_stack {
	__u64 stack;
	__u64 check; /* the fingerprint and the stack: a torn entry, half one stack's, is none */
};

/* A stack as it was found. */
struct found_stack {
	__u64 fingerprint; /* 0: none */
	__u64 id;	   /* 0: the kernel gave no stack */
	bool known;	   /* it is stored already */
	bool interrupted;  /* it is an interrupt's, and not the current task's */
};

/* What is found lies here, and not in registers, where the verifier would follow all that it can be. */
struct kernel_scratch {
	__u64 busy;
	__u32 context; /* its own number */
	struct found_stack found;
	struct stack stack;
	struct kernel_walk walk;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, KNOWN_STACKS);
	__type(key, __u32);
	__type(value, struct known_stack);
} known_stacks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, KERNEL_CONTEXTS);
	__type(key, __u32);
	__type(value, struct kernel_scratch);
} kernel_scratch SEC(".maps");

/* By the identity of the stack, of which the cache is part. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 10240);
	__type(key, __u64);
	__type(value, struct cache_name);
} stack_caches SEC(".maps");

static __always_inline struct kernel_scratch *scratch_of(__u32 context)
{
	return bpf_map_lookup_elem(&kernel_scratch, &context);
}

/*
 * Space for a stack that no other context on this CPU uses. One that interrupts between the look and the
 * mark has given its space back before we go on.
 */
static __always_inline struct kernel_scratch *claim_scratch(void)
{
	__u32 context;

	for (context = 0; context < KERNEL_CONTEXTS; context++) {
		struct kernel_scratch *scratch = scratch_of(context);

		if (!scratch || *(volatile __u64 *)&scratch->busy)
			continue;
		*(volatile __u64 *)&scratch->busy = 1;
		scratch->context = context;
		return scratch;
	}
	return NULL;
}

static __always_inline void release_scratch(struct kernel_scratch *scratch)
{
	*(volatile __u64 *)&scratch->busy = 0;
}

static __always_inline void name_cache(__u64 stack, const struct kmem_cache *cache)
{
	struct cache_name name = {};
	const char *text;

	if (bpf_map_lookup_elem(&stack_caches, &stack))
		return;
	text = BPF_CORE_READ(cache, name);
	bpf_probe_read_kernel_str(name.text, sizeof(name.text), text);
	bpf_map_update_elem(&stack_caches, &stack, &name, BPF_NOEXIST);
}

/* A return address lies behind its call, and may be the first one behind the function. */
static __always_inline bool is_interrupt_entry(__u64 address)
{
	bool is = false;
	__u32 i;

#pragma unroll
	for (i = 0; i < MAX_INTERRUPT_ENTRIES; i++)
		is |= address - 1 - interrupt_entries[i].begin < interrupt_entries[i].size;
	return is;
}

static __always_inline struct known_stack *known_stack_of(__u64 fingerprint)
{
	__u32 slot = fingerprint % KNOWN_STACKS;

	return bpf_map_lookup_elem(&known_stacks, &slot);
}

static __always_inline __u64 recall_stack(__u64 fingerprint)
{
	struct known_stack *known = known_stack_of(fingerprint);
	__u64 stack;

	if (!known || !fingerprint)
		return STACK_NOT_STORED;
	stack = *(volatile __u64 *)&known->stack;
	return (stack ^ *(volatile __u64 *)&known->check) == fingerprint ? stack : STACK_NOT_STORED;
}

static __always_inline void remember_stack(__u64 fingerprint, __u64 stack)
{
	struct known_stack *known = known_stack_of(fingerprint);

	if (!known || !fingerprint)
		return;
	*(volatile __u64 *)&known->stack = stack;
	*(volatile __u64 *)&known->check = stack ^ fingerprint;
}

/*
 * Ends a stack where an interrupt came in, and gives it its identity. Not static, so that the verifier looks
 * at it once; by number, since old kernels let nothing but numbers be passed.
 */
__noinline int finish_kernel_stack(__u32 context, __u64 cache)
{
	struct kernel_scratch *scratch = scratch_of(context);
	__u64 hash = hash_address(HASH_SEED, cache);
	__u32 i;

	if (!scratch)
		return 0;
	for (i = 0; i < MAX_STACK_DEPTH && i < scratch->stack.depth; i++) {
		__u64 address = scratch->stack.addresses[i];

		hash = hash_address(hash, address);
		if (is_interrupt_entry(address)) {
			scratch->found.interrupted = true;
			scratch->stack.depth = i + 1;
			break;
		}
	}
	scratch->found.id = hash == STACK_NOT_STORED ? 1 : hash;
	return 0;
}

/* The same for what is to be learned from a stack. */
__noinline int learn_kernel_stack(__u32 context, __u64 event)
{
	struct kernel_scratch *scratch = scratch_of(context);

	if (scratch)
		learn_from_stack(&scratch->walk, event, &scratch->stack);
	return 0;
}

static __always_inline void find_kernel_stack(void *ctx, struct kernel_scratch *scratch, __u32 event,
					      __u64 cache)
{
	struct found_stack *found = &scratch->found;
	struct stack *stack = &scratch->stack;
	long bytes;

	found->interrupted = false;
	/* one stack that allocates from two caches counts as two */
	found->fingerprint = walk_kernel_stack(ctx, &scratch->walk, event, hash_address(HASH_SEED, cache));
	found->id = recall_stack(found->fingerprint);
	found->known = found->id != STACK_NOT_STORED;
	if (found->known)
		return;
	bytes = bpf_get_stack(ctx, stack->addresses, max_stack_depth * sizeof(__u64), 0);
	if (bytes <= 0)
		return;
	stack->depth = (__u64)bytes / sizeof(__u64);
	finish_kernel_stack(scratch->context, cache);
	if (!found->fingerprint)
		learn_kernel_stack(scratch->context, event);
}

/* Sees to it that a stack is stored; gives its identity, STACK_NOT_STORED where that fails. */
static __always_inline __u64 keep_kernel_stack(struct kernel_scratch *scratch, __u64 cache)
{
	const struct found_stack *found = &scratch->found;
	__u64 id;

	if (found->known)
		return found->id;
	if (!found->id) {
		count_lost(stacks);
		return STACK_NOT_STORED;
	}
	id = store_stack(&scratch->stack, found->id, 0);
	if (id == STACK_NOT_STORED)
		return id;
	if (cache)
		name_cache(id, (void *)cache);
	if (!found->interrupted)
		remember_stack(found->fingerprint, id);
	return id;
}

#endif
