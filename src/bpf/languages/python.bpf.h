/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/*
 * The frames that Python runs in the current thread, found by the layout of its version. Everything that is
 * read belongs to the target and can be anything: it is checked, or leads to native frames, counted.
 */
#ifndef PYTHON_BPF_H
#define PYTHON_BPF_H

#include "interpreted.bpf.h"

/* glibc's data of a thread by key, from its thread pointer: the keys of the first block. */
#define GLIBC_FIRST_KEYS 0x310
#define GLIBC_KEYS 32
#define GLIBC_KEY_BYTES 16
#define GLIBC_KEY_DATA 8

/* Of all objects. */
#define OBJECT_TYPE 8
/* Of bytes, and of text: how many there are. */
#define OBJECT_LENGTH 16
#define BYTES_BEGIN 32
/* Of text: from its length on come a hash, and how it is written. */
#define TEXT_KIND(state) (((state) >> 2) & 7)
#define TEXT_IS_COMPACT(state) (((state) >> 5) & 1)
#define TEXT_IS_ASCII(state) (((state) >> 6) & 1)

/* More is not text that names anything. */
#define MAX_TEXT_LENGTH (1 << 20)

/* What take_python_frame() answers. */
#define PYTHON_DONE 0
#define PYTHON_GOES_ON 1
#define PYTHON_NEEDS_CODE 2

/* What look_at_python_code() answers, beside 0 and losses below 0. */
#define CODE_IS_NEW 1

static __always_inline __u64 word_at(const struct python *python, __u32 offset)
{
	return python->memory[(offset >> 3) & (PYTHON_WORDS - 1)];
}

static __always_inline __u32 number_at(const struct python *python, __u32 offset)
{
	return word_at(python, offset) >> (offset & 4) * 8;
}

/* The frames that have been taken in are all that there will be; those of the loop that is open are left out.
 */
static __always_inline int give_up(struct thread *thread, struct interpreter_walk *inner,
				   enum interpreted_loss loss)
{
	lose_interpreted(&thread->interpreted, loss);
	thread->interpreted.count = inner->python.loop_begin;
	return PYTHON_DONE;
}

/* Reads the header of text; `what` is to be filled in. `bias` is that of the interpreter's file. */
static __always_inline bool read_text(const struct interpreter *interpreter, __u64 bias, __u64 address,
				      struct text *what, __u64 *header)
{
	const struct python_layout *layout = &interpreter->python;
	__u32 state, kind;

	/* type, length, hash, state */
	if (bpf_probe_read_user(header, 4 * sizeof(*header), (void *)(address + OBJECT_TYPE)))
		return false;
	state = header[3];
	kind = TEXT_KIND(state);
	if (header[0] != interpreter->text_type + bias || !TEXT_IS_COMPACT(state) ||
	    header[1] > MAX_TEXT_LENGTH)
		return false;
	what->address = address + (TEXT_IS_ASCII(state) ? layout->text_bytes : layout->wide_text_bytes);
	what->fingerprint = hash_address(header[1], header[2]);
	what->is.length = header[1];
	what->is.state = state;
	what->bytes = (__u32)header[1] * kind;
	return true;
}

/*
 * Looks at the code object at `found_code.address`, which is in `python.memory`; gives its number, 0 where
 * there is none. Not static, so that the verifier looks at it once.
 */
__noinline int number_of_python_code(struct thread *thread, struct interpreter_walk *inner)
{
	const struct python_layout *layout;
	struct interpreter *interpreter;
	struct found_code *found;
	struct code_key key = {};
	struct python *python;
	__u64 *header, lines, hash, bias;
	__u32 row, *number;

	if (!thread || !inner)
		return 0;
	row = thread->interpreted.row;
	interpreter = bpf_map_lookup_elem(&interpreters, &row);
	if (!interpreter)
		return 0;
	layout = &interpreter->python;
	python = &inner->python;
	found = &inner->found_code;
	header = found->header;
	bias = thread->interpreted.bias;
	if (!read_text(interpreter, bias, word_at(python, layout->code_name), &found->name, header))
		return -INTERPRETED_UNREADABLE;
	lines = word_at(python, layout->code_lines);
	found->first_line = number_at(python, layout->code_line);
	/* what can differ between two that come to lie at one address, one after the other */
	hash = hash_address(found->name.fingerprint, found->first_line);
	hash = hash_address(hash, lines);
	hash = hash_address(hash, word_at(python, layout->code_file));
	hash = hash_address(hash, thread->walk.mm);
	found->fingerprint = hash;
	key.code = found->address;
	key.fingerprint = hash;
	key.tgid = tgid_of(current_task());
	number = bpf_map_lookup_elem(&code_numbers, &key);
	if (number)
		return *number;
	if (!read_text(interpreter, bias, word_at(python, layout->code_file), &found->file, header) ||
	    bpf_probe_read_user(header, 2 * sizeof(*header), (void *)(lines + OBJECT_TYPE)) ||
	    header[0] != interpreter->bytes_type + bias)
		return -INTERPRETED_UNREADABLE;
	found->interpreter = row;
	found->lines = lines + BYTES_BEGIN;
	found->lines_bytes = header[1] < MAX_LINE_PIECES * CODE_PIECE_BYTES
				     ? header[1]
				     : MAX_LINE_PIECES * CODE_PIECE_BYTES;
	return 0;
}

/* Opens a loop; its mark may come later. */
static __always_inline bool open_loop(struct thread *thread, struct interpreter_walk *inner, __u64 mark)
{
	inner->python.loop_begin = thread->interpreted.count;
	return add_word(&thread->interpreted, inner, mark);
}

/* Goes to the record of the loop further out, whose innermost frame must be `frame`. */
static __always_inline bool next_record(struct python *python, const struct python_layout *layout,
					__u64 frame)
{
	__u64 record = 0, innermost = frame;

	if (layout->loops != PYTHON_LOOP_EACH && layout->loops != PYTHON_LOOP_MARKED)
		return true;
	if (bpf_probe_read_user(&record, sizeof(record), (void *)(python->loop + layout->loop_caller)))
		return false;
	python->loop = record;
	if (layout->through_loop &&
	    bpf_probe_read_user(&innermost, sizeof(innermost), (void *)(record + layout->loop_frame)))
		return false;
	return innermost == frame;
}

/* Whether a frame is the last one of its loop, from the innermost. */
static __always_inline bool ends_loop(const struct python_layout *layout, __u32 kind)
{
	return layout->loops == PYTHON_LOOP_BY_CODE || layout->loops == PYTHON_LOOP_EACH ||
	       (layout->loops == PYTHON_LOOP_MARKED && kind);
}

/* Where code at an address is remembered, if it is. */
static __always_inline struct known_code *known_code(struct python *python, __u64 code)
{
	/* objects are at least 16 bytes apart */
	return &python->known[(code >> 4 ^ code >> 10) & (PYTHON_KNOWN_CODE - 1)];
}

/* Makes a frame's words readable by frame_word(): those of many frames at once, where they lie in one piece.
 */
static __always_inline bool read_frame(struct python *python, const struct python_layout *layout, __u64 frame)
{
	__u64 bytes = layout->frame_bytes, begin;

	if (bytes > sizeof(python->memory))
		return false;
	if (frame - python->frames_begin <= python->frames_size - bytes && python->frames_size)
		return true;
	/* callers lie below what they call; what is below the page may not be there, which takes long to find
	 * out */
	begin = frame + bytes - sizeof(python->frames);
	if (!layout->code_instructions)
		begin = frame;
	else if (begin < (frame & -4096ULL))
		begin = frame & -4096ULL;
	bytes += frame - begin;
	barrier_var(bytes);
	if (bytes > sizeof(python->frames))
		return false;
	python->frames_begin = begin;
	python->frames_size = bytes;
	if (!bpf_probe_read_user(python->frames, bytes, (void *)begin))
		return true;
	python->frames_size = 0;
	return false;
}

static __always_inline __u64 frame_word(const struct python *python, __u64 frame, __u32 offset)
{
	return python->frames[((frame - python->frames_begin + offset) >> 3) & (PYTHON_FRAME_WORDS - 1)];
}

/* Reads a code object, and finds or makes what is known of it; 0, or why it can't be shown, below 0. Not
 * static, so that the verifier looks at it once. */
__noinline int look_at_python_code(struct thread *thread, struct interpreter_walk *inner)
{
	struct interpreter *interpreter;
	struct known_code *known;
	struct python *python;
	__u32 row, bytes;
	__u64 code;
	int number;

	if (!thread || !inner)
		return 0;
	row = thread->interpreted.row;
	interpreter = bpf_map_lookup_elem(&interpreters, &row);
	if (!interpreter)
		return -INTERPRETED_NO_CODE;
	python = &inner->python;
	code = inner->found_code.address;
	bytes = interpreter->python.code_bytes;
	if (bytes > sizeof(python->memory) || bpf_probe_read_user(python->memory, bytes, (void *)code))
		return -INTERPRETED_UNREADABLE;
	if (word_at(python, OBJECT_TYPE) != interpreter->code_type + thread->interpreted.bias)
		return -INTERPRETED_NO_CODE;
	number = number_of_python_code(thread, inner);
	if (number < 0)
		return number;
	if (!number)
		return CODE_IS_NEW;
	known = known_code(python, code);
	known->code = code;
	known->number = number;
	known->begun = interpreter->python.code_begun ? number_at(python, interpreter->python.code_begun)
						      : -(1 << 30);
	return 0;
}

/*
 * Takes in the frame that is next; gives whether there are more. Not static, so that the verifier looks at it
 * once.
 */
__noinline int take_python_frame(struct thread *thread, struct interpreter_walk *inner)
{
	struct interpreter *interpreter;
	const struct python_layout *layout;
	__u64 frame, code, position, caller;
	struct known_code *known;
	struct python *python;
	__u32 row, kind = 0;

	if (!thread || !inner)
		return PYTHON_DONE;
	row = thread->interpreted.row;
	interpreter = bpf_map_lookup_elem(&interpreters, &row);
	if (!interpreter)
		return PYTHON_DONE;
	layout = &interpreter->python;
	python = &inner->python;
	frame = python->frame;
	if (!read_frame(python, layout, frame))
		return give_up(thread, inner, INTERPRETED_UNREADABLE);
	caller = frame_word(python, frame, layout->frame_caller);
	code = frame_word(python, frame, layout->frame_code) & ~1ULL;
	position = frame_word(python, frame, layout->frame_position);
	if (layout->frame_kind)
		kind = (frame_word(python, frame, layout->frame_kind) >> (layout->frame_kind & 7) * 8) & 0xff;
	if (layout->loops == PYTHON_LOOP_CALLED && kind >= layout->first_kind) {
		/* it lies in the frame of the loop that has run the frames before */
		__u32 begin = python->loop_begin;

		python->frame = caller;
		if (begin < INTERPRETED_WORDS)
			inner->words[begin] = frame;
		return caller && open_loop(thread, inner, MARK_BY_CODE);
	}

	known = known_code(python, code);
	if (!code || known->code != code || (!interpreter->ends_seen && python->looked_at != frame)) {
		inner->found_code.address = code;
		return PYTHON_NEEDS_CODE;
	}
	python->frame = caller;
	if (layout->code_instructions)
		position = (position - (code + layout->code_instructions)) >> 1;
	else
		position >>= (layout->frame_position & 4) * 8;
	/* a frame that is being set up is not seen, as in Python's own tracebacks; what doesn't fit here
	 * doesn't fit into a stack either */
	if ((__s32)position >= known->begun &&
	    !add_word(&thread->interpreted, inner,
		      INTERPRETED_FRAME | (__u64)known->number << INTERPRETED_CODE_SHIFT | (__u32)position))
		return PYTHON_DONE;
	if (!ends_loop(layout, kind)) {
		if (caller)
			return PYTHON_GOES_ON;
		/* no loop has begun with it */
		return give_up(thread, inner, INTERPRETED_UNMATCHED);
	}
	if (!next_record(python, layout, caller)) {
		/* what was taken in is right, and what comes can't be told */
		lose_interpreted(&thread->interpreted, INTERPRETED_UNREADABLE);
		return PYTHON_DONE;
	}
	return caller && open_loop(thread, inner, python->loop);
}

/* The state that Python keeps of the current thread; 0 where it has none, or, counted, where it is not found.
 */
static __always_inline __u64 python_thread(struct thread *thread, const struct interpreter *interpreter)
{
	__u64 bias = thread->interpreted.bias;
	const struct python_layout *layout = &interpreter->python;
	__u64 pointer = thread_pointer(current_task()), state = 0, id = 0;
	__u32 key[2] = {}; /* whether it is in use, the key */

	if (bpf_probe_read_user(key, sizeof(key),
				(void *)(interpreter->runtime + bias + layout->thread_key)) ||
	    !key[0])
		return 0;
	if (key[1] < GLIBC_KEYS &&
	    !bpf_probe_read_user(
		    &state, sizeof(state),
		    (void *)(pointer + GLIBC_FIRST_KEYS + key[1] * GLIBC_KEY_BYTES + GLIBC_KEY_DATA)) &&
	    !state)
		return 0;
	if (state && !bpf_probe_read_user(&id, sizeof(id), (void *)(state + layout->thread_id)) &&
	    id == pointer)
		return state;
	lose_interpreted(&thread->interpreted, INTERPRETED_NO_THREAD);
	return 0;
}

/*
 * Looks at the code of the next frame; gives whether that can be shown. Not static, so that the verifier
 * looks at it once and not for each frame.
 */
__noinline int know_python_code(struct thread *thread, struct interpreter_walk *inner)
{
	int err;

	if (!thread || !inner)
		return PYTHON_DONE;
	err = look_at_python_code(thread, inner);
	/* not where it is met: the more calls lie within each other, the less stack each has */
	if (err == CODE_IS_NEW)
		err = keep_code() ? look_at_python_code(thread, inner) : -INTERPRETED_NO_ROOM;
	if (err == CODE_IS_NEW)
		err = -INTERPRETED_NO_CODE;
	if (err)
		return give_up(thread, inner, -err);
	inner->python.looked_at = inner->python.frame;
	return PYTHON_GOES_ON;
}

/* Finds the innermost frame, and the record of the loop that runs it; gives whether there is one. */
static __always_inline bool begin_python(struct interpreter_walk *inner, const struct python_layout *layout,
					 __u64 state)
{
	struct python *python = &inner->python;
	__u64 frame = 0, record = MARK_BY_CODE;

	python->loop_begin = 0;
	python->frames_size = 0;
	python->looked_at = 0;
	if (bpf_probe_read_user(&frame, sizeof(frame), (void *)(state + layout->thread_frame)))
		return false;
	if (layout->through_loop) {
		record = frame;
		if (bpf_probe_read_user(&frame, sizeof(frame), (void *)(record + layout->loop_frame)))
			return false;
	}
	if (layout->thread_loop &&
	    bpf_probe_read_user(&record, sizeof(record), (void *)(state + layout->thread_loop)))
		return false;
	python->frame = frame;
	python->loop = layout->loops == PYTHON_LOOP_CALLED ? MARK_BY_CODE : record;
	return true;
}

/* Forgets the code of another program, and, where some has ended, all of it. */
static __always_inline void forget_ended_code(struct thread *thread, struct interpreter_walk *inner)
{
	struct python *python = &inner->python;
	__u32 ends = code_ends, i;

	if (python->known_mm == thread->walk.mm && python->known_ends == ends)
		return;
	python->known_mm = thread->walk.mm;
	python->known_ends = ends;
	for (i = 0; i < PYTHON_KNOWN_CODE; i++)
		python->known[i].code = 0;
}

/* Takes in all frames that Python runs in the current thread. */
static __always_inline void take_python_frames(struct thread *thread, struct interpreter_walk *inner,
					       const struct interpreter *interpreter)
{
	__u64 state = python_thread(thread, interpreter);
	int i;

	if (!state)
		return;
	if (!begin_python(inner, &interpreter->python, state)) {
		lose_interpreted(&thread->interpreted, INTERPRETED_UNREADABLE);
		return;
	}
	if (!inner->python.frame)
		return;
	forget_ended_code(thread, inner);
	open_loop(thread, inner, inner->python.loop);
	for (i = 0; i < 2 * INTERPRETED_WORDS; i++) {
		int next = take_python_frame(thread, inner);

		/* here, and not where it is met: the more calls lie within each other, the less stack each
		 * has */
		if (next == PYTHON_NEEDS_CODE)
			next = know_python_code(thread, inner);
		if (next == PYTHON_DONE)
			return;
	}
}

#endif
