/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/*
 * The programs of kernel mode: raw tracepoints, whose arguments are all plain numbers, and what no tracepoint
 * tells. Each reads its arguments, which moved over the kernels' versions, and makes one call.
 */
#ifndef KERNEL_TRACEPOINTS_BPF_H
#define KERNEL_TRACEPOINTS_BPF_H

#include "kernel/events.bpf.h"

/* Linux 5.19 put the cache in front of the sizes, 6.1 gave kmalloc and kmem_cache_alloc records of their own.
 */
#define shared_record() bpf_core_type_exists(struct trace_event_raw_kmem_alloc)
#define shared_with_cache() bpf_core_field_exists(struct trace_event_raw_kmem_alloc, accounted)
#define percpu_has_call_site() bpf_core_field_exists(struct trace_event_raw_percpu_alloc_percpu, call_site)

/* Left to clang, two loads become one from a computed address, which the verifier refuses. */
#define argument_of(ctx, number)                                                                             \
	({                                                                                                   \
		__u64 value;                                                                                 \
		asm volatile("%0 = *(u64 *)(%1 + %2)" : "=r"(value) : "r"(ctx), "i"((number)*8));            \
		value;                                                                                       \
	})

static __always_inline int kmalloc_event(__u64 *ctx)
{
	struct kernel_block new = {
		.address = argument_of(ctx, 1), .memory = MEMORY_SLAB, .event = EVENT_KMALLOC};

	if (shared_record() && shared_with_cache())
		new.size = argument_of(ctx, 3);
	else
		new.size = argument_of(ctx, 2);
	kernel_allocated(ctx, &new);
	return 0;
}

static __always_inline int cache_alloc_event(__u64 *ctx)
{
	struct kernel_block new = {
		.address = argument_of(ctx, 1), .memory = MEMORY_SLAB, .event = EVENT_CACHE_ALLOC};

	if (shared_record() && !shared_with_cache()) {
		new.size = argument_of(ctx, 2);
	} else {
		struct kmem_cache *cache = (void *)argument_of(ctx, 2);

		new.cache = (__u64)cache;
		new.size = BPF_CORE_READ(cache, object_size);
	}
	kernel_allocated(ctx, &new);
	return 0;
}

SEC("raw_tp/kmalloc")
int kernel_kmalloc(__u64 *ctx)
{
	return kmalloc_event(ctx);
}

/* Linux up to 6.0; of its own there, but not later. */
SEC("raw_tp/kmalloc_node")
int kernel_kmalloc_node(__u64 *ctx)
{
	return kmalloc_event(ctx);
}

SEC("raw_tp/kmem_cache_alloc")
int kernel_cache_alloc(__u64 *ctx)
{
	return cache_alloc_event(ctx);
}

SEC("raw_tp/kmem_cache_alloc_node")
int kernel_cache_alloc_node(__u64 *ctx)
{
	return cache_alloc_event(ctx);
}

SEC("raw_tp/kfree")
int kernel_kfree(__u64 *ctx)
{
	kernel_freed(argument_of(ctx, 1), MEMORY_SLAB, EVENT_KFREE);
	return 0;
}

SEC("raw_tp/kmem_cache_free")
int kernel_cache_free(__u64 *ctx)
{
	kernel_freed(argument_of(ctx, 1), MEMORY_SLAB, EVENT_CACHE_FREE);
	return 0;
}

SEC("raw_tp/mm_page_alloc")
int kernel_page_alloc(__u64 *ctx)
{
	pages_allocated(ctx, argument_of(ctx, 0), argument_of(ctx, 1), argument_of(ctx, 2));
	return 0;
}

SEC("raw_tp/mm_page_free")
int kernel_page_free(__u64 *ctx)
{
	pages_freed(argument_of(ctx, 0), argument_of(ctx, 1));
	return 0;
}

SEC("raw_tp/percpu_alloc_percpu")
int kernel_percpu_alloc(__u64 *ctx)
{
	struct kernel_block new = {.memory = MEMORY_PERCPU, .event = EVENT_PERCPU_ALLOC};

	if (percpu_has_call_site()) {
		new.size = argument_of(ctx, 3);
		new.address = argument_of(ctx, 7);
	} else {
		new.size = argument_of(ctx, 2);
		new.address = argument_of(ctx, 6);
	}
	kernel_allocated(ctx, &new);
	return 0;
}

SEC("raw_tp/percpu_free_percpu")
int kernel_percpu_free(__u64 *ctx)
{
	kernel_freed(argument_of(ctx, 2), MEMORY_PERCPU, EVENT_PERCPU_FREE);
	return 0;
}

/* kfree_rcu: no tracepoint tells when the block is freed in the end, and nobody uses it from here on. */
SEC("kprobe/kvfree_call_rcu")
int kernel_rcu_free(struct pt_regs *ctx)
{
	struct arguments arguments = regs_arguments(ctx);

	freed_after_grace_period(arguments.first, arguments.second);
	return 0;
}

SEC("kprobe/kmem_cache_free_bulk")
int kernel_bulk_free(struct pt_regs *ctx)
{
	struct arguments arguments = regs_arguments(ctx);

	freed_in_bulk(arguments.second, arguments.third);
	return 0;
}

#endif
