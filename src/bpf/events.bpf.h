/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/*
 * What travels to the tracer as it happens: changes of anonymous mappings, and calls for --trace.
 * Two rings, so that a flood of calls never drops a mapping.
 */
#ifndef EVENTS_BPF_H
#define EVENTS_BPF_H

#include "process.bpf.h"

/* Their sizes are set before load. */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} range_events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} call_events SEC(".maps");

/* Ring buffers' entries have no type of their own: these put them into the skeleton. */
const volatile struct range_event range_event_type = {};
const volatile struct call_event call_event_type = {};

static __always_inline void send_range(const struct range_event *range)
{
	if (bpf_ringbuf_output(&range_events, (void *)range, sizeof(*range), 0))
		count_lost(ranges);
}

static __always_inline void send_call(__u32 function, __u64 size, __u64 address, __u64 old_address,
				      __s32 error)
{
	struct call_event *event;
	struct task_struct *task = current_task();

	event = bpf_ringbuf_reserve(&call_events, sizeof(*event), 0);
	if (!event) {
		count_lost(calls);
		return;
	}
	event->time_ns = bpf_ktime_get_ns();
	event->size = size;
	event->address = address;
	event->old_address = old_address;
	event->tgid = tgid_of(task);
	event->tid = tid_of(task);
	event->function = function;
	event->error = error;
	bpf_get_current_comm(event->comm, sizeof(event->comm));
	bpf_ringbuf_submit(event, 0);
}

#endif
