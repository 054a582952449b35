#!/usr/bin/env python3
"""Prints the notices of everything that is linked into memleak: names, licences, and their texts, each text once.

usage: notices.py [--target TRIPLE]
"""
import json
import pathlib
import subprocess
import sys


def linked(metadata):
    """The packages that end up in the binary: reached by normal dependencies, memleak itself left out."""
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    root = metadata["resolve"]["root"]
    seen, todo = set(), [root]
    while todo:
        for dependency in nodes[todo.pop()]["deps"]:
            kinds = {kind["kind"] for kind in dependency["dep_kinds"]}
            if None in kinds and dependency["pkg"] not in seen:
                seen.add(dependency["pkg"])
                todo.append(dependency["pkg"])
    packages = {package["id"]: package for package in metadata["packages"]}
    return sorted((packages[found] for found in seen), key=lambda package: (package["name"], package["version"]))


def texts(package):
    """The licence and notice files of a package."""
    folder = pathlib.Path(package["manifest_path"]).parent
    named = [path for path in folder.iterdir() if path.is_file() and path.name.upper().startswith(("LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE"))]
    return [path.read_text(errors="replace").strip() for path in sorted(named)]


def main():
    command = ["cargo", "metadata", "--format-version", "1", "--locked", "--all-features"]
    command += ["--filter-platform", sys.argv[2]] if sys.argv[1:2] == ["--target"] else []
    metadata = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    known = {}
    print("Software that is part of memleak, besides its own:\n")
    packages = linked(metadata)
    for package in packages:
        print(f"{package['name']} {package['version']}: {package['license'] or 'see its text'}")
        print(f"    {package['repository'] or package['homepage'] or 'https://crates.io/crates/' + package['name']}")
        for text in texts(package):
            known.setdefault(text, []).append(package["name"])
    print("\nlibelf (elfutils) and zlib, in static binaries: LGPL-3.0-or-later or GPL-2.0-or-later, and Zlib")
    print("    https://sourceware.org/elfutils/, https://zlib.net/")
    print("µPlot, in HTML reports: MIT; its text stands in each report")
    for text, names in known.items():
        print("\n" + "-" * 80)
        print(", ".join(sorted(set(names))) + ":\n")
        print(text)


if __name__ == "__main__":
    main()
