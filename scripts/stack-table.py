#!/usr/bin/python3
"""Measures how whole stacks are, with unwind tables and by frame pointers, and prints the table of docs/stacks.md. Stacks that
are not whole are listed on stderr.

usage: scripts/stack-table.py path/to/memleak        (as root; programs that are not installed are left out)

Each program runs under memleak, traced from its first instruction and, if it waits for that, attached to. The last
report as JSON has all stacks that hold memory at the program's end. A stack reaches its root when its outermost frame is where programs and threads begin.
"""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fixtures"

ROOTS = {"_start", "_dl_start_user", "clone", "__clone", "clone3", "__clone3", "__GI___clone", "__GI___clone3"}
# below it is only _start, which stripped programs have no name for
LAST_NAMED = ("__libc_start_main", "__libc_start_call_main")

# Each says that it is ready and waits for a line, so that it can be attached to, then works and ends with all it made.
PYTHON = r"""
import ast, http.client, json, os, re, sqlite3, sys, unittest
print("ready", flush=True); sys.stdin.readline()
kept = [json.loads(json.dumps({str(i): [i] * i})) for i in range(300)]
kept += [bytearray(5000 + i) for i in range(100)]
kept += [re.compile(f"(a{i}|b)*c") for i in range(50)]
kept += [compile(f"def f{i}(x):\n    return [x, {i}]", "generated", "exec") for i in range(50)]
kept += [sqlite3.connect(":memory:").execute("create table t (a, b)") for i in range(5)]
os._exit(0)
"""
PERL = r"""
use POSIX; use Data::Dumper; $| = 1; print "ready\n"; <STDIN>;
my %kept = map { $_ => [$_, {a => $_}, "x" x $_] } 1..2000;
my @code = map { eval "sub { my \$x = shift; return \$x =~ /a$_|b*/ ? [\$x] : Dumper(\$x) }" } 1..100;
$kept{$_->(1)} = $_ for @code;
POSIX::_exit(0);
"""
NODE = r"""
process.stdout.write("ready\n"); require("fs").readSync(0, Buffer.alloc(1));
const kept = [];
function work(i) { kept.push(Buffer.alloc(100000 + i), new Map([[i, {i}]]), new Function("x", `return x * ${i}`)(i)); }
for (let i = 0; i < 5000; i++) work(i);
process.reallyExit(0);
"""


def build(folder):
    """Compiles the fixtures; gives the folder back for their paths."""
    chain = ["stack_chain.c", "stack_chain_lib.c"]
    headers = "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <pthread.h>\n#include <math.h>\n"
    (folder / "headers.c").write_text(headers + "".join(f"int f{i}(int x) {{ return x * {i}; }}\n" for i in range(500)))
    for command in [
        ["gcc", "-O2", "-fomit-frame-pointer", "-o", "stack_chain"] + [FIXTURES / name for name in chain],
        ["gcc", "-O2", "-g", "-c", "-o", "ffi.o", FIXTURES / "rust_leaks_ffi.c"],
        ["rustc", "--edition", "2024", "-g", "-O", "-C", "link-arg=ffi.o", FIXTURES / "rust_leaks.rs"],
        ["javac", "-d", ".", FIXTURES / "DirectBuffers.java"],
    ]:
        if shutil.which(command[0]):
            subprocess.run(command, cwd=folder, check=True)


def programs(folder):
    """What is run, by the name in the table, and whether it waits to be attached to."""
    cc1 = subprocess.run(["gcc", "-print-prog-name=cc1"], capture_output=True, text=True, check=True).stdout.strip()
    java = ["java", "-cp", str(folder)]
    return {
        "C chain, `-O2 -fomit-frame-pointer`": ([str(folder / "stack_chain")], False),
        "Rust, `-O -g`": ([str(folder / "rust_leaks")], False),
        "gcc's cc1": ([cc1, "-quiet", "-O2", "-o", "/dev/null", str(folder / "headers.c")], False),
        "python3": (["/usr/bin/python3", "-c", PYTHON], True),
        "perl": (["/usr/bin/perl", "-e", PERL], True),
        "node": (["node", "-e", NODE], True),
        "java": (java + ["DirectBuffers", "30000"], True),
        "java `-XX:+PreserveFramePointer`": (java + ["-XX:+PreserveFramePointer", "DirectBuffers", "30000"], True),
        "java `-Xint`": (java + ["-Xint", "DirectBuffers", "30000"], True),
    }


def reaches_root(frames):
    names = [frame.get("symbol") or "" for frame in frames[-2:]]
    return bool(names) and (names[-1] in ROOTS or names[-1].startswith(LAST_NAMED) or
                            (names[-1] == "" and names[0].startswith(LAST_NAMED)))


def trace_start(tracer, command):
    """Traces a command from its first instruction."""
    subprocess.run([*tracer, "3600", "--", *command], stdin=subprocess.DEVNULL, capture_output=True, check=False)


def trace_attached(tracer, command):
    """Attaches to a program that waits for a line."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as target:
        for line in target.stdout:
            if line.strip() == "ready":
                break
        arguments = [*tracer, "-v", "-p", str(target.pid), "3600"]
        with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as running:
            for line in running.stderr:
                if line.startswith("memleak: armed"):
                    break
            target.communicate("\n")
            running.communicate()


def measure(trace, memleak, how, command, folder):
    """Stacks, share that reach their root, mean depth."""
    report = folder / "report.json"
    trace([memleak, "--unwind", how, "--no-inlines", "-o", "0", "--json", report], command)
    if not report.exists():
        sys.exit(f"failed to trace {command[0]}")
    stacks = [entry["frames"] or [] for entry in json.loads(report.read_text())["entries"]]
    report.unlink()
    whole = sum(reaches_root(frames) for frames in stacks)
    if how == "auto":
        for frames in stacks:
            if not reaches_root(frames):
                last = [f"{frame.get('symbol')} [{frame.get('module')}]" for frame in frames[-2:]]
                print(f"{command[0]}: a stack of {len(frames)} ends in {' < '.join(last)}", file=sys.stderr)
    depth = sum(len(frames) for frames in stacks) / max(len(stacks), 1)
    return len(stacks), whole, depth


def cells(stacks, whole, depth):
    share = "100" if whole == stacks else f"{min(100 * whole / max(stacks, 1), 99.9):.1f}"
    return f"{stacks} | {share} % | {depth:.1f}"


def main():
    memleak = sys.argv[1]
    print("| program | traced | stacks | reach their root | mean depth | `--unwind fp`: stacks | reach their root | mean depth |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        build(folder)
        for title, (command, waits) in programs(folder).items():
            if not shutil.which(command[0]):
                continue
            ways = {"from its start": trace_start} | ({"attached": trace_attached} if waits else {})
            for way, trace in ways.items():
                row = [cells(*measure(trace, memleak, how, command, folder)) for how in ("auto", "fp")]
                print(f"| {title} | {way} | {row[0]} | {row[1]} |", flush=True)


if __name__ == "__main__":
    main()
