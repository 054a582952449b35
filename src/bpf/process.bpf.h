/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/*
 * Which process the current one is, in the numbers of memleak's own pid namespace, and whether it is traced:
 * the set of traced processes, kept from fork to exit. Knows nothing of allocations.
 */
#ifndef PROCESS_BPF_H
#define PROCESS_BPF_H

#include "config.bpf.h"

/* The kernel's limit on pid namespaces within each other, and the initial one's. */
#define MAX_PID_NAMESPACES 33

/*
 * What happens to traced processes, in a ring of its own: a flood of anything else never drops it. Who is in
 * the set has been announced here, and who has left it has been, too.
 */
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 4096);
} life_events SEC(".maps");

const volatile struct life_event life_event_type = {};

/* Traced processes, by tgid; the value means nothing. In use where more than one can be traced. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} traced_processes SEC(".maps");

/* The cgroups (version 2) whose processes are traced. */
struct {
	__uint(type, BPF_MAP_TYPE_CGROUP_ARRAY);
	__uint(max_entries, MAX_CGROUPS);
	__type(key, __u32);
	__type(value, __u32);
} traced_cgroups SEC(".maps");

/* A task's number in memleak's pid namespace; 0 when it has none there. */
static __always_inline __u32 number_of(struct pid *pid)
{
	void *numbers = (void *)pid + bpf_core_field_offset(struct pid, numbers);
	__u32 i, level = BPF_CORE_READ(pid, level);

	for (i = 0; i < MAX_PID_NAMESPACES && i <= level; i++) {
		struct upid number = {};

		if (bpf_probe_read_kernel(&number, sizeof(number), numbers + i * sizeof(number)))
			break;
		if (BPF_CORE_READ(number.ns, ns.inum) == pid_namespace)
			return number.nr;
	}
	return 0;
}

/* Not static: one copy for all callers, and out of the way of those that never need it. */
__noinline __u64 pid_tgid_in_namespace(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	__u64 tgid = number_of(BPF_CORE_READ(task, group_leader, thread_pid));

	return tgid << 32 | number_of(BPF_CORE_READ(task, thread_pid));
}

/*
 * The current task. Its fields are read by plain loads, which cost a fraction of a helper's call: so it is
 * looked up once in a program and handed on.
 */
static __always_inline struct task_struct *current_task(void)
{
	return has_task_storage ? bpf_get_current_task_btf() : (struct task_struct *)bpf_get_current_task();
}

/* Where a task's own data lie, as its C library finds them. */
static __always_inline __u64 thread_pointer(struct task_struct *task)
{
#if defined(__TARGET_ARCH_x86)
	return has_task_storage ? task->thread.fsbase : BPF_CORE_READ(task, thread.fsbase);
#else
	return 0;
#endif
}

/* The current task's process, in the numbers that memleak and its user know. */
static __always_inline __u32 tgid_of(struct task_struct *task)
{
	if (pid_namespace)
		return pid_tgid_in_namespace() >> 32;
	return has_task_storage ? (__u32)task->tgid : bpf_get_current_pid_tgid() >> 32;
}

/* Its thread, in the same. */
static __always_inline __u32 tid_of(struct task_struct *task)
{
	if (pid_namespace)
		return (__u32)pid_tgid_in_namespace();
	return has_task_storage ? (__u32)task->pid : (__u32)bpf_get_current_pid_tgid();
}

static __always_inline bool is_traced(struct task_struct *task)
{
	__u32 tgid;

	if (!many_processes)
		return !filter_single || tgid_of(task) == single_tgid;
	tgid = tgid_of(task);
	return bpf_map_lookup_elem(&traced_processes, &tgid);
}

/* Announces what happens to a process, which is called as `task` is. */
static __always_inline void announce(struct life_event *life, struct task_struct *task)
{
	life->time_ns = bpf_ktime_get_ns();
	bpf_core_read(&life->comm, sizeof(life->comm), &task->comm);
	if (bpf_ringbuf_output(&life_events, life, sizeof(*life), 0))
		count_lost(lives);
}

/* Puts a process into the set; tells whether it is there. */
static __always_inline bool trace_process(__u32 tgid)
{
	__u32 value = 0;

	if (!tgid || tgid == own_tgid)
		return false;
	if (!bpf_map_update_elem(&traced_processes, &tgid, &value, BPF_ANY))
		return true;
	count_lost(processes);
	return false;
}

/* Whether the current process is called as the user said. Its name runs through an automaton. */
static __always_inline bool name_is_wanted(void)
{
	char comm[16] = {};
	__u64 states = name_start;
	int i;

	if (!name_accept)
		return false;
	bpf_get_current_comm(comm, sizeof(comm));
	for (i = 0; i < sizeof(comm) && comm[i]; i++)
		states = (states & name_steps[(__u8)comm[i]]) << 1 | (states & name_loops);
	return states & name_accept;
}

static __always_inline bool is_in_cgroup(void)
{
	__u32 i;

	for (i = 0; i < MAX_CGROUPS; i++)
		if (i < cgroup_count && bpf_current_task_under_cgroup(&traced_cgroups, i) == 1)
			return true;
	return false;
}

/* Whether memleak has started a process: to read files for it. */
static __always_inline bool is_own_child(struct task_struct *task)
{
	struct task_struct *parent = BPF_CORE_READ(task, real_parent);

	if (pid_namespace)
		return number_of(BPF_CORE_READ(parent, group_leader, thread_pid)) == own_tgid;
	return BPF_CORE_READ(parent, tgid) == own_tgid;
}

/* The current process has made a task: a thread of its own, or a child before its first instruction. */
static __always_inline void process_has_forked(struct task_struct *child)
{
	struct life_event life = {.life = LIFE_FORKED};

	if (BPF_CORE_READ(child, pid) != BPF_CORE_READ(child, tgid))
		return;
	life.parent = tgid_of(current_task());
	if (!many_processes) {
		if (life.parent == single_tgid)
			__sync_fetch_and_add(&children_started, 1);
		return;
	}
	if (!(follow_forks && is_traced(current_task())) && !is_in_cgroup())
		return;
	if (is_own_child(child))
		return;
	life.tgid = pid_namespace ? number_of(BPF_CORE_READ(child, thread_pid)) : BPF_CORE_READ(child, tgid);
	if (trace_process(life.tgid))
		announce(&life, child);
}

/* Whether a process that executes a program is traced from then on; `life` says what that makes of it. */
static __always_inline bool stays_or_joins(struct life_event *life)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	bool known, wanted;

	if (!many_processes)
		return life->tgid == single_tgid;
	known = bpf_map_lookup_elem(&traced_processes, &life->tgid);
	wanted = trace_all || name_is_wanted() || is_in_cgroup();
	if (!known)
		return wanted && !is_own_child(task) && trace_process(life->tgid);
	if (!wanted && !follow_execs) {
		bpf_map_delete_elem(&traced_processes, &life->tgid);
		life->life = LIFE_LEFT;
	}
	return true;
}

/* The current process is about to run another program. */
static __always_inline void process_has_executed(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct life_event life = {.life = LIFE_EXECUTED, .tgid = tgid_of(current_task())};

	if (stays_or_joins(&life))
		announce(&life, task);
}

/* The current thread has ended; with the last one, its process has. */
static __always_inline void thread_has_ended(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct life_event life = {.life = LIFE_ENDED};

	if (BPF_CORE_READ(task, signal, live.counter) > 0)
		return;
	life.tgid = tgid_of(current_task());
	/* of two that end at once, both can be the last */
	if (!bpf_map_delete_elem(&traced_processes, &life.tgid))
		announce(&life, BPF_CORE_READ(task, group_leader));
}

#endif
