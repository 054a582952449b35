"""The machines of the matrix: what QEMU emulates of each, and with what its programs are compiled.
Nothing here boots anything, or knows kernels and checks."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "scripts"))

import cross  # noqa: E402
from debian import Archive, Unavailable  # noqa: E402


@dataclass(frozen=True)
class Architecture:
    """By Debian's name of it."""

    name: str
    qemu: tuple  # the command, but for processors, memory, kernel and devices
    package: str  # that has it
    console: str  # the first serial port
    results: str  # the second one, and QEMU's arguments for it
    results_device: tuple

    def libraries(self, program):
        """The loader and shared objects of a program, as {path in the guest: path here}."""
        listing = subprocess.run(["ldd", program], text=True, capture_output=True).stdout
        words = [word for line in listing.splitlines() for word in line.split()]
        return {word.lstrip("/"): Path(word) for word in words if word.startswith("/")}

    def compiler(self, cache):
        """The C compiler's command."""
        return ["cc"]

    def busybox(self, cache):
        """A static busybox."""
        found = next((path for path in map(Path, ("/bin/busybox", "/usr/bin/busybox")) if path.exists()), None)
        if not found:
            raise Unavailable("failed to find busybox: install busybox-static")
        return found

    def make_variables(self):
        """What kbuild is told."""
        return []


class Emulated(Architecture):
    """One whose packages are unpacked, and whose programs run in the guest only: with a C library that signs its return
    addresses, as the processor that is emulated checks."""

    RUNTIME = ("trixie", "libc6:arm64")
    LOADER = "lib/ld-linux-aarch64.so.1"

    def libraries(self, program):
        if subprocess.run(["grep", "-q", self.LOADER, program]).returncode:
            return {}
        suite, package = self.RUNTIME
        folder = ROOT / "target/vm" / self.name / suite
        if not folder.exists():
            archive = Archive(ROOT / "target/vm/apt" / f"{suite}-{self.name}", (suite,), ("amd64", self.name))
            archive.update()
            archive.unpack([package], folder)
        libc = f"lib/{cross.TRIPLET}/libc.so.6"
        return {self.LOADER: (folder / self.LOADER).resolve(), libc: folder / "usr" / libc}

    def compiler(self, cache):
        return [cross.toolchain().cc, "-mbranch-protection=standard"]

    def busybox(self, cache):
        return cross.toolchain().folder / "bin/busybox"

    def make_variables(self):
        return ["ARCH=arm64", f"CROSS_COMPILE={cross.TRIPLET}-"]


# One thread for all processors: with a thread each, one now and then runs into an int3 that another has already
# patched away again (the kernel's jump labels), and the guest dies of it.
ACCELERATOR = "tcg,thread=single"

AMD64 = Architecture(
    "amd64", ("qemu-system-x86_64", "-machine", "q35", "-accel", ACCELERATOR, "-cpu", "max"), "qemu-system-x86",
    "ttyS0", "/dev/ttyS1", ("-serial", "stdio"),
)  # fmt: skip
ARM64 = Emulated(
    "arm64", ("qemu-system-aarch64", "-machine", "virt", "-accel", ACCELERATOR, "-cpu", "max,pauth-impdef=on"),
    "qemu-system-arm", "ttyAMA0", "/dev/ttyS0", ("-chardev", "stdio,id=results", "-device", "pci-serial,chardev=results"),
)  # fmt: skip
