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

With ``counts: N`` the head learns weights w_1, ..., w_N for how many rows show a class that is there: one, two, ..., N
or more. The sum is over every choice S of rows; where all w are 1 this is the logit above.

    logit    log sum_{S not empty} w_|S| prod_{l in S} p_lc / (1 - p_lc)

An exclusive row then depends on the others: where a class has its share of rows already, a doubtful row is more likely
of another. One round of belief propagation tells each row the counts of the others (Williams and Lau, "Approximate
evaluation of marginal association probabilities with belief propagation", IEEE TAES 50(4), 2014, where it is one row a
target); with w_0 = 1 and the sums over choices S of rows other than l:

    message  exp(m_lc) = sum_S w_{|S|+1} prod_{i in S} p_ic / (1 - p_ic) / sum_S w_|S| prod_{i in S} p_ic / (1 - p_ic)
    row      p_lc / (1 - p_lc) = exp(s_lc) / (1 + sum_{j != c} exp(s_lj + m_lj))

Flash-MNIST shows a digit once or twice and tells nobody; w finds it.

The order of rows does not matter. A video without rows gets the logit of all but no chance.
Legend: B videos, L rows, D dims, C classes, or parts of them with codes; N as many rows as are counted.

    head = heads.build("noisy_or", {"rgb": (1280,)}, 6, hidden=128)
"""

from __future__ import annotations

from itertools import product
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.base import Head, Shapes, vector_sizes, zero_padding
from heads.dropout import Dropout

_LEAST: Final = 1e-30  # of a chance, and of -log(1 - P)
_NEVER: Final = -1e4  # log odds of a row that is not there
_SUREST: Final = 20.0  # log odds, where rows are counted: products of three, of 10,000 rows, stay within float32


class NoisyOr(Head):
    """A small network a modality on each row, then the noisy-or over all rows. `weights` (N,) are the logs of w."""

    def __init__(
        self, shapes: Shapes, num_classes: int, *, hidden: int, dropout: float, exclusive: bool, counts: int
    ) -> None:
        super().__init__(shapes, num_classes)
        self.exclusive = exclusive
        self.weights = nn.Parameter(torch.zeros(counts)) if counts else None
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
        scores = torch.cat([self.rows[m](zero_padding(features[m], masks[m])).float() for m in self.shapes], dim=1)
        missing = ~torch.cat([masks[m] for m in self.shapes], dim=1)[..., None]
        odds = (_odds(scores) if self.exclusive else scores).masked_fill(missing, _NEVER)
        if self.exclusive and self.weights is not None:
            heard = _messages(odds, self.weights)
            odds = (_odds(scores + heard) - heard).masked_fill(missing, _NEVER)
        absent = F.softplus(odds).sum(dim=1).clamp_min(_LEAST)  # (B,C): -log of the chance that no row shows it
        if self.weights is None:
            return absent + torch.log(-torch.expm1(-absent))
        counted = torch.stack([c[:, -1] for c in _counts(odds, len(self.weights))[1:]], dim=-1)  # (B,C,N)
        return absent + (counted * self.weights.exp()).sum(dim=-1).clamp_min(_LEAST).log()


def _messages(odds: Tensor, weights: Tensor) -> Tensor:
    """(B,L,C), (N,) -> (B,L,C): m_lc, of the counts of all rows but l."""
    most = len(weights)
    before = [_earlier(c, 0.0 if n else 1.0) for n, c in enumerate(_counts(odds, most))]
    after = [_earlier(c, 0.0 if n else 1.0).flip(1) for n, c in enumerate(_counts(odds.flip(1), most))]
    w = torch.cat([torch.ones_like(weights[:1]), weights.exp()])
    alone, joined = torch.zeros_like(odds), torch.zeros_like(odds)
    for i, j in product(range(most + 1), repeat=2):
        others = before[i] * after[j]
        alone = alone + others * w[min(i + j, most)]
        joined = joined + others * w[min(i + j + 1, most)]
    return joined.log() - alone.log()


def _counts(odds: Tensor, most: int) -> list[Tensor]:
    """(B,L,C) -> N + 1 of (B,L,C): the chance that 0, 1, ..., `most` or more of the rows up to each show the class."""
    odds = odds.clamp_max(_SUREST)
    chance, none = odds.sigmoid(), torch.exp(-F.softplus(odds).cumsum(dim=1))
    ways, found = torch.ones_like(odds), [none]  # sums of products of odds, over each choice of rows
    for n in range(1, most):
        ways = (odds.exp() * (_earlier(ways, 0.0) if n > 1 else ways)).cumsum(dim=1)
        found.append(none * ways)
    return [*found, (chance * _earlier(found[-1], 1.0 if most == 1 else 0.0)).cumsum(dim=1)]


def _earlier(values: Tensor, first: float) -> Tensor:
    """(B,L,C) -> (B,L,C): each row's from the row before it."""
    return F.pad(values[:, :-1], (0, 0, 1, 0), value=first)


def _odds(scores: Tensor) -> Tensor:
    """(B,L,C) -> log p / (1 - p), for p the softmax over classes and none. What is left beside the most probable class,
    which may be next to nothing, is summed from the others."""
    none = torch.zeros_like(scores[..., :1])
    most = torch.arange(scores.shape[-1], device=scores.device) == scores.argmax(dim=-1, keepdim=True)
    whole = torch.cat([scores, none], dim=-1).logsumexp(dim=-1, keepdim=True)
    others = torch.cat([scores.masked_fill(most, -torch.inf), none], dim=-1).logsumexp(dim=-1, keepdim=True)
    rest = torch.log1p(-(scores - whole).exp().masked_fill(most, 0))  # of a class that has half at most
    return scores - torch.where(most, others, whole + rest)
