/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/*
 * Captures the user stack of the current thread: return addresses and their hash.
 * Knows nothing of allocations.
 */
#ifndef USER_STACK_BPF_H
#define USER_STACK_BPF_H

#include "config.bpf.h"

/* One step of the hash that identifies a stack (the finalizer of MurmurHash3 mixes each address in). */
static __always_inline __u64 hash_address(__u64 hash, __u64 address)
{
	hash ^= address;
	hash *= 0xff51afd7ed558ccdULL;
	hash ^= hash >> 33;
	hash *= 0xc4ceb9fe1a85ec53ULL;
	hash ^= hash >> 29;
	return hash;
}

/* Walks the frame pointers at a return probe; gives the stack's hash, never STACK_NOT_STORED. */
static __always_inline __u64 capture_user_stack(struct pt_regs *ctx, struct stack *stack)
{
	__u64 hash = 0x9e3779b97f4a7c15ULL;
	__u64 frame[2] = {regs_frame(ctx), regs_pc(ctx)};
	__u64 above = regs_sp(ctx);
	__u32 depth = 0;

	while (depth < MAX_STACK_DEPTH && depth < max_stack_depth) {
		stack->addresses[depth++] = frame[1];
		hash = hash_address(hash, frame[1]);
		if (frame[0] < above || frame[0] & 7)
			break;
		above = frame[0] + sizeof(frame);
		if (bpf_probe_read_user(frame, sizeof(frame), (void *)frame[0]) || !frame[1])
			break;
	}
	stack->depth = depth;
	return hash ? hash : 1;
}

#endif
