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

/* Functions that can be probed at a time, over all objects. */
#define MAX_FUNCTIONS 256

/*
 * How a probed function is called, so that one program serves all of them: a probe's cookie is the row of
 * its function in `functions`. Arguments count from 1; 0 means that there is none.
 */
struct function {
	enum op op;
	__u8 size;	 /* argument that holds the size in bytes; none: `constant_size` */
	__u8 count;	 /* argument that multiplies the size */
	__u8 block;	 /* argument that holds the block to free or to resize */
	__u8 out;	 /* argument that points to where the result is stored; none: it is returned */
	__u32 length;	 /* of its code in bytes */
	__u32 allocator; /* number of the allocator that it belongs to; 0: the C library's */
	__u32 throws;	 /* 1: a call that fails throws an exception, which can't pass a return probe */
	__u32 code;	 /* its object's row in `allocator_code`, from 1; 0: none */
	__u64 constant_size;
	__u64 offset; /* of the probed instruction in the object's file */
};

/* Pieces of an object's code that are its allocator's; a power of 2. */
#define MAX_ALLOCATOR_CODE 16

/* Objects that hold an allocator's code; a power of 2. */
#define MAX_ALLOCATOR_OBJECTS 64

/*
 * Where an object's allocator maps memory from, in bytes from the object's beginning in its file. What is
 * called from there maps for the allocator.
 */
struct allocator_code {
	__u32 count;
	__u32 zero;
	struct {
		__u64 begin;
		__u64 size;
	} pieces[MAX_ALLOCATOR_CODE];
};

/* Cgroups that can be traced at a time. */
#define MAX_CGROUPS 16

/* What kind of memory a block is. */
enum memory {
	MEMORY_HEAP = 0,
	MEMORY_SLAB = 1,
	MEMORY_PAGES = 2,
	MEMORY_PERCPU = 3,
	MEMORY_USER_PAGES = 4, /* the page cache and what is mapped into processes */
};

/* `function` of the kernel's blocks: what they are, and of pages, 2 to which power they are. */
#define KERNEL_BLOCK(memory, order) ((memory) | (order) << 8)
#define KERNEL_BLOCK_MEMORY(function) ((function)&0xff)
#define KERNEL_BLOCK_ORDER(function) ((function) >> 8)

/* Key of `allocs`. An address means something within one process only, or to one of the kernel's allocators.
 */
struct block_key {
	__u64 address; /* of pages: that of their struct page */
	__u32 tgid;    /* 0: the kernel */
	__u32 memory;  /* enum memory, but MEMORY_PAGES for all pages */
};

/* Value of `allocs`: one live block. 32 bytes: with its key it just fits the kernel's 96-byte slab. */
struct block {
	__u64 size;
	__u64 time_ns; /* CLOCK_MONOTONIC, when the allocator returned */
	__u64 stack;
	__u32 tid;
	__u32 function; /* row in `functions`; of the kernel's blocks: KERNEL_BLOCK */
};

/* Value of `stack_traces`, whose key is the stack's hash. */
struct stack {
	__u32 depth;
	__u32 tgid;	 /* the last process to use it, where more than one can be traced */
	__u32 allocator; /* as in `struct function` */
	__u32 zero;
	__u64 addresses[MAX_STACK_DEPTH];
};

/* Key of `combined_allocs`. */
struct combined_key {
	__u64 stack;
	__u32 tgid;
	__u32 memory; /* enum memory */
};

/* A piece of code. */
struct code_range {
	__u64 begin;
	__u64 size;
};

/* Where the kernel's unwind table (ORC) lies. */
struct orc_table {
	__u64 addresses;
	__u64 entries;
	__u64 count;
};

/* Value of `stack_caches`: the slab cache that a stack of the kernel allocates from. */
struct cache_name {
	char text[32];
};

/* The kernel's events, as `function` of their call events. */
enum kernel_event {
	EVENT_KMALLOC = 0,
	EVENT_KFREE = 1,
	EVENT_CACHE_ALLOC = 2,
	EVENT_CACHE_FREE = 3,
	EVENT_PAGE_ALLOC = 4,
	EVENT_PAGE_FREE = 5,
	EVENT_PERCPU_ALLOC = 6,
	EVENT_PERCPU_FREE = 7,
	EVENT_RCU_FREE = 8,
	EVENT_BULK_FREE = 9,
};

#define KERNEL_EVENTS 10

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
	__u64 processes;    /* `traced_processes` was full */
	__u64 lives;	    /* `life_events` was full */
	__u64 unfollowed;   /* calls that could have thrown an exception through a return probe */
	__u64 in_handlers;  /* calls by signal handlers whose return could not be trapped */
};

/* How often programs ran. */
struct activity {
	__u64 entries;
	__u64 returns;
};

/* A process executes a program: the last part of its file's path. */
struct program_start {
	__u32 tgid;
	char name[60];
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

/* What happens to a traced process as a whole. */
enum life {
	LIFE_FORKED = 1,   /* it joins, as the child of another process */
	LIFE_EXECUTED = 2, /* it executes a program, and is traced, before or from now on */
	LIFE_LEFT = 3,	   /* it executes a program for which it is traced no longer */
	LIFE_ENDED = 4,	   /* its last thread has ended */
};

/* Entry of `life_events`. */
struct life_event {
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__u32 tgid;
	__u32 parent; /* of one that was forked */
	enum life life;
	__u32 zero;
	char comm[16];
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
