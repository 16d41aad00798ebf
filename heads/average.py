"""Average: the mean row of each modality, side by side, and a linear layer. Attention Clusters (CVPR 2018), appendix B.

The order of rows does not matter. A modality without rows counts as zeros with `missing: none`.
Legend: B videos, L rows, D dims, C classes.

    heads.build("average", {"rgb": (1280,)}, num_classes=6, dropout=0.5)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from heads.base import Head, Shapes, masked_mean, vector_sizes
from heads.dropout import Dropout


class Average(Head):
    """mean over L, concat over modalities, dropout, linear."""

    def __init__(self, shapes: Shapes, num_classes: int, *, dropout: float) -> None:
        super().__init__(shapes, num_classes)
        self.dropout = Dropout(dropout)
        self.classifier = nn.Linear(sum(vector_sizes("average", shapes).values()), num_classes)

    def forward(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> Tensor:
        """(B,L,D) a modality -> (B,C)."""
        means = [masked_mean(features[modality], masks[modality]) for modality in self.shapes]  # each (B,D)
        logits: Tensor = self.classifier(self.dropout(torch.cat(means, dim=1)))
        return logits
