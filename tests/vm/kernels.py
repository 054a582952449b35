"""The kernels of the matrix, by Debian package name, and the test module built for each with its own compiler.
Nothing here boots a kernel or knows what is checked on it."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from debian import Archive, Unavailable, run

HERE = Path(__file__).resolve().parent
IMAGE_PARTS = r"^linux-(image|binary|modules|base)-[0-9]"
HEADER_PARTS = r"^linux-headers-[0-9]"
# What kbuild calls besides the compiler, which the headers depend on.
BUILD_TOOLS = ["make", "dash", "coreutils", "sed", "grep", "mawk", "findutils"]
# Inside a mount namespace of its own, so that no mount outlives the build: kbuild wants /dev/null, objtool its limits.
BUILD = """set -e
cd "$1"
mount --rbind /dev dev
mount --rbind /proc proc
mount --bind "$2" module
exec chroot . /usr/bin/make -C "$3" M=/module"""


@dataclass(frozen=True)
class Kernel:
    """A row of the matrix; the packages are metapackages that lead to the newest build of their series."""

    label: str
    suites: tuple
    image: str
    headers: str


KERNELS = [
    Kernel("5.10", ("bullseye", "bullseye-security"), "linux-image-cloud-amd64", "linux-headers-cloud-amd64"),
    Kernel("6.1", ("bookworm", "bookworm-security"), "linux-image-cloud-amd64", "linux-headers-cloud-amd64"),
    Kernel("6.12", ("bookworm", "bookworm-security"), "linux-image-6.12-cloud-amd64", "linux-headers-6.12-cloud-amd64"),
    Kernel("7.x", ("sid",), "linux-image-cloud-amd64", "linux-headers-cloud-amd64"),
]
FAST = ("5.10", "6.12")


@dataclass(frozen=True)
class Built:
    """A kernel ready to boot."""

    label: str
    release: str  # as `uname -r` says it
    vmlinuz: Path
    module: Path  # leaky_module.ko


def build(kernel, cache):
    """Fetch the kernel and its headers and build the module, all from the cache where the versions have not changed."""
    archive = Archive(cache / "apt" / kernel.suites[0], kernel.suites)
    archive.update()
    image = archive.family(kernel.image, IMAGE_PARTS)
    headers = archive.family(kernel.headers, HEADER_PARTS)
    release = min((name for name in image if name.startswith("linux-image-")), key=len).removeprefix("linux-image-")
    root = cache / release
    root.mkdir(parents=True, exist_ok=True)
    archive.unpack(image, root / "image")
    archive.unpack([*headers, *BUILD_TOOLS], root / "toolchain", closure=True)
    found = [path for path in (root / "image").rglob("vmlinuz*") if path.is_file()]
    if not found:
        raise Unavailable(f"failed to find a kernel in {root}/image: remove the folder and run again")
    return Built(kernel.label, release, found[0], build_module(root, release))


def build_module(root, release):
    """Build tests/vm/leaky_module against the headers in the unpacked toolchain."""
    toolchain, work = root / "toolchain", root / "module"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(HERE / "leaky_module", work)
    for folder in ("dev", "proc", "module"):
        (toolchain / folder).mkdir(exist_ok=True)
    for link, tool in (("bin/sh", "dash"), ("usr/bin/awk", "mawk")):  # what install scripts would have linked
        if not (toolchain / link).exists():
            (toolchain / link).symlink_to(tool)
    run(["unshare", "--map-root-user", "--mount", "sh", "-c", BUILD, "sh", toolchain, work, f"/lib/modules/{release}/build"])
    return work / "leaky_module.ko"
