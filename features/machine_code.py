"""Loops of numbers as machine code.

@compiled
def total(x): ...           # loops over numpy arrays
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """Machine code at the first call, kept on disk where there is a place for it; runs without Python's lock, and adds
    up in any order."""
    make = partial(njit, nogil=True, fastmath=True, error_model="numpy")
    try:
        return cast("F", make(cache=True)(function))
    except RuntimeError:  # neither beside the module nor in the user's folder may anything be written
        return cast("F", make(function))
