/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/*
 * From an allocator call's entry and return to what it did: arguments are read as the
 * table of functions says, filters and the sampler decide, and only calls that succeeded and are outermost
 * are counted.
 */
#ifndef CALLS_BPF_H
#define CALLS_BPF_H

#include "accounting.bpf.h"
#include "events.bpf.h"
#include "kept_stack.bpf.h"
#include "sampling.bpf.h"
#include "thread.bpf.h"

/* What an entry program answers: whether the return of the call should be trapped. */
#define TRAP_RETURN 0
#define SKIP_RETURN 1

/* mmap(2) and mremap(2), from the kernel's uapi */
#define MAP_FIXED 0x10
#define MAP_ANONYMOUS 0x20
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

static __always_inline int begin_call(struct call *call, __u64 sp, bool recorded)
{
	call->sp = sp;
	call->unrecorded = !recorded;
	call->trapped = true;
	return TRAP_RETURN;
}

/* A call whose return is not trapped, though calls within it are nested all the same. */
static __always_inline void begin_untrapped(struct pt_regs *ctx, struct call *call, __u64 sp)
{
#if RETURN_ADDRESS_ON_STACK
	begin_call(call, sp, false);
	call->trapped = false;
	call->entry_pc = regs_pc(ctx);
	call->return_address = read_user_word(sp);
#endif
}

/*
 * A call that is left out still has to be known while it lasts, or the mmap with which it gets its memory
 * would be taken for the program's own, and the sampler would give the realloc inside reallocarray a second
 * chance.
 */
static __always_inline int leave_out(struct pt_regs *ctx, struct call *call, __u64 sp)
{
	if (trace_calls || !return_trap_is_optional)
		return begin_call(call, sp, false);
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

static __always_inline void put_old_block_back(struct task_struct *task, struct call *call)
{
	struct block_key key = {.address = call->arguments[0], .tgid = tgid_of(task)};
	struct block block = call->old;

	if (!call->has_old)
		return;
	call->has_old = false;
	record_block(&key, &block);
}

/* The arguments of mmap, munmap and mremap, in the order of `call->arguments`. */
enum { ARG_ADDRESS, ARG_LENGTH, ARG_NEW_LENGTH, ARG_FLAGS, ARG_ANONYMOUS };

static __always_inline int enter_range_call(struct pt_regs *ctx, struct arguments arguments,
					    struct call *call, __u64 sp)
{
	if (!track_mappings && !trace_calls)
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
			return leave_out(ctx, call, sp);
	}
	call->size = call->op == OP_MREMAP ? call->arguments[ARG_NEW_LENGTH] : call->arguments[ARG_LENGTH];
	call->entry_ns = bpf_ktime_get_ns();
	return begin_call(call, sp, true);
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
	if (sp > call->sp) {
		put_old_block_back(task, call);
		call->sp = 0;
	}
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

/* At the entry of a probed function; answers whether to trap its return. */
static __always_inline int enter_call(struct pt_regs *ctx, __u64 row)
{
	struct arguments arguments = regs_arguments(ctx);
	const volatile struct function *function;
	struct task_struct *task = current_task();
	__u64 sp = regs_sp(ctx);
	struct thread *thread;
	struct call *call;
	__u64 block;
	bool wanted;

	if (!is_traced(task))
		return SKIP_RETURN;
	thread = thread_of(task, true);
	if (!thread)
		return SKIP_RETURN;
	/* a mask: a comparison teaches Linux 6.1 nothing of what is read back from the stack */
	function = &functions[row & (MAX_FUNCTIONS - 1)];
	call = &thread->call;
	if (call_is_live(task, call, sp, row, is_range_op(function->op)))
		return SKIP_RETURN;
	if (call->sp) {
		/* the thread left that call without returning from it */
		put_old_block_back(task, call);
		call->sp = 0;
	}
	call->has_old = false;
	call->row = row;
	call->op = function->op;

	if (is_range_op(call->op))
		return enter_range_call(ctx, arguments, call, sp);
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
		return leave_out(ctx, call, sp);
	return begin_call(call, sp, wanted);
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

/* At the return of a probed function. `live` as in capture_user_stack(). */
static __always_inline void leave_call(struct pt_regs *ctx, bool live)
{
	struct task_struct *task = current_task();
	struct thread *thread = thread_of(task, false);
	struct call *call;
	__s32 error = 0;
	__u64 result;
	enum op op;

	if (!thread || !returns_from(&thread->call, regs_sp(ctx)))
		return;
	call = &thread->call;
	call->sp = 0;
	op = call->op;
	result = call_result(ctx, call, &error);

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
		put_old_block_back(task, call);
	}
}

/* At the end of a thread. */
static __always_inline void leave_thread(void)
{
	struct task_struct *task = current_task();
	struct thread *thread = thread_of(task, false);

	if (thread && thread->call.sp)
		put_old_block_back(task, &thread->call);
}

#endif
