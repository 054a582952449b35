#!/usr/bin/env -S python3 -B
"""Boots Debian's kernels in software emulation and runs the same checks on each: one line per check, then a table.
This is the entry point and the verdict; kernels, guests and checks have files of their own.

Needs python3, qemu-system-x86 and -arm, busybox-static, gcc with a static libc, and Debian's apt and keyring (or a Debian
container). What is fetched and built stays in target/vm. Exit status: 0 all passed, 1 a check failed, 2 could not run."""

import argparse
import re
import signal
import subprocess
import sys
from pathlib import Path

import checks
import guest
import kernels
from architectures import AMD64, ARM64, Unavailable
from debian import run

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CACHE = ROOT / "target/vm"
MARKS = ("<!-- matrix begins: written by tests/vm/matrix.py -->", "<!-- matrix ends -->")
# What a guest may take from power on to power off, in seconds; software emulation on a busy machine is slow.
GUEST_SECONDS = 600
SHOWN_LINES = 200


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    labels = [kernel.label for kernel in kernels.KERNELS]
    parser.add_argument("--kernel", action="append", choices=labels, help="only this kernel; may be repeated")
    parser.add_argument("--fast", action="store_true", help=f"only {', '.join(kernels.FAST)}")
    parser.add_argument("--memleak", type=Path, help="the static binary; without it, only the kernels are looked at")
    parser.add_argument("--memleak-arm64", type=Path, help="the one for arm64; without it, those kernels are left out")
    parser.add_argument("--check", metavar="REGEX", default="", help="only the checks whose names match")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table between the marks of this file")
    parser.add_argument("--show", action="store_true", help="print what each check printed")
    return parser.parse_args()


def compile_guest_programs(architecture):
    """The feature probe and the program that leaks, linked statically and dynamically."""
    out = CACHE / "programs" / architecture.name
    out.mkdir(parents=True, exist_ok=True)
    source = HERE / "guest"
    common = [*architecture.compiler(CACHE), "-O2", "-Wall", "-Wextra", "-Werror"]
    run([*common, "-static", "-no-pie", "-o", out / "features", source / "features.c"])
    run([*common, "-o", out / "leaks", source / "leaks.c", "-pthread"])
    run([*common, "-static", "-o", out / "leaks-static", source / "leaks.c", "-pthread"])
    return out


def files_for(architecture, built, programs, memleak, wanted):
    """All that the guest's memory disk holds: {path: (mode, bytes)}."""
    script = "".join(f"check {quote(check.name)} {check.seconds} {quote(check.command)}\n" for check in wanted)
    files = {
        "init": (0o755, (HERE / "guest/init").read_bytes()),
        "lib/checks.sh": (0o644, (HERE / "guest/checks.sh").read_bytes()),
        "checks": (0o644, script.encode()),
        "bin/busybox": (0o755, architecture.busybox(CACHE).read_bytes()),
        "leaky_module.ko": (0o644, built.module.read_bytes()),
    }
    files.update({f"bin/{path.name}": (0o755, path.read_bytes()) for path in programs.iterdir()})
    files.update(guest.libraries(architecture, programs / "leaks"))
    if memleak:
        files["bin/memleak"] = (0o755, memleak.read_bytes())
        files.update(guest.libraries(architecture, memleak))
    return files


def quote(text):
    return "'" + text.replace("'", "'\\''") + "'"


def try_kernel(kernel, programs, options):
    """Run the checks on one kernel. Returns (table row, number of failures)."""
    architecture = kernel.architecture
    memleak = options.memleak if architecture is AMD64 else options.memleak_arm64
    wanted = [c for c in checks.CHECKS if re.search(options.check, c.name) and (memleak or not c.memleak)]
    built = kernels.build(kernel, CACHE)
    print(f"# {kernel.label}: {built.release}", flush=True)
    archive = guest.initramfs(files_for(architecture, built, programs, memleak, wanted))
    by_name = {check.name: check for check in wanted}
    outputs, passed = {}, 0
    results = guest.results(architecture, built.vmlinuz, archive, GUEST_SECONDS)
    try:
        for name, status, output in results:
            outputs[name] = output
            complaint = by_name[name].complaint(status, output)
            passed += complaint is None
            print(f"{kernel.label:10} {'ok    ' if complaint is None else 'FAILED'} {name}", flush=True)
            if complaint:
                print(f"      it {complaint}; it said:\n{indented(output)}", flush=True)
            elif options.show:
                print(indented(output), flush=True)
    except guest.Died as death:
        print(f"{kernel.label:10} FAILED {death}", flush=True)
    finally:
        results.close()  # ends the virtual machine, whatever happened
    cells = [cell(outputs) for _, cell in checks.COLUMNS]
    return [built.release, architecture.name, *cells, f"{passed} of {len(wanted)}"], len(wanted) - passed


def indented(text):
    """The end of what a check said: enough to judge by."""
    lines = text.splitlines()
    left_out = [f"      ({len(lines) - SHOWN_LINES} lines before)"] if len(lines) > SHOWN_LINES else []
    return "\n".join([*left_out, *(f"      | {line}" for line in lines[-SHOWN_LINES:])])


def table(rows):
    """A Markdown table that also reads well in a terminal."""
    rows = [["kernel", "architecture", *(title for title, _ in checks.COLUMNS), "checks passed"], *rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])


def write_between_marks(path, text):
    """Replace what stands between the marks in a document."""
    before, begin, rest = path.read_text().partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not begin or not end:
        raise Unavailable(f"failed to find the marks in {path}")
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")


def main():
    options = arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(2))  # so that `finally` ends the virtual machine
    labels = options.kernel or (kernels.FAST if options.fast else [kernel.label for kernel in kernels.KERNELS])
    rows, failures = [], 0
    try:
        programs = {}
        for kernel in kernels.KERNELS:
            left_out = kernel.architecture is ARM64 and not options.memleak_arm64
            if kernel.label in labels and not left_out:
                if kernel.architecture not in programs:
                    programs[kernel.architecture] = compile_guest_programs(kernel.architecture)
                row, failed = try_kernel(kernel, programs[kernel.architecture], options)
                rows.append(row)
                failures += failed
        print("\n" + table(rows))
        if options.markdown:
            write_between_marks(options.markdown, table(rows))
    except (Unavailable, OSError, subprocess.SubprocessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 2
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
