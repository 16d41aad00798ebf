"""VTN decoder: multi-head self-attention over the frames of a video, a classifier at each frame, the mean of logits.

"Lightweight Network Architecture for Real-Time Action Recognition" (Kozlov et al., 2019), §3, on cached features in the
place of its encoder: four blocks of 8 heads over 512 dims, then a linear layer. Where paper and authors' code differ,
`profile` chooses:

                      paper                                   code
    attention         softmax(Q K^T / sqrt(64))               divided by sqrt(512)
    1x1 embedding     always                                  where features are not 512 wide
    layer norm        (x - mean) / sqrt(variance + 1e-5)      (x - mean) / (deviation with n - 1, + 1e-3)

Both take the code's residual and layer norm around attention as around the convolutions, its projections without bias,
dropout of 0.1 inside and none before the classifier, and its learnt position table, begun as sinusoids. The code leaves
layer norm out for a single frame; here it stays, for a video must not depend on its company.
Legend: B videos, L rows, F dims of all modalities, E embedding, A heads, K their dims, C classes.

    heads.build("vtn", {"rgb": (512,)}, num_classes=400, profile="code")
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn

from features.batches import Select, all_rows, segment_rows
from heads.base import Head, Shapes, masked_mean, surely, vector_sizes
from heads.dropout import Dropout
from heads.ordered import at_most, steps

_INSIDE: Final = 0.1  # dropout


def sinusoids(length: int, dim: int) -> Tensor:
    """(length, dim): sin and cos in turn, of wavelengths from 2 pi to 10000 * 2 pi; row 0 is zeros, as in the code."""
    pair = torch.arange(dim) // 2 * 2
    angle = torch.arange(length)[:, None] / 10000 ** (pair / dim)
    table = torch.where(torch.arange(dim) % 2 == 0, angle.sin(), angle.cos())
    table[0] = 0
    return table


class CodeLayerNorm(nn.Module):
    """Layer norm as the authors wrote it."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))

    def forward(self, rows: Tensor) -> Tensor:
        """(...,E) -> (...,E)."""
        deviation, mean = torch.std_mean(rows, dim=-1, keepdim=True)
        return (rows - mean) / (deviation + 1e-3) * self.weight + self.bias


class Attention(nn.Module):
    """Multi-head self-attention without biases; without an output projection (the layer of the code) unless asked."""

    def __init__(self, dim: int, heads: int, scale: float, project: bool) -> None:
        super().__init__()
        self.heads, self.scale = heads, scale
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        nn.init.normal_(self.qkv.weight, std=math.sqrt(2 / (dim * dim // heads + dim)))  # Xavier on (A,E,K)
        self.out: nn.Module = nn.Identity()
        if project:
            self.out = nn.Linear(dim, dim)
            nn.init.xavier_normal_(self.out.weight)

    def forward(self, rows: Tensor, keys: Tensor) -> Tensor:
        """(B,L,E), (B,L) bool -> (B,L,E)."""
        q, k, v = self.qkv(rows).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each (B,A,L,K)
        dropped = _INSIDE if self.training else 0.0
        mask = None if surely(keys) else keys[:, None, None]
        found = nn.functional.scaled_dot_product_attention(q, k, v, mask, dropped, scale=self.scale)
        projected: Tensor = self.out(found.transpose(1, 2).flatten(2))
        return projected


class Block(nn.Module):
    """Attention and two 1x1 convolutions, each with dropout, a residual and a norm: after it, before it, or none."""

    def __init__(self, dim: int, heads: int, scale: float, project: bool, norm: str, code: bool) -> None:
        super().__init__()
        self.attention = Attention(dim, heads, scale, project)
        self.wide, self.narrow = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)
        kind = CodeLayerNorm if code else nn.LayerNorm
        self.norms = nn.ModuleList(kind(dim) if norm != "none" else nn.Identity() for _ in range(2))
        self.before, self.drop = norm == "pre", Dropout(_INSIDE)

    def forward(self, rows: Tensor, keys: Tensor) -> Tensor:
        """(B,L,E), (B,L) -> (B,L,E)."""
        first, second = self.norms
        if self.before:
            rows = rows + self.drop(self.attention(first(rows), keys))
            return rows + self._convolved(second(rows))
        rows = first(rows + self.drop(self.attention(rows, keys)))
        normal: Tensor = second(rows + self._convolved(rows))
        return normal

    def _convolved(self, rows: Tensor) -> Tensor:
        dropped: Tensor = self.drop(self.narrow(self.wide(rows).relu()))
        return dropped


class Vtn(Head):
    """embedding, positions, blocks, linear, mean over frames."""

    def __init__(
        self,
        shapes: Shapes,
        num_classes: int,
        *,
        profile: str,
        blocks: int,
        heads: int,
        dim: int,
        length: int,
        shared: bool,
        output_projection: bool,
        norm: str,
        positions: bool,
        embed: str,
    ) -> None:
        super().__init__(shapes, num_classes)
        width = sum(vector_sizes("vtn", shapes).values())
        code = profile == "code"
        always = embed == "always" or (embed == "profile" and not code)
        self.embed = nn.Linear(width, dim) if always or width != dim else nn.Identity()
        self.length = length
        self.positions = nn.Embedding(length, dim, padding_idx=0) if positions else None
        if self.positions is not None:
            self.positions.weight.data.copy_(sinusoids(length, dim))
        scale = (dim if code else dim // heads) ** -0.5
        made = [Block(dim, heads, scale, output_projection, norm, code) for _ in range(1 if shared else blocks)]
        self.blocks, self.turns = nn.ModuleList(made), blocks
        self.classifier = nn.Linear(dim, num_classes)
        nn.init.normal_(self.classifier.weight, std=0.02)
        nn.init.zeros_(self.classifier.bias)

    def train_rows(self, n: int | None, generator: torch.Generator) -> Select:
        """A random row of each of n segments: the pace of testing, and another set each time."""
        return all_rows if n is None else segment_rows(n, generator)

    def forward(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> Tensor:
        """(B,L,D) a modality -> (B,C)."""
        rows, mask = at_most(*steps(features, masks, self.shapes), self.length)
        return self.decoded(self.embed(rows), mask)

    def decoded(self, rows: Tensor, mask: Tensor) -> Tensor:
        """(B,L,E) embedded, (B,L) -> (B,C): what is left to do when another frame comes."""
        if self.positions is not None:
            rows = rows + self.positions(torch.arange(rows.shape[1], device=rows.device))  # row 0 never learns
        keys = mask | ~mask.any(dim=1, keepdim=True)  # a softmax over nothing is no number
        for turn in range(self.turns):
            rows = self.blocks[turn % len(self.blocks)](rows, keys)
        return masked_mean(self.classifier(rows), mask)
