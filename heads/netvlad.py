"""NetVLAD and NeXtVLAD: soft assignment of rows to learnt centres, and the sum of what is left of each.

    NetVLAD   a_lk = softmax_k(w_k x_l + b_k),  V_k = sum_l a_lk (x_l - c_k)
              "NetVLAD" (Arandjelovic et al., CVPR 2016), eq. 4; each V_k, then all of V, scaled to length 1

    NeXtVLAD  rows widened, cut into groups x~_lg, each with its gate s_lg = sigmoid(w_g x_l + b_g):
              V_k = sum_l,g s_lg softmax_k(w_gk x_l + b_gk) (x~_lg - c_k)
              "NeXtVLAD" (Lin et al., ECCV workshops 2018), §3.2; each V_k scaled to length 1, batch norm, hidden layer
              with the gates of squeeze and excitation (§3.3)

The order of rows does not matter. A modality without rows and without a mean gives zeros.
Legend: B videos, L rows, D dims, K centres, G groups, W dims of a widened group, H hidden, C classes.

    heads.build("netvlad", {"rgb": (1536,)}, 400, centres=64)
    heads.build("nextvlad", {"rgb": (1024,), "audio": (128,)}, 3862, centres=128, groups=8)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from heads.base import Head, Shapes, vector_sizes, zero_padding
from heads.dropout import Dropout
from heads.ordered import BatchNorm


class _Vlad(nn.Module):
    """One modality's centres."""

    def __init__(self, dim: int, centres: int) -> None:
        super().__init__()
        self.assign = nn.Linear(dim, centres)
        self.centres = nn.Parameter(torch.randn(centres, dim) * dim**-0.5)

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        """(B,L,D), (B,L) -> (B,K*D)."""
        rows = zero_padding(rows, mask)
        weights = self.assign(rows).softmax(dim=2) * mask[..., None]  # (B,L,K)
        return _normal(weights.transpose(1, 2) @ rows - weights.sum(dim=1)[..., None] * self.centres)


class NetVlad(Head):
    """centres, lengths, concat, dropout, linear."""

    def __init__(self, shapes: Shapes, num_classes: int, *, centres: int, dropout: float) -> None:
        super().__init__(shapes, num_classes)
        dims = vector_sizes("netvlad", shapes)
        self.vlads = nn.ModuleDict({m: _Vlad(dim, centres) for m, dim in dims.items()})
        self.dropout = Dropout(dropout)
        self.classifier = nn.Linear(centres * sum(dims.values()), num_classes)

    def forward(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> Tensor:
        """(B,L,D) a modality -> (B,C)."""
        found = [nn.functional.normalize(self.vlads[m](features[m], masks[m]), dim=1) for m in self.shapes]
        logits: Tensor = self.classifier(self.dropout(torch.cat(found, dim=1)))
        return logits


class _NextVlad(nn.Module):
    """One modality's groups and centres."""

    def __init__(self, dim: int, centres: int, groups: int, expansion: int) -> None:
        super().__init__()
        width, self.groups = _width(dim, groups, expansion), groups
        self.widen = nn.Linear(dim, groups * width)
        self.gate, self.assign = nn.Linear(groups * width, groups), nn.Linear(groups * width, groups * centres)
        self.centres = nn.Parameter(torch.randn(centres, width) * width**-0.5)

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        """(B,L,D), (B,L) -> (B,K*W)."""
        wide = self.widen(zero_padding(rows, mask))  # (B,L,G*W)
        weights = self.assign(wide).unflatten(2, (self.groups, -1)).softmax(dim=3)  # (B,L,G,K)
        weights = weights * (self.gate(wide).sigmoid() * mask[..., None])[..., None]
        flat = weights.flatten(1, 2)  # (B,L*G,K)
        sums = flat.transpose(1, 2) @ wide.unflatten(2, (self.groups, -1)).flatten(1, 2)
        return _normal(sums - flat.sum(dim=1)[..., None] * self.centres)


class NextVlad(Head):
    """groups, centres, concat, batch norm, dropout, hidden layer with its gates, linear."""

    def __init__(
        self,
        shapes: Shapes,
        num_classes: int,
        *,
        centres: int,
        groups: int,
        expansion: int,
        hidden: int,
        squeeze: int,
        dropout: float,
    ) -> None:
        super().__init__(shapes, num_classes)
        dims = vector_sizes("nextvlad", shapes)
        self.vlads = nn.ModuleDict({m: _NextVlad(dim, centres, groups, expansion) for m, dim in dims.items()})
        size = centres * sum(_width(dim, groups, expansion) for dim in dims.values())
        self.norm, self.dropout = BatchNorm(size), Dropout(dropout)
        self.hidden, self.norm_hidden = nn.Linear(size, hidden, bias=False), BatchNorm(hidden)
        few = max(1, hidden // squeeze)
        self.squeeze, self.excite = nn.Linear(hidden, few), nn.Linear(few, hidden)
        self.norm_squeeze = BatchNorm(few)
        self.classifier = nn.Linear(hidden, num_classes)

    def forward(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> Tensor:
        """(B,L,D) a modality -> (B,C)."""
        found = torch.cat([self.vlads[m](features[m], masks[m]) for m in self.shapes], dim=1)
        hidden = self.norm_hidden(self.hidden(self.dropout(self.norm(found))))
        gates = self.excite(self.norm_squeeze(self.squeeze(hidden)).relu()).sigmoid()
        logits: Tensor = self.classifier(hidden * gates)
        return logits


def _width(dim: int, groups: int, expansion: int) -> int:
    return -(-expansion * dim // groups)


def _normal(residuals: Tensor) -> Tensor:
    """(B,K,D) -> (B,K*D), every centre's of length 1, or zeros."""
    return nn.functional.normalize(residuals, dim=2).flatten(1)
