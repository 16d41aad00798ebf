"""Noisy-or: a class shows in a video if it shows in any of its rows. A head of ours, for things that come and go.

    row      p_lc = sigmoid(s_lc),  s = linear(relu(linear(x_l)))        how sure row l by itself is of class c
    video    1 - P_c = prod_l (1 - p_lc)                                 no row shows it
    logit    log(P_c / (1 - P_c))                                        over the rows of all modalities

Where an average drowns one telling row among many and an attention unit must share a softmax between them, one sure
row settles its class here and the others change nothing. Multiple-instance learning knows the rule (Zhang, Platt and
Viola, NIPS 2005); with ``codes`` (`heads.config`) it names sets of things, each found in rows of its own: Flash-MNIST.

So a row speaks of each class apart, and one that looks like a 4 may count for a 9 as well. With ``exclusive`` a row
shows one class, or part of a code, or none, and what it gives to one it takes from the others:

    row      p_lc = exp(s_lc) / (1 + sum_j exp(s_lj))

The order of rows does not matter. A video without rows gets the logit of all but no chance.
Legend: B videos, L rows, D dims, C classes, or parts of them with codes.

    head = heads.build("noisy_or", {"rgb": (1280,)}, 6, hidden=128)
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.base import Head, Shapes, vector_sizes, zero_padding
from heads.dropout import Dropout

_LEAST: Final = 1e-30  # of -log(1 - P)


class NoisyOr(Head):
    """A small network a modality on each row, then the noisy-or over all rows."""

    def __init__(self, shapes: Shapes, num_classes: int, *, hidden: int, dropout: float, exclusive: bool) -> None:
        super().__init__(shapes, num_classes)
        self.exclusive = exclusive
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
        scores: Tensor = self.rows[modality](zero_padding(rows, mask)).float()
        odds = _odds(scores) if self.exclusive else scores
        return (F.softplus(odds) * mask[..., None]).sum(dim=1)


def _odds(scores: Tensor) -> Tensor:
    """(B,L,C) -> log p / (1 - p), for p the softmax over classes and none. What is left beside the most probable class,
    which may be next to nothing, is summed from the others."""
    none = torch.zeros_like(scores[..., :1])
    most = torch.arange(scores.shape[-1], device=scores.device) == scores.argmax(dim=-1, keepdim=True)
    whole = torch.cat([scores, none], dim=-1).logsumexp(dim=-1, keepdim=True)
    others = torch.cat([scores.masked_fill(most, -torch.inf), none], dim=-1).logsumexp(dim=-1, keepdim=True)
    rest = torch.log1p(-(scores - whole).exp().masked_fill(most, 0))  # of a class that has half at most
    return scores - torch.where(most, others, whole + rest)
