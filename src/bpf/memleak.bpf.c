/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/*
 * The programs: each reads its context and makes one call. Everything else lives in the headers.
 */
#include "calls.bpf.h"

/* Entry and return in one program (Linux 6.13): the answer at entry decides about the return. */
SEC("uprobe.session")
int user_session(struct pt_regs *ctx)
{
	if (session_is_return(ctx)) {
		leave_call(ctx);
		return 0;
	}
	return enter_call(ctx, bpf_get_attach_cookie(ctx));
}

/* The same in two, one link for all functions of an object (Linux 6.6). */
SEC("uprobe.multi")
int user_enter_multi(struct pt_regs *ctx)
{
	enter_call(ctx, bpf_get_attach_cookie(ctx));
	return 0;
}

SEC("uretprobe.multi")
int user_leave_multi(struct pt_regs *ctx)
{
	leave_call(ctx);
	return 0;
}

/* The same with a link for each function (Linux 5.15). */
SEC("uprobe")
int user_enter(struct pt_regs *ctx)
{
	enter_call(ctx, bpf_get_attach_cookie(ctx));
	return 0;
}

SEC("uretprobe")
int user_leave(struct pt_regs *ctx)
{
	leave_call(ctx);
	return 0;
}

char LICENSE[] SEC("license") = "Dual BSD/GPL";
