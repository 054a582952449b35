/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/*
 * The programs: each reads its context and makes one call. Everything else lives in the headers.
 */
#include "activity.bpf.h"
#include "user/calls.bpf.h"
#include "kernel/tracepoints.bpf.h"
#include "user/program_starts.bpf.h"

static __always_inline int user_enter(struct pt_regs *ctx)
{
	count_activity(entries);
	return enter_call(ctx, bpf_get_attach_cookie(ctx), true);
}

static __always_inline int user_leave(struct pt_regs *ctx)
{
	count_activity(returns);
	leave_call(ctx, true);
	return 0;
}

static __always_inline int user_free(struct pt_regs *ctx)
{
	if (trace_calls)
		return user_enter(ctx);
	count_activity(entries);
	enter_free(ctx);
	return 0;
}

/* Entry and return in one program (Linux 6.13): the answer at entry decides about the return. */
SEC("uprobe.session")
int user_session(struct pt_regs *ctx)
{
	return session_is_return(ctx) ? user_leave(ctx) : user_enter(ctx);
}

/* The same in two, one link for all functions of an object (Linux 6.6). */
SEC("uprobe.multi")
int user_enter_multi(struct pt_regs *ctx)
{
	user_enter(ctx);
	return 0;
}

SEC("uretprobe.multi")
int user_leave_multi(struct pt_regs *ctx)
{
	return user_leave(ctx);
}

/* Functions that free their first argument, all those of an object in one link. */
SEC("uprobe.multi")
int user_free_multi(struct pt_regs *ctx)
{
	return user_free(ctx);
}

/* The same with a link for each function (Linux 5.15). */
SEC("uprobe")
int user_enter_single(struct pt_regs *ctx)
{
	user_enter(ctx);
	return 0;
}

SEC("uretprobe")
int user_leave_single(struct pt_regs *ctx)
{
	return user_leave(ctx);
}

SEC("uprobe")
int user_free_single(struct pt_regs *ctx)
{
	return user_free(ctx);
}

/* A thread that dies inside realloc, as it does when its process is killed, leaves the old block live. */
SEC("raw_tp/sched_process_exit")
int thread_exit(void *ctx)
{
	leave_thread();
	if (many_processes)
		thread_has_ended();
	return 0;
}

/* Before a signal's handler runs. */
SEC("raw_tp/signal_deliver")
int signal_deliver(void *ctx)
{
	note_signal(current_task());
	return 0;
}

SEC("raw_tp/sched_process_fork")
int process_fork(struct bpf_raw_tracepoint_args *ctx)
{
	process_has_forked((struct task_struct *)ctx->args[1]);
	return 0;
}

SEC("raw_tp/sched_process_exec")
int process_exec(void *ctx)
{
	process_has_executed();
	return 0;
}

SEC("raw_tp/sched_process_exec")
int program_begins(struct bpf_raw_tracepoint_args *ctx)
{
	announce_program((struct linux_binprm *)ctx->args[2]);
	return 0;
}

/*
 * In _dl_debug_state, which dynamic linkers call for debuggers' sake before and after they load or unload
 * libraries.
 */
SEC("uprobe")
int code_change(struct pt_regs *ctx)
{
	if (unwind_with_tables)
		note_code_change();
	return 0;
}

/* In the function with which an interpreter ends a piece of code: its address may be another's from now on.
 */
SEC("uprobe")
int code_end(struct pt_regs *ctx)
{
	__sync_fetch_and_add(&code_ends, 1);
	return 0;
}

/* Empty ones, to measure what the kernel takes to run any. The cookie says whether to trap the return. */
SEC("uprobe.session")
int empty_session(struct pt_regs *ctx)
{
	return session_is_return(ctx) ? 0 : bpf_get_attach_cookie(ctx) != 0;
}

SEC("uprobe")
int empty_enter(struct pt_regs *ctx)
{
	return 0;
}

SEC("uretprobe")
int empty_leave(struct pt_regs *ctx)
{
	return 0;
}

/* The same without cookies and callbacks (Linux 5.10): a program for each row of `functions`. */
SEC("uretprobe")
int user_leave_plain(struct pt_regs *ctx)
{
	count_activity(returns);
	leave_call(ctx, false);
	return 0;
}

/* One copy for all of the programs below. */
static __noinline int enter_row(struct pt_regs *ctx, __u64 row)
{
	count_activity(entries);
	return enter_call(ctx, row, false);
}

#define ENTER_ROW(row)                                                                                       \
	SEC("uprobe") int user_enter_##row(struct pt_regs *ctx)                                              \
	{                                                                                                    \
		enter_row(ctx, row);                                                                         \
		return 0;                                                                                    \
	}

ENTER_ROW(0)
ENTER_ROW(1)
ENTER_ROW(2)
ENTER_ROW(3)
ENTER_ROW(4)
ENTER_ROW(5)
ENTER_ROW(6)
ENTER_ROW(7)
ENTER_ROW(8)
ENTER_ROW(9)
ENTER_ROW(10)
ENTER_ROW(11)
ENTER_ROW(12)
ENTER_ROW(13)
ENTER_ROW(14)
ENTER_ROW(15)

char LICENSE[] SEC("license") = "Dual BSD/GPL";
