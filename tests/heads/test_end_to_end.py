"""An encoder before a head of vectors: what it sees, how clips are picked, cropped and averaged, and that it learns."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import heads
from extract.networks import build, save_network
from features.batches import Features
from features.errors import UserError
from heads.augment import MOTION_SCALES, SCALES
from heads.checkpoint import load_head
from heads.kinds import AverageConfig, VtnConfig
from heads.training import evaluate_run, train_run
from heads.windows import even_windows, random_windows
from tests.heads.made import SMALL_CNN, rows

SMALL = {"dim": 16, "heads": 4, "blocks": 1}


def make(
    shape: tuple[int, ...] = (4, 32, 32, 3), kind: str = "vtn", network: Any = None, seed: int = 0, **more: Any
) -> Any:
    torch.manual_seed(seed)
    cnn = {**SMALL_CNN, "crop_px": 32, **(network or {})}
    return heads.build(kind, {"clips": shape}, 3, network=cnn, **(SMALL if kind == "vtn" else {}), **more).eval()


def whole(*lengths: int) -> dict[str, Tensor]:
    return {"clips": torch.ones(*lengths, dtype=torch.bool)}


def normalised(frames: Tensor) -> Tensor:
    """(...,H,W,3) uint8 -> (...,3,H,W), as ImageNet's networks want it."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((frames / 255 - mean) / std).movedim(-1, -3)


@pytest.mark.parametrize("reads", ["rgb", "rgbdiff", "stacked"])
def test_what_the_encoder_sees(reads: str) -> None:
    """Against a loop over frames; the head then sees one vector a token."""
    head, clips = make(network={"reads": reads}), rows((4, 32, 32, 3), 2, 3)
    frames, expected = normalised(clips), torch.zeros(2, 3)
    for video in range(2):
        for clip in frames[video]:
            if reads == "rgb":
                seen = list(clip)
            elif reads == "rgbdiff":
                seen = [clip[t] - clip[t - 1] for t in range(1, 4)]
            else:
                seen = [torch.cat([clip[t], clip[t] - clip[t - 1] if t else 0 * clip[t]]) for t in range(4)]
            tokens = head.encoder.network.trunk(torch.stack(seen))[None]  # (1,T',D)
            expected[video] += head.head({"clips": tokens}, whole(1, len(seen)))[0] / 3
    torch.testing.assert_close(head({"clips": clips}, whole(2, 3)), expected, rtol=1e-4, atol=1e-5)


def test_flow_is_read_as_tsn_reads_it() -> None:
    """Windows of single rows of a tvl1 store."""
    head = make((32, 32, 2), network={"reads": "flow", "frames": 3})
    maps = rows((32, 32, 2), 1, 6)
    images = ((maps[0].float() - 128) / 255 / np.mean([0.229, 0.224, 0.225])).permute(0, 3, 1, 2)
    tokens = head.encoder.network.trunk(images).reshape(2, 3, -1)
    expected = head.head({"clips": tokens}, whole(2, 3)).mean(dim=0)
    torch.testing.assert_close(head({"clips": maps}, whole(1, 6))[0], expected, rtol=1e-4, atol=1e-5)


def test_the_embedding_after_the_pooling_is_the_papers_before_it() -> None:
    """A 1x1 convolution on the map and then the mean, against the mean and then the linear layer."""
    head, images = make(), torch.randn(2, 3, 32, 32)
    maps = build("resnet10t", options=SMALL_CNN["options"], layer="layer4", pool=False)
    maps.trunk.trunk.load_state_dict(head.encoder.network.trunk.state_dict())  # type: ignore[union-attr]
    embed = head.head.embed
    found = maps.trunk(images)
    convolved = nn.functional.conv2d(found, embed.weight[:, :, None, None], embed.bias).mean(dim=(2, 3))
    torch.testing.assert_close(convolved, embed(head.encoder.network.trunk(images)), rtol=1e-4, atol=1e-5)


def test_the_score_of_a_video_is_the_mean_over_its_clips() -> None:
    clips = rows((4, 32, 32, 3), 1, 3)
    each = torch.cat([make()({"clips": clips[:, [k]]}, whole(1, 1)) for k in range(3)])
    torch.testing.assert_close(make()({"clips": clips}, whole(1, 3))[0], each.mean(dim=0), rtol=1e-4, atol=1e-5)
    mean = make(network={"of": "softmax"})({"clips": clips}, whole(1, 3))[0]
    torch.testing.assert_close(mean.exp(), each.softmax(dim=1).mean(dim=0), rtol=1e-4, atol=1e-5)


def test_clips_that_are_sure_still_rank_and_teach_the_other_classes() -> None:
    head, clips = make(network={"of": "softmax", "augment": "none"}), rows((4, 32, 32, 3), 2, 3)
    classifier: Any = head.head.classifier
    nn.init.normal_(classifier.weight, std=50, generator=torch.Generator().manual_seed(0))
    mask = {"clips": torch.tensor([[True, True, False], [False] * 3])}
    each = torch.cat([head({"clips": clips[:1, [k]]}, whole(1, 1)) for k in range(2)])
    found = head({"clips": clips}, mask)
    assert each.min() < -80 and torch.equal(found[1], torch.zeros_like(found[1]))
    torch.testing.assert_close(found[0].double(), each.double().softmax(dim=1).mean(dim=0).log(), rtol=1e-4, atol=1e-2)
    head.train()({"clips": clips}, mask).amin(dim=1).sum().backward()
    grads = [p.grad for p in head.head.parameters() if p.grad is not None]
    assert all(grad.isfinite().all() for grad in grads) and any(grad.any() for grad in grads)


def test_the_per_frame_baseline_is_the_mean_of_frames_logits() -> None:
    head, clips = make(kind="average", dropout=0.0), rows((4, 32, 32, 3), 1, 1)
    frames = head.encoder.network.trunk(normalised(clips[0, 0]))
    expected = head.head.classifier(frames).mean(dim=0)
    torch.testing.assert_close(head({"clips": clips}, whole(1, 1))[0], expected, rtol=1e-4, atol=1e-5)


def test_frames_that_are_not_there_stay_out_of_the_batch_norms() -> None:
    means = []
    for fill in (0, 255):
        head = make((32, 32, 3), network={"frames": 4}).train()
        clips, mask = rows((32, 32, 3), 2, 8), whole(2, 8)
        mask["clips"][1, 4:] = False
        head({"clips": clips.masked_fill(~mask["clips"][..., None, None, None], fill)}, mask)
        means.append(next(m for m in head.modules() if isinstance(m, nn.BatchNorm2d)).running_mean)
    assert torch.equal(means[0], means[1])


@pytest.mark.parametrize("kind", ["ts_lstm", "temporal_inception", "nextvlad"])
def test_clips_that_are_not_there_stay_out_of_the_heads_batch_norms(kind: str) -> None:
    """Three clips are two of a video and one of another, or three videos."""
    more = {"nextvlad": {"groups": 4, "dropout": 0}, "temporal_inception": {"dropout": 0}}.get(kind, {})
    clips, mask = rows((4, 32, 32, 3), 2, 2), whole(2, 2)
    mask["clips"][1, 1] = False
    head, other = (make(kind=kind, codes="+", classes=("none", "a", "b"), **more).train() for _ in range(2))
    nothing = head({"clips": clips}, {"clips": torch.zeros(2, 2, dtype=torch.bool)})
    assert nothing.tolist() == torch.zeros(2, 3).tolist()
    found = head({"clips": clips}, mask)
    each = other({"clips": clips.flatten(0, 1)[:3, None]}, whole(3, 1))
    torch.testing.assert_close(found, torch.stack([each[:2].mean(dim=0), each[2]]))
    assert all(torch.equal(a, b) for a, b in zip(head.buffers(), other.buffers(), strict=True))


def test_frozen_batch_norms_keep_their_statistics_and_learn_their_factors() -> None:
    head = make(network={"frozen_bn": True}).train()
    norms = [m for m in head.modules() if isinstance(m, nn.BatchNorm2d)]
    before = [m.running_mean.clone() for m in norms]
    head({"clips": rows((4, 32, 32, 3), 2, 2)}, whole(2, 2)).square().sum().backward()
    assert head.head.training and norms and not any(m.training for m in norms)
    assert all(torch.equal(m.running_mean, mean) for m, mean in zip(norms, before, strict=True))
    assert all(m.weight.grad is not None and m.weight.grad.any() for m in norms)


LENGTHS = torch.tensor([0, 1, 3, 4, 5, 8, 23])


def test_all_windows_without_overlap() -> None:
    index, mask = even_windows(None, 4)(LENGTHS)
    for length, own, there in zip(LENGTHS.tolist(), index.tolist(), mask.tolist(), strict=True):
        found = [k for k, t in zip(own, there, strict=True) if t]
        starts = range(0, length - 3, 4) if length >= 4 else range(1)
        assert found == ([] if length == 0 else [(s + t) % length for s in starts for t in range(4)])
        assert there == sorted(there, reverse=True), "rows come first, padding after them"


@pytest.mark.parametrize(("n", "starts"), [(1, [9]), (2, [0, 19]), (4, [0, 6, 12, 19])])
def test_windows_at_equal_intervals(n: int, starts: list[int]) -> None:
    index, mask = even_windows(n, 4)(LENGTHS)
    assert index[-1].reshape(n, 4).tolist() == [[s, s + 1, s + 2, s + 3] for s in starts] and mask[-1].all()
    firsts = {length: i[m].tolist()[::4] for length, i, m in zip(LENGTHS.tolist(), index, mask, strict=True)}
    assert firsts[0] == [] and firsts[1] == firsts[4] == [0]
    assert firsts[5] == ([0, 1] if n > 1 else [0])


def test_random_windows_begin_everywhere_and_follow_the_generator() -> None:
    lengths = torch.tensor([0, 3, 7] * 200)
    index, mask = random_windows(2, 4, torch.Generator().manual_seed(0))(lengths)
    again, _ = random_windows(2, 4, torch.Generator().manual_seed(0))(lengths)
    assert torch.equal(index, again) and index.shape == (600, 8)
    assert not mask[::3].any() and mask[1::3].all() and mask[2::3].all()
    assert index[1::3].unique(dim=0).tolist() == [[0, 1, 2, 0] * 2]
    long = index[2::3].reshape(-1, 4)
    assert sorted(set(long[:, 0].tolist())) == [0, 1, 2, 3]
    assert (long - long[:, :1] == torch.arange(4)).all()


def test_a_crop_a_clip_alike_in_all_frames_and_only_from_augmented() -> None:
    head = make((4, 48, 64, 3)).train()
    still = rows((48, 64, 3), 5, 2)[:, :, None].expand(-1, -1, 4, -1, -1, -1)
    torch.manual_seed(1)
    found, masks = head.augmented({"clips": still}, whole(5, 2))
    assert found["clips"].shape == (5, 2, 4, 32, 32, 3)
    assert torch.equal(found["clips"], found["clips"][:, :, :1].expand_as(found["clips"]))
    same = rows((48, 64, 3), 1, 1)[:, :, None].expand(20, 2, 4, -1, -1, -1)
    crops, _ = head.augmented({"clips": same}, whole(20, 2))
    assert len(crops["clips"].flatten(0, 1).flatten(1).unique(dim=0)) > 20
    assert torch.equal(head(found, masks), head(found, masks)) is False, "dropout, and nothing else, is left"
    head.eval()
    assert torch.equal(head(found, masks), head(found, masks))


@pytest.mark.parametrize(
    ("reads", "scales"), [("rgb", SCALES), ("stacked", SCALES), ("rgbdiff", SCALES), ("flow", MOTION_SCALES)]
)
def test_flow_is_cropped_less_far(reads: str, scales: tuple[float, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    real = heads.end_to_end.random_boxes  # type: ignore[attr-defined]
    monkeypatch.setattr("heads.end_to_end.random_boxes", lambda *a, **k: seen.append(k["scales"]) or real(*a, **k))
    clip = (4, 48, 64, 2 if reads == "flow" else 3)
    make(clip, network={"reads": reads}).train().augmented({"clips": rows(clip, 1, 1)}, whole(1, 1))
    assert seen == [scales]


def test_a_mirror_turns_flow_around() -> None:
    head = make((32, 32, 2), network={"reads": "flow", "frames": 2}).train()
    maps = torch.full((40, 2, 32, 32, 2), 200, dtype=torch.uint8)
    found, _ = head.augmented({"clips": maps}, whole(40, 2))
    across, down = found["clips"][:, 0, 5, 5].T.round().long().tolist()
    assert set(across) == {200, 55} and set(down) == {200}


def test_a_stacked_encoder_begins_as_one_for_pictures(tmp_path: Path) -> None:
    """Colours keep their kernels, differences begin as the mean over colours; and it comes back from its own file."""
    rgb = build("resnet10t", options=SMALL_CNN["options"], num_classes=3)
    (tmp_path / "rgb.safetensors").write_bytes(save_network(rgb))
    head = make(network={"reads": "stacked", "weights": str(tmp_path / "rgb.safetensors")})
    old, new = rgb.trunk.state_dict(), head.encoder.network.trunk.state_dict()
    (first,) = [key for key in old if old[key].shape != new[key].shape]
    assert torch.equal(new[first][:, :3], old[first])
    torch.testing.assert_close(new[first][:, 3:], old[first].mean(dim=1, keepdim=True).expand(-1, 3, -1, -1))
    assert all(torch.equal(new[key], old[key]) for key in old.keys() - {first})
    (tmp_path / "own.safetensors").write_bytes(head.extra_files()["network.safetensors"])
    again = make(network={"reads": "stacked", "weights": str(tmp_path / "own.safetensors")}, seed=5)
    assert torch.equal(again.encoder.network.trunk.state_dict()[first], new[first])


def moving(videos: int = 18, frames: int = 10, side: int = 32) -> tuple[Features, Any]:
    """A bright bar that moves left, stands, or moves right; where it is tells nothing."""
    generator = np.random.default_rng(0)
    labels, arrays = np.arange(videos) % 3, []
    for label in labels:
        video = generator.integers(0, 30, (frames, side, side, 3))
        place = generator.integers(side)
        for t in range(frames):
            columns = (place + 3 * t * (label - 1) + np.arange(6)) % side
            video[t][:, columns] += 200
        arrays.append(video.astype(np.uint8))
    return Features.of([f"v{k:02d}" for k in range(videos)], {"pixels": arrays}), labels


CNN = {"name": "resnet10t", "options": {"stem_width": 8, "channels": [8, 16, 24, 32]}}
CONFIG = VtnConfig(
    features=("pixels",),
    encoder={**CNN, "crop_px": 32, "reads": "stacked", "frames": 4, "augment": "none"},
    **SMALL,
    train={"epochs": 12, "batch": 9, "lr": 3e-3, "weight_decay": 0, "schedule": {"kind": "constant"}},
)


def trained(folder: Path, config: Any, **more: Any) -> dict[str, Any]:
    features, labels = moving()
    return train_run(
        folder,
        config=config,
        labels=labels,
        train=range(12),
        test=range(12, 18),
        seed=0,
        split="1",
        **{
            "features": features,
            "classes": ["left", "still", "right"],
            "provenance": {"digest": "d"},
            "log": lambda line: None,
            **more,
        },
    )


def test_it_learns_motion_and_its_run_is_judged_again(tmp_path: Path) -> None:
    found = trained(tmp_path, CONFIG)
    assert found["top1"] == 1
    features, labels = moving()
    again = evaluate_run(
        tmp_path, features=features, labels=labels, test=range(12, 18), classes=["left", "still", "right"]
    )
    assert again == found
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["config"]["encoder"]["reads"] == "stacked" and record["config"]["sample"] == {"train": 1}
    cnn = build("resnet10t", options=CNN["options"], weights=tmp_path / "network.safetensors")
    assert cnn.input.reads == "stacked" and cnn.input.size_px == 32


def test_a_recipe_without_an_encoder_is_what_it_was() -> None:
    assert not {"encoder", "start", "distil"} & AverageConfig(features=("rgb",)).recipe().keys()


@pytest.mark.parametrize(
    ("kind", "shape", "options", "message"),
    [
        (
            "vtn",
            (32, 32, 4),
            {},
            "encoder.reads: rgb: expected rows (H,W,3), or clips (T,H,W,3), got clips (32, 32, 4)",
        ),
        ("vtn", (32, 32, 3), {"reads": "flow"}, "expected rows (H,W,2l), or clips (T,H,W,2l), got clips (32, 32, 3)"),
        ("vtn", (1, 32, 32, 3), {"reads": "rgbdiff"}, "differences take two frames: encoder of clips: expected 2 or"),
        ("vtn", (12,), {}, "rows do not fit the encoder"),
        ("vtn", (4, 32, 32, 3), {"name": "resnet10x"}, "encoder: unknown network: timm: 'resnet10x'"),
        (
            "vtn",
            (32, 32, 3),
            {"name": "vit_tiny_patch16_224", "crop_px": 32, "options": {}},
            "encoder: VisionTransformer cannot take an input of 3x32x32: ",
        ),
        ("ridge", (4, 32, 32, 3), {}, "no encoder with ridge, which is not trained in steps"),
    ],
)
def test_what_does_not_fit(kind: str, shape: tuple[int, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        heads.build(kind, {"clips": shape}, 3, network={**SMALL_CNN, **options})


@pytest.mark.parametrize(("reads", "channels"), [("rgb", 3), ("stacked", 6)])
def test_grey_frames_are_grey_pictures(reads: str, channels: int) -> None:
    options = {"encoder": {**SMALL_CNN, "crop_px": 32, "reads": reads}, "dim": 16, "heads": 4, "blocks": 1}
    grey, rgb = (heads.build("vtn", {"clips": (4, 40, 40, c)}, 3, **options) for c in (1, 3))
    assert grey.encoder.network.trunk.conv1[0].weight.shape[1] == channels  # type: ignore[union-attr, index]
    rgb.load_state_dict(grey.state_dict())
    x, mask = torch.randint(0, 256, (2, 2, 4, 40, 40, 1), dtype=torch.uint8), torch.ones(2, 2, dtype=torch.bool)
    both = [h.eval()({"clips": r}, {"clips": mask}) for h, r in ((grey, x), (rgb, x.expand(*x.shape[:-1], 3)))]
    torch.testing.assert_close(*both)


def test_one_store_of_frames() -> None:
    with pytest.raises(UserError, match="one store of frames or clips with an encoder, not a, b"):
        heads.build("vtn", {"a": (4, 32, 32, 3), "b": (4, 32, 32, 3)}, 3, network=SMALL_CNN)


def test_a_run_loads_without_the_weights_that_it_began_with(tmp_path: Path) -> None:
    rgb = build("resnet10t", options=CNN["options"], num_classes=3)
    (tmp_path / "rgb.safetensors").write_bytes(save_network(rgb))
    encoder = CONFIG.encoder.model_copy(update={"weights": str(tmp_path / "rgb.safetensors")})  # type: ignore[union-attr]
    train = CONFIG.train.model_copy(update={"epochs": 1})
    trained(tmp_path / "run", CONFIG.model_copy(update={"encoder": encoder, "train": train}))
    (tmp_path / "rgb.safetensors").unlink()
    head, _ = load_head(tmp_path / "run")
    assert head({"pixels": rows((32, 32, 3), 1, 4)}, {"pixels": torch.ones(1, 4, dtype=torch.bool)}).isfinite().all()
