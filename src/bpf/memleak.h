/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/*
 * The structs and numbers that cross between the BPF programs and Rust, which sees them through the
 * generated skeleton. Fixed-width fields without implicit padding only; no code.
 */
#ifndef MEMLEAK_H
#define MEMLEAK_H

/* Return addresses kept per stack at the most: BCC's default and the kernel's own limit. */
#define MAX_STACK_DEPTH 127

/* The identity of allocations whose stack could not be stored; no captured stack hashes to it. */
#define STACK_NOT_STORED 0

/* What a probed function does to memory. */
enum op {
	OP_ALLOCATE = 1,
	OP_REALLOCATE = 2,
	OP_FREE = 3,
	OP_MMAP = 4,
	OP_MUNMAP = 5,
	OP_MREMAP = 6,
};

/*
 * A probe's cookie describes its function, so that one program serves all of them:
 *   bits  0- 7  enum op
 *   bits  8-15  row in the tracer's table of functions
 *   bits 16-19  argument that holds the size in bytes (1 to 6; 0: the constant in bits 32-63)
 *   bits 20-23  argument that multiplies the size (0: none)
 *   bits 24-27  argument that holds the block to free or to resize (0: none)
 *   bits 28-31  argument that points to where the result is stored (0: the result is returned)
 *   bits 32-63  constant size in bytes
 */
#define COOKIE_FUNCTION_SHIFT 8
#define COOKIE_SIZE_SHIFT 16
#define COOKIE_COUNT_SHIFT 20
#define COOKIE_BLOCK_SHIFT 24
#define COOKIE_OUT_SHIFT 28
#define COOKIE_CONSTANT_SHIFT 32

/* Key of `allocs`. An address means something within one process only. */
struct block_key {
	__u64 address;
	__u32 tgid;
	__u32 zero;
};

/* Value of `allocs`: one live block. 32 bytes: with its key it just fits the kernel's 96-byte slab. */
struct block {
	__u64 size;
	__u64 time_ns; /* CLOCK_MONOTONIC, when the allocator returned */
	__u64 stack;
	__u32 tid;
	__u32 function; /* row in the tracer's table of functions */
};

/* Value of `stack_traces`, whose key is the stack's hash. */
struct stack {
	__u32 depth;
	__u32 zero;
	__u64 addresses[MAX_STACK_DEPTH];
};

/* Key of `combined_allocs`. */
struct combined_key {
	__u64 stack;
	__u32 tgid;
	__u32 zero;
};

/*
 * Value of `combined_allocs`. Changes go to the slot that `epoch` selects; a reader flips the epoch and
 * then reads the slot that has come to rest, so that all stacks are seen at one moment.
 */
struct combined {
	__s64 bytes[2];
	__s64 count[2];
};

/* What could not be recorded. */
struct lost {
	__u64 blocks; /* `allocs` was full */
	__u64 block_bytes;
	__u64 stacks;	    /* `stack_traces` was full */
	__u64 ranges;	    /* `range_events` was full */
	__u64 calls;	    /* `call_events` was full */
	__u64 threads;	    /* no memory for a thread's state */
	__u64 missed_frees; /* an address was handed out that was still live */
};

/* An anonymous mapping was made, removed or moved: the tracer resolves it on its map of ranges. */
struct range_event {
	__u32 op; /* OP_MMAP, OP_MUNMAP, OP_MREMAP */
	__u32 tgid;
	__u32 tid;
	__u32 function;
	__u64 entry_ns; /* when the call began: older ranges only can be what it removes */
	__u64 return_ns;
	__u64 old_address; /* munmap, mremap */
	__u64 old_length;
	__u64 address; /* mmap, mremap: the result */
	__u64 length;  /* 0: a file mapping, which is not counted but may replace ranges */
	__u64 flags;   /* of mmap or mremap */
	__u64 stack;
};

/* An allocator call, for --trace. */
struct call_event {
	__u64 time_ns;
	__u64 size;
	__u64 address;	   /* the result; what free was given */
	__u64 old_address; /* realloc, mremap */
	__u32 tgid;
	__u32 tid;
	__u32 function;
	__s32 error; /* a non-zero result code of a function that returns one */
	char comm[16];
};

#endif
