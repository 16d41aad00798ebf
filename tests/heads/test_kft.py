"""KFT against the table of its paper and slow references; the same on cached maps and behind its trunk."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import heads
from extract.networks import build
from extract.networks.describe import macs, parameters
from features.batches import Features
from features.errors import UserError
from heads.augment import jittered_boxes
from heads.checkpoint import load_head
from heads.kft import Block, Kft, Layer, sinusoids
from heads.loop import seeded
from heads.map_kinds import I3dConfig, KftConfig
from heads.training import evaluate_run, train_run

SMALL: dict[str, Any] = {"width": 64, "layers": (1, 1, 1), "heads": (2, 2, 2)}
MAP = (8, 8, 2, 2)


def shapes_of(head: nn.Module, layers: dict[str, str], shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """What leaves the modules `layers` (path: name) on one map of `shape`."""
    found: dict[str, tuple[int, ...]] = {}
    for path, name in layers.items():
        head.get_submodule(path).register_forward_hook(
            lambda *a, name=name: found.update({name: tuple(a[2].shape[1:])})
        )
    head.scores(torch.empty(1, *shape, device="meta"))  # type: ignore[operator]
    return found


def test_shapes_of_the_table_from_avg_pool_on() -> None:
    """ "Knowledge Fusion Transformers", table I; Mixed_5b is wider than I3D's, else KFT-2 could not be 1024 wide."""
    table = {
        "AvgPool": (832, 8, 8, 8),
        "KFT-1": (832, 8, 8, 8),
        "MaxPool_5a": (832, 4, 4, 4),
        "Mixed_5b": (1024, 4, 4, 4),
        "KFT-2": (1024, 4, 4, 4),
        "Mixed_5c": (1024, 4, 4, 4),
        "MaxPool_6a": (1024, 2, 2, 2),
        "KFT-3": (1024, 2, 2, 2),
        "Conv3d_logits": (101, 1, 1, 1),
    }
    paths = {
        "AvgPool": "AvgPool",
        "blocks.0": "KFT-1",
        "entrances.1.0": "MaxPool_5a",
        "entrances.1.1": "Mixed_5b",
        "blocks.1": "KFT-2",
        "entrances.2.0": "Mixed_5c",
        "entrances.2.1": "MaxPool_6a",
        "blocks.2": "KFT-3",
        "classifier": "Conv3d_logits",
    }
    with torch.device("meta"):
        head = heads.build("kft", {"m": (832, 8, 14, 14)}, 101, cut="mixed_4f")
    assert shapes_of(head, paths, (832, 8, 14, 14)) == table
    with torch.device("meta"):
        flat = heads.build("kft", {"m": (832, 8, 8, 8)}, 101, dims="2d")
    paths = {"compression.0": "first", "compression": "compressed", "blocks.0": "block", "hidden": "hidden"}
    assert shapes_of(flat, paths, (832, 8, 8, 8)) == {
        "first": (832, 8, 5, 5),
        "compressed": (832, 8, 1, 1),
        "block": (832, 8, 1, 1),
        "hidden": (832,),
    }


@pytest.mark.parametrize("frames", [8, 16, 32, 64])
def test_clips_of_8_to_64_frames(frames: int) -> None:
    """The trunk makes a frame of four; the last convolution sees two of them, or the one that is left."""
    with torch.device("meta"):
        trunk = build("kft_trunk", library="framepool", layer="AvgPool", pool=False).trunk
        maps = trunk(torch.empty(1, 3, frames, 224, 224))
        assert maps.shape == (1, 832, frames // 4, 8, 8)
        for dims in ("3d", "2d", "1d"):
            head: Any = heads.build("kft", {"m": tuple(maps.shape[1:])}, 101, dims=dims)
            assert head.eval().scores(maps).shape == (1, 101)


def layer_parameters(c: int, ffn: int = 1) -> int:
    """Q, K, V, O with biases; two linear layers; two layer norms."""
    return 4 * (c * c + c) + 2 * ffn * c * c + (ffn + 1) * c + 4 * c


def mixed_parameters(size: int, b: tuple[int, ...], kt: int = 3) -> int:
    """Four 1x1 convolutions and two of kt x 3 x 3, and a scale and a shift for each channel."""
    return size * (b[0] + b[1] + b[3] + b[5]) + 9 * kt * (b[1] * b[2] + b[3] * b[4]) + 2 * sum(b)


def test_parameters_of_the_spec() -> None:
    """Blocks 8.3 M + 25.2 M + 37.8 M = 71.3 M; Mixed_5b 2.79 M, 5c 2.93 M; logits 0.83 M; link 0.85 M; compression
    28.4 M; the attention of twice and four times as wide inner layers 95 M and 143 M."""
    wide = (384, 192, 384, 48, 128, 128)
    blocks = [2 * layer_parameters(832), 4 * layer_parameters(1024), 6 * layer_parameters(1024)]
    assert [round(n / 1e6, 1) for n in blocks] == [8.3, 25.2, 37.8] and round(sum(blocks) / 1e6, 1) == 71.3
    five_b, five_c = mixed_parameters(832, wide), mixed_parameters(1024, wide)
    logits, link = 8 * 1024 * 101 + 101, 832 * 1024 + 2 * 1024
    assert [round(n / 1e6, 2) for n in (five_b, five_c, logits, link)] == [2.78, 2.93, 0.83, 0.85]
    squeeze = 832 * 832 * (16 + 25) + 2 * 2 * 832
    assert round(squeeze / 1e6, 1) == 28.4
    two = 8 * 832 * 832 + 832 + 832 * 101 + 101
    with torch.device("meta"):
        head: Any = heads.build("kft", {"m": (832, 8, 8, 8)}, 101)
        assert [parameters(block) for block in head.blocks] == blocks
        assert parameters(head) == sum(blocks) + five_b + five_c + logits + link
        for dims in ("2d", "1d"):
            assert parameters(heads.build("kft", {"m": (832, 8, 8, 8)}, 101, dims=dims)) == squeeze + blocks[0] + two
        attention = []
        for ffn in (2, 4):
            head = heads.build("kft", {"m": (832, 8, 8, 8)}, 101, ffn=ffn)
            attention.append(round(parameters(head.blocks) / 1e6))
        assert attention == [95, 143]
        deep: Any = heads.build("kft", {"m": (832, 8, 8, 8)}, 101, layers=(6, 6, 6))
        assert sum(len(block.layers) for block in deep.blocks) == 18
        late = heads.build("kft", {"m": (832, 4, 4, 4)}, 101, cut="max_pool_5a")
        assert parameters(late) == sum(blocks[1:]) + five_b + five_c + logits
        tail = heads.build("i3d", {"m": (832, 8, 8, 8)}, 101)
        plain_b = mixed_parameters(832, (256, 160, 320, 32, 128, 128))
        assert parameters(tail) == plain_b + mixed_parameters(832, wide) + 1025 * 101


def test_macs_of_the_blocks() -> None:
    """Linear layers and both products of attention: 5.1 G, 1.6 G, 0.3 G."""
    with torch.device("meta"):
        head: Any = heads.build("kft", {"m": (832, 8, 8, 8)}, 101).eval()
        maps = [(832, 8, 8, 8), (1024, 4, 4, 4), (1024, 2, 2, 2)]
        counts = [macs(block, torch.empty(1, *m)) for block, m in zip(head.blocks, maps, strict=True)]
    expected = [
        layers * (6 * n * c * c + 2 * n * n * c) for layers, n, c in ((2, 512, 832), (4, 64, 1024), (6, 8, 1024))
    ]
    assert counts == expected and [round(n / 1e9, 1) for n in counts] == [5.1, 1.6, 0.3]


def slow_layer(layer: Layer, queries: Tensor, tokens: Tensor) -> Tensor:
    """(M,C), (N,C) -> (M,C), a query and a head at a time."""
    size = tokens.shape[1] // layer.heads
    found = []
    for query in queries:
        q, parts = layer.query(query), []
        for head in range(layer.heads):
            own = slice(head * size, (head + 1) * size)
            scores = torch.stack([q[own] @ layer.key(token)[own] / math.sqrt(size) for token in tokens])
            weights = scores.exp() / scores.exp().sum()
            parts.append(sum(w * layer.value(token)[own] for w, token in zip(weights, tokens, strict=True)))
        y = nn.functional.layer_norm(query + layer.out(torch.cat(parts)), (len(query),))  # type: ignore[arg-type]
        inner = layer.narrow(torch.relu(layer.wide(y)))
        found.append(nn.functional.layer_norm(y + inner, (len(query),)))
    return torch.stack(found)


@pytest.mark.parametrize("middle", [False, True])
@pytest.mark.parametrize("positions", ["sinusoid", "learned", "none"])
def test_a_block_against_loops(middle: bool, positions: str) -> None:
    """1D asks with the middle token alone, D times the same: one row of queries, keys always the tokens."""
    torch.manual_seed(0)
    block = Block(
        8, 12, heads=2, layers=2, ffn=1, inside=0.5, start="kaiming", positions=positions, middle=middle
    ).eval()
    maps = torch.randn(3, 8, 3, 2, 2)
    with torch.no_grad():
        got = block(maps)
        for number in range(3):
            tokens = torch.stack([maps[number, :, t, y, x] for t in range(3) for y in range(2) for x in range(2)])
            if block.positions is not None:
                tokens = tokens + block.positions
            rows = tokens[[6]].expand(12, -1) if middle else tokens
            for layer in block.layers:
                rows = slow_layer(layer, rows, tokens if middle else rows)  # type: ignore[arg-type]
            for n, (t, y, x) in enumerate((t, y, x) for t in range(3) for y in range(2) for x in range(2)):
                torch.testing.assert_close(got[number, :, t, y, x], rows[n], rtol=1e-4, atol=1e-5)


def test_sinusoids() -> None:
    table = sinusoids(50, 6)
    for position, channel in ((0, 0), (0, 1), (7, 2), (31, 5)):
        angle = position / 10000 ** ((channel // 2 * 2) / 6)
        assert float(table[position, channel]) == pytest.approx([math.sin, math.cos][channel % 2](angle), abs=1e-5)


def test_positions_tell_places_apart_and_none_does_not() -> None:
    """Without them a clip played backwards is the same to a block; with them it is another."""
    for positions in ("sinusoid", "learned", "none"):
        torch.manual_seed(0)
        block = Block(8, 6, heads=2, layers=1, ffn=1, inside=0, start="kaiming", positions=positions).eval()
        if block.positions is not None:
            block.positions.data.mul_(10)  # learnt ones begin small
        maps = torch.randn(1, 8, 6, 1, 1)
        same = torch.allclose(block(maps.flip(2)).flip(2), block(maps), atol=1e-5)
        assert same == (positions == "none")


def joined(x: Tensor, known: Tensor, residual: str) -> Tensor:
    return {"add": x + known, "concat": torch.cat([x, known], dim=1), "none": known}[residual]


@pytest.mark.parametrize("residual", ["add", "concat", "none"])
@pytest.mark.parametrize("dims", ["2d", "1d"])
def test_the_residual_of_a_single_block(residual: str, dims: str) -> None:
    """With one, tokens stay apart that 1d has made alike."""
    torch.manual_seed(0)
    head: Any = heads.build("kft", {"m": MAP}, 5, dims=dims, residual=residual, hidden=16).eval()
    with torch.no_grad():
        compressed = head.compression(torch.randn(2, *MAP))
        known = head.blocks[0](compressed)
        assert torch.equal(known, known[:, :, :1].expand_as(known)) == (dims == "1d")
        tokens = joined(compressed, known, residual).flatten(1)
        torch.manual_seed(0)
        again = heads.build("kft", {"m": MAP}, 5, dims=dims, residual=residual, hidden=16).eval()
        scores = again.scores(torch.randn(2, *MAP))  # type: ignore[operator]
    torch.testing.assert_close(head.classifier(head.hidden(tokens).relu()), scores)


@pytest.mark.parametrize("residual", ["add", "concat", "none"])
@pytest.mark.parametrize("lateral", [True, False])
def test_residuals_and_links_by_hand(residual: str, lateral: bool) -> None:
    torch.manual_seed(0)
    head: Any = heads.build("kft", {"m": MAP}, 5, residual=residual, lateral=lateral, **SMALL).eval()
    maps = torch.randn(2, *MAP)

    def around(x: Tensor, block: nn.Module) -> Tensor:
        return joined(x, block(x), residual)

    def halved(x: Tensor) -> Tensor:
        return nn.functional.avg_pool3d(x, [2, min(2, x.shape[3]), min(2, x.shape[4])], 2, ceil_mode=True)

    with torch.no_grad():
        one = around(maps, head.blocks[0])
        x = head.entrances[1](one)
        x = x + head.laterals[0].project(halved(one)) if lateral else x
        two = around(x, head.blocks[1])
        x = head.entrances[2](two)
        x = x + head.laterals[1].project(halved(two)) if lateral else x
        logits = head.classifier(around(x, head.blocks[2])).mean(dim=(2, 3, 4))
        torch.testing.assert_close(head.scores(maps), logits)
    assert len(head.laterals) == (2 if lateral else 0)
    if lateral and residual != "concat":
        assert isinstance(head.laterals[1].project, nn.Identity), "of equal widths"


def test_inner_layers_that_begin_constant_have_equal_units_for_ever() -> None:
    torch.manual_seed(0)
    block = Block(8, 6, heads=2, layers=1, ffn=1, inside=0, start="constant", positions="none")
    layer: Any = block.layers[0]
    assert (layer.wide.weight == 1 / 8).all() and (layer.narrow.weight == 1 / 8).all()
    layer.norms[0].bias.data.normal_()
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (block(torch.randn(2, 8, 6, 1, 1)) * torch.arange(8.0).view(8, 1, 1, 1)).sum().backward()
        optimizer.step()
    assert (layer.wide.weight != 1 / 8).any()
    torch.testing.assert_close(layer.wide.weight, layer.wide.weight[:1].expand(8, -1))


class Fixed(Kft):
    """Scores that are the first channels of the map's mean."""

    def scores(self, maps: Tensor) -> Tensor:
        return maps.mean(dim=(2, 3, 4))[:, : self.num_classes]


@pytest.mark.parametrize("consensus", ["softmax", "logits", "max"])
def test_rows_agree(consensus: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kft, "scores", Fixed.scores)
    head = heads.build("kft", {"m": MAP}, 3, consensus=consensus, **SMALL)
    rows, mask = torch.randn(2, 4, *MAP), torch.tensor([[True, True, True, False], [False] * 4])
    rows[:, :, 0] += 200  # in float32 the other classes have no probability
    scores = rows[0, :3, :3].mean(dim=(2, 3, 4))
    likely = scores.double().softmax(1).mean(0).log()
    expected = {"softmax": likely.float(), "logits": scores.mean(0), "max": scores.max(0).values}
    found = head.eval()({"m": rows}, {"m": mask})
    torch.testing.assert_close(found, torch.stack([expected[consensus], torch.zeros(3)]))
    training = scores.max(0).values if consensus == "max" else scores.mean(0)
    torch.testing.assert_close(head.train()({"m": rows}, {"m": mask})[0], training)


@pytest.mark.parametrize("cut", ["mixed_4f", "avg_pool", "max_pool_5a"])
def test_the_same_on_cached_maps_and_behind_the_trunk(cut: str) -> None:
    """One set of weights: the clips through trunk and head, and the maps that an extractor would store."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"cut": cut, "width": 64, "layers": (1, 1, 1)[cut == "max_pool_5a" :]}
    options["heads"] = (2,) * len(options["layers"])
    options |= {"pool_px": 2} if cut == "mixed_4f" else {}
    network = {"options": {"pool_px": 2}}
    whole: Any = heads.build("kft", {"c": (8, 48, 48, 3)}, 4, network=network, crop_px=48, **options).eval()
    clips = torch.randint(0, 256, (2, 3, 8, 48, 48, 3), dtype=torch.uint8)
    mask = torch.tensor([[True, True, True], [True, False, False]])
    trunk = whole.trunk.network.trunk.eval()
    with torch.no_grad():
        images = (clips.flatten(0, 1).permute(0, 4, 1, 2, 3) / 255 - 0.5) / 0.5
        maps = trunk(images).unflatten(0, (2, 3))
        cached: Any = heads.build("kft", {"m": tuple(maps.shape[2:])}, 4, **options).eval()
        cached.load_state_dict({k: v for k, v in whole.state_dict().items() if not k.startswith("trunk.")})
        torch.testing.assert_close(
            whole({"c": clips}, {"c": mask}), cached({"m": maps}, {"m": mask}), rtol=1e-4, atol=1e-5
        )


def clips_problem() -> dict[str, Any]:
    """uint8 clips whose colour tells the class (of 3)."""
    rng = np.random.default_rng(0)
    arrays = []
    for label in np.arange(12) % 3:
        clips = rng.integers(0, 120, (2, 8, 40, 48, 3))
        clips[..., label] += 130
        arrays.append(clips.astype(np.uint8))
    ids = [str(k) for k in range(12)]
    classes = ["red", "green", "blue"]
    return {"features": Features.of(ids, {"c": arrays}), "labels": np.arange(12) % 3, "classes": classes}


@pytest.mark.slow
def test_trained_end_to_end_its_trunk_becomes_an_extractors(tmp_path: Path) -> None:
    given = clips_problem()
    value = {"features": ["c"], "network": {"options": {"pool_px": 2}}, "crop_px": 32, "dims": "1d"}
    config = KftConfig.parse({**value, "train": {"epochs": 1, "batch": 6}}, "here")
    made: dict[str, Any] = {"config": config, "train": range(6), "seed": 0, "split": "1"}
    found = train_run(tmp_path, provenance={"digest": "d"}, log=lambda line: None, **made, **given, test=range(6, 12))
    assert evaluate_run(tmp_path, **given, test=range(6, 12)) == found
    head: Any = load_head(tmp_path)[0]
    path = tmp_path / "network.safetensors"
    again = build("kft_trunk", library="framepool", weights=path, layer="AvgPool", pool=False, options={"pool_px": 2})
    assert again.input.size_px == 32 and not again.fresh
    clip = torch.randn(1, 3, 8, 32, 32)
    with torch.no_grad():
        assert torch.equal(again.trunk(clip), head.trunk.network.trunk(clip))
    with seeded(0, device=torch.device("cpu")):
        began = heads.from_config(config, {"c": (8, 40, 48, 3)}, 3).state_dict()
    moved = head.state_dict()
    for key in ("trunk.network.trunk.trunk.Conv3d_1a_7x7.conv3d.weight", "blocks.0.layers.0.query.weight"):
        assert (moved[key] - began[key]).abs().max() > 1e-6, key


def test_jitter_is_of_70_to_87_5_percent_of_the_short_side_and_inside() -> None:
    boxes = jittered_boxes(4000, 256, 320, mirror=True, generator=torch.Generator().manual_seed(0))
    size = boxes[:, 2] - boxes[:, 0]
    left, right = boxes[:, [1, 3]].min(dim=1).values, boxes[:, [1, 3]].max(dim=1).values
    torch.testing.assert_close(right - left, size, rtol=1e-4, atol=1e-2)
    assert 179.2 <= float(size.min()) < 180 and 223 < float(size.max()) <= 224
    assert (left >= 0).all() and (right <= 320).all() and (boxes[:, 0] >= 0).all() and (boxes[:, 2] <= 256).all()
    assert abs(float((boxes[:, 1] > boxes[:, 3]).float().mean()) - 0.5) < 0.05
    still = jittered_boxes(9, 64, 64, mirror=False, generator=torch.Generator().manual_seed(0))
    assert (still[:, 1] < still[:, 3]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [2, 4]}, r"3 heads and 3 layers, one a block, not \(2, 4, 4\) and \(2, 4\)"),
        ({"dims": "2d", "lateral": False}, "no lateral with dims 2d and cut avg_pool"),
        ({"hidden": 5}, "no hidden with dims 3d"),
        ({"pool_px": 3}, "no pool_px with dims 3d and cut avg_pool"),
        ({"crop_px": 112}, "no crop_px without a network: cached maps are as they are"),
        ({"missing": "mean"}, "missing: none, as the mean of maps is no map"),
        ({"width": 100}, "width"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        KftConfig.parse({"features": ["m"], **options}, "here")


def test_rows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"kft reads one store of maps: expected rows \(C,T,H,W\), got rgb \(12,\)"):
        heads.build("kft", {"rgb": (12,)}, 3)
    with pytest.raises(UserError, match=r"rows are no clips: network: expected \(T,H,W,3\), got \(8, 2, 2, 4\)"):
        heads.build("i3d", {"m": (8, 2, 2, 4)}, 3, network={})
    with pytest.raises(UserError, match=r"network: unknown layer: 'AvgPool' of I3d"):
        heads.build("i3d", {"m": (8, 32, 32, 3)}, 3, network={"name": "i3d"})
    with pytest.raises(UserError, match="heads do not divide the width of a map: kft: expected 8 / heads, got 3"):
        heads.build("kft", {"m": MAP}, 3, **{**SMALL, "heads": (3, 2, 2)})
    with pytest.raises(UserError, match=r"maps are too small: kft: pool_px: expected 7, got \[2, 2\]"):
        heads.build("kft", {"m": MAP}, 3, cut="mixed_4f", **SMALL)
    with pytest.raises(UserError, match=r"network: .* cannot take an input of 3x8x12x12: .*; set crop_px"):
        heads.build("kft", {"m": (8, 12, 12, 3)}, 3, network={}, **SMALL)


def test_clips_smaller_than_the_crop_are_enlarged_where_the_config_says_so() -> None:
    clips = {"m": (8, 40, 48, 3)}
    own = heads.build("i3d", clips, 3, network={"options": {"pool_px": 2}})
    asked = heads.build("i3d", clips, 3, network={"options": {"pool_px": 2}}, crop_px=64)
    assert own.trunk.network.input.size_px == 40 and asked.trunk.network.input.size_px == 64  # type: ignore[union-attr]
    assert own.map[-1] < asked.map[-1]  # type: ignore[operator]
    rows = torch.randint(0, 256, (1, 1, 8, 40, 48, 3), dtype=torch.uint8)
    for head in (own, asked):
        assert head.eval()({"m": rows}, {"m": torch.ones(1, 1, dtype=torch.bool)}).shape == (1, 3)


def test_the_recipe_of_the_paper() -> None:
    for config in (KftConfig(features=("m",)), I3dConfig(features=("m",))):
        train = config.train
        assert (train.optimizer, train.lr, train.momentum, train.batch) == ("sgd", 0.01, 0.9, 32)
        assert train.schedule.kind == "cosine" and config.sample == heads.config.Sample(train=1)  # type: ignore[attr-defined]
    assert KftConfig(features=("m",), cut="max_pool_5a").layers == (4, 6)
    assert KftConfig(features=("m",), dims="1d").heads == (2,)
    for config in (KftConfig(features=("m",), layers=(6, 6, 6)), I3dConfig(features=("m",))):
        assert type(config).model_validate(config.recipe()) == config


@pytest.mark.parametrize("name", ["kft", "i3d"])
def test_bf16_steps_have_gradients_near_those_of_fp32(name: str) -> None:
    """oneDNN's own bf16 gradients of 3x3x3 kernels on small maps are what was in memory before: 1e27, or NaN."""
    torch.manual_seed(0)
    options = {**SMALL, "width": 512, "inside": 0.0} if name == "kft" else {}
    head = heads.build(name, {"m": (32, 4, 7, 7)}, 5, dropout=0.0, **options).train()
    features, masks = {"m": torch.rand(6, 1, 32, 4, 7, 7)}, {"m": torch.ones(6, 1, dtype=torch.bool)}
    grads = {}
    for enabled in (False, True):
        junk = [torch.full((1 << 20,), 1e30) for _ in range(8)]
        del junk
        head.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            logits = head(features, masks).float()
        nn.functional.cross_entropy(logits, torch.arange(6) % 5).backward()  # type: ignore[no-untyped-call]
        grads[enabled] = {name: p.grad.clone() for name, p in head.named_parameters() if p.grad is not None}
    for key, exact in grads[False].items():
        if exact.norm() > 1e-3:
            assert (grads[True][key] - exact).norm() < 0.5 * exact.norm(), key


@pytest.mark.parametrize("dims", ["3d", "2d", "1d"])
def test_learns_what_moves(dims: str, tmp_path: Path) -> None:
    """The class is the frame in which one place lights up; by the paper's optimiser, on rows of which one is drawn."""
    rng = np.random.default_rng(0)
    labels, arrays = np.arange(48) % 3, []
    for label in labels:
        maps = 0.2 * rng.standard_normal((2, 8, 4, 4, 4)).clip(0)
        maps[:, :4, label, rng.integers(4), rng.integers(4)] += 2
        arrays.append(maps.astype(np.float16))
    features = Features.of([str(k) for k in range(48)], {"m": arrays})
    options = {"width": 64, "layers": [1, 1, 1], "heads": [2, 2, 2]} if dims == "3d" else {"hidden": 32}
    train = {"epochs": 25, "batch": 12, "clip": 1.0, "test_every": 25}
    value = {"features": ["m"], "dims": dims, "dropout": 0.2, **options, "train": train}
    config = KftConfig.parse(value, "here")
    made: dict[str, Any] = {"config": config, "train": range(36), "test": range(36, 48), "seed": 0, "split": "1"}
    given = {"features": features, "labels": labels, "classes": ["a", "b", "c"], "provenance": {"digest": "d"}}
    assert train_run(tmp_path, log=lambda line: None, **made, **given)["top1"] > 0.6
