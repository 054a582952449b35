/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/*
 * Whose memory an mmap is: an allocator's own, whichever of its functions asks for it, or the program's.
 * Knows nothing of calls that are under way.
 */
#ifndef ALLOCATOR_CODE_BPF_H
#define ALLOCATOR_CODE_BPF_H

#include "user/live_mappings.bpf.h"

/* mmap(2), from the kernel's uapi */
#define MAP_ANONYMOUS 0x20
#define MAP_STACK 0x20000

/* Files of `allocator_code`, each with its row there, from 1. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_ALLOCATOR_OBJECTS);
	__type(key, struct unwind_file_key);
	__type(value, __u32);
} allocator_files SEC(".maps");

/*
 * Whether a place in an object's file, in bytes from its beginning, is code of the object's allocator. Not
 * static, so that the verifier looks at it once and not at each call.
 */
__noinline int is_allocator_code(__u32 object, __u64 offset)
{
	const volatile struct allocator_code *code;
	__u32 i;

	if (!object)
		return false;
	code = &allocator_code[(object - 1) & (MAX_ALLOCATOR_OBJECTS - 1)];
	for (i = 0; i < MAX_ALLOCATOR_CODE; i++)
		if (i < code->count && offset - code->pieces[i].begin < code->pieces[i].size)
			return true;
	return false;
}

/* An address as a place in an allocator's object. */
struct code_place {
	__u64 address;
	__u64 offset;
	__u32 object; /* row in `allocator_code`, from 1; 0: it is in none */
	__u32 zero;
};

static long find_place_in_vma(struct task_struct *task, struct vm_area_struct *vma, struct code_place *place)
{
	struct file *file = vma->vm_file;
	struct unwind_file_key key = {};
	__u32 *object;

	if (!file)
		return 0;
	key.inode = file->f_inode->i_ino;
	key.device = file->f_inode->i_sb->s_dev;
	object = bpf_map_lookup_elem(&allocator_files, &key);
	if (!object)
		return 0;
	place->object = *object;
	place->offset = (__u64)vma->vm_pgoff * page_bytes + place->address - vma->vm_start;
	return 0;
}

/*
 * Whether an address is code of an allocator's, or -EBUSY. Not static, so that the verifier looks at it once
 * and not at each call.
 */
__noinline int ask_for_allocator(__u64 address)
{
	struct code_place place = {.address = address};

	/* as in ask_for_vma() */
	if (!can_find_mappings)
		return -EBUSY;
	if (bpf_find_vma(current_task(), address, find_place_in_vma, &place, 0) == -EBUSY)
		return -EBUSY;
	return is_allocator_code(place.object, place.offset);
}

/* Whether an address is code of an allocator that calls another object's mmap. */
static __always_inline bool is_in_other_allocator(__u64 address)
{
	int tries, answer = -EBUSY;

	/* the kernel can't say while another thread changes the mappings: that takes microseconds */
	for (tries = 0; tries < FIND_VMA_TRIES && answer == -EBUSY; tries++)
		answer = ask_for_allocator(address);
	return answer > 0;
}

/*
 * Whether memory is mapped for an allocator, whatever function of its own it is in, or in none: what calls
 * mmap is the allocator's code. In the C library that is all code but what maps stacks. `live` as in
 * capture_user_stack().
 */
static __always_inline bool maps_for_allocator(struct pt_regs *ctx, struct task_struct *task,
					       const volatile struct function *function, __u64 flags,
					       bool live)
{
	__u64 caller;

	if (function->op != OP_MMAP || !(flags & MAP_ANONYMOUS) || flags & MAP_STACK)
		return false;
	caller = caller_of(entry_of(ctx));
	if (is_allocator_code(function->code, function->offset + (caller - regs_pc(ctx))))
		return true;
	return live && can_find_mappings && allocators_that_call && is_in_other_allocator(caller);
}

#endif
