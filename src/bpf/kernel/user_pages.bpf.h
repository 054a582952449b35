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

/* Frames that are looked at together, in one word; what it holds if all are counted. */
#define EIGHT_SHIFT 3
#define EIGHT_FRAMES 0x0101010101010101ULL

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
 * Whether pages are counted here. Frames are told by the addresses of their structs, in an array that begins
 * at a multiple of a GiB: a block of pages is aligned to its size if a struct's size is a power of two.
 */
static __always_inline bool can_count_user_pages(void)
{
	__u64 size = bpf_core_type_size(struct page);

	return frame_chunks && !(size & (size - 1));
}

/* Marks eight frames at a time. They begin at a multiple of eight, and nobody else is at work in their words.
 */
static __always_inline __u32 mark_eights(struct frame_chunk *chunk, __u64 frame, __u32 eights, __u8 counted)
{
	__u64 *words = (__u64 *)chunk->counted, all = counted * EIGHT_FRAMES;
	__u32 changed = 0, i;

	for (i = 0; i < 1 << MAX_ORDER >> EIGHT_SHIFT && i < eights; i++) {
		__u64 at = ((frame >> EIGHT_SHIFT) + i) & ((CHUNK_FRAMES >> EIGHT_SHIFT) - 1);

		/* the product's highest byte is the sum of all eight */
		changed += ((words[at] ^ all) & EIGHT_FRAMES) * EIGHT_FRAMES >> 56;
		words[at] = all;
	}
	return changed;
}

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

	if (!can_count_user_pages() || order > MAX_ORDER)
		return 0;
	chunk = bpf_map_lookup_elem(&user_frames, &chunk_index);
	if (!chunk)
		return 0;
	if (order >= EIGHT_SHIFT)
		return mark_eights(chunk, frame, 1U << (order - EIGHT_SHIFT), counted);
	for (i = 0; i < 1 << (EIGHT_SHIFT - 1) && i < 1U << order; i++) {
		__u64 at = (frame + i) & (CHUNK_FRAMES - 1);

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
