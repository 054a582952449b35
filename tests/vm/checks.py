"""What is asked of each kernel: a table of commands that run in the guest, and what they must and must not print.
No machinery here: guest.py runs the commands, matrix.py compares and reports."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One command, with the status and the (multi-line) patterns expected of its output."""

    name: str
    command: str
    want: tuple = ()
    refuse: tuple = ()
    status: int = 0
    seconds: int = 90
    memleak: bool = True  # whether it needs the tool

    def complaint(self, status, output):
        """What is wrong with this outcome; None when nothing is."""
        if status != self.status:
            return f"ended with status {status}, not {self.status}"
        for pattern in self.want:
            if not re.search(pattern, output, re.MULTILINE):
                return f"did not print /{pattern}/"
        for pattern in self.refuse:
            if re.search(pattern, output, re.MULTILINE):
                return f"printed /{pattern}/"
        return None


def stack(size, count, *functions):
    """The pattern of a report entry: so many bytes in so many allocations, with these functions on adjacent lines."""
    frames = r".*\n.*".join(rf"{function}\+0x" for function in functions)
    return rf"^\t{size * count} bytes in {count} allocations from stack\n(?:\t\t.*\n)*?\t\t.*{frames}"


# The leaks of guest/leaks.c.
LEAKS = (
    stack(1237, 7, "leak_malloc"),
    stack(1233, 5, "leak_calloc"),
    stack(2003, 3, "leak_realloc"),
    stack(1531, 4, "leak_aligned"),
    stack(300001, 3, "leak_large"),
    stack(5 * 4096, 1, "leak_mapping"),
    stack(777, 1, "leak_in_thread"),
)
# What a signal has interrupted calls nothing, and is named with its caller.
HANDLER = (r"^\t919 bytes in 1 allocations from stack\n(?:\t\t.*\n)*?\t\t.*leak_in_handler\+0x.*\n(?:\t\t.*\n)?"
           r"\t\t.*touch\+0x.*\n\t\t.*leak_by_signal\+0x.*\n\t\t.*main\+0x")  # fmt: skip
WHOLE = (*LEAKS, HANDLER, r"stacks unwound with tables, none cut short$")
NOT_LEAKS = (r"\bfree_everything\b", r"sysmalloc_mmap")

# Functions whose returns another tracer traps, and the caller that this hides.
BESIDE = " ".join(f"--alloc {name}:size=const:1" for name in ("leak_malloc", "leak_aligned", "leak_through_libc"))
BESIDE_LEAKS = (stack(1237, 7, "leak_malloc", "main"), stack(1531, 4, "leak_aligned", "main"))

# The leaks of leaky_module/leaky_module.c, five of each.
MODULE = r"\+0x\S+ \[leaky_module\]"


def module_stack(size, function):
    """A report entry of the module; its frame is the callback or one that the callback called."""
    return rf"^\t{size * 5} bytes in 5 allocations from stack\n(?:\t\t.*\n)*?\t\t.*\b{function}{MODULE}"


KERNEL_LEAKS = (
    module_stack(1 << 20, "leak_large"),
    module_stack(96, "leak_small"),
    module_stack(520, "leak_object"),
    module_stack(4 * 4096, "leak_pages"),
)

# What the module frees at once, but for what the kernel's allocator keeps for itself on that occasion (Linux 6.18).
CHURN = r"^\t\d+ bytes in .*\n(?:(?!.*__alloc_empty_sheaf)\t\t.*\n)*?(?!.*__alloc_empty_sheaf)\t\t.*\bchurn\w*" + MODULE

COMMAND = "user: command, dynamically linked"
RUNNING = "user: running process"
MODULE_LEAKS = "kernel: each leak of a module, once"


def more_than_once(function):
    """Two entries that name the function: something was counted twice."""
    return rf"(?s)\b{function}\+0x.*bytes in .*\b{function}\+0x"


CHECKS = (
    Check("programs run", "echo checks begin >/dev/kmsg; leaks && leaks-static", memleak=False),
    Check("features", "features", want=(r"^btf (yes|no)$", r"^helper/kprobe/loop (yes|no)$"), memleak=False),
    Check("module builds, loads, leaks, unloads",
          "insmod /leaky_module.ko leaks=$LEAKS && until_true leaked && echo 1 >$MODULE/release && rmmod leaky_module",
          memleak=False),
    Check(COMMAND, "memleak -v -c leaks", want=WHOLE, refuse=NOT_LEAKS),
    Check("user: command, statically linked", "memleak -v -c leaks-static", want=WHOLE, refuse=NOT_LEAKS),
    Check("user: running process, statically linked", "attach leaks-static", want=WHOLE, refuse=NOT_LEAKS),
    Check(RUNNING, "attach leaks", want=WHOLE, refuse=NOT_LEAKS),
    Check("user: running process, totals only", "attach leaks -C", want=LEAKS, refuse=NOT_LEAKS),
    Check("user: beside another tracer", f"beside='{BESIDE}' attach leaks", want=(*WHOLE, *BESIDE_LEAKS), refuse=NOT_LEAKS),
    # of more than 302,000 bytes there is a thread's stack only: the allocator's own mappings of 303,104 are not the program's
    Check("user: what a size filter leaves out", "memleak -v -z 302000 -c leaks", refuse=(r"^\t\d{1,6} bytes in",)),
    Check("user: status of the command", "memleak -c 'leaks 37'", status=37),
    Check(MODULE_LEAKS, "trace_kernel '' --percpu 3600s && report_and_stop && rmmod leaky_module",
          want=(*KERNEL_LEAKS, module_stack(24, "leak_percpu")),
          refuse=tuple(more_than_once(f"leak_{kind}") for kind in ("large", "small", "object", "pages", "percpu"))),
    Check("kernel: what is freed is not reported",
          "trace_kernel '' --percpu 3600s && echo 1 >$MODULE/release && report_and_stop && rmmod leaky_module",
          refuse=(r"\bleak_\w+" + MODULE, CHURN)),
    Check("kernel: names outlive the module",
          "trace_kernel keep=1 1 && until_says report leak_small $tracer && rmmod leaky_module && report_and_stop",
          want=(module_stack(1 << 20, "leak_large"), module_stack(96, "leak_small"), module_stack(4 * 4096, "leak_pages"))),
    Check("kernel: objects by the name of their cache", "trace_cache leaky_objects",
          want=(r"\(leaky_objects\)\+0x|does not tell the caches of objects", r"cache = leaky_objects$|does not tell"),
          refuse=(r"\bleak_(large|small|pages)\b",)),
    Check("kernel: the page cache is no leak", "trace_page_cache 64",
          want=(r"^memleak: (6[4-9]|[7-9]\d|1\d\d)\d{6} bytes in \d+ pages of processes and files are not shown",),
          refuse=(r"^\t[3-9]\d{7} bytes in",)),
    # 5.10 does not tell how many instructions it followed
    Check("kernel: the verifier is soon done", "trace_verified", refuse=(r"^verified_insns:\s*\d{6}",)),
    Check("kernel: hidden addresses are told of",
          "echo 2 >/proc/sys/kernel/kptr_restrict; trace_sleeper; echo 0 >/proc/sys/kernel/kptr_restrict",
          want=(r"^memleak: warning: the kernel hides its addresses", r"^\t\t0x[0-9a-f]{16}\t\[unknown\]$"),
          refuse=(r"\t0x0{16}\t", r"\[kernel\]")),
    Check("kernel log is clean", "dmesg | sed '1,/checks begin/d'", refuse=(r"WARNING|BUG|Call Trace|Oops|lockup|rcu.*stall",),
          memleak=False),
)  # fmt: skip


# ---- the table: kernel by feature ----

NOTHING = "-"


def feature(name):
    """A cell out of the feature probe's answer."""

    def cell(outputs):
        found = re.search(rf"^{name} (\w+)$", outputs.get("features", ""), re.MULTILINE)
        return found[1] if found else NOTHING

    return cell


def said(check, pattern):
    """A cell out of what memleak itself said in a check."""

    def cell(outputs):
        found = re.search(pattern, outputs.get(check, ""), re.MULTILINE)
        return found[1].lower() if found else NOTHING

    return cell


def yes_unless(check, complaint):
    """A cell that is yes unless memleak complained in a check."""

    def cell(outputs):
        if check not in outputs:
            return NOTHING
        return "no" if complaint in outputs[check] else "yes"

    return cell


def unwinder(outputs):
    """How far user stacks reach: whether a caller was found behind a libc function that keeps no frame pointer. Of a
    running process, all of whose code is known from the beginning."""
    output = outputs.get(RUNNING, "")
    if not re.search(r"^\t606 bytes in 6 allocations", output, re.MULTILINE):
        return NOTHING
    complete = stack(101, 6, "strdup", "leak_through_libc", "main")
    return "tables" if re.search(complete, output, re.MULTILINE) else "frame pointers"


COLUMNS = (
    ("BTF", feature("btf")),
    ("perf uprobe", feature("perf_uprobe")),
    ("probe cookie", feature("perf_cookie")),
    ("uprobe multi", feature("uprobe_multi")),
    ("uprobe session", feature("uprobe_session")),
    ("task storage", feature("task_storage")),
    ("ring buffer", feature("ring_buffer")),
    ("bpf_loop", feature("helper/kprobe/loop")),
    ("tp_btf", feature("tp_btf/kmalloc")),
    ("raw tracepoint", feature("raw_tp/kmalloc")),
    ("kprobe", feature("kprobe/kvfree_call_rcu")),
    ("names of caches", yes_unless("kernel: objects by the name of their cache", "does not tell the caches")),
    ("frees after a grace period", yes_unless(MODULE_LEAKS, "does not tell of frees")),
    ("memleak's kernel events", said(MODULE_LEAKS, r"armed in \d+ ms \((.*)\)")),
    ("memleak's probes", said(COMMAND, r"\((\w+) probes\)")),
    ("its user stacks", unwinder),
)
