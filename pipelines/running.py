"""Who runs a workflow in this folder. Snakemake's own locks outlive a Snakemake that was killed and stop the next one.

A running workflow holds a shared flock, which the kernel drops with its process. Whoever finds nobody there removes the
locks that are left; beside a running workflow they stay, and Snakemake itself refuses what overlaps.
"""

from __future__ import annotations

import fcntl
from contextlib import suppress
from pathlib import Path
from typing import IO

from features.atomic import Disk, make_folder


def announce(folder: Path = Path(".snakemake")) -> IO[str]:
    """Say that a workflow runs here, until the returned file is closed; clear what a killed one has left."""
    mark = (make_folder(folder) / "running").open("a+")  # NFS gives a shared lock on what can be read, no other
    with suppress(OSError):  # a file system without flock: then Snakemake's message says what to do
        try:
            fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
            Disk.remove(folder / "locks")
        except BlockingIOError:
            pass
        fcntl.flock(mark, fcntl.LOCK_SH)
    return mark
