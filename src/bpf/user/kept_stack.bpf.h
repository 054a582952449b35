/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/*
 * Keeps captured stacks: whole ones in the map of stacks; of those that end at a file that the tracer has yet
 * to read, what it takes to finish them. Knows nothing of blocks, nor of how stacks are walked.
 */
#ifndef KEPT_STACK_BPF_H
#define KEPT_STACK_BPF_H

#include "accounting.bpf.h"
#include "user/stack.bpf.h"

/* Its size is set before load. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} deferred_walks SEC(".maps");

/* The pieces in which a stack is copied, on any machine. */
#define PAGE_SHIFT 12
#define PAGE_BYTES (1ULL << PAGE_SHIFT)

const volatile struct deferred_walk *const deferred_walk_type = NULL;

static long find_mapping_end(struct task_struct *task, struct vm_area_struct *vma, __u64 *end)
{
	*end = vma->vm_end;
	return 0;
}

/* Where the stack of the current thread ends at the latest: what is above is not worth copying. */
static __always_inline __u64 end_of_stack(struct task_struct *task, __u64 sp, bool live)
{
	__u64 end = sp + DEFERRED_PAGES * PAGE_BYTES, first = BPF_CORE_READ(task, mm, start_stack);

	if (live && can_find_mappings)
		bpf_find_vma(task, sp, find_mapping_end, &end, 0);
	/* of the process's first thread: above are its arguments and environment */
	return first > sp && first < end ? first : end;
}

/* Hands a walk to the tracer; `pages` is a constant. */
static __always_inline __u64 defer_with_pages(struct task_struct *task, struct thread *thread, __u32 pages)
{
	struct deferred_walk *deferred =
		bpf_ringbuf_reserve(&deferred_walks, sizeof(*deferred) + pages * PAGE_BYTES, 0);
	struct interpreter_walk *inner;
	struct walk *walk = &thread->walk;
	__u64 page = walk->sp & -PAGE_BYTES, id;
	void *memory = deferred + 1;
	__u32 i;

	if (!deferred)
		return 0;
	deferred->time_ns = bpf_ktime_get_ns();
	deferred->tgid = tgid_of(task);
	deferred->pc = walk->pc;
	deferred->sp = walk->sp;
	deferred->bp = walk->bp;
	deferred->is_return_address = walk->is_return_address;
	deferred->link = walk->link;
	deferred->sp_is_bound = walk->sp_is_bound;
	deferred->address_mask = address_mask(task);
	deferred->hash = walk->hash;
	/* more than the compiler copies by itself */
	bpf_probe_read_kernel(&deferred->walked, sizeof(deferred->walked), &thread->stack);
	deferred->interpreted = thread->interpreted;
	inner = interpreter_walk_of(task, false);
	if (inner)
		bpf_probe_read_kernel(&deferred->interpreted_words, sizeof(deferred->interpreted_words),
				      inner->words);
	deferred->readable = 0;
	for (i = 0; i < pages; i++) {
		if (!bpf_probe_read_user(memory + i * PAGE_BYTES, PAGE_BYTES,
					 (void *)(page + i * PAGE_BYTES)))
			deferred->readable |= 1U << i;
	}
	/* like nothing else: what has been walked so far may be common to several stacks */
	id = hash_address(hash_address(walk->hash, deferred->time_ns), bpf_get_current_pid_tgid());
	id = id ? id : 1;
	deferred->id = id;
	bpf_ringbuf_submit(deferred, 0);
	return id;
}

static __always_inline __u64 defer_current_walk(bool live)
{
	struct task_struct *task;
	struct thread *thread;
	__u64 sp, pages;

	if (!defer_walks)
		return 0;
	task = current_task();
	thread = thread_of(task, false);
	if (!thread)
		return 0;
	sp = thread->walk.sp;
	pages = ((end_of_stack(task, sp, live) - 1) >> PAGE_SHIFT) - (sp >> PAGE_SHIFT) + 1;
	if (pages <= 1)
		return defer_with_pages(task, thread, 1);
	if (pages <= 2)
		return defer_with_pages(task, thread, 2);
	if (pages <= 3)
		return defer_with_pages(task, thread, 3);
	if (pages <= 4)
		return defer_with_pages(task, thread, 4);
	if (pages <= 6)
		return defer_with_pages(task, thread, 6);
	if (pages <= 8)
		return defer_with_pages(task, thread, 8);
	return defer_with_pages(task, thread, DEFERRED_PAGES);
}

/*
 * Hand the current thread's walk to the tracer; give what stands for its stack, 0 if there is no room. Not
 * static, so that the verifier looks at them once; two, for kernels without callbacks.
 */
__noinline __u64 defer_walk(void)
{
	return defer_current_walk(true);
}

__noinline __u64 defer_walk_plain(void)
{
	return defer_current_walk(false);
}

/*
 * The identity of the stack at an allocator's return, kept: whole, or to be finished by the tracer if it ends
 * at a file that is still to be read.
 */
static __always_inline __u64 stack_at_return(struct pt_regs *ctx, struct task_struct *task,
					     struct thread *thread, bool live)
{
	__u32 allocator = functions[thread->call.row & (MAX_FUNCTIONS - 1)].allocator, end;
	/* through a pointer, one stack can call several allocators */
	__u64 hash = capture_user_stack(ctx, task, thread, true, live) + allocator, id, *stored;

	thread->stack.allocator = allocator;
	end = thread->walk.end;
	if (end == STACK_UNREAD) {
		id = live ? defer_walk() : defer_walk_plain();
		if (id)
			return id;
		/* the code is there, only its caller can't be told: never a stack without any frame */
		add_frame(&thread->walk, &thread->stack, thread->walk.pc);
		hash = hash_of_walk(&thread->walk) + allocator;
		end = STACK_UNKNOWN_CODE;
	}
	if (end != STACK_COMPLETE)
		__sync_fetch_and_add(&stacks_cut[end & (STACK_ENDS - 1)], 1);
	/* of several processes, the last one to use a stack is kept with it */
	if (many_processes)
		return store_stack(&thread->stack, hash, tgid_of(task));
	stored = &thread->stored[hash & (STORED_STACKS - 1)];
	if (*stored != hash)
		*stored = store_stack(&thread->stack, hash, 0);
	return *stored;
}

#endif
