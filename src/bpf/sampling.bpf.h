/* SPDX-License-Identifier: BSD-2-Clause OR GPL-2.0 */
/*
 * Whether an allocation is recorded when only some are. Decides without looking at anything but the size
 * and random numbers, so that the figures can be scaled back without bias.
 */
#ifndef SAMPLING_BPF_H
#define SAMPLING_BPF_H

#include "user/thread.bpf.h"

/* log2 of 1 to 2^32, in units of 2^-24, to about 2^-18. */
static __always_inline __u32 log2_fixed(__u64 value)
{
	__u32 exponent = 0, step, rest;
	__u64 power = value;

	for (__u32 bits = 32; bits; bits >>= 1) {
		if (power >> bits) {
			power >>= bits;
			exponent += bits;
		}
	}
	/* the bits behind the leading one, as a fraction in units of 2^-32 */
	value = (value << (32 - (exponent & 63))) & 0xffffffff;
	step = value >> 24;
	rest = value & 0xffffff;
	if (step >= LOG2_STEPS)
		return 0;
	return (exponent << 24) + log2_table[step] +
	       (__u32)((__u64)(log2_table[step + 1] - log2_table[step]) * rest >> 24);
}

/*
 * Bytes to the next sample: exponentially distributed, -ln(u) times the mean, for a uniform u in (0, 1].
 * -ln(u) is ln 2 times 32 - log2(u * 2^32); ln 2 is already in `sample_distance`.
 */
static __always_inline __s64 next_sample(void)
{
	__u64 random = (__u64)bpf_get_prandom_u32() + 1;

	return ((32ULL << 24) - log2_fixed(random)) * sample_distance >> 28;
}

static __always_inline bool sampler_picks(struct sampler *sampler, __u64 size)
{
	if (sample_distance) {
		if (!sampler->sampling) {
			sampler->sampling = true;
			sampler->bytes_to_sample = next_sample();
		}
		sampler->bytes_to_sample -= size;
		if (sampler->bytes_to_sample >= 0)
			return false;
		sampler->bytes_to_sample = next_sample();
		return true;
	}
	return !sample_below || bpf_get_prandom_u32() < sample_below;
}

#endif
