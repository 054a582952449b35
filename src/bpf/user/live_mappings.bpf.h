/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/*
 * Looks for code in the address space itself, where the tracer's description of it does not reach: what was
 * mapped just now, and processes that the tracer has not described. Knows nothing of rows and rules.
 */
#ifndef LIVE_MAPPINGS_BPF_H
#define LIVE_MAPPINGS_BPF_H

#include "user/thread.bpf.h"

#define VM_EXEC 4
#define FIND_VMA_TRIES 8

/* Files that the tracer has read, by the kernel's own numbers. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct unwind_file_key);
	__type(value, struct unwind_file);
} unwind_files SEC(".maps");

/* 64 KiB of an address space. */
struct found_mapping_key {
	__u64 mm;
	__u64 page;
	__u32 generation;
	__u32 zero;
};

/* What was found that the tracer's description of a process lacks. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 512);
	__type(key, struct found_mapping_key);
	__type(value, struct unwind_mapping);
} found_mappings SEC(".maps");

/* Where the table of a file's mapping is, if it is loaded. */
static __always_inline void find_table(struct unwind_mapping *mapping, struct unwind_file_key *key,
				       __u64 offset)
{
	struct unwind_file *file = bpf_map_lookup_elem(&unwind_files, key);
	__u64 to = offset + (mapping->end - mapping->begin), most = 0;
	__u32 i;

	mapping->code = UNWIND_UNREAD;
	if (!file)
		return;
	mapping->code = file->unreadable ? UNWIND_NO_CODE : UNWIND_NO_TABLE;
	mapping->interpreter = file->interpreter;
	for (i = 0; i < UNWIND_FILE_SEGMENTS && i < file->count; i++) {
		struct unwind_segment *segment = &file->segments[i];
		__u64 from = segment->file_offset > offset ? segment->file_offset : offset;
		__u64 end = segment->file_offset + segment->size;

		if (end > to)
			end = to;
		/* whole pages are mapped, so the edge of another segment can show as well */
		if (end <= from || end - from <= most)
			continue;
		most = end - from;
		mapping->code = UNWIND_TABLE;
		mapping->bias = mapping->begin - offset + segment->file_offset - segment->vaddr;
		mapping->page_bias = segment->first_page - (__u32)(segment->vaddr >> 16);
	}
}

static long describe_vma(struct task_struct *task, struct vm_area_struct *vma, struct unwind_mapping *mapping)
{
	struct file *file = vma->vm_file;
	struct unwind_file_key key = {};

	mapping->code = UNWIND_NO_CODE;
	if (!(vma->vm_flags & VM_EXEC))
		return 0;
	mapping->begin = vma->vm_start;
	mapping->end = vma->vm_end;
	mapping->code = UNWIND_NO_TABLE;
	mapping->interpreter = 0;
	if (!file)
		return 0;
	key.inode = file->f_inode->i_ino;
	key.device = file->f_inode->i_sb->s_dev;
	find_table(mapping, &key, (__u64)vma->vm_pgoff * page_bytes);
	return 0;
}

/*
 * Asks the kernel for the mapping of an address, into the thread's state; gives its error. Not static, so
 * that the verifier looks at it once and not at each call.
 */
__noinline int ask_for_vma(__u64 address)
{
	struct unwind_mapping mapping = {.code = UNWIND_NO_CODE};
	struct task_struct *task = current_task();
	struct thread *thread = thread_of(task, false);
	long err;

	/* the kernel looks at all of this function, called or not, unless it is ruled out here */
	if (!can_find_mappings || !thread)
		return -EBUSY;
	err = bpf_find_vma(task, address, describe_vma, &mapping, 0);
	if (err)
		mapping.code = UNWIND_NO_CODE;
	thread->asked_for = mapping;
	return err;
}

/*
 * The same, until the kernel can say: not while another thread changes the mappings, which takes
 * microseconds. What it can't say even so is left to the tracer.
 */
static __always_inline void find_vma(struct thread *thread, __u64 address)
{
	int tries;

	for (tries = 0; tries < FIND_VMA_TRIES; tries++) {
		if (ask_for_vma(address) != -EBUSY)
			return;
	}
	thread->asked_for.code = UNWIND_UNREAD;
}

/*
 * Finds the executable mapping of an address, unless its file is still to be read; gives what is known of its
 * code. What one thread has found is known to all until the tracer's next description, whose `generation`
 * this is: threads that start together would ask while they are all changing the mappings.
 */
static __always_inline enum unwind_code find_live(struct task_struct *task, struct thread *thread,
						  __u64 address, __u32 generation)
{
	struct unwind_mapping *mapping = &thread->asked_for, *found = &thread->walk.mapping, *known;
	struct found_mapping_key key = {.page = address >> 16, .generation = generation};

	if (!can_find_mappings)
		return UNWIND_NO_CODE;
	key.mm = address_space_of(task);
	known = bpf_map_lookup_elem(&found_mappings, &key);
	if (known && address >= known->begin && address < known->end) {
		*found = *known;
		return known->code;
	}
	find_vma(thread, address);
	if (mapping->code == UNWIND_UNREAD || mapping->code == UNWIND_NO_CODE)
		return mapping->code;
	/* the kernel's page for return probes is code of nobody's */
	if (mapping->begin == return_trampoline(task))
		return UNWIND_NO_CODE;
	*found = *mapping;
	bpf_map_update_elem(&found_mappings, &key, mapping, BPF_ANY);
	return mapping->code;
}

#endif
