/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/*
 * Pages of processes and files, where they are not shown: how many there are, and nothing else of them.
 * Whose pages these are is decided elsewhere.
 */
#ifndef USER_PAGES_BPF_H
#define USER_PAGES_BPF_H

#include "config.bpf.h"

/* Of __get_free_pages: the kernel's largest block is 2 to this power of pages. */
#define MAX_ORDER 10

/* Page frames with a byte in one element of `user_frames`; no block of pages crosses from one to the next. */
#define CHUNK_SHIFT 12
#define CHUNK_FRAMES (1 << CHUNK_SHIFT)

/* For each page frame, 1 if it is counted. */
struct frame_chunk {
	__u8 counted[CHUNK_FRAMES];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct frame_chunk);
} user_frames SEC(".maps");

/* Elements of `user_frames`, a power of two; 0: pages of processes and files are recorded like all others. */
const volatile __u32 frame_chunks = 0;

__u64 user_pages_counted = 0;

/*
 * Marks the frames of 2 to the power of `order` pages as counted or not; returns how many that changed. All
 * frames' structs are one array, of which no two elements are as far apart as the map has bytes.
 */
static __always_inline __u32 mark_user_pages(__u64 page, __u32 order, __u8 counted)
{
	__u64 frame = page / bpf_core_type_size(struct page);
	__u32 chunk_index = (frame >> CHUNK_SHIFT) & (frame_chunks - 1);
	struct frame_chunk *chunk;
	__u32 changed = 0, i;

	if (!frame_chunks || order > MAX_ORDER)
		return 0;
	chunk = bpf_map_lookup_elem(&user_frames, &chunk_index);
	if (!chunk)
		return 0;
	for (i = 0; i < 1 << MAX_ORDER; i++) {
		__u64 at = (frame + i) & (CHUNK_FRAMES - 1);

		if (i >= 1U << order)
			break;
		changed += (chunk->counted[at] ^ counted) & 1;
		chunk->counted[at] = counted;
	}
	return changed;
}

static __always_inline void count_user_pages(__u64 page, __u32 order)
{
	__u32 changed = mark_user_pages(page, order, 1);

	if (changed)
		__sync_fetch_and_add(&user_pages_counted, changed);
}

/* Returns whether there were any. */
static __always_inline bool uncount_user_pages(__u64 page, __u32 order)
{
	__u64 changed = mark_user_pages(page, order, 0);

	if (changed)
		__sync_fetch_and_add(&user_pages_counted, -changed);
	return changed;
}

#endif
