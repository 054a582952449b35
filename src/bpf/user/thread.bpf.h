/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/*
 * What is kept per thread: the outermost allocator call it is in, and scratch space. Decides whether a
 * probed call is nested in another one; knows nothing of what calls do to memory.
 */
#ifndef THREAD_BPF_H
#define THREAD_BPF_H

#include "interpreter.h"
#include "process.bpf.h"

/* The outermost tracked call of a thread, from its entry to its return. */
struct call {
	__u64 sp; /* stack pointer at entry; 0: the thread is in no tracked call */
	__u64 entry_pc;
	__u64 return_address; /* known only where the return is not trapped */
	__u64 entry_ns;
	__u64 size;
	__u64 arguments[5]; /* as the operation needs them */
	__u32 row;	    /* in `functions` */
	__u32 op;
	struct block old; /* what realloc was given, taken out of `allocs` for the time being */
	bool has_old;
	bool unrecorded;  /* left out by a filter or the sampler, though calls within it are nested all the
			     same */
	bool trapped;	  /* its return will run a program */
	bool interrupted; /* by a signal: what runs can be a handler of the program's */
	bool returning;	  /* that came when the function had returned, though not to its caller */
	__u64 interrupted_sp; /* where the handler's frame is, at the highest */
};

/* Calls that handlers have interrupted while these make calls of their own. */
#define MAX_SET_ASIDE 3

/* Words of the stack that are read at once; a power of 2, so that an index is bounded by its mask. */
#define WINDOW_WORDS 128
/* Rules kept per thread: 2 to this power of sets, of two each, so that two addresses can share one. */
#define RULE_SET_BITS 7
#define RULES_PER_SET 2
/* Stacks that a thread remembers to have been stored; a power of 2. */
#define STORED_STACKS 64

struct cached_rule {
	__u64 tag; /* of an address, and of the state of the mappings in which the rule is right */
	__u32 rule;
	__u32 table;
};

/* A walk up the user stack. The state is in memory, not in registers, for the verifier's sake. */
struct walk {
	__u64 pc, sp, bp;	 /* of the frame that was reached */
	__u64 is_return_address; /* 1: pc is behind a call, 0: pc was about to be executed */
	__u64 hash;
	__u64 hijacked_slot;   /* where the next return address is that a return probe has replaced */
	__u64 return_instance; /* the kernel's record of it */
	__u64 link;	       /* aarch64: x30, of a frame whose pc is no return address */
	__u64 sp_is_bound;     /* aarch64: the frame's sp is not known but for a lower bound */
	__u64 address_mask;    /* aarch64: as address_mask() */
	__u64 trampoline;      /* aarch64: as return_trampoline() */
	__u64 window_begin, window_size;
	__u64 window[WINDOW_WORDS];
	__u64 mm;	  /* the program whose mappings the caches below hold */
	__u32 changes;	  /* `unwind_changes` when they were looked at */
	__u32 generation; /* which state of them that was */
	__u32 table;	  /* which one the last rule is from: the mapping's `page_bias` */
	__u32 end;	  /* enum stack_end */
	__u32 zero;
	struct unwind_mapping mapping; /* the last one that was found */
	struct cached_rule rules[1 << RULE_SET_BITS][RULES_PER_SET];
};

/* Where Poisson sampling stands. */
struct sampler {
	__s64 bytes_to_sample; /* means something once `sampling` is set */
	bool sampling;
};

/* Where signal handlers can run. */
struct alternate_stack {
	__u64 begin;
	__u64 size; /* 0: there is none */
};

/* Uprobe programs can be preempted, so scratch space belongs to the task, not to the CPU. */
struct thread {
	struct call call;
	struct call set_aside[MAX_SET_ASIDE]; /* the innermost last */
	__u32 set_aside_count;
	__u32 zero;
	struct alternate_stack alternate_stack; /* when a signal came last */
	__u64 returning_slot; /* the last one of which the kernel's trampoline made use when a signal came */
	struct sampler sampler;
	struct stack stack;
	struct walk walk;
	struct unwind_mapping asked_for; /* as the kernel has it */
	__u64 stored[STORED_STACKS];	 /* hashes of stacks, each at a place that its lowest bits give */
	struct interpreted interpreted;
};

/* Linux 7.0 gives a task no more than 8 KiB in one piece, with up to 128 bytes of its own. */
_Static_assert(sizeof(struct thread) <= 8192 - 128, "too large for task storage");
_Static_assert(sizeof(struct interpreter_walk) <= 8192 - 128, "too large for task storage");

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct thread);
} threads SEC(".maps");

/* Only where `walk_interpreters`. */
struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct interpreter_walk);
} interpreter_walks SEC(".maps");

/*
 * The same for older kernels, by thread id. The least recently used thread goes when there are too many:
 * what ends without being seen must not fill the map.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 8192);
	__type(key, __u64);
	__type(value, struct thread);
} threads_by_id SEC(".maps");

/* Never written: what a thread's state is at first, too large for a program's own stack. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct thread);
} idle_thread SEC(".maps");

/* Tells one program that a process executes from the next. */
static __always_inline __u64 address_space_of(struct task_struct *task)
{
	return has_task_storage ? (__u64)task->mm : (__u64)BPF_CORE_READ(task, mm);
}

static __always_inline struct thread *thread_by_id(bool create)
{
	__u64 id = bpf_get_current_pid_tgid();
	struct thread *thread = bpf_map_lookup_elem(&threads_by_id, &id), *idle;
	__u32 zero = 0;

	if (thread || !create)
		return thread;
	idle = bpf_map_lookup_elem(&idle_thread, &zero);
	if (idle)
		bpf_map_update_elem(&threads_by_id, &id, idle, BPF_NOEXIST);
	return bpf_map_lookup_elem(&threads_by_id, &id);
}

/* The state of the thread that runs. NULL where there is none, and, counted, where it can't be made. */
static __always_inline struct thread *thread_of(struct task_struct *task, bool create)
{
	struct thread *thread;

	if (has_task_storage)
		thread = bpf_task_storage_get(&threads, task, 0, create ? BPF_LOCAL_STORAGE_GET_F_CREATE : 0);
	else
		thread = thread_by_id(create);
	if (!thread && create)
		count_lost(threads);
	return thread;
}

/* What the current thread keeps for interpreted code. NULL where there is none, or no room for it. */
static __always_inline struct interpreter_walk *interpreter_walk_of(struct task_struct *task, bool create)
{
	if (!walk_interpreters)
		return NULL;
	return bpf_task_storage_get(&interpreter_walks, task, 0, create ? BPF_LOCAL_STORAGE_GET_F_CREATE : 0);
}

static __always_inline __u64 read_user_word(__u64 address)
{
	__u64 word = 0;

	bpf_probe_read_user(&word, sizeof(word), (void *)address);
	return word;
}

/* Where the trapped calls of a task's process return to; 0 when unknown. */
static __always_inline __u64 return_trampoline(struct task_struct *task)
{
	struct mm_struct *mm;
	struct xol_area *area;

	if (!has_task_storage)
		return BPF_CORE_READ(task, mm, uprobes_state.xol_area, vaddr);
	mm = task->mm;
	if (!mm)
		return 0;
	area = mm->uprobes_state.xol_area;
	return area ? area->vaddr : 0;
}

/* The bits of a return address that are no signature of the function that keeps it. */
static __always_inline __u64 address_mask(struct task_struct *task)
{
#if RETURN_ADDRESS_ON_STACK
	return ~0ULL;
#else
	struct mm_struct *mm;

	if (!has_task_storage)
		return BPF_CORE_READ(task, mm, task_size) - 1;
	mm = task->mm;
	return mm ? mm->task_size - 1 : ~0ULL;
#endif
}

/* What is told of a function that has just been entered. */
struct entry {
	__u64 sp;
#if !RETURN_ADDRESS_ON_STACK
	__u64 frame, link;
#endif
};

static __always_inline struct entry entry_of(struct pt_regs *ctx)
{
	return (struct entry)
	{
		.sp = regs_sp(ctx),
#if !RETURN_ADDRESS_ON_STACK
		.frame = regs_frame(ctx), .link = regs_link(ctx),
#endif
	};
}

/* Where a function that has just been entered returns to, or the kernel's trampoline. */
static __always_inline __u64 caller_of(struct entry entry)
{
#if RETURN_ADDRESS_ON_STACK
	return read_user_word(entry.sp);
#else
	return entry.link;
#endif
}

/* What the kernel's trampoline pushes at the most (Linux 6.11). */
#define TRAMPOLINE_BYTES 32

/* How far from an allocator's function the code lies that maps memory on its behalf, in bytes. */
#define ALLOCATOR_REACH (1 << 20)

/*
 * A call that is left out is not seen to return, and what its frame held can stay on the stack long after.
 * So the new call must also come from the function itself, or, where it maps memory, from code nearby.
 * With an equal stack pointer it is a tail call, unless it is the same function, called again by the
 * same code.
 */
static __always_inline bool is_called_by(const struct call *call, struct entry entry, __u32 row,
					 bool maps_memory)
{
	__u64 distance;

	if (entry.sp == call->sp)
		return row != call->row;
	distance = caller_of(entry) - call->entry_pc;
	if (maps_memory)
		return distance + ALLOCATOR_REACH < 2 * ALLOCATOR_REACH;
	return call->row < MAX_FUNCTIONS && distance < functions[call->row].length;
}

static __always_inline struct alternate_stack alternate_stack_of(struct task_struct *task)
{
	if (has_task_storage)
		return (struct alternate_stack){task->sas_ss_sp, task->sas_ss_size};
	return (struct alternate_stack){BPF_CORE_READ(task, sas_ss_sp), BPF_CORE_READ(task, sas_ss_size)};
}

/*
 * Whether an address is on the stack that the thread has set up for signal handlers: also while the kernel
 * does not know of it, as it can be told to for a handler's time.
 */
static __always_inline bool is_on_alternate_stack(struct task_struct *task, const struct thread *thread,
						  __u64 address)
{
	struct alternate_stack stack = alternate_stack_of(task);

	if (!stack.size)
		stack = thread->alternate_stack;
	return address > stack.begin && address - stack.begin <= stack.size;
}

/* Whether the recorded call still has its frame when another probe is hit with stack pointer `sp`. A handler
 * on an alternate stack can be above what it has interrupted. */
static __always_inline bool has_a_frame(struct task_struct *task, const struct thread *thread, __u64 sp)
{
	const struct call *call = &thread->call;

	return sp <= call->sp ||
	       (is_on_alternate_stack(task, thread, sp) && !is_on_alternate_stack(task, thread, call->sp));
}

/* Whether a call with stack pointer `sp` can be made by the handler of a signal that came during `call`. */
static __always_inline bool may_be_of_a_handler(struct task_struct *task, const struct thread *thread,
						__u64 sp)
{
	const struct call *call = &thread->call;

	if (!call->interrupted)
		return false;
	return sp + SIGNAL_FRAME_BYTES <= call->interrupted_sp ||
	       is_on_alternate_stack(task, thread, sp) != is_on_alternate_stack(task, thread, call->sp);
}

#if !RETURN_ADDRESS_ON_STACK
/* Frames between an allocator's function and one that it calls, at most. */
#define NESTED_FRAMES 10

/*
 * Whether a frame record between a function that is entered with this stack pointer and frame pointer, and
 * the thread's call, holds a return address of that call: `original`, or the trampoline. Where frame pointers
 * lead nowhere, one is believed to. Not static, so that the verifier looks at it once and not at each call.
 */
__noinline int some_frame_returns_from_call(__u64 sp, __u64 frame, __u64 link, __u64 original)
{
	struct task_struct *task = current_task();
	struct thread *thread = thread_of(task, false);
	__u64 mask = address_mask(task), trampoline = return_trampoline(task);
	int i;

	if (!thread)
		return false;
	/* the caller keeps no frame record, as functions of a few instructions do not */
	if (frame >= thread->call.sp)
		return link - thread->call.entry_pc + ALLOCATOR_REACH < 2 * ALLOCATOR_REACH;
	for (i = 0; i < NESTED_FRAMES; i++) {
		__u64 record[2], address;

		if (frame < sp || frame & 7)
			return true;
		if (frame >= thread->call.sp)
			return false;
		if (bpf_probe_read_user(record, sizeof(record), (void *)frame))
			return true;
		address = record[1] & mask;
		if (address == trampoline || address == original)
			return true;
		sp = frame + 1;
		frame = record[0];
	}
	return true;
}

/* As below, of a call that has a frame. */
static __always_inline bool call_will_return(struct task_struct *task, const struct thread *thread,
					     struct entry entry)
{
	const struct call *call = &thread->call;
	__u64 trampoline = return_trampoline(task), original = call->return_address;

	if (call->trapped) {
		if (!trampoline)
			return true;
		original = trampoline;
	}
	if (entry.sp == call->sp)
		return entry.link == trampoline || entry.link == original;
	/* frames of another stack don't lead there */
	if (entry.sp > call->sp || is_on_alternate_stack(task, thread, entry.sp))
		return true;
	return some_frame_returns_from_call(entry.sp, entry.frame, entry.link, original);
}
#endif

/*
 * Whether the recorded call is still under way when another probe is hit with stack pointer `sp`.
 * A thread can leave a call without returning (longjmp, an exception), so the record is stale once the
 * stack pointer is above the call's frame, or once what holds its return address holds something else:
 * but for a handler's time while the kernel's trampoline uses the slot.
 * An equal stack pointer is a tail call, for which the slot decides.
 */
static __always_inline bool call_is_live(struct task_struct *task, const struct thread *thread,
					 struct entry entry, __u32 row, bool maps_memory)
{
	const struct call *call = &thread->call;
#if RETURN_ADDRESS_ON_STACK
	__u64 slot, trampoline;
#endif

	if (!call->sp || !has_a_frame(task, thread, entry.sp))
		return false;
#if RETURN_ADDRESS_ON_STACK
	if (call->returning)
		return may_be_of_a_handler(task, thread, entry.sp);
	slot = read_user_word(call->sp);
	trampoline = return_trampoline(task);
	if (call->trapped)
		return !trampoline || slot == trampoline;
	/* a return that is not trapped for us can be for another tracer of the same file */
	return (slot == call->return_address || (trampoline && slot == trampoline)) &&
	       is_called_by(call, entry, row, maps_memory);
#else
	return (call->trapped || is_called_by(call, entry, row, maps_memory)) &&
	       call_will_return(task, thread, entry);
#endif
}

/* Makes room for a handler's call within the one that it has interrupted; returns whether there was any. */
static __always_inline bool set_call_aside(struct thread *thread)
{
	__u32 count = thread->set_aside_count;

	if (count >= MAX_SET_ASIDE)
		return false;
	thread->set_aside[count] = thread->call;
	thread->set_aside_count = count + 1;
	return true;
}

/* Goes back to the call that was set aside last, or to none. */
static __always_inline void take_call_up(struct thread *thread)
{
	__u32 count = thread->set_aside_count - 1;

	thread->call.sp = 0;
	if (count >= MAX_SET_ASIDE)
		return;
	thread->call = thread->set_aside[count];
	thread->set_aside_count = count;
}

/*
 * A signal has come, and its handler is about to run, if it has one. Where the kernel can tell: the function
 * may have returned to the kernel's trampoline, which still has to report that.
 */
static __always_inline void note_signal(struct task_struct *task)
{
	struct thread *thread = thread_of(task, false);
	struct alternate_stack alternate;
	struct call *call;
	__u64 sp;

	if (!thread || !thread->call.sp)
		return;
	call = &thread->call;
	alternate = alternate_stack_of(task);
	if (alternate.size)
		thread->alternate_stack = alternate;
	sp = call->sp;
#if RETURN_ADDRESS_ON_STACK
	if (can_read_registers && has_task_storage) {
		struct pt_regs *regs = (struct pt_regs *)bpf_task_pt_regs(task);
		__u64 trampoline = return_trampoline(task);

		sp = regs->rsp;
		if (trampoline && regs->rip - trampoline < page_bytes &&
		    SP_AT_RETURN(call->sp) - sp <= TRAMPOLINE_BYTES) {
			call->returning = true;
			thread->returning_slot = call->sp;
		}
	}
#endif
	if (!call->interrupted || sp > call->interrupted_sp)
		call->interrupted_sp = sp;
	call->interrupted = true;
}

/* Whether a return with stack pointer `sp` is that of the recorded call. */
static __always_inline bool returns_from(const struct call *call, __u64 sp)
{
	return call->sp && sp == SP_AT_RETURN(call->sp);
}

#endif
