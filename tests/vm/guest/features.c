/* Asks the running kernel which BPF features memleak can build on, by using each of them once: one "name yes|no" line each.
 * It judges nothing and knows no version numbers; it is static and needs root, /proc and /sys, but not memleak. */
#include "bpf.h"

#include <elf.h>
#include <sys/auxv.h>
#include <sys/resource.h>

#define KERNEL_BTF "/sys/kernel/btf/vmlinux"
#define KPROBE_PMU "/sys/bus/event_source/devices/kprobe/type"
#define UPROBE_PMU "/sys/bus/event_source/devices/uprobe/type"

/* ---- the function that is probed ---- */

__attribute__((noinline)) static void probed_function(void)
{
	asm volatile("");
}

/* Where probed_function lies in this (static, not position-independent) executable's file. */
static __u64 probed_offset(void)
{
	const Elf64_Phdr *ph = (void *)getauxval(AT_PHDR);
	__u64 address = addr_of((void *)probed_function);

	for (unsigned long i = 0; i < getauxval(AT_PHNUM); i++)
		if (ph[i].p_type == PT_LOAD && address - ph[i].p_vaddr < ph[i].p_memsz)
			return address - ph[i].p_vaddr + ph[i].p_offset;
	return 0;
}

/* ---- kernel BTF: only names and ids are wanted ---- */

struct btf_head { __u16 magic; __u8 version, flags; __u32 hdr_len, type_off, type_len, str_off, str_len; };
struct btf_item { __u32 name_off, info, size_or_type; };
enum { KIND_INT = 1, KIND_ARRAY = 3, KIND_STRUCT = 4, KIND_UNION = 5, KIND_ENUM = 6, KIND_TYPEDEF = 8, KIND_FUNC = 12,
       KIND_FUNC_PROTO = 13, KIND_VAR = 14, KIND_DATASEC = 15, KIND_DECL_TAG = 17, KIND_ENUM64 = 19 };

static char *btf_data;

static char *read_whole(const char *path)
{
	size_t room = 32 << 20, used = 0;
	char *data = malloc(room);
	int fd = open(path, O_RDONLY);
	ssize_t n;

	if (!data || fd < 0)
		return NULL;
	while (used < room && (n = read(fd, data + used, room - used)) > 0)
		used += n;
	close(fd);
	return used ? data : NULL;
}

static size_t btf_tail_size(__u32 info)
{
	__u32 count = info & 0xffff;

	switch ((info >> 24) & 0x1f) {
	case KIND_INT: case KIND_VAR: case KIND_DECL_TAG: return 4;
	case KIND_ARRAY: return 12;
	case KIND_STRUCT: case KIND_UNION: case KIND_DATASEC: case KIND_ENUM64: return 12 * count;
	case KIND_ENUM: case KIND_FUNC_PROTO: return 8 * count;
	default: return 0;
	}
}

/* The id of the type of this kind and name, 0 if the kernel has none. */
static __u32 btf_id(__u32 kind, const char *name)
{
	struct btf_head *head = (void *)btf_data;
	char *at, *end, *strings;
	__u32 id = 1;

	if (!btf_data)
		return 0;
	at = btf_data + head->hdr_len + head->type_off;
	end = at + head->type_len;
	strings = btf_data + head->hdr_len + head->str_off;
	for (; at < end; id++) {
		struct btf_item *item = (void *)at;

		if (((item->info >> 24) & 0x1f) == kind && !strcmp(strings + item->name_off, name))
			return id;
		at += sizeof(*item) + btf_tail_size(item->info);
	}
	return 0;
}

/* ---- printing ---- */

static void report(const char *name, int yes)
{
	printf("%s %s\n", name, yes ? "yes" : "no");
}

/* ---- maps ---- */

static int count_map(void)
{
	return map_create(BPF_MAP_TYPE_ARRAY, 4, 8, 1, 0);
}

/* A task storage map must come with BTF for its key and value: one "int" is enough for both. */
static int task_storage_map(void)
{
	struct {
		struct btf_head head;
		struct btf_item item;
		__u32 encoding;
		char strings[5];
	} btf = {
		.head = { 0xeb9f, 1, 0, sizeof(struct btf_head), 0, 16, 16, 5 },
		.item = { 1, KIND_INT << 24, 4 },
		.encoding = 1 << 24 | 32,
		.strings = "\0int",
	};
	union bpf_attr load = { .btf = addr_of(&btf), .btf_size = sizeof(struct btf_head) + 16 + 5 };
	union bpf_attr map = { .map_type = MAP_TASK_STORAGE, .key_size = 4, .value_size = 4,
			       .map_flags = BPF_F_NO_PREALLOC, .btf_key_type_id = 1, .btf_value_type_id = 1 };
	int fd = sys_bpf(BPF_BTF_LOAD, &load, sizeof(load));

	if (fd < 0)
		return -1;
	map.btf_fd = fd;
	return sys_bpf(BPF_MAP_CREATE, &map, sizeof(map));
}

static int has_task_storage(void)
{
	int map = task_storage_map();

	return map >= 0 && LOAD(BPF_PROG_TYPE_KPROBE, 0, 0,
		CALL(HELPER_GET_CURRENT_TASK_BTF), MOV_REG(BPF_REG_2, BPF_REG_0), LOAD_MAP(BPF_REG_1, map),
		MOV_IMM(BPF_REG_3, 0), MOV_IMM(BPF_REG_4, 1), CALL(HELPER_TASK_STORAGE_GET),
		MOV_IMM(BPF_REG_0, 0), EXIT()) >= 0;
}

/* The unwinder's table store: mmap-able arrays as inner maps. */
static int has_mmapable_inner_maps(void)
{
	int inner = map_create(BPF_MAP_TYPE_ARRAY, 4, 4096, 1, BPF_F_MMAPABLE);
	union bpf_attr attr = { .map_type = BPF_MAP_TYPE_ARRAY_OF_MAPS, .key_size = 4, .value_size = 4,
				.max_entries = 2, .inner_map_fd = inner };

	return inner >= 0 && sys_bpf(BPF_MAP_CREATE, &attr, sizeof(attr)) >= 0;
}

static int has_helper(__u32 prog_type, int helper)
{
	int fd = LOAD(prog_type, 0, 0, CALL(helper), MOV_IMM(BPF_REG_0, 0), EXIT());

	/* The call misses its arguments: the verifier's complaint is about those, or about the helper. */
	return fd >= 0 || (verifier_log[0] && !strstr(verifier_log, "unknown func") && !strstr(verifier_log, "invalid func"));
}

/* ---- uprobes ---- */

/* Opens a uprobe (or return probe) on probed_function through the perf PMU, so without tracefs. */
static int perf_uprobe(int on_return)
{
	struct perf_event_attr attr = { .size = sizeof(attr), .config = on_return, .sample_period = 1, .wakeup_events = 1 };
	FILE *pmu = fopen(UPROBE_PMU, "r");
	int type;

	if (!pmu || fscanf(pmu, "%d", &type) != 1)
		return -1;
	fclose(pmu);
	attr.type = type;
	attr.config1 = addr_of("/proc/self/exe");
	attr.config2 = probed_offset();
	return syscall(__NR_perf_event_open, &attr, 0, -1, -1, PERF_FLAG_FD_CLOEXEC);
}

static int has_perf_uprobe(int on_return)
{
	int hits = count_map(), event = perf_uprobe(on_return);
	int prog = LOAD(BPF_PROG_TYPE_KPROBE, 0, 0, COUNT_HIT(hits), MOV_IMM(BPF_REG_0, 0), EXIT());

	if (event < 0 || prog < 0 || ioctl(event, PERF_EVENT_IOC_SET_BPF, prog))
		return 0;
	probed_function();
	close(event);
	return map_read_slot0(hits) == 1;
}

/* A cookie on a perf uprobe (BPF perf links): read back by the program, added up in the map. */
static int has_perf_cookie(void)
{
	int hits = count_map(), event = perf_uprobe(0), link;
	int prog = LOAD(BPF_PROG_TYPE_KPROBE, 0, 0, CALL(HELPER_GET_ATTACH_COOKIE), MOV_REG(BPF_REG_6, BPF_REG_0),
		STORE_IMM32(BPF_REG_10, -4, 0), LOAD_MAP(BPF_REG_1, hits), MOV_REG(BPF_REG_2, BPF_REG_10),
		ADD_IMM(BPF_REG_2, -4), CALL(BPF_FUNC_map_lookup_elem), JUMP_IF_ZERO(BPF_REG_0, 1),
		ATOMIC_ADD64(BPF_REG_0, BPF_REG_6, 0), MOV_IMM(BPF_REG_0, 0), EXIT());
	struct link_create_attr attr = { .prog_fd = prog, .target_fd = event, .attach_type = ATTACH_PERF_EVENT,
					 .perf_event.cookie = 77 };

	if (event < 0 || prog < 0 || (link = sys_bpf(BPF_LINK_CREATE, &attr, sizeof(attr))) < 0)
		return 0;
	probed_function();
	close(link);
	close(event);
	return map_read_slot0(hits) == 77;
}

/* Calls probed_function under one multi link with this program; how often the program ran. */
static __u64 multi_hits(int attach_type, int prog, int hits)
{
	__u64 offset = probed_offset();
	struct link_create_attr attr = { .prog_fd = prog, .attach_type = attach_type,
		.uprobe_multi = { .path = addr_of("/proc/self/exe"), .offsets = addr_of(&offset), .cnt = 1 } };
	int link;

	if (prog < 0 || (link = sys_bpf(BPF_LINK_CREATE, &attr, sizeof(attr))) < 0)
		return 0;
	probed_function();
	close(link);
	return map_read_slot0(hits);
}

static int has_uprobe_multi(void)
{
	int hits = count_map();
	int prog = LOAD(BPF_PROG_TYPE_KPROBE, ATTACH_UPROBE_MULTI, 0, COUNT_HIT(hits), MOV_IMM(BPF_REG_0, 0), EXIT());

	return multi_hits(ATTACH_UPROBE_MULTI, prog, hits) == 1;
}

static int has_uprobe_session(void)
{
	int hits = count_map();
	int prog = LOAD(BPF_PROG_TYPE_KPROBE, ATTACH_UPROBE_SESSION, 0, COUNT_HIT(hits), MOV_IMM(BPF_REG_0, 0), EXIT());

	return multi_hits(ATTACH_UPROBE_SESSION, prog, hits) == 2;
}

/* The entry handler answers 1: no return trap for this call. */
static int has_session_skip(void)
{
	int hits = count_map();
	int prog = LOAD(BPF_PROG_TYPE_KPROBE, ATTACH_UPROBE_SESSION, 0, COUNT_HIT(hits), MOV_IMM(BPF_REG_0, 1), EXIT());

	return multi_hits(ATTACH_UPROBE_SESSION, prog, hits) == 1;
}

/* Is kfunc callable from a session program with (ctx), or with no argument at all? */
static int session_kfunc_loads(const char *kfunc, int pass_ctx)
{
	__u32 id = btf_id(KIND_FUNC, kfunc);

	return id && LOAD(BPF_PROG_TYPE_KPROBE, ATTACH_UPROBE_SESSION, 0,
		pass_ctx ? MOV_REG(BPF_REG_1, BPF_REG_1) : MOV_REG(BPF_REG_6, BPF_REG_1),
		pass_ctx ? MOV_IMM(BPF_REG_2, 0) : CALL(BPF_FUNC_ktime_get_ns), /* a call clobbers r1 */
		CALL_KFUNC(id), MOV_IMM(BPF_REG_0, 0), EXIT()) >= 0;
}

/* ---- kernel events ---- */

/* A typed program that reads one argument: older kernels let it have no `const void *`. */
static int has_tp_btf(const char *tracepoint, int argument)
{
	char name[64];
	__u32 id;
	int prog;
	union bpf_attr attr = { 0 };

	snprintf(name, sizeof(name), "btf_trace_%s", tracepoint);
	id = btf_id(KIND_TYPEDEF, name);
	if (!id)
		return 0;
	prog = LOAD(BPF_PROG_TYPE_TRACING, 23 /* BPF_TRACE_RAW_TP */, id, LOAD64(BPF_REG_2, BPF_REG_1, argument * 8),
		    MOV_IMM(BPF_REG_0, 0), EXIT());
	if (prog < 0)
		return 0;
	attr.raw_tracepoint.prog_fd = prog;
	return sys_bpf(BPF_RAW_TRACEPOINT_OPEN, &attr, sizeof(attr)) >= 0;
}

/* An untyped program on the same tracepoint: every argument is a number. */
static int has_raw_tracepoint(const char *tracepoint)
{
	int prog = LOAD(BPF_PROG_TYPE_RAW_TRACEPOINT, 0, 0, LOAD64(BPF_REG_2, BPF_REG_1, 8), MOV_IMM(BPF_REG_0, 0), EXIT());
	union bpf_attr attr = { .raw_tracepoint = { .name = addr_of(tracepoint), .prog_fd = prog } };

	return prog >= 0 && sys_bpf(BPF_RAW_TRACEPOINT_OPEN, &attr, sizeof(attr)) >= 0;
}

/* A probe on a kernel function, by name and without tracefs. */
static int has_kprobe(const char *function)
{
	struct perf_event_attr attr = { .size = sizeof(attr), .sample_period = 1, .wakeup_events = 1 };
	FILE *pmu = fopen(KPROBE_PMU, "r");
	int type;

	if (!pmu || fscanf(pmu, "%d", &type) != 1)
		return 0;
	fclose(pmu);
	attr.type = type;
	attr.config1 = addr_of(function);
	return syscall(__NR_perf_event_open, &attr, -1, 0, -1, PERF_FLAG_FD_CLOEXEC) >= 0;
}

/* ---- the list ---- */

static const struct { const char *name; int id; } helpers[] = {
	{ "get_stackid", 27 }, { "get_stack", 67 }, { "probe_read_user", 112 }, { "get_ns_current_pid_tgid", 120 },
	{ "ktime_get_boot_ns", 125 }, { "ringbuf_output", 130 }, { "get_task_stack", 141 },
	{ "copy_from_user", 148 }, { "task_storage_get", 156 }, { "get_current_task_btf", 158 },
	{ "for_each_map_elem", 164 }, { "timer_init", 169 }, { "get_func_ip", 173 }, { "get_attach_cookie", 174 },
	{ "task_pt_regs", 175 }, { "find_vma", 180 }, { "loop", 181 }, { "strncmp", 182 }, { "kptr_xchg", 194 },
	{ "map_lookup_percpu_elem", 195 },
};

/* The kernel's allocation events, and the argument to read: the block's address (percpu: where 5.10 has it). */
static const struct { const char *name; int argument; } tracepoints[] = {
	{ "kmalloc", 1 }, { "kmalloc_node", 1 }, { "kmem_cache_alloc", 1 }, { "kmem_cache_alloc_node", 1 },
	{ "kfree", 1 }, { "kmem_cache_free", 1 }, { "mm_page_alloc", 0 }, { "mm_page_free", 0 },
	{ "percpu_alloc_percpu", 6 }, { "percpu_free_percpu", 2 },
};

/* Functions that free without an event. */
static const char *const silent_frees[] = { "kvfree_call_rcu", "kmem_cache_free_bulk" };

int main(void)
{
	const struct rlimit unlimited = { RLIM_INFINITY, RLIM_INFINITY };
	char name[96];

	setrlimit(RLIMIT_MEMLOCK, &unlimited);	/* before 5.11, BPF memory counts against it */
	setvbuf(stdout, NULL, _IOLBF, 0);
	btf_data = read_whole(KERNEL_BTF);
	report("btf", btf_data != NULL);
	report("uprobe_pmu", access(UPROBE_PMU, R_OK) == 0);
	report("perf_uprobe", has_perf_uprobe(0));
	report("perf_uretprobe", has_perf_uprobe(1));
	report("perf_cookie", has_perf_cookie());
	report("uprobe_multi", has_uprobe_multi());
	report("uprobe_session", has_uprobe_session());
	report("session_skips_return", has_session_skip());
	report("session_cookie_without_ctx", session_kfunc_loads("bpf_session_cookie", 0));
	report("session_cookie_with_ctx", session_kfunc_loads("bpf_session_cookie", 1));
	report("session_is_return_without_ctx", session_kfunc_loads("bpf_session_is_return", 0));
	report("session_is_return_with_ctx", session_kfunc_loads("bpf_session_is_return", 1));
	report("task_storage", has_task_storage());
	report("ring_buffer", map_create(MAP_RINGBUF, 0, 0, 4096, 0) >= 0);
	report("mmapable_inner_maps", has_mmapable_inner_maps());
	/* What lets a hash map grow from any program; without it, loading one is a warning in the kernel log. */
	report("growing_hash", btf_id(KIND_STRUCT, "bpf_mem_alloc") != 0);
	for (size_t i = 0; i < sizeof(tracepoints) / sizeof(tracepoints[0]); i++) {
		const char *tracepoint = tracepoints[i].name;

		snprintf(name, sizeof(name), "tp_btf/%s", tracepoint);
		report(name, has_tp_btf(tracepoint, tracepoints[i].argument));
		snprintf(name, sizeof(name), "raw_tp/%s", tracepoint);
		report(name, has_raw_tracepoint(tracepoint));
	}
	for (size_t i = 0; i < sizeof(silent_frees) / sizeof(silent_frees[0]); i++) {
		snprintf(name, sizeof(name), "kprobe/%s", silent_frees[i]);
		report(name, has_kprobe(silent_frees[i]));
	}
	for (size_t i = 0; i < sizeof(helpers) / sizeof(helpers[0]); i++) {
		snprintf(name, sizeof(name), "helper/kprobe/%s", helpers[i].name);
		report(name, has_helper(BPF_PROG_TYPE_KPROBE, helpers[i].id));
	}
	return 0;
}
