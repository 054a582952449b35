/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/*
 * From an interpreter to the room of its language: the only file that knows all of them. Nothing of what they
 * do is here.
 */
#ifndef LANGUAGES_BPF_H
#define LANGUAGES_BPF_H

#include "languages/python.bpf.h"

/*
 * Takes in what the interpreter of the current process runs in the current thread, before the native walk
 * goes on. Not static, so that the verifier looks at it once.
 */
__noinline int take_interpreted_frames(struct thread *thread)
{
	struct interpreter_walk *inner;
	struct interpreted *interpreted;
	struct interpreter *interpreter;
	__u32 row, i;

	if (!thread)
		return 0;
	interpreted = &thread->interpreted;
	interpreted->due = 0;
	row = interpreted->row;
	interpreter = bpf_map_lookup_elem(&interpreters, &row);
	if (!interpreter)
		return 0;
	inner = interpreter_walk_of(current_task(), true);
	if (!inner) {
		lose_interpreted(interpreted, INTERPRETED_NO_ROOM);
		return 0;
	}
	interpreted->tail_calls = interpreter->tail_calls;
	for (i = 0; i < 2; i++) {
		interpreted->loop_begin[i] = interpreter->loop_begin[i] + interpreted->bias;
		interpreted->loop_size[i] = interpreter->loop_size[i];
	}
	if (interpreter->language == LANGUAGE_PYTHON)
		take_python_frames(thread, inner, interpreter);
	next_mark(interpreted, inner);
	return 0;
}

#endif
