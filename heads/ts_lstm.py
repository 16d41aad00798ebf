"""TS-LSTM: the sequence in segments, each with its own batch norm and max-pooled over time, then an LSTM over segments.

"TS-LSTM and Temporal-Inception: Exploiting Spatiotemporal Dynamics for Activity Recognition" (2017), with the streams
side by side at every step; five segments, as in Attention Clusters (CVPR 2018), appendix B. Segment s is rows
[s*L//S, (s+1)*L//S), and never empty: where there are fewer rows than segments, neighbours share one.
Legend: B videos, L rows, F dims of all modalities, S segments, W rows of a segment, H hidden, C classes.

    heads.build("ts_lstm", {"rgb": (2048,), "flow": (2048,)}, 101, segments=5, align="rgb")
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from features.batches import Select
from heads.base import Head, Shapes, vector_sizes
from heads.dropout import Dropout
from heads.ordered import BatchNorm, pick, states, steps


class TsLstm(Head):
    """steps, segments, LSTM, batch norm, dropout, linear."""

    def __init__(self, shapes: Shapes, num_classes: int, *, segments: int, hidden: int, dropout: float) -> None:
        super().__init__(shapes, num_classes)
        dim = sum(vector_sizes("ts_lstm", shapes).values())
        self.norms = nn.ModuleList(BatchNorm(dim) for _ in range(segments))
        self.lstm = nn.LSTM(dim, hidden, batch_first=True)
        self.norm, self.dropout = BatchNorm(hidden), Dropout(dropout)
        self.classifier = nn.Linear(hidden, num_classes)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.1, 0.1)  # the authors' code, of batch norms too

    def train_rows(self, n: int | None, generator: torch.Generator) -> Select:
        """As in testing."""
        return self.test_rows(n)

    def forward(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> Tensor:
        """(B,L,D) a modality -> (B,C)."""
        rows, mask = steps(features, masks, self.shapes)
        pooled = torch.stack([self._segment(s, rows, mask) for s in range(len(self.norms))], dim=1)  # (B,S,F)
        last = states(self.lstm, pooled)[:, -1]  # (B,H)
        logits: Tensor = self.classifier(self.dropout(self.norm(last)))
        return logits

    def _segment(self, number: int, rows: Tensor, mask: Tensor) -> Tensor:
        """(B,F): the largest of each normalised dim; zeros for a video without rows."""
        total, counts = len(self.norms), mask.sum(dim=1, keepdim=True)  # (B,1)
        first = number * counts // total
        stop = torch.maximum((number + 1) * counts // total, (first + 1).clamp_max(counts))
        index = first + torch.arange((rows.shape[1] + total - 1) // total, device=mask.device)  # (B,W)
        there = index < stop
        normal = self.norms[number](pick(rows, index.clamp_max(rows.shape[1] - 1)), there)
        largest = normal.masked_fill(~there[..., None], -torch.inf).amax(dim=1)
        pooled: Tensor = largest.masked_fill(~there.any(dim=1, keepdim=True), 0)
        return pooled
