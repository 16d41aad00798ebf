"""Attention Clusters: N attention units look at a set of local features, each its own way, set apart by shifting.

"Attention Clusters: Purely Attention Based Local Feature Integration for Video Classification" (CVPR 2018), §3.

    unit k       a_k = softmax over rows of its scores,  m_k = sum_l a_kl x_l
    shifting     u_k = alpha_k m_k + beta_k,  v_k = u_k / (sqrt(N) |u_k|)            without shifting v_k = m_k
    video        dropout(concat of v_k over units and modalities), linear

The order of rows does not matter. A modality without rows and without a mean (`missing: none`) gives a
zero cluster vector, whatever its shift.
Legend: B videos, L rows, D dims, N units, H hidden, C classes.

    head = heads.build("attention_cluster", {"rgb": (1280,)}, 6, clusters=64, weighting="fc1", shift=True)
    head.attention(rows, masks)["rgb"]                          # (B,N,L), each row of it sums to 1
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from heads.base import Head, Shapes, surely, vector_sizes, zero_padding
from heads.dropout import DropoutLinear
from heads.memory import Kept, parts

_HIDDEN: Final = 10  # H of FC2, §3.2
_EPSILON: Final = 1e-12  # the paper divides by the bare norm; this only guards zero
_MANY: Final = 1 << 20  # numbers of all units of a batch


class AverageWeights(nn.Module):
    """Every row weighs the same, in every unit."""

    def __init__(self, dim: int, units: int) -> None:
        super().__init__()
        self.units = units

    def forward(self, rows: Tensor) -> Tensor:
        """(B,L,D) -> scores (B,N,L)."""
        return rows.new_zeros(rows.shape[0], self.units, rows.shape[1])


class Fc1Weights(nn.Linear):
    """w_k x + b_k, with the initial values of the authors' Conv1d.

    The bias is one number a unit (one a row, as printed, would tie the head to one L); it cancels in the softmax and is
    kept because the paper counts it.
    """

    def forward(self, rows: Tensor) -> Tensor:
        """(B,L,D) -> scores (B,N,L)."""
        return super().forward(rows).transpose(1, 2)


class Fc2Weights(nn.Module):
    """w2_k tanh(W1_k x + b1_k) + b2_k, a small network of its own for each unit; initial values as FC1's."""

    def __init__(self, dim: int, units: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, units * _HIDDEN)
        bound = _HIDDEN**-0.5
        self.score = nn.Parameter(torch.empty(units, _HIDDEN).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(units).uniform_(-bound, bound))

    def forward(self, rows: Tensor) -> Tensor:
        """(B,L,D) -> scores (B,N,L)."""
        hidden = self.hidden(rows).tanh().unflatten(-1, self.score.shape)  # (B,L,N,H)
        scores: Tensor = (hidden * self.score).sum(dim=-1) + self.bias  # (B,L,N)
        return scores.transpose(1, 2)


_WEIGHTS: Final = {"average": AverageWeights, "fc1": Fc1Weights, "fc2": Fc2Weights}


class Shift(nn.Module):
    """u = alpha m + beta, scaled to length 1/sqrt(N): units end at different points although they see the same set."""

    def __init__(self, units: int) -> None:
        super().__init__()
        std = units**-0.25  # Glorot with both fans sqrt(N), as the authors' code
        self.alpha = nn.Parameter(torch.randn(units) * std)
        self.beta = nn.Parameter(torch.randn(units) * std)

    def forward(self, means: Tensor) -> Tensor:
        """(B,N,D) -> (B,N,D)."""
        shifted = torch.addcmul(self.beta[:, None], self.alpha[:, None], means)
        length = torch.linalg.vector_norm(shifted, dim=2, keepdim=True).clamp_min(_EPSILON)
        scaled: Tensor = shifted * (len(self.alpha) ** -0.5 / length)
        return scaled


class Cluster(nn.Module):
    """The N units of one modality."""

    def __init__(self, units: int, dim: int, weighting: str, shift: bool) -> None:
        super().__init__()
        self.weights = _WEIGHTS[weighting](dim, units)
        self.shift = Shift(units) if shift else nn.Identity()
        self.kept = Kept()

    def attention(self, rows: Tensor, mask: Tensor) -> Tensor:
        """(B,L,D), (B,L) -> (B,N,L): weights over the rows that are there; zeros where there is none."""
        scores: Tensor = self.weights(rows)
        scores = scores.masked_fill(~mask[:, None], torch.finfo(scores.dtype).min)
        return scores.softmax(dim=2) * mask[:, None]

    def forward(self, rows: Tensor, mask: Tensor) -> Tensor:
        """(B,L,D), (B,L) -> (B, N*D)."""
        rows = zero_padding(rows, mask)
        units = self._units(self.attention(rows, mask), rows)  # (B,N,D)
        some = mask.any(dim=1)
        return (units if surely(some) else units * some[:, None, None]).flatten(1)

    def _units(self, attention: Tensor, rows: Tensor) -> Tensor:
        """(B,N,L), (B,L,D) -> (B,N,D); on a CPU a step with many of them is trained in memory that is kept."""
        numbers = attention.shape[0] * attention.shape[1] * rows.shape[2]
        kept = self.training and rows.device.type == "cpu" and numbers >= _MANY and not rows.requires_grad
        if kept and isinstance(self.shift, Shift) and torch.is_grad_enabled():
            units: Tensor = _Shifted.apply(attention, rows, self.shift.alpha, self.shift.beta, self.kept)
            return units
        shifted: Tensor = self.shift(attention @ rows)
        return shifted


class _Shifted(torch.autograd.Function):
    """Means by attention, then `Shift`, of as many videos at a time as a cache holds: with s = 1 / (sqrt(N) |u|) and
    v = s u, the gradient of u is s (dv - N (v dv) v), and what the others want of it are its products with the rows,
    for a mean is a sum of them, and with ones."""

    @staticmethod
    def forward(ctx: Any, attention: Tensor, rows: Tensor, alpha: Tensor, beta: Tensor, kept: Kept) -> Tensor:
        weights, alpha, beta = attention.detach().float(), alpha.detach()[:, None], beta.detach()[:, None]
        ctx.number, units = kept.forward(), kept("units", (*weights.shape[:2], rows.shape[2]))
        scale = weights.new_empty(*weights.shape[:2], 1)
        with torch.autocast("cpu", enabled=False):
            for part in parts(units):
                u = torch.bmm(weights[part], rows[part], out=units[part]).mul_(alpha).add_(beta)
                length = torch.linalg.vector_norm(u, dim=2, keepdim=True).clamp_min_(_EPSILON)
                u.mul_(torch.mul(length.reciprocal_(), len(alpha) ** -0.5, out=scale[part]))
        ctx.parts, ctx.dtype = (weights, rows, units, alpha, scale, kept), attention.dtype
        return units.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weights, rows, units, alpha, scale, kept = ctx.parts
        kept.backward(ctx.number)
        with_rows, with_ones = torch.empty_like(weights), torch.empty_like(scale)
        for part in parts(units):
            v, dv = units[part], grads[0][part]
            du, work = (kept(name, tuple(v.shape)) for name in ("du", "work"))
            dot = torch.mul(v, dv, out=work).sum(dim=2, keepdim=True).mul_(len(alpha))
            torch.sub(dv, torch.mul(v, dot, out=work), out=du).mul_(scale[part])
            torch.bmm(du, rows[part].transpose(1, 2), out=with_rows[part])
            torch.sum(du, dim=2, keepdim=True, out=with_ones[part])
        dalpha, dbeta = (weights * with_rows).sum(dim=(0, 2)), with_ones.sum(dim=(0, 2))
        return (alpha * with_rows).to(ctx.dtype), None, dalpha, dbeta, None


class AttentionCluster(Head):
    """A cluster for each modality, concat, dropout, linear."""

    def __init__(
        self,
        shapes: Shapes,
        num_classes: int,
        *,
        clusters: int | Mapping[str, int],
        weighting: str,
        shift: bool,
        dropout: float,
    ) -> None:
        super().__init__(shapes, num_classes)
        dims = vector_sizes("attention_cluster", shapes)
        units = {m: clusters if isinstance(clusters, int) else clusters[m] for m in dims}
        self.clusters = nn.ModuleDict({m: Cluster(units[m], dim, weighting, shift) for m, dim in dims.items()})
        self.classifier = DropoutLinear(sum(units[m] * dim for m, dim in dims.items()), num_classes, dropout)

    def forward(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> Tensor:
        """(B,L,D) a modality -> (B,C)."""
        vectors = [self.clusters[m](features[m], masks[m]) for m in self.shapes]  # each (B, N*D)
        logits: Tensor = self.classifier(*vectors)
        return logits

    def attention(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights (B,N,L) that each unit gives to each row, by modality; zeros where that is missing."""
        return {
            m: cast(Cluster, cluster).attention(zero_padding(features[m], masks[m]), masks[m])
            for m, cluster in self.clusters.items()
        }
