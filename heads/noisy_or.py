"""Noisy-or: a class shows in a video if it shows in any of its rows. A head of ours, for things that come and go.

    row      p_lc = sigmoid(s_lc),  s = linear(relu(linear(x_l)))        how sure row l by itself is of class c
    video    1 - P_c = prod_l (1 - p_lc)                                 no row shows it
    logit    log(P_c / (1 - P_c))                                        over the rows of all modalities

Where an average drowns one telling row among many and an attention unit must share a softmax between them, one sure
row settles its class here and the others change nothing. Multiple-instance learning knows the rule (Zhang, Platt and
Viola, NIPS 2005); with ``codes`` (`heads.config`) it names sets of things, each found in rows of its own: Flash-MNIST.

The order of rows does not matter. A video without rows gets the logit of all but no chance.
Legend: B videos, L rows, D dims, H hidden, C classes.

    head = heads.build("noisy_or", {"rgb": (1280,)}, 6, hidden=128)
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.base import Head, Shapes, vector_sizes, zero_padding
from heads.dropout import Dropout

_LEAST: Final = 1e-6  # of -log(1 - P): a chance of one in a million


class NoisyOr(Head):
    """A small network a modality on each row, then the noisy-or over all rows."""

    def __init__(self, shapes: Shapes, num_classes: int, *, hidden: int, dropout: float) -> None:
        super().__init__(shapes, num_classes)
        dims = vector_sizes("noisy_or", shapes)
        self.rows = nn.ModuleDict(
            {
                m: nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), Dropout(dropout), nn.Linear(hidden, num_classes))
                for m, dim in dims.items()
            }
        )
        for network in self.rows.values():
            nn.init.constant_(network[-1].bias, -4.0)  # type: ignore[index]  # at first no row shows anything

    def forward(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> Tensor:
        """(B,L,D) a modality -> (B,C)."""
        absent = torch.stack([self._absent(m, features[m], masks[m]) for m in self.shapes]).sum(dim=0)
        absent = absent.clamp_min(_LEAST)  # (B,C): -log(1 - P)
        return absent + torch.log(-torch.expm1(-absent))

    def _absent(self, modality: str, rows: Tensor, mask: Tensor) -> Tensor:
        """(B,L,D), (B,L) -> (B,C): -log of the chance that no row of the modality shows the class."""
        scores = self.rows[modality](zero_padding(rows, mask)).float()  # (B,L,C)
        return (F.softplus(scores) * mask[..., None]).sum(dim=1)
