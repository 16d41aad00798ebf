"""Flatten: all rows of each modality in their order, side by side, and a linear layer. Attention Clusters (CVPR 2018),
appendix B.

Each modality has a fixed number of places. A longer video gives rows at equal intervals, a shorter one leaves the last
places zero; the rows follow the clock, and training sees the same ones every time.
Legend: B videos, L rows, D dims, P places of a modality, C classes.

    heads.build("flatten", {"rgb": (1280,), "audio": (128,)}, 6, places={"rgb": 25, "audio": 10})
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from features.batches import Select
from heads.base import Head, Shapes, vector_sizes, zero_padding
from heads.dropout import DropoutLinear
from heads.ordered import at_most


class Flatten(Head):
    """places, concat over places and modalities, dropout, linear."""

    def __init__(self, shapes: Shapes, num_classes: int, *, places: int | Mapping[str, int], dropout: float) -> None:
        super().__init__(shapes, num_classes)
        dims = vector_sizes("flatten", shapes)
        self.places = {m: places if isinstance(places, int) else places[m] for m in dims}
        self.classifier = DropoutLinear(sum(self.places[m] * dim for m, dim in dims.items()), num_classes, dropout)

    def train_rows(self, n: int | None, generator: torch.Generator) -> Select:
        """As in testing."""
        return self.test_rows(n)

    def forward(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> Tensor:
        """(B,L,D) a modality -> (B,C)."""
        placed = [self._placed(modality, features, masks) for modality in self.shapes]  # each (B,P*D)
        logits: Tensor = self.classifier(*placed)
        return logits

    def _placed(self, modality: str, features: dict[str, Tensor], masks: dict[str, Tensor]) -> Tensor:
        """(B, P*D)."""
        places = self.places[modality]
        rows, mask = at_most(features[modality], masks[modality], places)
        rows = zero_padding(rows, mask)
        return nn.functional.pad(rows, (0, 0, 0, places - rows.shape[1])).flatten(1)
