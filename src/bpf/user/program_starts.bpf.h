/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/*
 * Programs that begin, anywhere on the machine, by the names of their files: some must not meet a probe.
 * Which ones is decided by the tracer.
 */
#ifndef PROGRAM_STARTS_BPF_H
#define PROGRAM_STARTS_BPF_H

#include "process.bpf.h"

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 64 * 1024);
} program_starts SEC(".maps");

const volatile struct program_start program_start_type = {};

/* The current process executes the file of `bprm`, an interpreter of binaries where one was registered for
 * it. */
static __always_inline void announce_program(struct linux_binprm *bprm)
{
	struct program_start start = {.tgid = tgid_of(current_task())};
	const unsigned char *name = BPF_CORE_READ(bprm, file, f_path.dentry, d_name.name);

	bpf_probe_read_kernel_str(start.name, sizeof(start.name), name);
	bpf_ringbuf_output(&program_starts, &start, sizeof(start), BPF_RB_FORCE_WAKEUP);
}

#endif
