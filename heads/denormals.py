"""Numbers too small for full precision (denormals, below 1.2e-38) are zero while a head computes.

A softmax that is sure of itself, over rows or over classes, gives gradients of them, for which many processors take a
hundred times as long: such a training is ten times as slow as it need be (`benchmarks.denormals`).

    with flushed():
        loss.backward()
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

_SMALLEST = 2.0**-149


@contextmanager
def flushed() -> Iterator[None]:
    """Inside, denormals are zero in this thread, and in torch's threads where these are made here; afterwards as
    before. No-op on a processor that cannot. Also a decorator."""
    for kind in (np.float32, np.float64):
        np.finfo(kind)  # asked inside for the first time it warns that its smallest number is zero
    before = bool(torch.tensor(_SMALLEST) * 1 == 0)
    torch.set_flush_denormal(True)
    try:
        torch.ones(torch.get_num_threads() << 16).neg_()  # torch's threads are made, and flush like the one that asks
        yield
    finally:
        torch.set_flush_denormal(before)
