/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/*
 * How often programs ran, for the estimate of what tracing costs; and the empty programs that measure
 * what the kernel alone takes to run one.
 */
#ifndef ACTIVITY_BPF_H
#define ACTIVITY_BPF_H

#include "config.bpf.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct activity);
} activity SEC(".maps");

/* Not atomic: should the task move to another CPU in between, the estimate misses an event. */
#define count_activity(what)                                                                                 \
	do {                                                                                                 \
		__u32 only = 0;                                                                              \
		struct activity *mine = bpf_map_lookup_elem(&activity, &only);                               \
                                                                                                             \
		if (mine)                                                                                    \
			mine->what++;                                                                        \
	} while (0)

#endif
