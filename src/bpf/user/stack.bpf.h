/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/*
 * Captures the user stack of the current thread, frame by frame: return addresses, their hash, and why it
 * ends. Knows nothing of allocations, nor of how rules are found.
 */
#ifndef USER_STACK_BPF_H
#define USER_STACK_BPF_H

#include "languages/languages.bpf.h"
#include "user/unwind_tables.bpf.h"

#define HASH_SEED 0x9e3779b97f4a7c15ULL

/* No slot has this address: nothing is hijacked further out. */
#define NOTHING_HIJACKED (~0ULL)
/* Return probes that one frame can hide: those that were left by longjmp, and several on one function. */
#define MAX_SKIPPED_INSTANCES 16
/* More frames in one call cost the verifier's patience. */
#define FRAMES_PER_CALL 8

/* Adds a frame; returns whether there was room. */
static __always_inline bool add_frame(struct walk *walk, struct stack *stack, __u64 address)
{
	__u32 depth = stack->depth;

	if (depth >= MAX_STACK_DEPTH || depth >= max_stack_depth) {
		walk->end = STACK_DEPTH;
		return false;
	}
	stack->addresses[depth] = address;
	stack->depth = depth + 1;
	/* two libraries can lie at one address, one after the other */
	walk->hash = hash_address(walk->hash ^ walk->table, address);
	return true;
}

static __always_inline bool end_walk(struct walk *walk, enum stack_end end)
{
	walk->end = end;
	return false;
}

#if RETURN_ADDRESS_ON_STACK
/*
 * A return probe replaces the return address of its function, that of another tracer as well as our own, and
 * the kernel keeps the original. Its list runs from the innermost such function outwards.
 */
static __always_inline void begin_hijacked(struct task_struct *task, struct walk *walk, __u64 sp)
{
	struct return_instance *instance;

	/* the function that returns just now is still on the list */
	if (has_task_storage) {
		struct uprobe_task *utask = task->utask;

		instance = utask ? utask->return_instances : NULL;
		if (instance && instance->stack < sp)
			instance = instance->next;
		walk->hijacked_slot = instance ? instance->stack : NOTHING_HIJACKED;
	} else {
		instance = BPF_CORE_READ(task, utask, return_instances);
		if (instance && BPF_CORE_READ(instance, stack) < sp)
			instance = BPF_CORE_READ(instance, next);
		walk->hijacked_slot = instance ? BPF_CORE_READ(instance, stack) : NOTHING_HIJACKED;
	}
	walk->return_instance = (__u64)instance;
}

/*
 * The original of a return address that may have been replaced; 0 where it was not. Not static, so that the
 * verifier looks at it once and not at each call.
 */
__noinline __u64 original_return_address(__u64 slot)
{
	struct thread *thread = thread_of(current_task(), false);
	struct return_instance *instance;
	__u64 original = 0;
	int i;

	if (!thread)
		return 0;
	instance = (void *)thread->walk.return_instance;
	thread->walk.hijacked_slot = NOTHING_HIJACKED;
	for (i = 0; i < MAX_SKIPPED_INSTANCES && instance; i++) {
		__u64 stack = BPF_CORE_READ(instance, stack);

		if (stack > slot) {
			thread->walk.hijacked_slot = stack;
			break;
		}
		if (stack == slot)
			original = BPF_CORE_READ(instance, orig_ret_vaddr);
		instance = BPF_CORE_READ(instance, next);
	}
	thread->walk.return_instance = (__u64)instance;
	return original;
}

static __always_inline __u64 true_return_address(struct walk *walk, __u64 slot, __u64 address)
{
	__u64 original = 0;

	if (slot >= walk->hijacked_slot)
		original = original_return_address(slot);
	return original ? original : address;
}
#else
static __always_inline void begin_hijacked(struct task_struct *task, struct walk *walk, __u64 sp)
{
	walk->address_mask = address_mask(task);
	walk->trampoline = return_trampoline(task);
}

/*
 * The original of a return address that was replaced before its function kept it at `slot`, or left it in x30
 * with a stack pointer just above: that of the innermost trapped function whose frame reaches further out. 0
 * where there is none. Not static, so that the verifier looks at it once and not at each call.
 */
__noinline __u64 original_return_address(__u64 slot)
{
	struct task_struct *task = current_task();
	struct return_instance *instance = BPF_CORE_READ(task, utask, return_instances);
	int i;

	for (i = 0; i < MAX_SKIPPED_INSTANCES && instance; i++) {
		if (BPF_CORE_READ(instance, stack) > slot)
			return BPF_CORE_READ(instance, orig_ret_vaddr);
		instance = BPF_CORE_READ(instance, next);
	}
	return 0;
}

/* A return address as its caller gave it: without a signature, and as it was before a return probe's. */
static __always_inline __u64 true_return_address(struct walk *walk, __u64 slot, __u64 address)
{
	__u64 original = 0;

	address &= walk->address_mask;
	if (address && address == walk->trampoline)
		original = original_return_address(slot) & walk->address_mask;
	return original ? original : address;
}
#endif

/* Reads the stack from an address on into the window: as much as fits, or a word at least. */
static __noinline bool fill_window(struct walk *walk, __u64 address)
{
	walk->window_begin = address;
	walk->window_size = sizeof(walk->window);
	if (!bpf_probe_read_user(walk->window, sizeof(walk->window), (void *)address))
		return true;
	walk->window_size = sizeof(walk->window[0]);
	if (!bpf_probe_read_user(walk->window, sizeof(walk->window[0]), (void *)address))
		return true;
	walk->window_size = 0;
	return false;
}

/* A word of the stack; reading is what costs most, so it is read in larger pieces. */
static __always_inline bool read_stack(struct walk *walk, __u64 address, __u64 *word)
{
	__u64 offset = address - walk->window_begin;

	if (offset >= walk->window_size || offset & 7) {
		if (!fill_window(walk, address))
			return end_walk(walk, STACK_UNREADABLE);
		offset = 0;
	}
	*word = walk->window[(offset >> 3) & (WINDOW_WORDS - 1)];
	return true;
}

/* The kinds and numbers of rules: src/unwind/rule.rs has the layout. */
#define RULE_KIND(rule) ((rule)&7)
#define RULE_KIND_SPECIAL 0
#define RULE_KIND_RSP 1
#define RULE_KIND_RBP 2
#define RULE_KIND_DEREF_RSP 3
#define RULE_KIND_DEREF_RBP 4
#define RULE_KIND_RECORD 5
#define RULE_SPECIAL(rule) (((rule) >> 3) & 0x1f)
#define RULE_SPECIAL_NO_FDE 0
#define RULE_SPECIAL_STOP 1
#define RULE_SPECIAL_SIGNAL 3
#define RULE_SPECIAL_PLT 4
#define RULE_PLT_THRESHOLD(rule) (((rule) >> 20) & 0xf)
#define RULE_OFFSET(rule) ((rule)&0xffff8)
#define RULE_SIGNED_OFFSET(rule) ((__s64)(__s32)(RULE_OFFSET(rule) << 12) >> 12)
#define RULE_RBP(rule) ((rule) >> 20)
#define RULE_RBP_LOST 0xfff
#define RULE_DEREF_RBP(rule) (((rule) >> 20) & 0xff)
#define RULE_DEREF_RBP_LOST 0xff
#define RULE_DEREF_RBP_AT_BASE(rule) ((rule) >> 31)
#define RULE_DEREF_ADD(rule) ((((rule) >> 28) & 7) * 8)
#define RULE_RECORD_FROM_FRAME(rule) (((rule) >> 3) & 1)
#define RULE_RECORD_OFFSET(rule) ((rule)&0xffff0)
#define RULE_RECORD_SLOT(rule) ((((rule) >> 20) & 0x3ff) * 8)
#define RULE_RECORD_SAVED(rule) ((rule) >> 30)
#define RULE_RECORD_NOTHING 0
#define RULE_RECORD_PAIR 1
#define RULE_RECORD_LINK 2

/* Where a caller's rbp is, if not at an address. */
#define RBP_SAME 0
#define RBP_LOST 1

/* Registers of the interrupted code in the kernel's rt_sigframe, from the signal trampoline's stack pointer.
 */
#if RETURN_ADDRESS_ON_STACK
#define SIGNAL_FRAME_BP 120
#define SIGNAL_FRAME_SP 160
#define SIGNAL_FRAME_PC 168

/*
 * Where the return address lies while the kernel's trampoline (Linux 6.11) goes back to it, in bytes from the
 * stack pointer: behind its system call, and each register that it pops.
 */
static __always_inline __s64 trampoline_slot(__u64 position)
{
	return position == 13 ? 16 : position == 15 ? 8 : position == 16 ? 0 : -1;
}

/*
 * A signal can come when a function has returned to the kernel's trampoline, and not yet from there: it is as
 * if its caller had been interrupted.
 */
static __always_inline bool leave_trampoline(struct walk *walk)
{
	__u64 position = walk->pc - return_trampoline(current_task()), slot = walk->hijacked_slot;
	__s64 offset;

	if (position >= page_bytes)
		return true;
	if (SP_AT_RETURN(slot) - walk->sp <= TRAMPOLINE_BYTES) {
		walk->pc = original_return_address(slot);
	} else {
		offset = trampoline_slot(position);
		slot = walk->sp + offset;
		if (offset < 0 || !read_stack(walk, slot, &walk->pc))
			return true;
	}
	walk->sp = SP_AT_RETURN(slot);
	walk->is_return_address = 1;
	return true;
}
#else
#define SIGNAL_FRAME_BP 544
#define SIGNAL_FRAME_LINK 552
#define SIGNAL_FRAME_SP 560
#define SIGNAL_FRAME_PC 568

/* What was interrupted may still have its return address in x30. */
static __always_inline bool leave_trampoline(struct walk *walk)
{
	walk->sp_is_bound = 0;
	return true;
}
#endif

static __always_inline bool step_over_signal_frame(struct walk *walk)
{
	__u64 frame = walk->sp;

	if (!read_stack(walk, frame + SIGNAL_FRAME_BP, &walk->bp) ||
	    !read_stack(walk, frame + SIGNAL_FRAME_SP, &walk->sp) ||
	    !read_stack(walk, frame + SIGNAL_FRAME_PC, &walk->pc))
		return false;
#if !RETURN_ADDRESS_ON_STACK
	if (!read_stack(walk, frame + SIGNAL_FRAME_LINK, &walk->link))
		return false;
#endif
	walk->is_return_address = 0;
	return leave_trampoline(walk);
}

/* Goes to the caller, whose stack pointer is `sp`. */
static __always_inline bool arrive(struct walk *walk, __u64 sp, __u64 address)
{
	if (!address)
		return end_walk(walk, STACK_COMPLETE);
	walk->pc = address;
	walk->sp = sp;
	walk->is_return_address = 1;
	return true;
}

#if RETURN_ADDRESS_ON_STACK
/* Goes to the caller, whose stack pointer is `cfa` and whose rbp is in memory unless `rbp_slot` says else. */
static __always_inline bool step_to_caller(struct walk *walk, __u64 cfa, __u64 rbp_slot)
{
	__u64 address;

	if (cfa <= walk->sp)
		return end_walk(walk, STACK_FRAME_POINTER);
	if (rbp_slot == RBP_LOST)
		walk->bp = 0;
	else if (rbp_slot != RBP_SAME && !read_stack(walk, rbp_slot, &walk->bp))
		return false;
	if (!read_stack(walk, cfa - 8, &address))
		return false;
	return arrive(walk, cfa, true_return_address(walk, cfa - 8, address));
}
#endif

#if !RETURN_ADDRESS_ON_STACK
/* `mov x8, #139` (rt_sigreturn); `svc #0`: where a signal's handler returns to, in the vDSO or a C library.
 */
#define SIGNAL_RETURN_CODE 0xd4000001d2801168ULL

/* The caller's sp is not told: the record can be anywhere in its frame. */
static __always_inline bool step_by_frame_record(struct walk *walk)
{
	__u64 record = walk->bp, address;

	if (walk->is_return_address && read_user_word(walk->pc) == SIGNAL_RETURN_CODE)
		return step_over_signal_frame(walk);
	if (!read_stack(walk, record, &walk->bp) || !read_stack(walk, record + 8, &address))
		return false;
	walk->sp_is_bound = 1;
	return arrive(walk, record + 16, true_return_address(walk, record + 8, address));
}

/*
 * The register that a rule counts from. Where sp is not known, it follows from the frame pointer of a
 * function that keeps it at its record.
 */
static __always_inline bool find_base(struct walk *walk, __u32 rule, __u64 *base)
{
	*base = RULE_RECORD_FROM_FRAME(rule) ? walk->bp : walk->sp;
	if (RULE_RECORD_FROM_FRAME(rule) || !walk->sp_is_bound)
		return true;
	*base = walk->bp - RULE_RECORD_SLOT(rule);
	return RULE_RECORD_SAVED(rule) == RULE_RECORD_PAIR && *base >= walk->sp;
}

static __always_inline bool step_by_record(struct walk *walk, __u32 rule)
{
	__u32 saved = RULE_RECORD_SAVED(rule);
	bool innermost = !walk->is_return_address;
	__u64 base, cfa, slot, address;

	if (!find_base(walk, rule, &base))
		return end_walk(walk, STACK_FRAME_POINTER);
	slot = base + RULE_RECORD_SLOT(rule);
	cfa = base + RULE_RECORD_OFFSET(rule);
	/* only a function that has called none can do without a frame */
	if (cfa < walk->sp || (cfa == walk->sp && !innermost))
		return end_walk(walk, STACK_FRAME_POINTER);
	if (saved == RULE_RECORD_NOTHING) {
		if (!innermost)
			return end_walk(walk, STACK_FRAME_POINTER);
		slot = walk->sp - 8;
		address = walk->link;
	} else {
		if (saved == RULE_RECORD_PAIR) {
			if (!read_stack(walk, slot, &walk->bp))
				return false;
			slot += 8;
		} else if (saved != RULE_RECORD_LINK) {
			walk->bp = 0;
		}
		if (!read_stack(walk, slot, &address))
			return false;
	}
	walk->sp_is_bound = 0;
	return arrive(walk, cfa, true_return_address(walk, slot, address));
}
#endif

/* Code without unwind information: its frame pointer is believed as far as it makes sense. */
static __always_inline bool step_by_frame_pointer(struct walk *walk)
{
	/* the ABI's mark of the outermost frame */
	if (!walk->bp)
		return end_walk(walk, STACK_COMPLETE);
	if (walk->bp < walk->sp || walk->bp & 7)
		return end_walk(walk, STACK_FRAME_POINTER);
#if RETURN_ADDRESS_ON_STACK
	return step_to_caller(walk, walk->bp + 16, walk->bp);
#else
	return step_by_frame_record(walk);
#endif
}

static __always_inline bool step_by_special_rule(struct walk *walk, __u32 rule)
{
	switch (RULE_SPECIAL(rule)) {
	case RULE_SPECIAL_NO_FDE:
		return step_by_frame_pointer(walk);
	case RULE_SPECIAL_STOP:
		return end_walk(walk, STACK_COMPLETE);
	case RULE_SPECIAL_SIGNAL:
		return step_over_signal_frame(walk);
#if RETURN_ADDRESS_ON_STACK
	case RULE_SPECIAL_PLT: {
		bool pushed = (walk->pc & 15) >= RULE_PLT_THRESHOLD(rule);

		return step_to_caller(walk, walk->sp + 8 + 8 * pushed, RBP_SAME);
	}
#endif
	default:
		return end_walk(walk, STACK_UNSUPPORTED);
	}
}

#if RETURN_ADDRESS_ON_STACK
static __always_inline bool step_by_memory(struct walk *walk, __u32 rule)
{
	__u64 base = RULE_KIND(rule) == RULE_KIND_DEREF_RBP ? walk->bp : walk->sp;
	__u64 saved = RULE_DEREF_RBP(rule), slot, cfa;

	if (!read_stack(walk, base + RULE_SIGNED_OFFSET(rule), &cfa))
		return false;
	cfa += RULE_DEREF_ADD(rule);
	if (RULE_DEREF_RBP_AT_BASE(rule))
		slot = base + (__s64)(__s8)saved * 8;
	else if (saved == RULE_DEREF_RBP_LOST)
		slot = RBP_LOST;
	else
		slot = saved ? cfa - saved * 8 : RBP_SAME;
	return step_to_caller(walk, cfa, slot);
}

static __always_inline bool step_by_offset(struct walk *walk, __u32 rule)
{
	__u64 cfa = RULE_KIND(rule) == RULE_KIND_RSP ? walk->sp + RULE_OFFSET(rule)
						     : walk->bp + RULE_SIGNED_OFFSET(rule);
	__u64 saved = RULE_RBP(rule), slot = RBP_SAME;

	if (saved)
		slot = saved == RULE_RBP_LOST ? RBP_LOST : cfa - saved * 8;
	return step_to_caller(walk, cfa, slot);
}
#endif

/* Goes to the caller of the frame that the walk has reached; returns whether there is one. */
static __always_inline bool step(struct walk *walk, __u32 rule)
{
	switch (RULE_KIND(rule)) {
#if RETURN_ADDRESS_ON_STACK
	case RULE_KIND_RSP:
	case RULE_KIND_RBP:
		return step_by_offset(walk, rule);
	case RULE_KIND_DEREF_RSP:
	case RULE_KIND_DEREF_RBP:
		return step_by_memory(walk, rule);
#else
	case RULE_KIND_RECORD:
		return step_by_record(walk, rule);
#endif
	case RULE_KIND_SPECIAL:
		return step_by_special_rule(walk, rule);
	default:
		return end_walk(walk, STACK_UNSUPPORTED);
	}
}

/* Whether the frame at `pc`, whose stack ends where the walk is now, may stay, or what it runs had room. */
static __always_inline bool replace_loop(struct thread *thread, __u64 pc, __u64 sp)
{
	struct interpreted *interpreted = &thread->interpreted;

	if (is_next_loop(interpreted, pc, sp, thread->walk.sp))
		return merge_interpreted(thread);
	if (is_loop_code(interpreted, pc))
		lose_interpreted(interpreted, INTERPRETED_UNMATCHED);
	return true;
}

/* Adds the frame that the walk has reached and goes to its caller; returns whether there is one. */
static __always_inline bool walk_frame(struct thread *thread, bool live)
{
	struct interpreted *interpreted = &thread->interpreted;
	struct walk *walk = &thread->walk;
	struct stack *stack = &thread->stack;
	__u32 rule = RULE_NO_FDE;
	__u64 pc, sp;

	if (unwind_with_tables)
		rule = rule_at(walk, walk->pc - walk->is_return_address, live);
	if (rule == RULE_UNREAD_CODE) {
		/* who goes on from here needs them */
		if (live && walk_interpreters && interpreted->due)
			take_interpreted_frames(thread);
		report_unknown_code(walk);
		return end_walk(walk, STACK_UNREAD);
	}
	/* The first address comes from the CPU; any other may be what a wrong step has read. */
	if (rule == RULE_UNKNOWN_CODE) {
		report_unknown_code(walk);
		if (!stack->depth)
			add_frame(walk, stack, walk->pc);
		return end_walk(walk, STACK_UNKNOWN_CODE);
	}
	if (live && walk_interpreters) {
		if (interpreted->due)
			take_interpreted_frames(thread);
		interpreted->hash_before[1] = interpreted->hash_before[0];
		interpreted->hash_before[0] = walk->hash;
	}
	pc = walk->pc;
	sp = walk->sp;
	if (!add_frame(walk, stack, pc) || !step(walk, rule))
		return false;
	return !live || !walk_interpreters || !interpreted->row || replace_loop(thread, pc, sp);
}

/* Walks some frames further; returns whether there are more. */
static __always_inline int walk_some(struct thread *thread, bool live)
{
	int i;

	if (!thread)
		return false;
	for (i = 0; i < FRAMES_PER_CALL; i++) {
		if (!walk_frame(thread, live))
			return false;
	}
	return true;
}

/*
 * Not static, and with their state in memory, so that the verifier looks at them once: as part of the loop
 * below they exceed what the verifier does.
 */
__noinline int walk_frames(struct thread *thread)
{
	return walk_some(thread, true);
}

/* The kernels that have no callbacks don't let a function have a pointer as its argument either. */
__noinline int walk_frames_plain(void)
{
	return walk_some(thread_of(current_task(), false), false);
}

/* Begins at the caller of the function at whose return, or at whose entry, the probe is. */
static __always_inline void begin_walk(struct pt_regs *ctx, struct task_struct *task, struct walk *walk,
				       bool at_return)
{
	__u64 sp = regs_sp(ctx);

	begin_hijacked(task, walk, sp);
	walk->hash = HASH_SEED;
	walk->table = 0;
	walk->end = STACK_WALKING;
	walk->window_size = 0;
	walk->bp = regs_frame(ctx);
	walk->sp = sp;
	walk->pc = regs_pc(ctx);
	walk->is_return_address = 0;
	walk->link = 0;
	walk->sp_is_bound = 0;
	if (!at_return) {
		__u64 slot = SP_AT_RETURN(sp) - 8;

		walk->pc = true_return_address(walk, slot, caller_of(entry_of(ctx)));
		walk->sp = SP_AT_RETURN(sp);
		walk->is_return_address = 1;
	}
}

/* Never STACK_NOT_STORED. */
static __always_inline __u64 hash_of_walk(const struct walk *walk)
{
	return walk->hash ? walk->hash : 1;
}

/*
 * Captures the stack above a probed function into `thread->stack`, at its return (where the result of the
 * call is known too) or at its entry, the stack pointer still as the call left it. Gives the stack's hash,
 * never STACK_NOT_STORED. `live`, a constant: the kernel has callbacks (Linux 5.13), so mappings can be asked
 * for.
 */
static __always_inline __u64 capture_user_stack(struct pt_regs *ctx, struct task_struct *task,
						struct thread *thread, bool at_return, bool live)
{
	struct walk *walk = &thread->walk;
	int i;

	thread->stack.depth = 0;
	begin_walk(ctx, task, walk, at_return);
	if (unwind_with_tables)
		begin_lookups(task, thread);
	if (live && walk_interpreters)
		begin_interpreted(&thread->interpreted);
	for (i = 0; i <= MAX_STACK_DEPTH / FRAMES_PER_CALL; i++) {
		if (!(live ? walk_frames(thread) : walk_frames_plain()))
			break;
	}
	return hash_of_walk(walk);
}

#endif
