"""The kernels of the matrix, by Debian package name, and the test module built for each with its own compiler.
Nothing here boots a kernel or knows what is checked on it."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from architectures import AMD64, ARM64, Architecture, Archive, Unavailable
from debian import run

HERE = Path(__file__).resolve().parent
TRIPLET = "aarch64-linux-gnu"
IMAGE_PARTS = r"^linux-(image|binary|modules|base)-[0-9]"
HEADER_PARTS = r"^linux-(headers|kbuild)-[0-9]"
# What kbuild calls besides the compiler, which the headers depend on.
BUILD_TOOLS = ["make", "dash", "coreutils", "sed", "grep", "mawk", "findutils"]
# Inside a mount namespace of its own, so that no mount outlives the build: kbuild wants /dev/null, objtool its limits.
BUILD = """set -e
cd "$1"
mount --rbind /dev dev
mount --rbind /proc proc
mount --bind "$2" module
build=$3
shift 3
exec chroot . /usr/bin/make -C "$build" M=/module "$@"
"""


@dataclass(frozen=True)
class Kernel:
    """A row of the matrix; the packages are metapackages that lead to the newest build of their series."""

    version: str
    suites: tuple
    series: str = ""  # of a suite that has several
    architecture: Architecture = AMD64

    @property
    def label(self):
        return self.version if self.architecture is AMD64 else f"{self.version}-{self.architecture.name}"

    def package(self, kind):
        """The metapackage of its image, or of its headers."""
        name = f"linux-{kind}-{self.series}cloud-{self.architecture.name}"
        return name if self.architecture is AMD64 else f"{name}:{self.architecture.name}"


KERNELS = [
    Kernel("5.10", ("bullseye", "bullseye-security")),
    Kernel("6.1", ("bookworm", "bookworm-security")),
    Kernel("6.12", ("bookworm", "bookworm-security"), "6.12-"),
    Kernel("7.x", ("sid",)),
    Kernel("5.10", ("bullseye",), architecture=ARM64),
    Kernel("6.1", ("bookworm", "bookworm-security"), architecture=ARM64),
    Kernel("6.12", ("bookworm", "bookworm-security"), "6.12-", ARM64),
    Kernel("7.x", ("sid",), architecture=ARM64),
]
FAST = ("5.10", "6.1", "7.x", "5.10-arm64", "6.12-arm64")


@dataclass(frozen=True)
class Built:
    """A kernel ready to boot."""

    release: str  # as `uname -r` says it
    vmlinuz: Path
    module: Path  # leaky_module.ko


def build(kernel, cache):
    """Fetch the kernel and its headers and build the module, all from the cache where the versions have not changed."""
    archive = archive_of(kernel, cache)
    archive.update()
    image = archive.family(kernel.package("image"), IMAGE_PARTS)
    headers = archive.family(kernel.package("headers"), HEADER_PARTS)
    name = min((name for name in image if name.startswith("linux-image-")), key=len)
    release = name.removeprefix("linux-image-").partition(":")[0]
    root = cache / release
    root.mkdir(parents=True, exist_ok=True)
    archive.unpack(image, root / "image")
    unpack_toolchain(kernel, archive, headers, root / "toolchain")
    found = [path for path in (root / "image").rglob("vmlinuz*") if path.is_file()]
    if not found:
        raise Unavailable(f"failed to find a kernel in {root}/image: remove the folder and run again")
    return Built(release, found[0], build_module(root, release, kernel.architecture))


def archive_of(kernel, cache):
    """The suites' packages for this machine, and for the kernel's if that is another one."""
    if kernel.architecture is AMD64:
        return Archive(cache / "apt" / kernel.suites[0], kernel.suites)
    name = kernel.architecture.name
    return Archive(cache / "apt" / f"{kernel.suites[0]}-{name}", kernel.suites, ("amd64", name))


def unpack_toolchain(kernel, archive, headers, target):
    """The headers with the compiler that they name, or with one for another machine, in place of that machine's."""
    if kernel.architecture is AMD64:
        return archive.unpack([*headers, *BUILD_TOOLS], target, closure=True)
    # programs of kbuild's run here
    headers = [name.partition(":")[0] if name.startswith("linux-kbuild-") else name for name in headers]
    # modules have type information since Linux 5.11
    pahole = [] if kernel.version == "5.10" else ["pahole"]
    return archive.unpack([f"gcc-{TRIPLET}", *pahole, *BUILD_TOOLS], target, closure=True, also=headers)


def build_module(root, release, architecture):
    """Build tests/vm/leaky_module against the headers in the unpacked toolchain."""
    toolchain, work = root / "toolchain", root / "module"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(HERE / "leaky_module", work)
    for folder in ("dev", "proc", "module"):
        (toolchain / folder).mkdir(exist_ok=True)
    for link, tool in (("bin/sh", "dash"), ("usr/bin/awk", "mawk")):  # what install scripts would have linked
        if not (toolchain / link).exists():
            (toolchain / link).symlink_to(tool)
    run(["unshare", "--map-root-user", "--mount", "sh", "-c", BUILD, "sh", toolchain, work,
         f"/usr/src/linux-headers-{release}", *architecture.make_variables()])  # fmt: skip
    return work / "leaky_module.ko"
