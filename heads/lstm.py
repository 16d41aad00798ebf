"""A one-way LSTM that learns on a CPU, in products of matrices that are as large as they can be.

Torch's kernel always computes the gradient of its inputs, as many operations again as the inputs' own product, and
features need none; the rest of its way back is slower than bare products, too (benchmarks/README.md). Here the inputs
of all steps are one product, and so are the gradients of the weights; those of the inputs are computed where somebody
asks for them.

    a_t = W x_t + U h_(t-1) + b,  c_t = f c_(t-1) + i g,  h_t = o tanh(c_t)

with i, f, o = sigmoid and g = tanh of a_t's four parts, in torch's order i, f, g, o ("Learning to Forget", Gers et al.,
2000). Products and their sums a_t are of the rows' type; gates, cells and what comes back through them are float32.
Legend: L steps, B videos, D inputs, H hidden.

    h = learned(nn.LSTM(1536, 1024, batch_first=True), rows)    # (B,L,1536) -> (B,L,1024)
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

_SIGMOID_BACK: Final = torch.ops.aten.sigmoid_backward.grad_input
_TANH_BACK: Final = torch.ops.aten.tanh_backward.grad_input
_WIDE: Final = 256  # hidden units from which on products outweigh the calls of a step


def learns(lstm: nn.LSTM, rows: Tensor) -> bool:
    """Whether `learned` is for them: a wide LSTM on a CPU, under autocast, where gradients may be asked for. In float32
    too little is won to change the numbers."""
    there = torch.is_grad_enabled() and not torch.compiler.is_compiling()
    return there and rows.device.type == "cpu" and torch.is_autocast_enabled("cpu") and lstm.hidden_size >= _WIDE


def learned(lstm: nn.LSTM, rows: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
    """What `lstm(scale * rows + shift)[0]` is: (B,L,D) -> (B,L,H), under autocast in its type. The LSTM is one-way and
    `batch_first`, with biases. Its weights take up `scale` and `shift` (D,), whose gradients then come from those of
    the weights: none of the rows are computed for them."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
    with torch.autocast("cpu", enabled=False):
        steps = rows.to(dtype).transpose(0, 1).contiguous()
        for number, (weight, hidden, first, second) in enumerate(lstm.all_weights):
            inputs: Tensor = weight
            bias = first + second
            if number:
                steps = nn.functional.dropout(steps, lstm.dropout, lstm.training)
            elif scale is not None and shift is not None:
                inputs, bias = weight * scale, bias + weight @ shift
            steps = _Layer.apply(steps, inputs, hidden, bias)
        return steps.transpose(0, 1)


class _Layer(torch.autograd.Function):
    """One layer, rows by time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inputs: Tensor, hidden: Tensor, bias: Tensor) -> Tensor:
        """x (L,B,D), inputs (4H,D), hidden (4H,H), bias (4H,) -> (L,B,H)."""
        steps, videos, size = len(x), x.shape[1], hidden.shape[1]
        inputs, hidden = inputs.to(x.dtype), hidden.to(x.dtype)
        sums = torch.addmm(bias.to(x.dtype), x.flatten(0, 1), inputs.t()).view(steps, videos, 4 * size)
        gates = torch.empty(sums.shape)
        cells, bent = torch.empty(2, steps, videos, size).unbind()
        h = torch.empty(steps, videos, size, dtype=x.dtype)
        for t in range(steps):
            gates[t].copy_(torch.addmm(sums[t], h[t - 1], hidden.t()) if t else sums[t])
            own = gates[t].view(videos, 4, size)
            own[:, :2].sigmoid_()
            own[:, 2].tanh_()
            own[:, 3].sigmoid_()
            i, f, g, o = own.unbind(1)
            torch.mul(i, g, out=cells[t])
            if t:
                cells[t].addcmul_(f, cells[t - 1])
            torch.tanh(cells[t], out=bent[t])
            torch.mul(o, bent[t], out=h[t])
        ctx.save_for_backward(x, inputs, hidden, gates, cells, bent, h)
        return h

    @staticmethod
    def backward(ctx: Any, dh: Tensor) -> tuple[Tensor | None, ...]:
        x, inputs, hidden, gates, cells, bent, h = ctx.saved_tensors
        (steps, videos, size), dtype = h.shape, x.dtype
        back = torch.empty(steps, videos, 4 * size, dtype=dtype)
        whole, bias = torch.empty(videos, 4 * size), torch.zeros(4 * size)
        own, dc, part = whole.view(videos, 4, size), torch.zeros(videos, size), torch.empty(videos, size)
        for t in reversed(range(steps)):
            i, f, g, o = gates[t].view(videos, 4, size).unbind(1)
            d = dh[t].float()
            if t + 1 < steps:
                d = d + torch.mm(back[t + 1], hidden)
            _SIGMOID_BACK(torch.mul(d, bent[t], out=part), o, grad_input=own[:, 3])
            dc += _TANH_BACK(torch.mul(d, o, out=part), bent[t], grad_input=part)
            _SIGMOID_BACK(torch.mul(dc, g, out=part), i, grad_input=own[:, 0])
            _TANH_BACK(torch.mul(dc, i, out=part), g, grad_input=own[:, 2])
            if t:
                _SIGMOID_BACK(torch.mul(dc, cells[t - 1], out=part), f, grad_input=own[:, 1])
                dc *= f
            else:
                own[:, 1] = 0
            bias += whole.sum(dim=0)
            back[t].copy_(whole)
        flat, needed = back.flatten(0, 1), ctx.needs_input_grad
        return (
            torch.mm(flat, inputs).view_as(x) if needed[0] else None,
            torch.mm(flat.t(), x.flatten(0, 1)).float() if needed[1] else None,
            torch.mm(back[1:].flatten(0, 1).t(), h[:-1].flatten(0, 1)).float() if needed[2] else None,
            bias,
        )
