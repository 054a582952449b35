// Programs that do nothing: what their probes cost is the floor under every tracer that uses uprobes.
// No helpers and no maps, so no headers either.

#define SEC(name) __attribute__((section(name), used))

SEC("uprobe.session") int entry_and_return(void *ctx)
{
	return 0; // of the entry: run at the return as well
}

SEC("uprobe.multi") int entry(void *ctx)
{
	return 0;
}

SEC("license") const char LICENSE[] = "Dual BSD/GPL";
