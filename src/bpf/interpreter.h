/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/*
 * Interpreters as they lie in BPF maps, and what is kept of the code that they run, shared with Rust through
 * the generated skeleton. Fixed-width fields without implicit padding only; no code.
 */
#ifndef INTERPRETER_H
#define INTERPRETER_H

#include <linux/types.h>

/* Files with an interpreter that can be known. */
#define MAX_INTERPRETERS 256

/*
 * A frame that an interpreter runs, among a stack's addresses: the highest bit, which no address of a process
 * has; the number of its code, 31 bits; where in that code it is, 32 bits.
 */
#define INTERPRETED_FRAME (1ULL << 63)
#define INTERPRETED_CODE_SHIFT 32

enum language {
	LANGUAGE_NONE = 0,
	LANGUAGE_PYTHON = 1,
};

/* How Python's frames tell which of them one call of the evaluation loop runs. */
enum python_loops {
	/* each of them has its own call, whose native frame is known by its code */
	PYTHON_LOOP_BY_CODE = 1,
	/* each of them has its own call, and a record on that call's stack */
	PYTHON_LOOP_EACH = 2,
	/* the first one is marked, and its call has a record on its stack */
	PYTHON_LOOP_MARKED = 3,
	/* the first one is called by a frame that lies on the call's stack */
	PYTHON_LOOP_CALLED = 4,
};

/* Where Python keeps things, in bytes from the beginning of what they are in. 0: there is none. */
struct python_layout {
	__u32 loops;	    /* enum python_loops */
	__u32 thread_key;   /* in _PyRuntime: of the thread's state, among the thread's own data */
	__u32 thread_id;    /* in a thread's state: what pthread_self() gives */
	__u32 thread_frame; /* its innermost frame, or the innermost loop's record */
	__u32 through_loop; /* 1: the thread's state has no frame, but the innermost loop's record */
	__u32 loop_frame;   /* in a loop's record: its innermost frame */
	__u32 loop_caller;  /* the record of the loop further out */
	__u32 frame_bytes;  /* how much of a frame has to be read */
	__u32 frame_caller;
	__u32 frame_code;
	__u32 frame_position;
	__u32 frame_kind; /* whether it is the first one of its loop, or whose it is */
	__u32 first_kind; /* kinds from this on are not frames of Python's code */
	__u32 code_bytes; /* how much of a code object has to be read */
	__u32 code_line;  /* the first line */
	__u32 code_file;
	__u32 code_name;
	__u32 code_lines;	 /* lines of its instructions */
	__u32 code_begun;	 /* the instruction from which on it is seen to run */
	__u32 code_instructions; /* 0: positions are numbers already */
	__u32 text_bytes;	 /* of the header of text in ASCII */
	__u32 wide_text_bytes;	 /* of the header of other text */
	__u32 thread_loop;	 /* in a thread's state: the innermost loop's record, where that is not
				    `thread_frame` */
	__u32 zero;
};

/* An interpreter, in its file's own addresses. */
struct interpreter {
	__u32 language;	  /* enum language */
	__u32 tail_calls; /* its loop calls a function that runs the instructions */
	__u32 ends_seen;  /* a probe tells of each piece of code that ends, wherever it is traced */
	__u32 zero;
	__u64 loop_begin[2]; /* the code of its evaluation loop */
	__u64 loop_size[2];
	__u64 runtime;	  /* where its state begins */
	__u64 code_type;  /* what objects are marked with that are code */
	__u64 text_type;  /* that are text */
	__u64 bytes_type; /* that are bytes */
	struct python_layout python;
};

/* What is kept of a piece of interpreted code: first this, then in further pieces the lines of its
 * instructions. */
#define CODE_PIECE_BYTES 512
#define CODE_NAME_BYTES 168
#define CODE_FILE_BYTES 304
/* Pieces with lines that are kept at the most: 64 KiB. */
#define MAX_LINE_PIECES 128

struct code_piece {
	__u8 bytes[CODE_PIECE_BYTES];
};

struct code_text {
	__u32 length; /* in characters, of all of it */
	__u32 state;  /* as its object says how it is written */
};

struct code_head {
	__u32 interpreter; /* row in `interpreters` */
	__u32 tgid;
	__u32 first_line;
	__u32 lines_bytes; /* of all of the lines */
	struct code_text name, file;
	__u8 name_bytes[CODE_NAME_BYTES];
	__u8 file_bytes[CODE_FILE_BYTES]; /* its end, if it is longer */
	__u64 zero;
};

struct code_piece_key {
	__u32 code;
	__u32 piece; /* from 0 */
};

/* Key of `code_numbers`: a code object, and a fingerprint of what it says. */
struct code_key {
	__u64 code;
	__u64 fingerprint;
	__u32 tgid;
	__u32 zero;
};

/* Frames, and marks between them, that a walk over an interpreter's frames can give. */
#define INTERPRETED_WORDS 256
/* In place of a mark: the loop's frame is known by its code. */
#define MARK_BY_CODE 0
/* No frame of an evaluation loop is left. */
#define NO_MARK (~0ULL)

/* What an interpreter runs, merged into the native stack as the walk gets to its evaluation loops. */
struct interpreted {
	__u64 mark; /* an address on the stack that is in the next loop's frame */
	__u32 next; /* in the words */
	__u32 count;
	__u64 hash_before[2]; /* of the walk: without its last frame, without the last two */
	__u64 loop_begin[2];
	__u64 loop_size[2];
	__u32 tail_calls;
	__u32 row;  /* of the interpreter in `interpreters`; 0: none is known */
	__u64 bias; /* of its file */
	__u32 due;  /* 1: its frames are still to be taken in */
	__u32 lost; /* 1: some are not shown, which has been counted */
};

/* Text as an interpreter has it, without the text itself. */
struct text {
	__u64 address; /* of its first byte */
	__u64 fingerprint;
	__u32 bytes;
	struct code_text is;
	__u32 zero;
};

/* A code object as it was read. */
struct found_code {
	__u64 address;
	__u64 fingerprint;
	__u64 lines; /* where the lines of its instructions are */
	__u32 lines_bytes;
	__u32 first_line;
	__u32 interpreter; /* row in `interpreters` */
	__u32 zero;
	struct text name, file;
	__u64 header[4]; /* of an object that it points to: the programs' stack has no room for it */
};

/* Words of a code object, or of a thread's state, that are read at the most; a power of 2. */
#define PYTHON_WORDS 32
/* Words of frames, which lie one behind the other, that are read at once; a power of 2. */
#define PYTHON_FRAME_WORDS 128
/* Code that a thread remembers; a power of 2. */
#define PYTHON_KNOWN_CODE 64

/* Code that has its number. */
struct known_code {
	__u64 code;
	__u32 number;
	__s32 begun; /* the instruction from which on it is seen to run */
};

/* A walk over the frames that Python runs, and what is remembered from one to the next. */
struct python {
	__u64 frame;	  /* the next one */
	__u64 loop;	  /* the record of the loop that runs it, where there are such */
	__u32 loop_begin; /* where the loop's words begin */
	__u32 known_ends; /* how much code had ended when that below was found */
	__u64 known_mm;	  /* the program that it belongs to */
	__u64 looked_at;  /* the frame whose code was looked at last */
	__u64 frames_begin, frames_size;
	__u64 frames[PYTHON_FRAME_WORDS];
	__u64 memory[PYTHON_WORDS];
	struct known_code known[PYTHON_KNOWN_CODE];
};

/* What is kept per thread that runs interpreted code. Apart from `struct thread`, since Linux 7.0 gives a
 * task no more than 8 KiB in one piece. */
struct interpreter_walk {
	/* Loops from the innermost: the mark of each, then its frames from the innermost. */
	__u64 words[INTERPRETED_WORDS];
	struct python python;
	struct found_code found_code;
};

/* Why frames of an interpreter's are not shown. */
enum interpreted_loss {
	INTERPRETED_NO_THREAD = 0, /* the thread's state is not where it should be */
	INTERPRETED_UNREADABLE = 1,
	INTERPRETED_NO_CODE = 2,   /* what should be code is not */
	INTERPRETED_NO_ROOM = 3,   /* for more code, or for what a thread needs */
	INTERPRETED_UNMATCHED = 4, /* an evaluation loop without frames */
	INTERPRETED_LOSSES = 8,	   /* as many as there are; a power of 2 */
};

#endif
