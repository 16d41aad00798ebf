"""Prints the lock file: the exact version of everything that this interpreter's environment holds.

    make lock

Only names, versions and markers: where packages come from is the business of pip's own settings.
"""

from __future__ import annotations

import re
import sys
from importlib.metadata import distributions

NOT_LOCKED = {"framepool", "pip"}  # this project; the installer itself
LINUX_ONLY = re.compile(r"(nvidia|cuda)-|triton$")  # what torch needs on Linux and nowhere else
HEADER = "# Exact versions of everything. Remade by `make lock`; CONTRIBUTING.md says when.\n"


def main() -> None:
    found = {re.sub(r"[-_.]+", "-", d.name).lower(): d.version for d in distributions()}
    lines = [
        f"{name}=={version.split('+')[0]}" + (' ; sys_platform == "linux"' if LINUX_ONLY.match(name) else "")
        for name, version in sorted(found.items())
        if name not in NOT_LOCKED
    ]
    sys.stdout.write(HEADER + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
