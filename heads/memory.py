"""Tensors that live as long as their layer, and batches in parts that a cache holds."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

_CACHED: Final = 1 << 20  # numbers


class Kept:
    """Tensors by name that a layer writes anew in every step: fresh memory of their size is made page by page. A copy
    of the layer has its own. What one forward pass leaves in them is there until the next."""

    def __init__(self) -> None:
        self._found: dict[str, Tensor] = {}
        self._passes = 0

    def forward(self) -> int:
        """A forward pass begins: its number."""
        self._passes += 1
        return self._passes

    def backward(self, number: int) -> None:
        """Raises `RuntimeError` where another forward pass came after that of this number."""
        if number != self._passes:
            raise RuntimeError("a forward pass of this layer came between another and its way back")

    def __call__(self, name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
        """Memory of this shape; what is in it is of the step before."""
        found = self._found.get(name)
        if found is None or found.dtype != dtype or found.shape[1:] != shape[1:] or len(found) < shape[0]:
            found = self._found[name] = torch.empty(shape, dtype=dtype)
        return found[: shape[0]]

    def __deepcopy__(self, _: dict[int, Any]) -> Kept:
        return Kept()


def parts(rows: Tensor) -> list[slice]:
    """(B,*D) -> slices of B, as many rows each as a cache holds with a few copies of them, and one at least."""
    step = max(1, _CACHED // max(1, rows[:1].numel()))
    return [slice(at, at + step) for at in range(0, len(rows), step)]
