/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/*
 * The unwind tables as they lie in BPF maps, shared with Rust through the generated skeleton. Fixed-width
 * fields without implicit padding only; no code. What rows and rules mean is told in src/unwind.
 */
#ifndef UNWIND_H
#define UNWIND_H

#include "interpreter.h"
#include "memleak.h"

/* Rows in a block, rules in the dictionary: 16 bits' worth, so that an index is bounded by its mask. */
#define UNWIND_BLOCK_ROWS 65536
/* Mappings kept per process; a power of 2 for the same reason. */
#define UNWIND_MAPPINGS 1024

/* One value of an inner map of `unwind_blocks`, and the value of `unwind_rules`. */
struct unwind_block {
	__u32 words[UNWIND_BLOCK_ROWS];
};

/*
 * Value of `unwind_pages`: the rows of 64 KiB of code.
 *   bits  0-15  number of rows - 1
 *   bits 16-31  index of the first row in its block
 *   bits 32-63  key of the block in `unwind_blocks`, from 1; 0: the page has no rows
 */
#define UNWIND_PAGE_FIRST_SHIFT 16
#define UNWIND_PAGE_BLOCK_SHIFT 32

/* What is known of the code in a mapping. */
enum unwind_code {
	UNWIND_NO_TABLE = 0, /* nothing to find: JIT-compiled code, or a file without unwind information */
	UNWIND_TABLE = 1,
	UNWIND_UNREAD = 2, /* a file that the tracer has yet to read */
	UNWIND_NO_CODE = 3,
};

/* An executable mapping of a process. An address minus `bias` is an address of the file's own. */
struct unwind_mapping {
	__u64 begin;
	__u64 end;
	__u64 bias;
	__u32 page_bias;   /* add to a file address >> 16 for the key in `unwind_pages` */
	__u16 code;	   /* enum unwind_code */
	__u16 interpreter; /* the file's row in `interpreters`; 0: it has none */
};

/* The executable mappings of a process at one time. */
struct unwind_mappings {
	__u32 generation; /* never given twice: what was cached under another one is stale */
	__u32 changes;	  /* the process's `code_changes` by then: it is stale once there are more */
	__u32 count;
	__u32 zero;
	struct unwind_mapping mappings[UNWIND_MAPPINGS]; /* ascending */
};

/*
 * One value of an inner map of `unwind_processes`. The tracer writes the half that is not active and then
 * makes it active. Replacing the whole map would be simpler, but the kernel takes some 20 ms for that.
 */
struct unwind_process {
	__u64 mm; /* the address space that is described, filled in at the first look; 0: not seen yet */
	__u32 active;
	__u32 zero;
	struct unwind_mappings halves[2];
};

/* Key of `unwind_files`. */
struct unwind_file_key {
	__u64 inode;
	__u32 device; /* as the kernel numbers it: major << 20 | minor */
	__u32 zero;
};

/* An executable segment of a file, as in src/unwind. */
struct unwind_segment {
	__u64 file_offset;
	__u64 size;
	__u64 vaddr;
	__u32 first_page; /* key in `unwind_pages` */
	__u32 zero;
};

#define UNWIND_FILE_SEGMENTS 4

/* Value of `unwind_files`: a file that the tracer has read. */
struct unwind_file {
	__u32 count;
	__u16 unreadable;  /* its table can't be had, so it is not worth waiting for */
	__u16 interpreter; /* its row in `interpreters`; 0: it has none */
	struct unwind_segment segments[UNWIND_FILE_SEGMENTS];
};

/* Why a stack ends where it does. */
enum stack_end {
	STACK_WALKING = 0,
	STACK_COMPLETE = 1,
	STACK_DEPTH = 2,	 /* `max_stack_depth` reached */
	STACK_UNKNOWN_CODE = 3,	 /* a return address outside of all executable mappings */
	STACK_UNSUPPORTED = 4,	 /* a rule that the tables can't express */
	STACK_UNREADABLE = 5,	 /* stack memory that can't be read */
	STACK_FRAME_POINTER = 6, /* no unwind information, and the frame pointer leads nowhere */
	STACK_UNREAD = 7,	 /* code of a file that the tracer has yet to read */
	STACK_ENDS = 8, /* as many as there are; a power of 2, so that an index is bounded by its mask */
};

/*
 * A walk that has come to code whose table is still to be read. With the stack's memory, which follows in
 * pages from that of sp on, the tracer goes on from there: src/unwind/walk.rs.
 */
struct deferred_walk {
	__u64 id; /* stands for the stack until it is whole */
	__u64 time_ns;
	__u64 pc, sp, bp; /* of the frame that was reached */
	__u64 is_return_address;
	/* aarch64, as in `struct walk` */
	__u64 link;
	__u64 sp_is_bound;
	__u64 address_mask;
	__u64 hash; /* of the stack so far */
	__u32 tgid;
	__u32 readable;	     /* bit by bit, the pages that could be read: a frame can have untouched ones */
	struct stack walked; /* up to that frame */
	struct interpreted interpreted; /* what is to be merged from there on */
	__u64 interpreted_words[INTERPRETED_WORDS];
};

/* The most pages that follow, each of 4096 bytes on any machine. */
#define DEFERRED_PAGES 16

/* Code was met that the tracer has not described yet: the process's mappings have to be read again. */
struct unknown_code_event {
	__u32 tgid;
	__u32 zero;
	__u64 address;
};

#endif
