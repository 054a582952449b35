/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/*
 * The programs: each reads its context and makes one call. Everything else lives in the headers.
 */
#include "activity.bpf.h"
#include "calls.bpf.h"

static __always_inline int user_enter(struct pt_regs *ctx)
{
	count_activity(entries);
	return enter_call(ctx, bpf_get_attach_cookie(ctx));
}

static __always_inline int user_leave(struct pt_regs *ctx)
{
	count_activity(returns);
	leave_call(ctx);
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

char LICENSE[] SEC("license") = "Dual BSD/GPL";
