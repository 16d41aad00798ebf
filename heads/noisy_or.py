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

Such rows want ``codes`` where a class is a set of things: none of them shows a whole one.

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

from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.base import Head, Shapes, vector_sizes, zero_padding
from heads.dropout import Dropout

_LEAST: Final = 1e-30  # of a chance, and of -log(1 - P)
_NEVER: Final = -1e4  # log odds of a row that is not there


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
        if self.weights is not None:
            return self._counted(scores.transpose(0, 1).contiguous(), missing.transpose(0, 1), self.weights.exp())
        odds = (_odds(scores) if self.exclusive else scores).masked_fill(missing, _NEVER)
        absent = F.softplus(odds).sum(dim=1).clamp_min(_LEAST)  # (B,C): -log of the chance that no row shows it
        return absent + torch.log(-torch.expm1(-absent))

    def _counted(self, scores: Tensor, missing: Tensor, w: Tensor) -> Tensor:
        """(L,B,C), (L,B,1), (N,) -> (B,C)."""
        odds = (_odds(scores) if self.exclusive else scores).masked_fill(missing, _NEVER)
        graph = torch.compiler.is_compiling()  # which has no loop over as many rows as there will be
        if self.exclusive:
            heard = _messages_at_once(odds, w) if graph else _messages(odds, w)
            odds = (_odds(scores + heard) - heard).masked_fill(missing, _NEVER)
        if graph:
            return F.softplus(odds).sum(dim=0) + _counted_at_once(odds, w).clamp_min(_LEAST).log()
        counted: Tensor = _Counted.apply(odds.sigmoid(), (-odds).sigmoid(), F.pad(w, (1, 0)))
        return F.softplus(odds).sum(dim=0) + counted.clamp_min(_LEAST).log()


def _messages(odds: Tensor, w: Tensor) -> Tensor:
    """(L,B,C), (N,) -> (L,B,C): m_lc, of the counts of all rows but l."""
    found: tuple[Tensor, Tensor] = _Others.apply(odds.sigmoid(), (-odds).sigmoid(), F.pad(w, (1, 0), value=1.0))
    alone, joined = found
    return (joined / alone).log()


def _counted_at_once(odds: Tensor, w: Tensor) -> Tensor:
    """(L,B,C), (N,) -> (B,C): what `_Counted` gives, without a loop over rows, in memory of L times as much."""
    places = torch.arange(odds.shape[0] + 1, device=odds.device)
    chances = _chances(odds, places[:, None] > places[None, :-1], len(w))
    return sum((w[n] * one[-1].exp() for n, one in enumerate(chances[1:])), torch.zeros_like(odds[0]))


def _messages_at_once(odds: Tensor, w: Tensor) -> Tensor:
    """`_messages` in the same way: of the counts before a row and of those behind it."""
    w = F.pad(w, (1, 0), value=1.0)
    places, most = torch.arange(odds.shape[0], device=odds.device), len(w) - 1
    before = _chances(odds, places[:, None] > places, most)
    after = _chances(odds, places[:, None] < places, most)
    alone, joined = torch.zeros_like(odds), torch.zeros_like(odds)
    for n, one in enumerate(before):
        for m, other in enumerate(after):
            both = (one + other).exp()
            alone = alone + w[min(n + m, most)] * both
            joined = joined + w[min(n + m + 1, most)] * both
    return (joined / alone).log()


def _chances(odds: Tensor, earlier: Tensor, most: int) -> list[Tensor]:
    """(L,B,C), (M,L) -> N+1 of (M,B,C): the log of the chance that n of the `earlier` rows show the class, at last N or
    more. Row l is preceded by those that are earlier than number l: of each choice of n rows the last is added to n - 1
    before it."""
    log_p, log_q = F.logsigmoid(odds), F.logsigmoid(-odds)
    own = odds.shape[0]

    def over(rows: Tensor) -> Tensor:
        return torch.logsumexp(rows.masked_fill(~earlier[:, :, None, None], _NEVER), dim=1)

    none = torch.einsum("ml,lbc->mbc", earlier.to(odds.dtype), log_q)
    found, ways = [none], torch.zeros_like(none)
    for _ in range(most - 1):
        ways = over(odds + ways[:own])
        found.append(none + ways)
    return [*found, over(log_p + found[-1][:own])]


class _Counted(torch.autograd.Function):
    """p, q = 1 - p (L,B,C), w (N+1,) -> (B,C): the mean of w_n, n rows showing the class. By p_l and q_l it grows as
    with `_Others`."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, q: Tensor, w: Tensor) -> Tensor:
        before, after = _walks(p, q, w)
        ctx.save_for_backward(*_others(before, after), before[-1])
        return (before[-1] * w[:, None, None]).sum(dim=0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        alone, joined, counts = ctx.saved_tensors
        return joined * grads[0], alone * grads[0], (counts * grads[0]).sum(dim=(1, 2))


class _Others(torch.autograd.Function):
    """p, q = 1 - p (L,B,C), w (N+1,) -> 2 of (L,B,C): the means of w_n and w_{n+1}, n other rows showing the class."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, q: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        before, after = _walks(p, q, w)
        ctx.save_for_backward(p, q, *before, *after)
        return _others(before, after)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        p, q, *walks = ctx.saved_tensors
        rows, before, after = range(len(p)), walks[: len(p)], walks[len(p) + 2 :]
        dp, dq, (dalone, djoined) = torch.empty_like(p), torch.empty_like(q), grads
        d = torch.zeros_like(before[0])  # by the counts before a row, from the last on
        for row in reversed(rows):
            dq[row], dp[row] = _means(before[row], d)
            d = _fewer(d, p[row], q[row]) + _fewer(after[row], djoined[row], dalone[row])
        d.zero_()  # by the means after it, from the first on
        for row in rows:
            by_q, by_p = _means(d, after[row])
            dq[row], dp[row] = dq[row] + by_q, dp[row] + by_p
            d = _more(d, p[row], q[row]) + _more(before[row], djoined[row], dalone[row])
        return dp, dq, d.sum(dim=(1, 2))


def _walks(p: Tensor, q: Tensor, w: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """2 x L + 1 of (N+1,B,C), from before the first row to behind the last: the chances that n rows so far show the
    class, and the mean of w over what the rows to come show, where n did so far."""
    before = [F.pad(torch.ones_like(p[:1]), (0, 0, 0, 0, 0, len(w) - 1))]
    after = [w[:, None, None].expand_as(before[0])]
    for row in range(len(p)):
        before.append(_more(before[-1], p[row], q[row]))
        after.append(_fewer(after[-1], p[-1 - row], q[-1 - row]))
    return before, after[::-1]


def _others(before: list[Tensor], after: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Both walks -> 2 of (L,B,C): the means of w_n and w_{n+1} over the counts of all rows but each."""
    pairs = [_means(counts, w) for counts, w in zip(before, after[1:], strict=False)]
    return torch.stack([alone for alone, _ in pairs]), torch.stack([joined for _, joined in pairs])


def _means(counts: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """2 of (N+1,B,C) -> 2 of (B,C): the sum of w_n over the chances of n, and that of w_{n+1}."""
    joined = (counts[:-1] * w[1:]).sum(dim=0)
    return (counts * w).sum(dim=0), joined.addcmul_(counts[-1], w[-1])


def _more(counts: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """(N+1,B,C), (B,C) -> (N+1,B,C): with one more row; N or more stay that many."""
    found = counts * q
    found[1:].addcmul_(counts[:-1], p)
    found[-1].addcmul_(counts[-1], p)
    return found


def _fewer(w: Tensor, p: Tensor, q: Tensor) -> Tensor:
    """(N+1,B,C), (B,C) -> (N+1,B,C): the mean of w where one row less is counted, which turns `_more` round."""
    found = w * q
    found[:-1].addcmul_(w[1:], p)
    found[-1].addcmul_(w[-1], p)
    return found


def _odds(scores: Tensor) -> Tensor:
    """(*,C) -> log p / (1 - p), for p the softmax over classes and none. What is left beside the most probable class,
    which may be next to nothing, is summed from the others."""
    top = scores.argmax(dim=-1, keepdim=True)
    others = scores.scatter(-1, top, -torch.inf)
    least = others.detach().amax(dim=-1, keepdim=True).clamp_min(0)
    shares = (others - least).exp()
    rest = least + (shares.sum(dim=-1, keepdim=True) + (-least).exp()).log()
    whole = torch.logaddexp(scores.gather(-1, top), rest)
    return scores - (whole + torch.log1p(-shares * (least - whole).exp())).scatter(-1, top, rest)
