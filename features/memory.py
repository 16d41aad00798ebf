"""The memory that this process may still take, which can be less than what the machine has left.

available_bytes()                    # of the machine, of the process's cgroups (1 and 2), of a SLURM job
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

OWN = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")


def available_bytes() -> int:
    """What is free on the machine, or less where a limit leaves less."""
    return max(0, min([int(psutil.virtual_memory().available), *_of_cgroups(), *_of_slurm()]))


def _of_cgroups() -> Iterator[int]:
    """What the limits of the process's own cgroup and of those above it leave."""
    with suppress(OSError, ValueError):
        for line in OWN.read_text().splitlines():
            _, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            if not controllers:
                yield from _left(CGROUPS, path, "memory.max", "memory.current", "")
            elif "memory" in controllers.split(","):
                yield from _left(CGROUPS / "memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")


def _left(mount: Path, path: str, limit: str, usage: str, prefix: str) -> Iterator[int]:
    own = mount / path.strip("/")  # of a container, its own may be the mount itself
    for folder in (own, *own.parents):
        with suppress(OSError, ValueError):  # no limit, "max" among them
            yield int((folder / limit).read_text()) - int((folder / usage).read_text()) + _cached(folder, prefix)
        if folder == mount:
            return


def _cached(folder: Path, prefix: str) -> int:
    """Of files, which the kernel gives back when it is asked for more."""
    with suppress(OSError, ValueError):
        values = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return sum(int(values.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
    return 0


def _of_slurm() -> Iterator[int]:
    with suppress(ValueError, psutil.Error):
        if (mb := int(os.environ.get("SLURM_MEM_PER_NODE", "0"))) > 0:  # 0 is all that the node has
            yield (mb << 20) - psutil.Process().memory_info().rss
