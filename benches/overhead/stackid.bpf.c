// What a tracer does that lets the kernel walk the stack, by its frame pointers, and a program that does nothing to
// compare it with. Both run at the return of malloc.

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#define MAX_DEPTH 127

struct {
	__uint(type, BPF_MAP_TYPE_STACK_TRACE);
	__uint(max_entries, 10240);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, MAX_DEPTH * sizeof(__u64));
} stacks SEC(".maps");

SEC("uretprobe.multi") int nothing(void *ctx)
{
	return 0;
}

SEC("uretprobe.multi") int stackid(void *ctx)
{
	bpf_get_stackid(ctx, &stacks, BPF_F_USER_STACK);
	return 0;
}

SEC("license") const char LICENSE[] = "Dual BSD/GPL";
