"""Noisy-or: a class shows in a video if it shows in any of its rows. A head of ours, for things that come and go.

    row      p_lc = sigmoid(s_lc),  s = linear(relu(linear(x_l)))        how sure row l by itself is of class c
    video    1 - P_c = prod_l (1 - p_lc)                                 no row shows it
    logit    log(P_c / (1 - P_c))                                        over the rows of all modalities

Where an average drowns one telling row among many and an attention unit must share a softmax between them, one sure
row settles its class here and the others change nothing. Multiple-instance learning knows the rule (Zhang, Platt and
Viola, NIPS 2005); with ``codes`` (`heads.config`) it names sets of things, each found in rows of its own: Flash-MNIST.

Those parts come independently: a row that looks like a 4 may count for a 9 as well. With ``exclusive`` a row shows one
part or none, and one look-alike cannot be two things:

    row      q_lk = exp(s_lk) / (1 + sum_j exp(s_lj)),  q_l0 = 1 / (1 + sum_j exp(s_lj))    part k; none of them
    video    within_T = prod_l (q_l0 + sum_{k in T} q_lk)           no row shows anything but parts of the set T
    class    log sum_{T in S} (-1)^{|S - T|} within_T               the rows show all of its set S, and nothing else
    logit    class + sum_{k in S} b_k                               b_k: the odds of part k in a video, before its rows

by inclusion and exclusion over the subsets T of S; for classes of one part, b apart, it is the noisy-or above.

The order of rows does not matter. A video without rows gets the logit of all but no chance.
Legend: B videos, L rows, D dims, H hidden, C classes, K parts, T sets of parts.

    head = heads.build("noisy_or", {"rgb": (1280,)}, 6, hidden=128)
"""

from __future__ import annotations

import itertools
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from features.errors import UserError
from heads.base import Head, Shapes, vector_sizes, zero_padding
from heads.dropout import Dropout

_LEAST: Final = 1e-30  # of -log(1 - P)
_ROUNDED: Final = 1e-12  # of within_S: below, a sum of a thousand such terms in float64 is rounding
_ROUGH: Final = (-16.0, -12.0)  # log of a share of within_S: from one to the other the exact sum takes over
_TINY: Final = 1e-300
_HIGHEST: Final = 300.0  # score whose exp has room in float64, rows multiplied as sums of logarithms
_MOST_SETS: Final = 4096  # of parts, for (B,L,T) of them are in memory


class NoisyOr(Head):
    """A small network a modality on each row, then the noisy-or over all rows."""

    def __init__(self, shapes: Shapes, num_classes: int, *, hidden: int, dropout: float, exclusive: bool) -> None:
        super().__init__(shapes, num_classes)
        self.exclusive = self.in_doubles = exclusive
        dims = vector_sizes("noisy_or", shapes)
        self.rows = nn.ModuleDict(
            {
                m: nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), Dropout(dropout), nn.Linear(hidden, num_classes))
                for m, dim in dims.items()
            }
        )
        for network in self.rows.values():
            nn.init.constant_(network[-1].bias, -4.0)  # type: ignore[index]  # at first no row shows anything

    def decode(self, codes: npt.NDArray[np.float32]) -> None:
        """As any head's, or, exclusive, with the sets that rows may show. Raises `UserError` for too many of those."""
        if not self.exclusive:
            super().decode(codes)
            return
        for name, table in _subsets(codes).items():
            self.register_buffer(name, torch.from_numpy(table), persistent=False)  # follow from the codes
        self.odds = nn.Parameter(torch.zeros(codes.shape[1]))

    def forward(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> Tensor:
        """(B,L,D) a modality -> (B,C)."""
        if self.exclusive:
            return self._sets(torch.stack([self._within(m, features[m], masks[m]) for m in self.shapes]).sum(dim=0))
        absent = torch.stack([self._absent(m, features[m], masks[m]) for m in self.shapes]).sum(dim=0)
        absent = absent.clamp_min(_LEAST)  # (B,C): -log(1 - P)
        return absent + torch.log(-torch.expm1(-absent))

    def _scores(self, modality: str, rows: Tensor, mask: Tensor) -> Tensor:
        """(B,L,D), (B,L) -> (B,L,C), or (B,L,K) with codes."""
        scores: Tensor = self.rows[modality](zero_padding(rows, mask)).float()
        return scores

    def _absent(self, modality: str, rows: Tensor, mask: Tensor) -> Tensor:
        """(B,L,D), (B,L) -> (B,C): -log of the chance that no row of the modality shows the class."""
        return (F.softplus(self._scores(modality, rows, mask)) * mask[..., None]).sum(dim=1)

    def _within(self, modality: str, rows: Tensor, mask: Tensor) -> Tensor:
        """(B,L,D), (B,L) -> (B,T) float64: log of within_T, but for a sum over all parts that all T share."""
        shown = self._scores(modality, rows, mask).double().clamp_max(_HIGHEST).exp() * mask[..., None]  # (B,L,K)
        return (shown @ self.get_buffer("within").T).log1p().sum(dim=1)

    def _sets(self, within: Tensor) -> Tensor:
        """(B,T) -> (B,C). A sum of signed terms is exact but for `_ROUNDED` of within_S; where the parts of S are so
        improbable that this would show, they are taken as independent of each other, which needs no such sum."""
        within = within.T.contiguous()  # rows of it are gathered
        own, less = self.get_buffer("own"), self.get_buffer("less")
        whole = within.index_select(0, own)  # (C,B)
        shown = whole[:, None] - within.index_select(0, less.flatten()).view(*less.shape, -1)  # (C,P,B)
        parts = torch.log(-torch.expm1(-shown.clamp_min(_ROUNDED).float()))  # of within_S, how much has the part
        parts = torch.where((less != own[:, None])[..., None], parts, 0).sum(dim=1)  # (C,B)
        most = within.detach().amax(dim=0)
        chances = (within - most).exp()
        exactly = self.get_buffer("signs") @ chances
        exactly = torch.maximum(exactly, _ROUNDED * chances.index_select(0, own)).clamp_min(_TINY).log() + most - whole
        sure = ((parts - _ROUGH[0]) / (_ROUGH[1] - _ROUGH[0])).clamp(0, 1)
        codes = self.get_buffer("within").index_select(0, own).float()  # (C,K)
        logits = whole.float() + torch.lerp(parts, exactly.float(), sure)
        return logits.T + (codes * self.odds).sum(dim=1)


def _subsets(codes: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
    """(C,K) -> all subsets of the classes' sets as (T,K); the sign of each in each class (C,T), or 0; the class's own
    set S among them (C,); and S without each of its parts (C,P), filled up with S itself."""
    sets = [tuple(np.flatnonzero(code).tolist()) for code in codes]
    largest = max(map(len, sets))
    found: dict[tuple[int, ...], int] = {}
    if 2**largest <= _MOST_SETS:
        for parts in sets:
            for size in range(len(parts) + 1):
                for subset in itertools.combinations(parts, size):
                    found.setdefault(subset, len(found))
    if not 0 < len(found) <= _MOST_SETS:
        raise UserError(
            "classes of too many parts for a head that is exclusive",
            where="head noisy_or",
            expected=f"at most {_MOST_SETS} subsets of the classes' sets",
            got=f"{len(found) or 2**largest}",
            fix="leave out `exclusive`",
        )
    within = np.array([[part in subset for part in range(codes.shape[1])] for subset in found], dtype=np.float64)
    sizes = within.sum(axis=1)
    inside = codes @ within.T == sizes  # (C,T)
    signs = np.where(inside, (-1.0) ** (codes.sum(axis=1)[:, None] - sizes), 0.0)
    own = np.array([found[parts] for parts in sets])
    less = np.repeat(own[:, None], max(largest, 1), axis=1)
    for row, parts in zip(less, sets, strict=True):
        row[: len(parts)] = [found[(*parts[:k], *parts[k + 1 :])] for k in range(len(parts))]
    return {"within": within, "signs": signs, "own": own, "less": less}
