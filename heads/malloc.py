"""Keep the memory that one training step, or one shard that was read, frees for the next.

glibc hands large freed blocks back to the kernel, and getting them again costs a page fault for every 4 kB: on small
heads several times the arithmetic. Other C libraries lack the switch and are left alone."""

from __future__ import annotations

import ctypes
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_MAX: Final = -4


def keep_freed_memory() -> None:
    """Serve large blocks from the heap and never shrink it, in this process, from now on."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)
