/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/*
 * From an allocator call's entry and return to what it did: arguments are read as the
 * table of functions says, filters and the sampler decide, and only calls that succeeded and are outermost
 * are counted.
 */
#ifndef CALLS_BPF_H
#define CALLS_BPF_H

#include "accounting.bpf.h"
#include "user/allocator_code.bpf.h"
#include "events.bpf.h"
#include "user/kept_stack.bpf.h"
#include "sampling.bpf.h"
#include "user/thread.bpf.h"

/* What an entry program answers: whether the return of the call should be trapped. */
#define TRAP_RETURN 0
#define SKIP_RETURN 1

/* mmap(2) and mremap(2), from the kernel's uapi */
#define MAP_FIXED 0x10
#define MAP_FIXED_NOREPLACE 0x100000
/* mmap and mremap return small negative errors as addresses */
#define IS_ERROR(address) ((address) >= (__u64)-4095)

static __always_inline bool is_range_op(__u32 op)
{
	return op == OP_MMAP || op == OP_MUNMAP || op == OP_MREMAP;
}

/* The size in bytes that a call asks for; one that overflows, and so will fail, is the largest there is. */
static __always_inline __u64 requested_size(struct arguments arguments,
					    const volatile struct function *function)
{
	__u64 size, count, largest = ~0ULL;

	if (!function->size)
		return function->constant_size;
	size = argument(arguments, function->size);
	if (!function->count)
		return size;
	count = argument(arguments, function->count);
	/* else clang sees a 128-bit multiplication here, which BPF does not have */
	barrier_var(largest);
	if (count && size > largest / count)
		return largest;
	return size * count;
}

static __always_inline bool size_is_wanted(__u64 size)
{
	return size >= min_size && size <= max_size;
}

static __always_inline void begin_call(struct pt_regs *ctx, struct call *call, __u64 sp, bool recorded)
{
	call->sp = sp;
	call->entry_pc = regs_pc(ctx);
	call->unrecorded = !recorded;
	call->trapped = true;
	call->interrupted = false;
	call->returning = false;
}

/*
 * Whether the thread may have left a call without returning from it: the kernel still waits for the return of
 * a frame that is gone.
 */
static __always_inline bool may_have_left_a_call(struct task_struct *task, __u64 sp)
{
	struct return_instance *innermost;
	struct uprobe_task *utask;

	if (!has_task_storage)
		return true;
	utask = task->utask;
	innermost = utask ? utask->return_instances : NULL;
	return innermost && innermost->stack < sp;
}

/* Returns that a thread can wait for at a time: the kernel's own limit. */
#define MAX_RETURN_INSTANCES 64

/*
 * Whether a function whose return address is at `stack` still waits for its turn, on a stack that is not the
 * current one, as coroutines' are: in a mapping of its own. Where the kernel can't say just now, it may. Not
 * static, so that the verifier looks at it once and not at each call.
 */
__noinline int waits_elsewhere(__u64 sp, __u64 stack)
{
	struct task_struct *task = current_task();
	struct thread *thread = thread_of(task, false);
	__u64 here = 0, there = 0;

	if (!can_find_mappings || !thread)
		return false;
#if RETURN_ADDRESS_ON_STACK
	if (stack != thread->returning_slot && read_user_word(stack) != return_trampoline(task))
		return false;
#endif
	bpf_find_vma(task, sp, find_mapping_end, &here, 0);
	bpf_find_vma(task, stack, find_mapping_end, &there, 0);
	return !here || here != there;
}

/*
 * Whether the kernel would take functions that wait on another stack for left ones, and so end the thread
 * once they return: it takes for left what has its return address below the stack pointer. Not static, so
 * that the verifier looks at it once and not at each call.
 */
__noinline int would_forget_returns(__u64 sp)
{
	struct task_struct *task = current_task();
	struct return_instance *instance = BPF_CORE_READ(task, utask, return_instances);
	struct thread *thread = thread_of(task, false);
	bool on_alternate;
	int i;

	if (!thread)
		return true;
	on_alternate = is_on_alternate_stack(task, thread, sp);
	for (i = 0; i < MAX_RETURN_INSTANCES && instance; i++) {
		__u64 stack = BPF_CORE_READ(instance, stack);

		if (stack >= sp)
			return false;
		/* what is left on an alternate stack that is not in use was left by longjmp */
		if (!is_on_alternate_stack(task, thread, stack) &&
		    (on_alternate || waits_elsewhere(sp, stack)))
			return true;
		instance = BPF_CORE_READ(instance, next);
	}
	return false;
}

/* Whether the return of a call must not be trapped, lest the thread come to harm. */
static __always_inline bool trap_would_harm(struct task_struct *task, __u64 sp, bool live)
{
	return live && return_trap_is_optional && may_have_left_a_call(task, sp) && would_forget_returns(sp);
}

/* The arguments of mmap, munmap and mremap, in the order of `call->arguments`. */
enum { ARG_ADDRESS, ARG_LENGTH, ARG_NEW_LENGTH, ARG_FLAGS, ARG_ANONYMOUS };

/* A call whose return must not be trapped: what can be told at its entry is, and the rest is counted as lost.
 */
static __always_inline int enter_without_return(struct task_struct *task, struct call *call, bool recorded)
{
	struct range_event range = {
		.op = OP_MUNMAP,
		.tgid = tgid_of(task),
		.tid = tid_of(task),
		.function = call->row,
		.old_address = call->arguments[ARG_ADDRESS],
		.old_length = call->arguments[ARG_LENGTH],
	};

	/* what realloc was given will be gone */
	call->has_old = false;
	if (!recorded)
		return SKIP_RETURN;
	if (call->op != OP_MUNMAP) {
		count_lost(in_handlers);
		return SKIP_RETURN;
	}
	range.entry_ns = range.return_ns = bpf_ktime_get_ns();
	if (track_mappings)
		send_range(&range);
	return SKIP_RETURN;
}

static __always_inline int begin_trapped(struct pt_regs *ctx, struct task_struct *task, struct call *call,
					 __u64 sp, bool recorded, bool live)
{
	if (trap_would_harm(task, sp, live))
		return enter_without_return(task, call, recorded);
	begin_call(ctx, call, sp, recorded);
	return TRAP_RETURN;
}

/* A call whose return is not trapped, though calls within it are nested all the same. */
static __always_inline void begin_untrapped(struct pt_regs *ctx, struct call *call, __u64 sp)
{
	begin_call(ctx, call, sp, false);
	call->trapped = false;
	call->return_address = caller_of(entry_of(ctx));
}

/*
 * A call that is left out still has to be known while it lasts, or the mmap with which it gets its memory
 * would be taken for the program's own, and the sampler would give the realloc inside reallocarray a second
 * chance.
 */
static __always_inline int leave_out(struct pt_regs *ctx, struct task_struct *task, struct call *call,
				     __u64 sp, bool live)
{
	if (trace_calls || !return_trap_is_optional)
		return begin_trapped(ctx, task, call, sp, false, live);
	if (track_mappings || sample_below || sample_distance)
		begin_untrapped(ctx, call, sp);
	return SKIP_RETURN;
}

/*
 * realloc's old block is taken out at entry: once the allocator has freed it, another thread can be given
 * its address before this call returns. A failed realloc puts it back.
 */
static __always_inline void take_old_block(struct task_struct *task, struct call *call, __u64 address)
{
	struct block_key key = {.address = address, .tgid = tgid_of(task)};

	call->arguments[0] = address;
	call->has_old = address && release_block(&key, &call->old);
}

/* Not static, so that the verifier looks at it once and not at each call. */
__noinline int record_old_block(void)
{
	struct task_struct *task = current_task();
	struct thread *thread = thread_of(task, false);
	struct block_key key = {.tgid = tgid_of(task)};
	struct block block;

	if (!thread)
		return 0;
	key.address = thread->call.arguments[0];
	block = thread->call.old;
	thread->call.has_old = false;
	record_block(&key, &block);
	return 0;
}

static __always_inline void put_old_block_back(struct call *call)
{
	if (call->has_old)
		record_old_block();
}

static __always_inline int enter_range_call(struct pt_regs *ctx, struct task_struct *task,
					    const volatile struct function *function,
					    struct arguments arguments, struct call *call, __u64 sp,
					    bool live)
{
	if (maps_for_allocator(ctx, task, function, arguments.fourth, live))
		return SKIP_RETURN;
	call->arguments[ARG_ADDRESS] = arguments.first;
	call->arguments[ARG_LENGTH] = arguments.second;
	call->arguments[ARG_NEW_LENGTH] = arguments.third;
	call->arguments[ARG_FLAGS] = arguments.fourth;
	if (call->op == OP_MMAP) {
		__u64 flags = call->arguments[ARG_FLAGS];
		bool anonymous = flags & MAP_ANONYMOUS;
		bool wanted = anonymous && size_is_wanted(call->arguments[ARG_LENGTH]);

		call->arguments[ARG_ANONYMOUS] = wanted;
		/* what is not counted matters only where it replaces what is */
		if (!wanted && !(flags & MAP_FIXED))
			return leave_out(ctx, task, call, sp, live);
	}
	call->size = call->op == OP_MREMAP ? call->arguments[ARG_NEW_LENGTH] : call->arguments[ARG_LENGTH];
	call->entry_ns = bpf_ktime_get_ns();
	return begin_trapped(ctx, task, call, sp, true, live);
}

/* A thread frees a block: what that says of the call that it was in last. */
static __always_inline void check_call_at_free(struct task_struct *task, __u64 block, __u64 sp)
{
	struct thread *thread = thread_of(task, false);
	struct call *call;

	if (!thread || !thread->call.sp)
		return;
	call = &thread->call;
	/* freed by the realloc that has taken it out, or after that was left: not live in either case */
	if (call->has_old && call->arguments[0] == block)
		call->has_old = false;
	if (!has_a_frame(task, thread, sp)) {
		put_old_block_back(call);
		take_call_up(thread);
	}
}

/*
 * Drops the calls that a thread has left without returning from them, of which the innermost is one; answers
 * whether one is left that it is in. Not static, so that the verifier looks at it once and not at each call.
 */
static __always_inline int drop_calls(struct entry entry, __u32 row, int maps_memory)
{
	struct task_struct *task = current_task();
	struct thread *thread = thread_of(task, false);
	int i;

	if (!thread)
		return false;
	for (i = 0; i <= MAX_SET_ASIDE; i++) {
		put_old_block_back(&thread->call);
		take_call_up(thread);
		if (!thread->call.sp)
			return false;
		if (call_is_live(task, thread, entry, row, maps_memory))
			return true;
	}
	return false;
}

#if RETURN_ADDRESS_ON_STACK
__noinline int drop_left_calls(__u64 sp, __u32 row, int maps_memory)
{
	return drop_calls((struct entry){sp}, row, maps_memory);
}
#define DROP_LEFT_CALLS(entry, row, maps_memory) drop_left_calls((entry).sp, row, maps_memory)
#else
__noinline int drop_left_calls(__u64 sp, __u64 frame, __u64 link, __u32 row, int maps_memory)
{
	return drop_calls((struct entry){sp, frame, link}, row, maps_memory);
}
#define DROP_LEFT_CALLS(entry, row, maps_memory)                                                             \
	drop_left_calls((entry).sp, (entry).frame, (entry).link, row, maps_memory)
#endif

/* Whether the thread is in a call at a probe. */
static __always_inline bool is_in_a_call(struct task_struct *task, struct thread *thread, struct entry entry,
					 __u32 row, bool maps_memory)
{
	return call_is_live(task, thread, entry, row, maps_memory) ||
	       DROP_LEFT_CALLS(entry, row, maps_memory);
}

/*
 * Whether a call within another one is that of a signal handler, and so a call of its own: handlers can map
 * and unmap memory while their thread is in an allocator, which maps from its own code; and do anything while
 * it is in one of the functions that map.
 */
static __always_inline bool is_a_handlers(struct pt_regs *ctx, struct task_struct *task,
					  const struct thread *thread,
					  const volatile struct function *function, __u64 flags, bool live)
{
	const volatile struct function *of_outer;
	const struct call *outer = &thread->call;
	__u64 sp = regs_sp(ctx), caller;

	if (!may_be_of_a_handler(task, thread, sp))
		return false;
	caller = caller_of(entry_of(ctx));
	if (outer->returning)
		return true;
	of_outer = &functions[outer->row & (MAX_FUNCTIONS - 1)];
	if (is_range_op(outer->op))
		return caller - outer->entry_pc >= of_outer->length;
	/* of an allocator whose code is not known, what lies near may be part */
	return is_range_op(function->op) && !maps_for_allocator(ctx, task, function, flags, live) &&
	       (of_outer->code || caller - outer->entry_pc + ALLOCATOR_REACH >= 2 * ALLOCATOR_REACH);
}

/*
 * At the entry of a function that frees its first argument, which is half of all there is to do and so takes
 * the shortest way: it does not matter whether another call is under way, since what an allocator frees in
 * the course of one is not live any more either.
 */
static __always_inline void enter_free(struct pt_regs *ctx)
{
	struct task_struct *task = current_task();
	struct block_key key = {.address = regs_arguments(ctx).first, .tgid = tgid_of(task)};
	__u64 sp = regs_sp(ctx);

	if (!key.address || !is_traced(task))
		return;
	if (!drop_block(&key) || may_have_left_a_call(task, sp))
		check_call_at_free(task, key.address, sp);
}

/* At the entry of a probed function that is not within another one's call. */
static __always_inline int enter_outermost(struct pt_regs *ctx, struct task_struct *task,
					   struct thread *thread, const volatile struct function *function,
					   __u32 row, bool live)
{
	struct arguments arguments = regs_arguments(ctx);
	struct call *call = &thread->call;
	__u64 sp = regs_sp(ctx), block;
	bool wanted;

	call->has_old = false;
	call->row = row;
	call->op = function->op;

	if (is_range_op(call->op))
		return enter_range_call(ctx, task, function, arguments, call, sp, live);
	block = argument(arguments, function->block);
	switch (call->op) {
	case OP_FREE: {
		struct block_key key = {.address = block, .tgid = tgid_of(task)};
		struct block freed = {};

		if (block)
			release_block(&key, &freed);
		if (trace_calls)
			send_call(row, freed.size, block, 0, 0);
		return SKIP_RETURN;
	}
	case OP_REALLOCATE:
		take_old_block(task, call, block);
		break;
	default:
		call->arguments[0] = argument(arguments, function->out);
	}

	call->size = requested_size(arguments, function);
	if (function->throws && call->size > max_throwing_size) {
		count_lost(unfollowed);
		begin_untrapped(ctx, call, sp);
		return SKIP_RETURN;
	}
	wanted = size_is_wanted(call->size) && sampler_picks(&thread->sampler, call->size);
	if (!wanted && !call->has_old)
		return leave_out(ctx, task, call, sp, live);
	return begin_trapped(ctx, task, call, sp, wanted, live);
}

/* At the entry of a probed function; answers whether to trap its return. `live` as in capture_user_stack().
 */
static __always_inline int enter_call(struct pt_regs *ctx, __u64 row, bool live)
{
	const volatile struct function *function;
	struct task_struct *task = current_task();
	bool maps_memory, within = false;
	struct thread *thread;
	int answer;

	if (!is_traced(task))
		return SKIP_RETURN;
	/* a mask: a comparison teaches Linux 6.1 nothing of what is read back from the stack */
	function = &functions[row & (MAX_FUNCTIONS - 1)];
	maps_memory = is_range_op(function->op);
	if (maps_memory && !track_mappings && !trace_calls)
		return SKIP_RETURN;
	thread = thread_of(task, true);
	if (!thread)
		return SKIP_RETURN;
	if (thread->call.sp && is_in_a_call(task, thread, entry_of(ctx), row, maps_memory)) {
		if (!is_a_handlers(ctx, task, thread, function, regs_arguments(ctx).fourth, live))
			return SKIP_RETURN;
		if (!set_call_aside(thread)) {
			count_lost(in_handlers);
			return SKIP_RETURN;
		}
		thread->call.sp = 0;
		within = true;
	}
	answer = enter_outermost(ctx, task, thread, function, row, live);
	if (within && !thread->call.sp)
		take_call_up(thread);
	return answer;
}

static __always_inline void record_new_block(struct pt_regs *ctx, struct task_struct *task,
					     struct thread *thread, __u64 address, bool live)
{
	struct block_key key = {.address = address, .tgid = tgid_of(task)};
	struct block block = {
		.size = thread->call.size,
		.tid = tid_of(task),
		.function = thread->call.row,
	};

	block.stack = stack_at_return(ctx, task, thread, live);
	block.time_ns = bpf_ktime_get_ns();
	record_block(&key, &block);
}

static __always_inline void leave_range_call(struct pt_regs *ctx, struct task_struct *task,
					     struct thread *thread, __u64 result, bool live)
{
	struct call *call = &thread->call;
	struct range_event range = {
		.op = call->op,
		.tgid = tgid_of(task),
		.tid = tid_of(task),
		.function = call->row,
		.entry_ns = call->entry_ns,
		.flags = call->arguments[ARG_FLAGS],
	};

	if (IS_ERROR(result))
		return;
	switch (range.op) {
	case OP_MMAP:
		range.address = result;
		range.length = call->arguments[ARG_LENGTH];
		if (call->arguments[ARG_ANONYMOUS]) {
			range.stack = stack_at_return(ctx, task, thread, live);
		} else {
			range.op = OP_MUNMAP;
			range.old_address = result;
			range.old_length = range.length;
		}
		break;
	case OP_MREMAP:
		range.address = result;
		range.length = call->arguments[ARG_NEW_LENGTH];
		/* fallthrough */
	default:
		range.old_address = call->arguments[ARG_ADDRESS];
		range.old_length = call->arguments[ARG_LENGTH];
	}
	range.return_ns = bpf_ktime_get_ns();
	send_range(&range);
}

/* What the call gave: an address, or 0 when it failed. */
static __always_inline __u64 call_result(struct pt_regs *ctx, const struct call *call, __s32 *error)
{
	__u64 result = regs_result(ctx);

	if (call->row >= MAX_FUNCTIONS || !functions[call->row].out)
		return result;
	*error = (__s32)result;
	if (*error)
		return 0;
	result = 0;
	bpf_probe_read_user(&result, sizeof(result), (void *)call->arguments[0]);
	return result;
}

/*
 * Goes back to the call that a return with stack pointer `sp` is of, past those that handlers made and left;
 * answers whether there is one. Not static, for the same reason.
 */
__noinline int take_up_returning(__u64 sp)
{
	struct task_struct *task = current_task();
	struct thread *thread = thread_of(task, false);
	bool known = false;
	int i;

	if (!thread)
		return false;
	for (i = 0; i < MAX_SET_ASIDE; i++)
		known |= i < thread->set_aside_count && returns_from(&thread->set_aside[i], sp);
	if (!known)
		return false;
	for (i = 0; i < MAX_SET_ASIDE; i++) {
		put_old_block_back(&thread->call);
		take_call_up(thread);
		if (returns_from(&thread->call, sp))
			return true;
	}
	return false;
}

/* Whether a return is that of a call of the thread's, which then is its innermost. */
static __always_inline bool is_return_of_a_call(struct thread *thread, __u64 sp)
{
	return returns_from(&thread->call, sp) || (thread->set_aside_count && take_up_returning(sp));
}

/* What the thread's call did, now that it returns. `live` as in capture_user_stack(). */
static __always_inline void finish_call(struct pt_regs *ctx, struct task_struct *task, struct thread *thread,
					bool live)
{
	struct call *call = &thread->call;
	enum op op = call->op;
	__s32 error = 0;
	__u64 result = call_result(ctx, call, &error);

	if (trace_calls)
		send_call(call->row, call->size, result, op == OP_ALLOCATE ? 0 : call->arguments[0], error);
	if (is_range_op(op)) {
		if (track_mappings && !call->unrecorded)
			leave_range_call(ctx, task, thread, result, live);
		return;
	}
	if (result) {
		call->has_old = false;
		if (!call->unrecorded)
			record_new_block(ctx, task, thread, result, live);
	} else if (op == OP_REALLOCATE && call->size) {
		put_old_block_back(call);
	}
}

/* At the return of a probed function. `live` as in capture_user_stack(). */
static __always_inline void leave_call(struct pt_regs *ctx, bool live)
{
	struct task_struct *task = current_task();
	struct thread *thread = thread_of(task, false);

	if (!thread || !is_return_of_a_call(thread, regs_sp(ctx)))
		return;
	finish_call(ctx, task, thread, live);
	take_call_up(thread);
}

/* At the end of a thread. */
static __always_inline void leave_thread(void)
{
	struct task_struct *task = current_task();
	struct thread *thread = thread_of(task, false);

	int i;

	if (!thread)
		return;
	for (i = 0; i <= MAX_SET_ASIDE; i++) {
		if (!thread->call.sp)
			return;
		put_old_block_back(&thread->call);
		take_call_up(thread);
	}
}

#endif
