#!/usr/bin/env python3
"""Unpacks the Pythons of Debian's suites, each with all that it needs, below a folder, and prints "PROGRAM ROOT" for each.
Installs nothing; what is there already is taken as it is."""

import sys
from pathlib import Path

from debian import Archive

SUITES = {"bullseye": "3.9", "trixie": "3.13", "sid": "3.14"}


def main():
    folder = Path(sys.argv[1]).resolve()
    for suite, version in SUITES.items():
        lists = folder / f"{suite}.apt"
        lists.mkdir(parents=True, exist_ok=True)
        root = folder / suite
        if not root.exists():
            archive = Archive(lists, [suite])
            archive.update()
            archive.unpack([f"python{version}"], root, closure=True)
        print(f"/usr/bin/python{version} {root}", flush=True)


main()
