"""Bi-LSTM: a bidirectional LSTM for each modality, averaged over time. Attention Clusters (CVPR 2018), appendix B.

Batch norm over the rows of a modality, one layer of 1024 units a direction for colours and 512 for flow and sound, the
mean over time of both directions, concat, dropout, linear. Both directions are LSTMs over rows that stand first, the
backward one over a video's rows turned round, so padding is never read.
Legend: B videos, L rows, D dims, H hidden, C classes.

    heads.build("bilstm", {"rgb": (1536,), "audio": (512,)}, 400, hidden={"rgb": 1024, "audio": 512})
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from heads.base import Head, Shapes, masked_mean, vector_sizes, zero_padding
from heads.dropout import Dropout
from heads.lstm import learned, learns
from heads.ordered import BatchNorm, pick, states


class _Both(nn.Module):
    """The two directions of one modality."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm = BatchNorm(dim)
        self.forwards, self.backwards = (nn.LSTM(dim, hidden, batch_first=True) for _ in range(2))

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        """(B,L,D), (B,L) -> (B,2H)."""
        rows, norm = zero_padding(rows, mask), self.norm
        bare = learns(self.forwards, rows)
        rows = norm.bare(rows, mask) if bare else norm(rows, mask)
        last = mask.sum(dim=1, keepdim=True) - 1
        turned = pick(rows, (last - torch.arange(rows.shape[1], device=rows.device)).clamp_min(0))
        both = [
            learned(lstm, x, norm.weight, norm.bias) if bare else states(lstm, x)
            for lstm, x in ((self.forwards, rows), (self.backwards, turned))
        ]
        return torch.cat([masked_mean(s, mask) for s in both], dim=1)


class BiLstm(Head):
    """An LSTM in both directions a modality, mean over time, concat, dropout, linear."""

    def __init__(self, shapes: Shapes, num_classes: int, *, hidden: int | Mapping[str, int], dropout: float) -> None:
        super().__init__(shapes, num_classes)
        dims = vector_sizes("bilstm", shapes)
        units = {m: hidden if isinstance(hidden, int) else hidden[m] for m in dims}
        self.lstms = nn.ModuleDict({m: _Both(dim, units[m]) for m, dim in dims.items()})
        self.dropout = Dropout(dropout)
        self.classifier = nn.Linear(2 * sum(units.values()), num_classes)

    def forward(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> Tensor:
        """(B,L,D) a modality -> (B,C)."""
        means = [self.lstms[m](features[m], masks[m]) for m in self.shapes]
        logits: Tensor = self.classifier(self.dropout(torch.cat(means, dim=1)))
        return logits
