"""Loops of numbers as machine code.

@compiled
def total(x): ...           # loops over numpy arrays
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Machine code at the first call, kept on disk; runs without Python's lock, and adds up in any order."""
    return cast("F", njit(nogil=True, fastmath=True, error_model="numpy", cache=True)(function))
