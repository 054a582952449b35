/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/*
 * The few kernel structs that are read, reduced to the fields in use and relocated at load (CO-RE).
 * The only file that knows how kernel versions and architectures differ; no programs, no maps.
 */
#ifndef CORE_TYPES_BPF_H
#define CORE_TYPES_BPF_H

#include <linux/bpf.h>
#include <linux/types.h>
#include <stdbool.h>

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_core_read.h>

#define EBUSY 16
#define EEXIST 17

/* The arguments of a call that are passed in registers. */
struct arguments {
	__u64 first, second, third, fourth, fifth, sixth;
};

#if defined(__TARGET_ARCH_x86)
/* The registers that a user probe is given: a fixed layout of the architecture, not relocated. */
struct pt_regs {
	__u64 r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, orig_rax;
	__u64 rip, cs, eflags, rsp, ss;
};

static __always_inline struct arguments regs_arguments(const struct pt_regs *regs)
{
	return (struct arguments){regs->rdi, regs->rsi, regs->rdx, regs->rcx, regs->r8, regs->r9};
}

#define regs_result(regs) ((regs)->rax)
#define regs_sp(regs) ((regs)->rsp)
#define regs_pc(regs) ((regs)->rip)
#define regs_frame(regs) ((regs)->rbp)
/* `ret` has popped the return address when a return probe runs. */
#define SP_AT_RETURN(entry_sp) ((entry_sp) + 8)
/* What a signal's frame takes at the least: the red zone, the registers, those of the FPU. */
#define SIGNAL_FRAME_BYTES (128 + 440 + 512)
/* The return address lies on the stack, where a return probe replaces it. */
#define RETURN_ADDRESS_ON_STACK 1
#elif defined(__TARGET_ARCH_arm64)
struct pt_regs {
	__u64 regs[31];
	__u64 sp, pc, pstate;
};

static __always_inline struct arguments regs_arguments(const struct pt_regs *regs)
{
	return (struct arguments){regs->regs[0], regs->regs[1], regs->regs[2],
				  regs->regs[3], regs->regs[4], regs->regs[5]};
}

#define regs_result(context) ((context)->regs[0])
#define regs_sp(context) ((context)->sp)
#define regs_pc(context) ((context)->pc)
#define regs_frame(context) ((context)->regs[29])
#define regs_link(context) ((context)->regs[30])
#define SP_AT_RETURN(entry_sp) (entry_sp)
/* What a signal's frame takes at the least: what it tells of the signal, the registers, those of the FPU. */
#define SIGNAL_FRAME_BYTES (128 + 176 + 280 + 528)
/* A call puts the return address into x30, and a return probe replaces it there. */
#define RETURN_ADDRESS_ON_STACK 0
#else
#error "memleak knows the registers of x86-64 and aarch64"
#endif

/*
 * Argument by number, from 1; 0 for a number that is none. The loads come first, each on its own: clang
 * would merge them into one from a computed address, which the verifier refuses of a context.
 */
static __always_inline __u64 argument(struct arguments arguments, __u32 number)
{
	__u64 value = 0;

	barrier_var(arguments.first);
	barrier_var(arguments.second);
	barrier_var(arguments.third);
	barrier_var(arguments.fourth);
	barrier_var(arguments.fifth);
	barrier_var(arguments.sixth);
	value = number == 1 ? arguments.first : value;
	value = number == 2 ? arguments.second : value;
	value = number == 3 ? arguments.third : value;
	value = number == 4 ? arguments.fourth : value;
	value = number == 5 ? arguments.fifth : value;
	value = number == 6 ? arguments.sixth : value;
	return value;
}

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct super_block {
	__u32 s_dev;
};

struct inode {
	unsigned long i_ino;
	struct super_block *i_sb;
};

struct qstr {
	const unsigned char *name;
};

struct dentry {
	struct qstr d_name;
};

struct path {
	struct dentry *dentry;
};

struct file {
	struct inode *f_inode;
	struct path f_path;
};

struct linux_binprm {
	struct file *file;
};

struct vm_area_struct {
	unsigned long vm_start;
	unsigned long vm_end;
	unsigned long vm_flags;
	unsigned long vm_pgoff;
	struct file *vm_file;
};

/* Where the kernel executes probed instructions out of line; its first slot is the return trampoline. */
struct xol_area {
	unsigned long vaddr;
};

struct uprobes_state {
	struct xol_area *xol_area;
};

struct mm_struct {
	unsigned long start_stack;
	unsigned long task_size; /* of the address space: a power of 2 on aarch64 */
	struct uprobes_state uprobes_state;
};

/* A function whose return is trapped; `stack` is its stack pointer at entry: on x86-64, where its return
 * address is. */
struct return_instance {
	unsigned long stack;
	unsigned long orig_ret_vaddr;
	struct return_instance *next;
};

struct uprobe_task {
	struct return_instance *return_instances;
};

struct ns_common {
	unsigned int inum;
};

struct pid_namespace {
	struct ns_common ns;
};

/* A task's number in one of its pid namespaces. */
struct upid {
	int nr;
	struct pid_namespace *ns;
};

struct pid {
	unsigned int level; /* of the innermost namespace */
	struct upid numbers[1];
};

typedef struct {
	int counter;
} atomic_t;

struct signal_struct {
	atomic_t live; /* threads */
};

#if defined(__TARGET_ARCH_x86)
struct thread_struct {
	unsigned long fsbase;
};
#endif

struct task_struct {
	void *stack;
	struct mm_struct *mm;
	int pid;
	int tgid;
	struct uprobe_task *utask;
	struct task_struct *group_leader;
	struct task_struct *real_parent;
	struct pid *thread_pid;
	struct signal_struct *signal;
	unsigned long sas_ss_sp; /* the alternate stack for signal handlers */
	unsigned long sas_ss_size;
	char comm[16];
#if defined(__TARGET_ARCH_x86)
	struct thread_struct thread;
#endif
};

struct kmem_cache {
	unsigned int object_size;
	const char *name;
};

struct page {
	unsigned long flags;
};

/* One record for kmalloc and kmem_cache_alloc: Linux up to 6.0; `accounted` since 5.19. */
struct trace_event_raw_kmem_alloc {
	bool accounted;
};

struct trace_event_raw_percpu_alloc_percpu {
	unsigned long call_site; /* Linux 5.19 */
};

#pragma clang attribute pop

/* Of the kernel's unwind table on x86-64; what follows the registers differs from version to version. */
struct orc_entry {
	__s16 sp_offset;
	__s16 bp_offset;
	__u8 registers; /* sp in the lower half */
	__u8 type;
};

#define ORC_REG_PREV_SP 1
#define ORC_REG_BP 4
#define ORC_REG_SP 5

/* Linux 6.13 to 6.18 declare these without an argument, later ones take the program's context. */
extern bool bpf_session_is_return(void) __ksym __weak;
extern bool bpf_session_is_return___ctx(void *ctx) __ksym __weak;

static __always_inline bool session_is_return(void *ctx)
{
	if (bpf_ksym_exists(bpf_session_is_return___ctx))
		return bpf_session_is_return___ctx(ctx);
	if (bpf_ksym_exists(bpf_session_is_return))
		return bpf_session_is_return();
	return false;
}

#endif
