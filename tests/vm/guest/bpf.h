/* Raw bpf() and perf_event_open() calls, and the handful of BPF instructions that the feature probe assembles.
 * No probing here, and nothing that needs libbpf or newer kernel headers than a five-year-old distribution's. */
#pragma once

#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/perf_event.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Numbers that older UAPI headers do not have yet. */
enum {
	ATTACH_UPROBE_MULTI = 48,	/* 6.6 */
	ATTACH_UPROBE_SESSION = 57,	/* 6.13 */
	ATTACH_PERF_EVENT = 41,		/* 5.15 */
	PSEUDO_KFUNC_CALL = 2,		/* 5.13 */
	MAP_RINGBUF = 27,
	MAP_TASK_STORAGE = 29,
	HELPER_GET_CURRENT_TASK_BTF = 158,
	HELPER_TASK_STORAGE_GET = 156,
	HELPER_GET_ATTACH_COOKIE = 174,
};

/* The part of union bpf_attr that BPF_LINK_CREATE reads, as of Linux 6.13. */
struct link_create_attr {
	__u32 prog_fd, target_fd, attach_type, flags;
	union {
		struct {
			__u64 cookie;
		} perf_event;
		struct {
			__u64 path, offsets, ref_ctr_offsets, cookies;
			__u32 cnt, flags, pid;
		} uprobe_multi;
	};
};

#define INSN(c, d, s, o, i) \
	((struct bpf_insn){ .code = (c), .dst_reg = (d), .src_reg = (s), .off = (o), .imm = (i) })
#define MOV_IMM(d, i) INSN(BPF_ALU64 | BPF_MOV | BPF_K, d, 0, 0, i)
#define MOV_REG(d, s) INSN(BPF_ALU64 | BPF_MOV | BPF_X, d, s, 0, 0)
#define ADD_IMM(d, i) INSN(BPF_ALU64 | BPF_ADD | BPF_K, d, 0, 0, i)
#define STORE_IMM32(d, o, i) INSN(BPF_ST | BPF_MEM | BPF_W, d, 0, o, i)
#define LOAD64(d, s, o) INSN(BPF_LDX | BPF_MEM | BPF_DW, d, s, o, 0)
#define STORE64(d, s, o) INSN(BPF_STX | BPF_MEM | BPF_DW, d, s, o, 0)
#define ATOMIC_ADD64(d, s, o) INSN(BPF_STX | 0xc0 | BPF_DW, d, s, o, 0)
#define JUMP_IF_ZERO(d, o) INSN(BPF_JMP | BPF_JEQ | BPF_K, d, 0, o, 0)
#define CALL(f) INSN(BPF_JMP | BPF_CALL, 0, 0, 0, f)
#define CALL_KFUNC(id) INSN(BPF_JMP | BPF_CALL, 0, PSEUDO_KFUNC_CALL, 0, id)
#define EXIT() INSN(BPF_JMP | BPF_EXIT, 0, 0, 0, 0)
#define LOAD_MAP(d, fd) \
	INSN(BPF_LD | BPF_DW | BPF_IMM, d, BPF_PSEUDO_MAP_FD, 0, fd), INSN(0, 0, 0, 0, 0)

/* Adds one to slot 0 of an array map with 8-byte values; uses r0 to r2, 9 instructions. */
#define COUNT_HIT(map_fd) \
	STORE_IMM32(BPF_REG_10, -4, 0), LOAD_MAP(BPF_REG_1, map_fd), MOV_REG(BPF_REG_2, BPF_REG_10), \
	ADD_IMM(BPF_REG_2, -4), CALL(BPF_FUNC_map_lookup_elem), JUMP_IF_ZERO(BPF_REG_0, 2), \
	MOV_IMM(BPF_REG_1, 1), ATOMIC_ADD64(BPF_REG_0, BPF_REG_1, 0)

static char verifier_log[1 << 16];

static inline long sys_bpf(int cmd, void *attr, size_t size)
{
	return syscall(__NR_bpf, cmd, attr, size);
}

static inline __u64 addr_of(const void *p)
{
	return (__u64)(unsigned long)p;
}

static inline int map_create(__u32 type, __u32 key, __u32 value, __u32 entries, __u32 flags)
{
	union bpf_attr attr = { .map_type = type, .key_size = key, .value_size = value,
				.max_entries = entries, .map_flags = flags };

	return sys_bpf(BPF_MAP_CREATE, &attr, sizeof(attr));
}

static inline __u64 map_read_slot0(int map)
{
	__u32 key = 0;
	__u64 value = 0;
	union bpf_attr attr = { .map_fd = map, .key = addr_of(&key), .value = addr_of(&value) };

	sys_bpf(BPF_MAP_LOOKUP_ELEM, &attr, sizeof(attr));
	return value;
}

/* Loads a GPL program; the verifier's words are in verifier_log. Returns a descriptor or -1. */
static inline int prog_load(__u32 type, __u32 attach_type, __u32 attach_btf_id,
			    const struct bpf_insn *insns, size_t count)
{
	union bpf_attr attr = {
		.prog_type = type, .expected_attach_type = attach_type, .attach_btf_id = attach_btf_id,
		.insns = addr_of(insns), .insn_cnt = count, .license = addr_of("GPL"),
		.log_buf = addr_of(verifier_log), .log_size = sizeof(verifier_log), .log_level = 1,
	};

	verifier_log[0] = 0;
	return sys_bpf(BPF_PROG_LOAD, &attr, sizeof(attr));
}

#define LOAD(type, attach_type, btf_id, ...) ({ \
	struct bpf_insn insns_[] = { __VA_ARGS__ }; \
	prog_load(type, attach_type, btf_id, insns_, sizeof(insns_) / sizeof(insns_[0])); })
