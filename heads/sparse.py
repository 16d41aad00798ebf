"""A linear layer behind heavy dropout, on a CPU: what is dropped is neither read nor multiplied.

Where nine inputs of ten are dropped (Attention Clusters, CVPR 2018, §4.2), a product of matrices spends nine tenths of
its time on zeros. Here each video goes over the rows of W^T that it keeps, in blocks of columns whose weights a core's
cache holds; on the way back each column goes over the videos that kept it. All of it is fp32.

The columns are cut into slices. A slice draws its own chances, 64 places at a time and exact to 2^-16, and adds up its
own outputs, so the numbers depend neither on how many threads there are nor on which of them takes a slice.
Legend: B videos, D inputs, C outputs.

    sparse = Sparse()
    y = sparse.forward(6554, [x], weight)       # one of ten is kept: (B,D), weight (D,C) -> (B,C), not yet scaled
    (dx,) = sparse.backward(dy, weight, grad)   # (B,C) -> (B,D); grad (D,C) is written
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from features.machine_code import compiled
from heads.memory import Kept

_BLOCK: Final = 256  # columns; with 400 classes their weights are 400 kB
_SLICE: Final = 32 * _BLOCK
_WORD: Final = 64  # columns drawn together
_LEVELS: Final = 16  # bits of a rate

_ONE, _STEP = np.uint64(1), np.uint64(0x9E3779B97F4A7C15)
_BRUIJN = np.uint64(0x03F79D71B4CB0A89)  # each of its 64 windows of six bits is another: they tell a bit's place
_PLACE = np.argsort([int(np.uint64(_BRUIJN << np.uint64(k)) >> np.uint64(58)) for k in range(64)]).astype(np.uint8)


class _Slice(NamedTuple):
    """Columns of one input."""

    number: int
    input: int
    first: int  # of the input
    at: int  # of all inputs side by side
    columns: int


class Sparse:
    """A product and its way back, and what lasts from the one to the other: which inputs are kept, and their values."""

    def __init__(self) -> None:
        self.kept, self.passes = Kept(), 0
        self.sizes: list[int] = []
        self.slices: list[_Slice] = []

    def forward(self, levels: int, inputs: Sequence[Tensor], weight: Tensor) -> Tensor:
        """x (B,D1), (B,D2), ... and weight (D1+D2+...,C) -> what is kept of x times weight (B,C) float32. Each input is
        kept with a chance of `levels` / 2^16, below one; torch's global generator seeds what is drawn."""
        self.passes += 1
        videos, self.sizes = len(inputs[0]), [x.shape[1] for x in inputs]
        self.slices = _slices(self.sizes)
        seeds = torch.randint(-(2**63), 2**63 - 1, (len(self.slices),)).numpy().view(np.uint64)
        outputs = self.kept("outputs", (len(self.slices), videos, weight.shape[1]))
        columns, values, ends = self.lists(videos)
        arrays, matrix = [_array(x) for x in inputs], _array(weight)

        def one(s: _Slice) -> None:
            sums = outputs[s.number].numpy()
            sums.fill(0)  # torch would have each of these threads make a team of its own
            x, own = arrays[s.input][:, s.first : s.first + s.columns], matrix[s.at : s.at + s.columns]
            _forward(
                seeds[s.number], np.uint64(levels), x, own, columns[s.number], values[s.number], ends[s.number], sums
            )

        _each(one, self.slices)
        return outputs[: len(self.slices)].sum(dim=0)

    def backward(self, dy: Tensor, weight: Tensor, grad: Tensor, *, needed: bool = True) -> tuple[Tensor, ...]:
        """Of the last forward pass, dy (B,C) -> the gradients of each x, zero where it was dropped, none unless
        `needed`; that of weight is written to `grad` (D,C)."""
        rows = len(dy) if needed else 0
        found = [self.kept(f"back {k}", (rows, size)) for k, size in enumerate(self.sizes)]
        columns, values, ends = self.lists(len(dy))
        arrays, matrix, own_grad, given = [_array(x) for x in found], _array(weight), _array(grad), _array(dy)

        def one(s: _Slice) -> None:
            dx, part = arrays[s.input][:, s.first : s.first + s.columns], slice(s.at, s.at + s.columns)
            kept = columns[s.number], values[s.number], ends[s.number]
            _backward(given, *kept, matrix[part], own_grad[part], dx)

        _each(one, self.slices)
        return tuple(found) if needed else ()

    def lists(self, videos: int) -> tuple[Any, Any, Any]:
        """By slice: the kept columns within their blocks and the values there, block after block and video after video,
        and where each of these ends. There is room for all of them; memory is taken by those that are kept."""
        count = len(self.slices)
        columns = self.kept("columns", (count, videos * _SLICE), torch.uint8)
        values = self.kept("values", (count, videos * _SLICE))
        ends = self.kept("ends", (count, _SLICE // _BLOCK, videos), torch.int32)
        return columns.numpy(), values.numpy(), ends.numpy()


def _slices(sizes: Sequence[int]) -> list[_Slice]:
    found: list[_Slice] = []
    at = 0
    for number, size in enumerate(sizes):
        for first in range(0, size, _SLICE):
            found.append(_Slice(len(found), number, first, at + first, min(_SLICE, size - first)))
        at += size
    return found


def _array(x: Tensor) -> Any:
    return x.detach().float().contiguous().numpy()


def _each(work: Callable[[_Slice], None], slices: Sequence[_Slice]) -> None:
    """`work` on each, in as many threads as torch has; they hold no lock of Python's."""
    threads = min(torch.get_num_threads(), len(slices))
    if threads == 1:
        for s in slices:
            work(s)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, slices):
            pass


@compiled
def _drawn(state: Any, levels: Any, count: int, out: Any) -> Any:
    """Write to `out` which of `count` columns are kept, in order; how many, and the next state of the generator
    (splitmix64). A bit of a word is kept with a chance of levels / 2^16: from the last binary digit of the chance on, a
    random bit is joined by `or` for a one and by `and` for a zero."""
    n = np.uint64(0)
    for word in range(0, count, _WORD):
        bits, digits = np.uint64(0), levels
        for _ in range(_LEVELS):
            state += _STEP
            z = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            z ^= z >> np.uint64(31)
            bits = (bits | z) if digits & _ONE else (bits & z)
            digits >>= _ONE
        if count - word < _WORD:
            bits &= (_ONE << np.uint64(count - word)) - _ONE
        while bits:
            rest = bits & (bits - _ONE)
            out[n] = word + _PLACE[((bits ^ rest) * _BRUIJN) >> np.uint64(58)]
            n += _ONE
            bits = rest
    return n, state


@compiled
def _forward(seed: Any, levels: Any, x: Any, weight: Any, columns: Any, values: Any, ends: Any, sums: Any) -> None:
    """A slice of x (B,d) and weight (d,C): `sums` (B,C) gets what is kept, four columns at a time."""
    size, outputs = weight.shape
    state, at = seed, np.uint64(0)
    for block in range(-(-size // _BLOCK)):
        first = block * _BLOCK
        count = min(_BLOCK, size - first)
        own = weight[first : first + count]
        for b in range(x.shape[0]):
            kept, value, row, y = columns[at:], values[at:], x[b, first : first + count], sums[b]
            n, state = _drawn(state, levels, count, kept)
            for k in range(n):
                value[k] = row[kept[k]]
            whole = n - n % np.uint64(4)
            for k in range(np.uint64(0), whole, np.uint64(4)):
                s0, s1, s2, s3 = value[k], value[k + 1], value[k + 2], value[k + 3]
                w0, w1, w2, w3 = own[kept[k]], own[kept[k + 1]], own[kept[k + 2]], own[kept[k + 3]]
                for c in range(outputs):
                    y[c] += s0 * w0[c] + s1 * w1[c] + s2 * w2[c] + s3 * w3[c]
            for k in range(whole, n):
                s0, w0 = value[k], own[kept[k]]
                for c in range(outputs):
                    y[c] += s0 * w0[c]
            at += n
            ends[block, b] = at


@compiled
def _both(who: Any, where: Any, value: Any, dy: Any, w: Any, g: Any, back: Any) -> None:
    """Of the videos `who` kept a column, whose values and gradients stand at `where`: the gradient g (C,) of its
    weights w, and those of its values, four videos at a time."""
    g[:] = np.float32(0)
    n = np.uint64(len(who))
    whole = n - n % np.uint64(4)
    for k in range(np.uint64(0), whole, np.uint64(4)):
        i0, i1, i2, i3 = where[k], where[k + 1], where[k + 2], where[k + 3]
        s0, s1, s2, s3 = value[i0], value[i1], value[i2], value[i3]
        d0, d1, d2, d3 = dy[who[k]], dy[who[k + 1]], dy[who[k + 2]], dy[who[k + 3]]
        t0, t1, t2, t3 = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for c in range(len(g)):
            g[c] += s0 * d0[c] + s1 * d1[c] + s2 * d2[c] + s3 * d3[c]
            t0 += w[c] * d0[c]
            t1 += w[c] * d1[c]
            t2 += w[c] * d2[c]
            t3 += w[c] * d3[c]
        back[i0], back[i1], back[i2], back[i3] = t0, t1, t2, t3
    for k in range(whole, n):
        s0, d0, t0 = value[where[k]], dy[who[k]], np.float32(0)
        for c in range(len(g)):
            g[c] += s0 * d0[c]
            t0 += w[c] * d0[c]
        back[where[k]] = t0


@compiled
def _weights(who: Any, where: Any, value: Any, dy: Any, g: Any) -> None:
    """The former of `_both` alone."""
    g[:] = np.float32(0)
    n = np.uint64(len(who))
    whole = n - n % np.uint64(4)
    for k in range(np.uint64(0), whole, np.uint64(4)):
        s0, s1, s2, s3 = value[where[k]], value[where[k + 1]], value[where[k + 2]], value[where[k + 3]]
        d0, d1, d2, d3 = dy[who[k]], dy[who[k + 1]], dy[who[k + 2]], dy[who[k + 3]]
        for c in range(len(g)):
            g[c] += s0 * d0[c] + s1 * d1[c] + s2 * d2[c] + s3 * d3[c]
    for k in range(whole, n):
        s0, d0 = value[where[k]], dy[who[k]]
        for c in range(len(g)):
            g[c] += s0 * d0[c]


@compiled
def _backward(dy: Any, columns: Any, values: Any, ends: Any, weight: Any, grad: Any, dx: Any) -> None:
    """A slice of weight and grad (d,C) and of dx (B,d), or (0,d) where nobody asks for it: what there is, is written
    whole. Lists of columns by video become lists of videos by column."""
    size, videos, needed = weight.shape[0], dy.shape[0], dx.shape[0] > 0
    counts = np.empty(_BLOCK, np.uint64)
    who, where = np.empty((_BLOCK, videos), np.uint32), np.empty((_BLOCK, videos), np.uint32)
    back = np.empty(videos * _BLOCK, np.float32)
    begin = np.uint64(0)
    for block in range(-(-size // _BLOCK)):
        first = block * _BLOCK
        count = min(_BLOCK, size - first)
        kept, value = columns[begin:], values[begin:]
        counts[:] = np.uint64(0)
        at = np.uint64(0)
        for b in range(videos):
            end = np.uint64(ends[block, b]) - begin
            for i in range(at, end):
                j = kept[i]
                who[j, counts[j]], where[j, counts[j]] = b, i
                counts[j] += _ONE
            at = end
        for j in range(count):
            n = counts[j]
            if needed:
                _both(who[j, :n], where[j, :n], value, dy, weight[first + j], grad[first + j], back)
            else:
                _weights(who[j, :n], where[j, :n], value, dy, grad[first + j])
        start = np.uint64(0)
        for b in range(dx.shape[0]):
            row = dx[b, first : first + count]
            for j in range(count):
                row[j] = np.float32(0)
            end = np.uint64(ends[block, b]) - begin
            for i in range(start, end):
                row[kept[i]] = back[i]
            start = end
        begin += at
