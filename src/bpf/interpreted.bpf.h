/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/*
 * Frames that interpreters run: where the native walk gets to a call of an evaluation loop, the frames that
 * it runs take its place. And what is kept of their code, so that names outlive it. Knows no language.
 */
#ifndef INTERPRETED_BPF_H
#define INTERPRETED_BPF_H

#include "user/thread.bpf.h"

/* By number from 1, written by the tracer as files with an interpreter come. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_INTERPRETERS);
	__type(key, __u32);
	__type(value, struct interpreter);
} interpreters SEC(".maps");

/* The numbers of code, drawn by lot. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct code_key);
	__type(value, __u32);
} code_numbers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, struct code_piece_key);
	__type(value, struct code_piece);
} code_pieces SEC(".maps");

/* Types that no map or variable names would be missing from the skeleton. */
const volatile enum language language_type = LANGUAGE_PYTHON;
const volatile enum python_loops python_loops_type = PYTHON_LOOP_MARKED;
const volatile enum interpreted_loss interpreted_loss_type = INTERPRETED_UNREADABLE;
const volatile struct code_head *const code_head_type = NULL;

/* Counts a stack without some of its interpreted frames, once. */
static __always_inline void lose_interpreted(struct interpreted *interpreted, enum interpreted_loss loss)
{
	if (interpreted->lost)
		return;
	interpreted->lost = 1;
	__sync_fetch_and_add(&interpreted_lost[loss & (INTERPRETED_LOSSES - 1)], 1);
}

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

/* Begins a walk: nothing is taken in yet. */
static __always_inline void begin_interpreted(struct interpreted *interpreted)
{
	interpreted->mark = NO_MARK;
	interpreted->next = 0;
	interpreted->count = 0;
	interpreted->lost = 0;
	interpreted->due = interpreted->row != 0;
	interpreted->hash_before[0] = 0;
	interpreted->loop_size[0] = 0;
	interpreted->loop_size[1] = 0;
}

/* Appends a frame, or the mark of a loop; returns whether there was room. */
static __always_inline bool add_word(struct interpreted *interpreted, struct interpreter_walk *inner,
				     __u64 word)
{
	__u32 count = interpreted->count;

	if (count >= INTERPRETED_WORDS)
		return false;
	inner->words[count] = word;
	interpreted->count = count + 1;
	return true;
}

/* Goes to the mark of the next loop. */
static __always_inline void next_mark(struct interpreted *interpreted, const struct interpreter_walk *inner)
{
	__u32 next = interpreted->next;

	if (next >= interpreted->count || next >= INTERPRETED_WORDS) {
		interpreted->mark = NO_MARK;
		return;
	}
	interpreted->mark = inner->words[next];
	interpreted->next = next + 1;
}

static __always_inline bool is_loop_code(const struct interpreted *interpreted, __u64 pc)
{
	return pc - interpreted->loop_begin[0] < interpreted->loop_size[0] ||
	       pc - interpreted->loop_begin[1] < interpreted->loop_size[1];
}

/* Whether a native frame with code at `pc`, whose stack is from `sp` to `end`, is that of the next loop. */
static __always_inline bool is_next_loop(const struct interpreted *interpreted, __u64 pc, __u64 sp, __u64 end)
{
	if (interpreted->mark == MARK_BY_CODE)
		return is_loop_code(interpreted, pc);
	return interpreted->mark - sp < end - sp;
}

/* The next frame of a loop; 0 where it has no more. */
static __always_inline __u64 next_frame(const struct interpreted *interpreted,
					const struct interpreter_walk *inner)
{
	__u32 next = interpreted->next;
	__u64 word;

	if (next >= interpreted->count || next >= INTERPRETED_WORDS)
		return 0;
	word = inner->words[next];
	return word & INTERPRETED_FRAME ? word : 0;
}

/* Takes off the native frames that a loop's frames take the place of: its own, which was added last, and that
 * of the function within it which runs the instructions, where there is one. */
static __always_inline void take_off_loop(struct thread *thread)
{
	struct interpreted *interpreted = &thread->interpreted;
	__u32 depth = thread->stack.depth;

	if (interpreted->tail_calls && depth > 1) {
		thread->stack.depth = depth - 2;
		thread->walk.hash = interpreted->hash_before[1];
	} else {
		thread->stack.depth = depth - 1;
		thread->walk.hash = interpreted->hash_before[0];
	}
}

/* Adds the next frame of a loop; returns whether there is one, and room. Not static, so that the verifier
 * looks at it once. */
__noinline int merge_frame(struct thread *thread, struct interpreter_walk *inner)
{
	struct interpreted *interpreted;
	__u64 word;
	__u32 depth;

	if (!thread || !inner)
		return false;
	interpreted = &thread->interpreted;
	word = next_frame(interpreted, inner);
	if (!word)
		return false;
	depth = thread->stack.depth;
	if (depth >= MAX_STACK_DEPTH || depth >= max_stack_depth) {
		thread->walk.end = STACK_DEPTH;
		return false;
	}
	thread->stack.addresses[depth] = word;
	thread->stack.depth = depth + 1;
	thread->walk.hash = hash_address(thread->walk.hash, word);
	interpreted->next++;
	return true;
}

/*
 * Puts the frames that a loop runs in place of its native one. Gives whether there was room. Not static, so
 * that the verifier looks at it once.
 */
__noinline int merge_interpreted(struct thread *thread)
{
	struct interpreter_walk *inner = interpreter_walk_of(current_task(), false);
	int i;

	if (!thread || !inner)
		return false;
	/* a loop that runs nothing that is to be seen stays what it is */
	if (next_frame(&thread->interpreted, inner))
		take_off_loop(thread);
	for (i = 0; i < MAX_STACK_DEPTH; i++) {
		if (!merge_frame(thread, inner))
			break;
	}
	next_mark(&thread->interpreted, inner);
	return thread->walk.end != STACK_DEPTH;
}

/* Keeps the first piece of code under a number that nobody has; 0 if there is no room. */
static __always_inline __u32 keep_head(void *head)
{
	struct code_piece_key key = {};
	int i;

	for (i = 0; i < 4; i++) {
		key.code = bpf_get_prandom_u32() & ~(1U << 31);
		if (key.code && !bpf_map_update_elem(&code_pieces, &key, head, BPF_NOEXIST))
			return key.code;
	}
	return 0;
}

/* Keeps the lines of code's instructions, as far as they can be read and there is room. */
static __always_inline void keep_lines(struct walk *walk, const struct found_code *code, __u32 number)
{
	struct code_piece_key key = {.code = number};
	__u32 done = 0, i;

	for (i = 0; i < MAX_LINE_PIECES; i++) {
		__u64 bytes = code->lines_bytes - done;

		if (done >= code->lines_bytes)
			return;
		barrier_var(bytes);
		if (bytes > CODE_PIECE_BYTES)
			bytes = CODE_PIECE_BYTES;
		if (bpf_probe_read_user(walk->window, bytes, (void *)(code->lines + done)))
			return;
		key.piece = i + 1;
		if (bpf_map_update_elem(&code_pieces, &key, walk->window, BPF_ANY))
			return;
		done += CODE_PIECE_BYTES;
	}
}

/* Reads text, or, if it is longer than `most` bytes, a constant, its beginning or its end. */
static __always_inline bool read_text_bytes(void *to, const struct text *text, __u64 most, bool end)
{
	__u64 bytes = text->bytes, skipped = 0;

	if (end && bytes > most)
		skipped = bytes - most;
	barrier_var(bytes);
	if (bytes > most)
		bytes = most;
	return !bpf_probe_read_user(to, bytes, (void *)(text->address + skipped));
}

/*
 * Keeps what the code in `found` is called, and gives it its number, 0 if there is no room. Its scratch space
 * is the walk's window on the stack. Not static, so that the verifier looks at it once.
 */
__noinline int keep_code(void)
{
	/* not handed on: Linux 6.1 wants to know that what a map's element is made of is in a map */
	struct thread *thread = thread_of(current_task(), false);
	struct interpreter_walk *inner = interpreter_walk_of(current_task(), false);
	struct found_code *found;
	struct code_head *head;
	struct code_key key = {};
	__u32 number, *known;

	if (!thread || !inner)
		return 0;
	found = &inner->found_code;
	head = (struct code_head *)thread->walk.window;
	thread->walk.window_size = 0;
	head->interpreter = found->interpreter;
	head->tgid = tgid_of(current_task());
	head->first_line = found->first_line;
	head->lines_bytes = found->lines_bytes;
	head->name = found->name.is;
	head->file = found->file.is;
	if (!read_text_bytes(head->name_bytes, &found->name, CODE_NAME_BYTES, false) ||
	    !read_text_bytes(head->file_bytes, &found->file, CODE_FILE_BYTES, true))
		return 0;
	number = keep_head(head);
	if (!number)
		return 0;
	key.code = found->address;
	key.fingerprint = found->fingerprint;
	key.tgid = head->tgid;
	keep_lines(&thread->walk, found, number);
	/* only now, or another thread's frames would have a number whose lines are still to come */
	if (!bpf_map_update_elem(&code_numbers, &key, &number, BPF_NOEXIST))
		return number;
	known = bpf_map_lookup_elem(&code_numbers, &key);
	return known ? *known : 0;
}

#endif
