"""Debian packages, fetched with a private apt and unpacked without being installed.
Nothing here knows what they are for; no mirror is named: the host comes from the machine's own apt configuration."""

import re
import shutil
import subprocess
from pathlib import Path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
ETC_APT = Path("/etc/apt")
URI = re.compile(r"^(?:URIs:|deb(?:\s+\[[^\]]*\])?)\s+(\S+)", re.MULTILINE)


class Unavailable(Exception):
    """Something that is needed is not on this machine; the message says what to do."""


def run(command, **options):
    """Run a command; on failure raise its own words."""
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options)
    if done.returncode:
        raise Unavailable(f"failed to run {' '.join(map(str, command))}:\n{done.stdout}")
    return done.stdout


def mirrors():
    """The Debian mirrors that this machine uses: (main archive, security archive)."""
    files = [ETC_APT / "sources.list", *sorted((ETC_APT / "sources.list.d").glob("*"))]
    enabled = [path for path in files if path.suffix in (".list", ".sources") and path.is_file()]
    uris = [uri.rstrip("/") for path in enabled for uri in URI.findall(path.read_text())]
    security = [uri for uri in uris if "debian-security" in uri.rsplit("/", 1)[-1]]
    main = [uri for uri in uris if "debian" in uri.rsplit("/", 1)[-1] and uri not in security]
    if not main:
        raise Unavailable("failed to find a Debian mirror in /etc/apt: run on Debian, or in a Debian container")
    return main[0], security[0] if security else main[0].removesuffix("debian") + "debian-security"


class Archive:
    """A few suites of Debian, with package lists and downloads of their own under `root`. A package of an architecture
    other than the first is named with it: libc6:arm64."""

    def __init__(self, root, suites, architectures=("amd64",)):
        self.root = root.resolve()
        self.suites = suites
        self.architectures = architectures
        self.updated = False

    def _apt(self, tool, *arguments, cwd=None):
        none = "/dev/null"
        options = {
            "Dir::State": self.root / "state",
            "Dir::State::status": self.root / "status",
            "Dir::Cache": self.root / "cache",
            "Dir::Etc::sourcelist": self.root / "sources.list",
            "Dir::Etc::sourceparts": none,
            "Dir::Etc::preferences": none,
            "Dir::Etc::preferencesparts": none,
            "APT::Architecture": self.architectures[0],
            "APT::Sandbox::User": "",
            "APT::Install-Recommends": "false",
            "Acquire::Languages": "none",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
            "Debug::NoLocking": "true",
        }
        flags = [f"-o{name}={value}" for name, value in options.items()]
        flags += [f"-oAPT::Architectures::={architecture}" for architecture in self.architectures]
        return run([tool, "-q", *flags, *arguments], cwd=cwd or self.root)

    def update(self):
        """Fetch the package lists, verified by Debian's keyring, once per run."""
        if self.updated:
            return
        if not KEYRING.exists():
            raise Unavailable(f"failed to find {KEYRING}: install debian-archive-keyring")
        main, security = mirrors()
        for folder in ("state/lists/partial", "cache/archives/partial"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        (self.root / "status").touch()
        lines = [
            f"deb [signed-by={KEYRING}] {security if suite.endswith('-security') else main} {suite} main\n"
            for suite in self.suites
        ]
        (self.root / "sources.list").write_text("".join(lines))
        self._apt("apt-get", "update", "--error-on=any")
        self.updated = True

    def depends(self, package):
        """The packages that this one depends on, newest version, first alternatives only."""
        text = self._apt("apt-cache", "depends", "--no-suggests", "--no-breaks", "--no-conflicts", "--no-replaces",
                         "--no-enhances", "--no-recommends", package)
        names = re.findall(r"^\s*(?:Pre)?Depends: (\S+)", text, re.MULTILINE)
        # a package for all architectures is asked for by its name alone
        return [re.sub(r"^<(.+):\w+>$", r"\1", name) for name in names]

    def family(self, meta, pattern):
        """All that an (empty) metapackage depends on whose names match, however deep."""
        found, ahead = [], self.depends(meta)
        while ahead:
            name = ahead.pop()
            if name not in found and re.search(pattern, name):
                found.append(name)
                ahead += self.depends(name)
        return found

    def unpack(self, packages, target, closure=False, also=()):
        """Unpack the packages (with `closure`: all that they need as well) and those in `also` into `target`, which is
        complete once it exists."""
        if target.exists():
            return
        downloads = self.root / "cache/archives"
        if closure:
            self._apt("apt-get", "install", "--yes", "--download-only", *packages)
            packages = []
        if packages or also:
            self._apt("apt-get", "download", *packages, *also, cwd=downloads)
        partial = target.with_name(target.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        for folder in ("bin", "sbin", "lib", "lib64"):
            (partial / "usr" / folder).mkdir(parents=True)
            (partial / folder).symlink_to(f"usr/{folder}")
        for deb in sorted(downloads.glob("*.deb")):
            run(["dpkg-deb", "--extract", deb, partial])
            deb.unlink()
        partial.rename(target)
