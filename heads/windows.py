"""How a model of clips picks the single frames of a video: windows of frames that follow one another.

VTN (Kozlov et al., 2019), §4: trained on one window at a random place, judged on all that do not overlap. A video that
is shorter than a window is gone through again from its start; what is left after the last whole window is not seen.
Legend: B videos, L rows picked, S windows.

    select = random_windows(1, 16, generator)            # counts (B,) -> row numbers (B,16), mask (B,16)
"""

from __future__ import annotations

import torch
from torch import Tensor

from features.batches import Select


def random_windows(n: int, frames: int, generator: torch.Generator) -> Select:
    """`n` windows of `frames` rows, each beginning anywhere that leaves it whole."""

    def select(lengths: Tensor) -> tuple[Tensor, Tensor]:
        room = (lengths - frames).clamp_min(0)[:, None] + 1
        starts = (torch.rand(len(lengths), n, generator=generator, dtype=torch.float64) * room).long()
        return _windows(starts.sort(dim=1).values, torch.ones_like(starts, dtype=torch.bool), frames, lengths)

    return select


def even_windows(n: int | None, frames: int) -> Select:
    """All windows of `frames` rows that do not overlap, or `n` whose starts are at equal intervals from the first to
    the last that there can be, in the middle for one; of a video with fewer starts, one at each."""

    def select(lengths: Tensor) -> tuple[Tensor, Tensor]:
        if n is None:
            counts = (lengths // frames).clamp_min(1)
            starts = torch.arange(max(1, int(counts.max()))) * frames
            return _windows(starts.expand(len(lengths), -1), starts < (counts * frames)[:, None], frames, lengths)
        last = (lengths - frames).clamp_min(0)[:, None]
        many, j = last >= n, torch.arange(n)
        even = (2 * j + 1) * last // 2 if n == 1 else j * last // (n - 1)
        return _windows(torch.where(many, even, j), many | (j <= last), frames, lengths)

    return select


def _windows(starts: Tensor, there: Tensor, frames: int, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """(B,S), (B,S) bool -> row numbers (B,S*frames), mask."""
    index = starts[..., None] + torch.arange(frames)  # (B,S,frames)
    mask = (there & (lengths > 0)[:, None])[..., None].expand_as(index)
    counts = lengths.clamp_min(1)[:, None, None]
    return torch.where(mask, index % counts, 0).flatten(1), mask.flatten(1)
