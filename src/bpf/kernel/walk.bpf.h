/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/*
 * Walks the kernel's stack of a task without the kernel's unwinder, which takes about 100 ns a frame and most
 * of what an event costs. Only recognizes: addresses and names of a new stack come from the kernel, who is
 * the authority.
 *
 * What a function keeps on the stack at a call is constant and stands in the kernel's unwind table (ORC), for
 * nearly all of its code. A rule is taken from there when the kernel's unwinder was seen to go the same way.
 * Where there is no rule the walk is given up, and the kernel unwinds.
 */
#ifndef KERNEL_WALK_BPF_H
#define KERNEL_WALK_BPF_H

#include "config.bpf.h"
#include "user/stack.bpf.h"

/* The kernel's unwind table, all zero where there is none: sorted code addresses as offsets from where each
 * stands, and an entry of 6 bytes for each. */
const volatile struct orc_table orc_table = {};

/* do_syscall_64: its frame is of random size, but its caller stands at a fixed place of the stack. */
const volatile struct code_range system_call = {};

/* Frames to walk, and how much of the stack is looked at. */
#define MAX_WALK 64
#define WALK_WORDS 256

/* The walk begins with the return address into the caller of the program, which stands a little below its
 * context. */
#define WORDS_BELOW_CONTEXT 24
#define START_INDEX 1
#define START_WORDS 64

/* Words of the outermost part that are searched for the return address into the system call's entry. */
#define END_WORDS 4

/* An x86-64 task's stack. Larger ones, of KASAN, are never walked unless more than 14 KiB of them are in use.
 */
#define TASK_STACK_BYTES (16 << 10)

/* By the code address; one with others in common takes another's place. */
#define FRAME_RULES 32768

/*
 * The lower half of a code address and what its rule says, in one word, so that no reader sees half of each.
 * The distance of the canonical frame address, in words, is counted from the stack pointer, or, with RULE_BP,
 * from rbp; 0: there is no simple rule. RULE_SAVED is how many words below that address the caller's rbp is
 * saved, 0 if it isn't.
 */
#define RULE(ip, rule) ((ip) << 32 | (rule))
#define RULE_IP(rule) (0xffffffff00000000ULL | (rule) >> 32)
#define RULE_DISTANCE(rule) ((__u32)(rule)&0xffff)
#define RULE_SAVED(rule) ((__u32)(rule) >> 16 & 0xff)
#define RULE_BP 0x80000000U

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FRAME_RULES);
	__type(key, __u32);
	__type(value, __u64);
} frame_rules SEC(".maps");

/* Where a program's walk begins, in words. */
__u64 walk_starts[KERNEL_EVENTS] = {};

/* Where the last one of a system call's stack stands, in words from the top of the stack. */
__u64 walk_end = 0;

struct kernel_walk {
	__u64 base;  /* where the words stand */
	__u64 top;   /* of the stack; 0: this is no task's stack */
	__u64 count; /* of words */
	/* where the walk ended, if for want of a rule */
	__u64 ip;
	__u64 depth;
	__u64 place;
	__u64 bp;
	__u64 words[WALK_WORDS];
};

static __always_inline __u64 *rule_of(__u64 ip)
{
	__u32 slot = (ip * 0xff51afd7ed558ccdULL >> 32) % FRAME_RULES;

	return bpf_map_lookup_elem(&frame_rules, &slot);
}

static __always_inline bool is_in_system_call(__u64 ip)
{
	return ip - 1 - system_call.begin < system_call.size;
}

/* Reads the part of the stack that holds the callers' frames. */
static __always_inline bool read_task_stack(void *ctx, struct kernel_walk *walk)
{
	struct task_struct *task = (void *)bpf_get_current_task();
	__u64 bottom = (__u64)BPF_CORE_READ(task, stack);
	__u64 base, bytes;

	/* through memory, after which it is a number for the verifier, and no context */
	*(volatile __u64 *)&walk->base = (__u64)ctx;
	base = *(volatile __u64 *)&walk->base - WORDS_BELOW_CONTEXT * sizeof(__u64);
	if (base - bottom >= TASK_STACK_BYTES)
		return false;
	bytes = bottom + TASK_STACK_BYTES - base;
	if (bytes > sizeof(walk->words))
		bytes = sizeof(walk->words);
	if (bpf_probe_read_kernel(walk->words, bytes, (void *)base))
		return false;
	walk->base = base;
	walk->count = bytes / sizeof(__u64);
	walk->top = bottom + TASK_STACK_BYTES;
	return true;
}

/* The place of the canonical frame address, which is right behind the next return address; 0: there is none.
 */
static __always_inline __u64 frame_address(const struct kernel_walk *walk, __u64 rule, __u64 place, __u64 bp)
{
	__u64 from = rule & RULE_BP ? (bp - walk->base) / sizeof(__u64) : place + 1;
	__u64 address = from + RULE_DISTANCE(rule);

	return RULE_DISTANCE(rule) && address > place + 1 && address <= walk->count ? address : 0;
}

static __always_inline __u64 end_of_system_call(const struct kernel_walk *walk, __u64 distance)
{
	__u64 ip = 0;

	bpf_probe_read_kernel(&ip, sizeof(ip), (void *)(walk->top - distance * sizeof(ip)));
	return ip;
}

/* The hash of a stack's return addresses, begun with `hash`; 0 where the walk does not come to its end. */
static __always_inline __u64 walk_kernel_stack(void *ctx, struct kernel_walk *walk, __u32 event, __u64 hash)
{
	__u64 start, ip, place, bp;
	__u32 depth;

	walk->ip = 0;
	walk->top = 0;
	if (!orc_table.count || event >= KERNEL_EVENTS || !read_task_stack(ctx, walk))
		return 0;
	start = *(volatile __u64 *)&walk_starts[event];
	ip = RULE_IP(start);
	place = RULE_DISTANCE(start);
	if (!place || walk->words[place % WALK_WORDS] != ip)
		return 0;
	/* the program saved it first of all */
	bp = walk->words[(place - 1) % WALK_WORDS];
	for (depth = 0; depth < MAX_WALK; depth++) {
		__u64 *rule, found, address;

		hash = hash_address(hash, ip);
		if (is_in_system_call(ip)) {
			__u64 end = *(volatile __u64 *)&walk_end;

			if (end && end_of_system_call(walk, RULE_DISTANCE(end)) == RULE_IP(end))
				return hash_address(hash, RULE_IP(end));
			break;
		}
		rule = rule_of(ip);
		if (!rule)
			return 0;
		found = *(volatile __u64 *)rule;
		if (found >> 32 != (__u32)ip || !found)
			break;
		address = frame_address(walk, found, place, bp);
		if (!address)
			return 0;
		if (RULE_SAVED(found))
			bp = walk->words[(address - RULE_SAVED(found)) % WALK_WORDS];
		/* through memory, or the verifier would follow each of the sums, frame by frame */
		*(volatile __u64 *)&walk->place = address - 1;
		place = *(volatile __u64 *)&walk->place;
		ip = walk->words[place % WALK_WORDS];
	}
	walk->ip = ip;
	walk->depth = depth;
	walk->place = place;
	walk->bp = bp;
	return 0;
}

/*
 * The rule that the kernel's unwind table has for a return address; 0: it can't be told so simply. Not
 * static, so that the verifier looks at it once.
 */
__noinline __u32 look_up_frame(__u64 ip)
{
	struct orc_entry entry = {};
	__u64 low = 0, high = orc_table.count - 1;
	__u32 sp, bp, saved = 0;
	int i;

	for (i = 0; i < 24 && low < high; i++) {
		__u64 middle = low + (high - low + 1) / 2;
		__u64 at = orc_table.addresses + middle * sizeof(__s32);
		__s32 offset = 0;
		__u64 below;

		bpf_probe_read_kernel(&offset, sizeof(offset), (void *)at);
		/* all ones where the code begins below, else 0: a branch would make too many ways through the
		 * loop */
		below = (__s64)(at + offset - ip) >> 63;
		barrier_var(below);
		low = (middle & below) | (low & ~below);
		high = (high & below) | ((middle - 1) & ~below);
	}
	bpf_probe_read_kernel(&entry, sizeof(entry), (void *)(orc_table.entries + low * sizeof(entry)));
	sp = entry.registers & 15;
	bp = entry.registers >> 4;
	if ((sp != ORC_REG_SP && sp != ORC_REG_BP) || entry.sp_offset < 0)
		return 0;
	if (bp == ORC_REG_PREV_SP)
		saved = (__u32)-entry.bp_offset / sizeof(__u64);
	else if (bp)
		return 0;
	if (saved > 255)
		return 0;
	return (__u32)entry.sp_offset / sizeof(__u64) | saved << 16 | (sp == ORC_REG_BP ? RULE_BP : 0);
}

/*
 * Finds where a walk begins: the only place of its return address. Counted in memory, where the verifier does
 * not follow each of the sums.
 */
static __always_inline void learn_start(struct kernel_walk *walk, __u64 event, __u64 ip)
{
	volatile __u64 *place = &walk->place, *places = &walk->depth;
	__u32 i;

	*places = 0;
	for (i = 0; i < START_WORDS; i++) {
		if (walk->words[i] != ip)
			continue;
		*place = i;
		*places += 1;
	}
	if (*places == 1)
		*(volatile __u64 *)&walk_starts[event] = RULE(ip, *place);
}

static __always_inline void learn_end(const struct kernel_walk *walk, __u64 next)
{
	__u64 distance = sizeof(struct pt_regs) / sizeof(__u64) + 1;
	__u32 i;

	for (i = 0; i < END_WORDS; i++, distance++)
		if (end_of_system_call(walk, distance) == next)
			*(volatile __u64 *)&walk_end = RULE(next, distance);
}

/* A walk had no rule: makes one, if the way that the kernel's unwinder took confirms it. */
static __always_inline void learn_from_stack(struct kernel_walk *walk, __u64 event, const struct stack *stack)
{
	__u64 here, next, index, address;
	__u64 *rule;
	__u32 found;

	if (!walk->top || event >= KERNEL_EVENTS)
		return;
	if (!walk->ip) {
		if (!walk_starts[event])
			learn_start(walk, event, stack->addresses[START_INDEX]);
		return;
	}
	index = START_INDEX + walk->depth;
	barrier_var(index);
	if (index >= MAX_STACK_DEPTH - 1)
		return;
	/* before another comparison, in which Linux 6.12's verifier would forget what this one has told */
	here = stack->addresses[index];
	next = stack->addresses[index + 1];
	barrier_var(here);
	barrier_var(next);
	if (index + 1 >= stack->depth || here != walk->ip)
		return;
	if (is_in_system_call(walk->ip)) {
		learn_end(walk, next);
		return;
	}
	rule = rule_of(walk->ip);
	if (!rule)
		return;
	found = look_up_frame(walk->ip);
	address = frame_address(walk, found, walk->place, walk->bp);
	if (RULE_DISTANCE(found) && !address)
		return; /* further out than was read */
	if (!address || walk->words[(address - 1) % WALK_WORDS] != next)
		found = 0;
	*(volatile __u64 *)rule = RULE(walk->ip, found);
}

#endif
