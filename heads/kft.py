"""KFT: self-attention between the Inception blocks of I3D, over all places of a clip or over its frames.

"Knowledge Fusion Transformers for Video Action Recognition" (2020), §3 and table I, in the reading of a trunk whose
numbers fit: `extract.networks.i3d.KftTrunk` up to AvgPool (832 x 8 x 8 x 8 of 32 frames at 224 x 224), then

    3d    KFT-1, MaxPool_5a, Mixed_5b (widened to 1024), KFT-2, Mixed_5c, MaxPool_6a, KFT-3, dropout, Conv3d_logits
    2d    spatial compression to 832 x 8 x 1 x 1, one block over the 8 tokens, two linear layers
    1d    the same, but the query is the middle token alone and goes from layer to layer; keys stay the compressed map

A block flattens its map into tokens, adds positions once, and has layers of attention and two linear layers, each with
a residual and a layer norm after it. Around a block, the only one of 1d and 2d as well, stands a residual: added, put
beside (which the paper gave up), or none.
A lateral link adds what leaves block k, halved by average pooling, to what enters block k + 1; a 1x1x1 convolution and
batch norm make widths equal.

Cuts: rows may be the maps of Mixed_4f, of AvgPool, or after MaxPool_5a, where KFT-1 is past. Not in the paper: the
width of the linear layers inside (`ffn` times C), dropouts, the sinusoids over the flattened index, Xavier for Q, K, V
and O, batch norm and ReLU in the compression, the width `hidden`, and maps of other sizes than 8 x 8, whose compression
has kernels of H // 2 and the rest. Begun as constants (1 / C), the two linear layers inside have equal units for ever.
Legend: R rows, C channels, T frames, H W of a map, N tokens, D frames of it, K classes.

    heads.build("kft", {"maps": (832, 8, 8, 8)}, num_classes=101, dims="3d", layers=(6, 6, 6))
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from extract.networks import Network
from extract.networks.conv3d import Conv3d
from extract.networks.i3d import MIXED, Mixed, SamePool, sides
from features.errors import UserError
from heads.base import Shapes
from heads.dropout import Dropout
from heads.map_kinds import TrunkConfig
from heads.maps import OfMaps

M = TypeVar("M", nn.Linear, Conv3d)
_HALF = (2, 2, 2)


def sinusoids(length: int, dim: int) -> Tensor:
    """(N,C): sin of even channels, cos of odd ones, of wavelengths from 2 pi to 10000 * 2 pi."""
    pair = torch.arange(dim) // 2 * 2
    angle = torch.arange(length)[:, None] / 10000 ** (pair / dim)
    return torch.where(torch.arange(dim) % 2 == 0, angle.sin(), angle.cos())


class Layer(nn.Module):
    """Attention, then two linear layers; after each dropout, the residual on the query, layer norm."""

    def __init__(self, dim: int, heads: int, ffn: int, inside: float, start: str) -> None:
        super().__init__()
        self.heads, self.drop = heads, Dropout(inside)
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        for linear in (self.query, self.key, self.value, self.out):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.wide, self.narrow = nn.Linear(dim, ffn * dim), nn.Linear(ffn * dim, dim)
        for linear in (self.wide, self.narrow):
            if start == "constant":
                nn.init.constant_(linear.weight, 1 / dim)
            else:
                nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            nn.init.zeros_(linear.bias)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2))

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """(R,M,C), (R,N,C) -> (R,M,C)."""
        q, k, v = (
            linear(rows).unflatten(2, (self.heads, -1)).transpose(1, 2)  # (R,A,M or N,C/A)
            for linear, rows in ((self.query, queries), (self.key, tokens), (self.value, tokens))
        )
        found = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        rows = self.norms[0](queries + self.drop(self.out(found)))
        normal: Tensor = self.norms[1](rows + self.drop(self.narrow(self.wide(rows).relu())))
        return normal


class Block(nn.Module):
    """Positions, then layers over N tokens; with `middle` a single query, the middle one."""

    def __init__(
        self,
        dim: int,
        length: int,
        heads: int,
        layers: int,
        *,
        ffn: int,
        inside: float,
        start: str,
        positions: str,
        middle: bool = False,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise UserError("heads do not divide the width of a map", where="kft", expected=f"{dim} / heads", got=heads)
        self.layers = nn.ModuleList(Layer(dim, heads, ffn, inside, start) for _ in range(layers))
        self.middle = middle
        self.positions: Tensor | None
        if positions == "learned":
            self.positions = nn.Parameter(torch.randn(length, dim) * 0.02)
        else:
            table = sinusoids(length, dim) if positions == "sinusoid" else None
            self.register_buffer("positions", table, persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """(R,C,T,H,W) -> (R,C,T,H,W); with `middle` every place has the same."""
        tokens = maps.flatten(2).transpose(1, 2)  # (R,N,C)
        if self.positions is not None:
            tokens = tokens + self.positions
        rows = tokens[:, [tokens.shape[1] // 2]] if self.middle else tokens
        for layer in self.layers:
            rows = layer(rows, tokens if self.middle else rows)
        return rows.expand_as(tokens).transpose(1, 2).reshape_as(maps)


class Lateral(nn.Module):
    """What leaves a block, halved and made as wide as what enters the next."""

    def __init__(self, size: int, out: int) -> None:
        super().__init__()
        self.project: nn.Module = nn.Identity()
        if size != out:
            convolution = _kaiming(Conv3d(size, out, 1, bias=False), "linear")
            self.project = nn.Sequential(convolution, nn.BatchNorm3d(out, eps=1e-3))

    def forward(self, maps: Tensor) -> Tensor:
        """(R,C,T,H,W) -> (R,C',T/2,H/2,W/2), the halves of odd sides rounded up."""
        kernel = [min(2, side) for side in sides(maps)]
        found: Tensor = self.project(F.avg_pool3d(maps, kernel, stride=2, ceil_mode=True))
        return found


def compression(size: int, height: int, width: int) -> nn.Sequential:
    """(R,C,T,H,W) -> (R,C,T,1,1): two convolutions in space, 1x4x4 and 1x5x5 for maps of 8x8."""
    first = (1, max(1, height // 2), max(1, width // 2))
    rest = (1, height - first[1] + 1, width - first[2] + 1)
    steps = []
    for kernel in (first, rest):
        steps += [_kaiming(Conv3d(size, size, kernel, bias=False)), nn.BatchNorm3d(size, eps=1e-3), nn.ReLU()]
    return nn.Sequential(*steps)


class Kft(OfMaps):
    """`dims` 3d: three blocks (two after MaxPool_5a) between the rest of I3D; 2d and 1d: one after compression."""

    def __init__(
        self,
        shapes: Shapes,
        num_classes: int,
        *,
        dims: str,
        cut: str,
        heads: tuple[int, ...],
        layers: tuple[int, ...],
        ffn: int,
        inside: float,
        ffn_start: str,
        positions: str,
        residual: str,
        lateral: bool,
        mixed_kt: int,
        width: int,
        hidden: int,
        pool_px: int,
        dropout: float,
        consensus: str,
        crop_px: int | None,
        augment: str,
        network: Network | TrunkConfig | None = None,
    ) -> None:
        super().__init__(
            shapes,
            num_classes,
            kind="kft",
            cut=cut,
            consensus=consensus,
            network=network,
            crop_px=crop_px,
            augment=augment,
        )
        size, *places = self.map
        self.AvgPool: nn.Module = nn.Identity()
        if cut == "mixed_4f":
            if min(places[1:]) < pool_px:
                fix = "set pool_px to at most the side of the maps, 1 for no pooling"
                raise UserError("maps are too small", where="kft: pool_px", expected=pool_px, got=places[1:], fix=fix)
            self.AvgPool = nn.AvgPool3d((1, pool_px, pool_px), stride=1)
            places = [places[0], *(n - pool_px + 1 for n in places[1:])]
        self.spread, self.residual, wider = dims == "3d", residual, 2 if residual == "concat" else 1
        block = partial(Block, ffn=ffn, inside=inside, start=ffn_start, positions=positions)
        self.dropout = Dropout(dropout)
        self.blocks = nn.ModuleList()
        if not self.spread:
            self.compression = compression(size, *places[1:])
            self.blocks.append(block(size, places[0], heads[0], layers[0], middle=dims == "1d"))
            self.hidden = _kaiming(nn.Linear(wider * size * places[0], hidden))
            self.classifier: nn.Module = _kaiming(nn.Linear(hidden, num_classes), "linear")
            return
        self.entrances, self.laterals = nn.ModuleList(), nn.ModuleList()
        for number, a, n in zip((2, 3) if cut == "max_pool_5a" else (1, 2, 3), heads, layers, strict=True):
            entering, first = size if number == 1 else width, not self.blocks
            if not first:
                places = [-(-side // 2) for side in places]
                if lateral:
                    self.laterals.append(Lateral(size, entering))
            self.entrances.append(_entrance(number, size, width, mixed_kt, pooled=not first))
            self.blocks.append(block(entering, math.prod(places), a, n))
            size = wider * entering
        kernel = (min(2, places[0]), min(2, places[1]), min(2, places[2]))
        self.classifier = _kaiming(Conv3d(size, num_classes, kernel), "linear")

    def scores(self, maps: Tensor) -> Tensor:
        """(R,C,T,H,W) -> (R,K)."""
        maps = self.AvgPool(maps)
        if not self.spread:
            compressed = self.compression(maps)
            tokens = self._joined(compressed, self.blocks[0](compressed)).flatten(1)  # (R,C*D)
            found: Tensor = self.classifier(self.dropout(self.hidden(tokens).relu()))
            return found
        for number, (entrance, block) in enumerate(zip(self.entrances, self.blocks, strict=True)):
            entering = entrance(maps)
            if number and len(self.laterals):
                entering = entering + self.laterals[number - 1](maps)
            maps = self._joined(entering, block(entering))
        logits: Tensor = self.classifier(self.dropout(maps))
        return logits.mean(dim=(2, 3, 4))

    def _joined(self, entering: Tensor, known: Tensor) -> Tensor:
        if self.residual == "none":
            return known
        return entering + known if self.residual == "add" else torch.cat([entering, known], dim=1)


def _kaiming(layer: M, nonlinearity: Literal["relu", "linear"] = "relu") -> M:
    nn.init.kaiming_normal_(layer.weight, nonlinearity=nonlinearity)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _entrance(number: int, size: int, width: int, kt: int, *, pooled: bool) -> nn.Module:
    """What is before block 1, 2 or 3; MaxPool_5a only where it is not cut off."""
    if number == 1:
        return nn.Identity()
    mixed = Mixed(size, [n * width // 1024 for n in MIXED["Mixed_5c"]], kt)
    if number == 3:
        return nn.Sequential(mixed, SamePool(_HALF, _HALF))
    return nn.Sequential(SamePool(_HALF, _HALF), mixed) if pooled else mixed
