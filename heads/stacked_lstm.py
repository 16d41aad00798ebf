"""Stacked LSTMs: three one-way layers over the steps, a linear layer at each, the mean of its logits.

The baseline of "Lightweight Network Architecture for Real-Time Action Recognition" (VTN, 2019), Table 2; read-out and
dropout as in the authors' code.
Legend: B videos, L rows, F dims of all modalities, C classes.

    heads.build("stacked_lstm", {"rgb": (512,)}, num_classes=200)
"""

from __future__ import annotations

from torch import Tensor, nn

from heads.base import Head, Shapes, masked_mean, vector_sizes
from heads.dropout import Dropout
from heads.ordered import states, steps


class StackedLstm(Head):
    """dropout, LSTMs, linear, mean over steps."""

    def __init__(
        self, shapes: Shapes, num_classes: int, *, layers: int, hidden: int, dropout: float, between: float
    ) -> None:
        super().__init__(shapes, num_classes)
        dim = sum(vector_sizes("stacked_lstm", shapes).values())
        self.dropout = Dropout(dropout)
        self.lstm = nn.LSTM(dim, hidden, layers, batch_first=True, dropout=between if layers > 1 else 0.0)
        self.classifier = nn.Linear(hidden, num_classes)

    def forward(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> Tensor:
        """(B,L,D) a modality -> (B,C)."""
        rows, mask = steps(features, masks, self.shapes)
        return masked_mean(self.classifier(states(self.lstm, self.dropout(rows))), mask)
