"""What heads that follow the order of rows share: steps, batch norm over rows that are there.

Rows of a video come first and in time, padding after them, as batches have them. A step joins the rows of all
modalities that stand at the same place; `align` makes those the nearest in time.
Legend: B videos, L rows, D dims, F dims of all modalities, n steps, R rows that are there.

    rows, mask = steps(features, masks, self.shapes)            # (B,L,F), (B,L)
    grid = spread(rows, mask, 25)                               # (B,25,F)
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from heads.base import Shapes, surely, zero_padding
from heads.lstm import learned, learns


def steps(features: Mapping[str, Tensor], masks: Mapping[str, Tensor], shapes: Shapes) -> tuple[Tensor, Tensor]:
    """(B,L,F), (B,L): modalities side by side, zeros for one that a step lacks."""
    rows = [zero_padding(features[m], masks[m]) for m in shapes]
    mask = torch.stack([masks[m] for m in shapes]).any(dim=0)
    return torch.cat(rows, dim=2) if len(rows) > 1 else rows[0], mask


def spread(rows: Tensor, mask: Tensor, n: int) -> Tensor:
    """(B,L,D), (B,L) -> (B,n,D): row floor((j + 0.5) * L / n) at step j, so that a short video's rows stand several
    times; zeros for a video without rows."""
    counts = mask.sum(dim=1, keepdim=True)  # (B,1)
    index = (2 * torch.arange(n, device=mask.device) + 1) * counts // (2 * n)
    return pick(zero_padding(rows, mask), index)


def at_most(rows: Tensor, mask: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """(B,L,D), (B,L) -> (B,n,D), (B,n): n rows at equal intervals of a longer video, a shorter one as it is."""
    if not torch.compiler.is_compiling() and rows.shape[1] <= n:
        return rows, mask
    counts, j = mask.sum(dim=1, keepdim=True), torch.arange(n, device=mask.device)
    index = torch.where(counts > n, (2 * j + 1) * counts // (2 * n), j)
    return pick(rows, index.clamp_max(rows.shape[1] - 1)), j < counts


def pick(rows: Tensor, index: Tensor) -> Tensor:
    """(B,L,D), (B,n) -> (B,n,D): the rows of these numbers."""
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[2]))


def states(lstm: nn.LSTM, rows: Tensor) -> Tensor:
    """(B,L,F) -> (B,L,H): what a one-way LSTM gives at each row. Torch's export takes L for fixed behind an LSTM; rows
    that are picked by number have it free again, so an exported graph has one layer after the other."""
    if learns(lstm, rows):
        return learned(lstm, rows)
    if not torch.compiler.is_compiling():
        found: Tensor = lstm(rows)[0]
        return found
    zeros = rows.new_zeros(1, rows.shape[0], lstm.hidden_size)
    numbers = torch.arange(rows.shape[1], device=rows.device).expand(rows.shape[0], -1)
    for weights in lstm.all_weights:
        rows = pick(torch.lstm(rows, (zeros, zeros), [*weights], True, 1, 0.0, False, False, True)[0], numbers)
    return rows


class BatchNorm(nn.BatchNorm1d):
    """Batch norm over the rows that are there; a single row in training is normalised as in evaluation."""

    def forward(self, rows: Tensor, mask: Tensor | None = None) -> Tensor:
        """(...,D), and (...) bool -> (...,D); what stands in padding afterwards means nothing."""
        flat = rows.reshape(-1, rows.shape[-1])
        if not self.training:
            return super().forward(flat).view_as(rows)
        there = None if mask is None or surely(mask) else mask.reshape(-1)
        kept = flat if there is None else flat[there]
        if len(kept) < 2:
            self.eval()
            found = super().forward(flat)
            self.train()
            return found.view_as(rows)
        normal = super().forward(kept)
        if there is None:
            return normal.view_as(rows)
        placed = torch.zeros_like(flat, dtype=normal.dtype)
        return placed.index_put((there.nonzero()[:, 0],), normal).view_as(rows)

    def bare(self, rows: Tensor, mask: Tensor | None = None) -> Tensor:
        """What `forward` gives before it takes the weight and adds the bias."""
        neutral = {"weight": torch.ones_like(self.weight), "bias": torch.zeros_like(self.bias)}
        found: Tensor = functional_call(self, neutral, (rows, mask))
        return found
