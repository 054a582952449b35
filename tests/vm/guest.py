"""A virtual machine: an initramfs made from a list of files, and one run of QEMU in pure software emulation.
It hands on what the guest's commands print and how they end; it judges nothing."""

import gzip
import os
import selectors
import subprocess
import tempfile
import time
from pathlib import Path

from architectures import Unavailable

MEMORY_MIB = 1024
PROCESSORS = 2
FOLDERS = ("bin", "dev", "proc", "sys", "tmp", "lib64", "root")


class Died(Exception):
    """The guest ended or was ended before its last check; carries the console's words."""


def initramfs(files):
    """A compressed cpio archive ("newc") of {path in the guest: (mode, bytes)}, with the folders they need."""
    folders = {str(parent) for path in (*files, *(f"{name}/x" for name in FOLDERS)) for parent in Path(path).parents}
    entries = [(name, 0o040755, b"") for name in sorted(folders - {"."})]
    entries += [(name, 0o100000 | mode, data) for name, (mode, data) in sorted(files.items())]
    archive = bytearray()
    for inode, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        path = name.encode() + b"\0"
        fields = (inode, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(path), 0)
        archive += b"070701" + b"".join(b"%08X" % field for field in fields) + path
        archive += bytes(-len(archive) % 4)
        archive += data + bytes(-len(data) % 4)
    return gzip.compress(bytes(archive), compresslevel=1)


def libraries(architecture, program):
    """The dynamic loader and the shared objects of a program (none if it is static): {path in the guest: (mode, bytes)}."""
    return {name: (0o755, path.read_bytes()) for name, path in architecture.libraries(program).items()}


def results(architecture, vmlinuz, archive, timeout):
    """Boot, and yield (name, exit status, output) of each check as it ends. Raises Died."""
    with tempfile.TemporaryDirectory(prefix="memleak-vm-") as folder:
        initrd, console = Path(folder, "initrd"), Path(folder, "console")
        initrd.write_bytes(archive)
        command = [
            *architecture.qemu, "-smp", str(PROCESSORS), "-m", str(MEMORY_MIB), "-nodefaults", "-no-reboot",
            "-display", "none", "-kernel", vmlinuz, "-initrd", initrd,
            # what the kernel does not know becomes the environment of guest/init
            "-append", f"console={architecture.console} quiet panic=-1 results={architecture.results}",
            "-serial", f"file:{console}", *architecture.results_device,
        ]  # fmt: skip
        try:
            qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        except FileNotFoundError as error:
            raise Unavailable(f"failed to run {command[0]}: install {architecture.package}") from error
        try:
            yield from frames(lines(qemu.stdout, time.monotonic() + timeout))
        except Died as death:
            words = console.read_text(errors="replace") if console.exists() else ""
            raise Died(f"{death}; its console said:\n{words}") from None
        finally:
            qemu.kill()
            qemu.wait()
            qemu.stdout.close()


def lines(pipe, deadline):
    """The lines of a pipe until it closes. Raises Died at the deadline."""
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0, deadline - time.monotonic())):
                raise Died("the guest ran out of time")
            chunk = os.read(pipe.fileno(), 1 << 16)
            if not chunk:
                return
            *complete, pending = (pending + chunk).split(b"\n")
            yield from (line.decode(errors="replace") for line in complete)


def frames(stream):
    """Take apart what guest/init prints: "@begin NAME", output lines that begin with a space, "@end STATUS"; "@done"."""
    name, output = "boot", []
    for line in stream:
        if line.startswith("@begin "):
            name, output = line.removeprefix("@begin "), []
        elif line.startswith("@end "):
            yield name, int(line.removeprefix("@end ")), "\n".join(output)
        elif line == "@done":
            return
        elif line.startswith(" "):
            output.append(line[1:])
    raise Died(f"the guest went down in or after: {name}")
