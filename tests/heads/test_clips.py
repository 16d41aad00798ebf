"""Several labels with times: what happens in a clip, and a video tested in clips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import heads
from features.batches import Features, all_rows, even_rows
from features.errors import UserError
from heads.clip_labels import Actions
from heads.clips import in_clips
from heads.config import Clips
from heads.data import Data
from heads.kinds import AverageConfig
from heads.loop import Loop
from tests.heads.made import VECTORS
from tests.heads.test_training import go


@pytest.mark.parametrize("kind", ["vtn", "average", "attention_cluster"])
def test_clips_of_a_video_that_lacks_what_is_aligned(kind: str) -> None:
    """The longest video of the batch has no row of the modality that follows the other."""
    small = {"vtn": {"dim": 8, "heads": 2, "blocks": 1}, "attention_cluster": {"clusters": 3}}.get(kind, {})
    head = heads.build(kind, VECTORS, 3, align="rgb", clips={"n": 3}, **small).eval()
    x = {m: torch.randn(2, 12, *shape) for m, shape in VECTORS.items()}
    counts = {"rgb": torch.tensor([[12], [4]]), "flow": torch.tensor([[0], [4]])}
    masks = {m: torch.arange(12) < n for m, n in counts.items()}
    with torch.no_grad():
        both = in_clips(head, Clips(n=3))(x, masks)
        alone = in_clips(head, Clips(n=3))(
            {m: r[1:, :4] for m, r in x.items()}, {m: r[1:, :4] for m, r in masks.items()}
        )
    torch.testing.assert_close(both[1:], alone)
    assert both.isfinite().all()


ACTIONS = [[(0, 0.0, 2.0), (2, 1.5, 9.0)], [], [(1, 3.0, 4.0), (1, 8.0, 9.0), (0, 9.0, 9.5)]]


def slow_within(video: int, first_us: int, last_us: int) -> list[bool]:
    """The union of the labels of the moments of a clip, as SlowFast takes it, every millisecond."""
    found = [False] * 3
    for moment_us in {*range(first_us, last_us + 1, 1000), last_us}:
        for label, start, end in ACTIONS[video]:
            found[label] |= start * 1e6 <= moment_us <= end * 1e6
    return found


def test_a_clip_has_the_labels_of_its_moments() -> None:
    actions, generator = Actions.of(ACTIONS), np.random.default_rng(0)
    videos = torch.from_numpy(generator.integers(0, 3, 60))
    spans = torch.from_numpy(np.sort(generator.integers(-500, 11_000, (60, 2)), axis=1) * 1000)
    found = actions.within(videos, spans, 3)
    expected = [slow_within(v, a, b) for v, (a, b) in zip(videos.tolist(), spans.tolist(), strict=True)]
    assert found.tolist() == expected
    assert 0.1 < found.float().mean() < 0.6
    assert not Actions.of([[], []]).within(torch.tensor([1, 0]), spans[:2], 3).any()


def test_spans_are_those_of_the_picked_rows() -> None:
    times = [np.array([10, 20, 35]), np.array([], dtype=int), np.array([7])]
    arrays = [np.zeros((len(t), 2), np.float16) for t in times]
    features = Features.of(["a", "b", "c"], {"rgb": arrays}, {"rgb": times})
    videos = torch.tensor([2, 0, 1])
    spans = features.spans_us(videos, features.pick(videos, even_rows(2)), "rgb")
    assert spans[:2].tolist() == [[7, 7], [10, 35]]
    assert spans[2, 0] > spans[2, 1], "nothing happens in no row"


def timed(videos: int = 48) -> tuple[Features, np.ndarray[Any, Any], list[list[tuple[int, float, float]]]]:
    """Rows a second apart; what happens in a second is written in its row."""
    generator, arrays, happening = np.random.default_rng(0), [], []
    labels = np.zeros((videos, 3), bool)
    for video in range(videos):
        rows = 0.1 * generator.standard_normal((10, 6))
        own = []
        for label in range(3):
            if generator.random() < 0.5:
                start = int(generator.integers(0, 8))
                rows[start : start + 2, label] += 2
                own.append((label, start - 0.4, start + 1.4))
                labels[video, label] = True
        arrays.append(rows.astype(np.float32))
        happening.append(own)
    return Features.of([str(k) for k in range(videos)], {"rgb": arrays}), labels, happening


def test_training_on_clip_labels_finds_what_whole_video_labels_blur(tmp_path: Path) -> None:
    """One row a video in training: its own labels tell what is in it; those of the video are wrong four times in five.
    Tested in ten clips, of which the highest counts."""
    features, labels, happening = timed()
    found = {}
    for name, clip_s in (("clip", 0.5), ("video", None)):
        config = AverageConfig(
            features=("rgb",),
            dropout=0,
            sample={"train": 1},
            clips={"n": 10},
            train={"epochs": 40, "batch": 32, "lr": 0.05, "clip_s": clip_s},
        )
        given = {"data": (features, labels), "train": range(32), "test": range(32, 48), "classes": ("a", "b", "c")}
        found[name] = go(tmp_path / name, config, actions=happening, **given)
    assert found["clip"]["map"] > 0.98
    assert found["clip"]["loss"] < 0.7 * found["video"]["loss"]
    with pytest.raises(UserError, match="labels without times"):
        go(tmp_path / "none", config.model_copy(update={"train": config.train.model_copy(update={"clip_s": 1.0})}))


@pytest.mark.parametrize("of", ["max", "mean"])
@pytest.mark.parametrize("n", [1, 3, 10])
def test_scores_in_clips_are_those_of_each_clip_by_itself(of: Any, n: int) -> None:
    """Against a loop over videos and clips, of which short videos have fewer."""
    head = heads.build("average", VECTORS, 4, dropout=0, missing="none").eval()
    lengths = {"rgb": [7, 10, 2, 0], "flow": [5, 3, 10, 0]}
    generator = np.random.default_rng(1)
    arrays = {
        m: [generator.standard_normal((k, *VECTORS[m]), dtype=np.float32) for k in counts]
        for m, counts in lengths.items()
    }
    batch = Features.of(list("abcd"), arrays).batch(torch.arange(4), even_rows(10))
    scores = in_clips(head, Clips(n=n, of=of))(*batch)
    for video in range(3):
        found = []
        for k in range(n):
            part = {m: x[video][k * len(x[video]) // n : (k + 1) * len(x[video]) // n] for m, x in arrays.items()}
            if any(len(x) for x in part.values()):
                rows = {
                    m: torch.from_numpy(x if len(x) else np.zeros((1, *VECTORS[m]), np.float32))
                    for m, x in part.items()
                }
                masks = {m: torch.full((1, max(1, len(x))), len(x) > 0) for m, x in part.items()}
                found.append(head({m: x[None] for m, x in rows.items()}, masks)[0])
        expected = torch.stack(found).amax(dim=0) if of == "max" else torch.stack(found).mean(dim=0)
        torch.testing.assert_close(scores[video], expected)
    assert scores.isfinite().all()
    if n == 1:
        torch.testing.assert_close(scores, head(*batch))


def test_the_mean_does_not_hide_a_clip_that_is_no_number() -> None:
    head = heads.build("average", {"rgb": (2,)}, 3, dropout=0).eval()
    rows, mask = torch.ones(2, 4, 2), torch.tensor([[True] * 4, [True, False, False, False]])
    rows[0, 3], rows[1, 1:] = torch.nan, torch.nan
    scores = in_clips(head, Clips(n=2, of="mean"))({"rgb": rows}, {"rgb": mask})
    assert scores[0].isnan().all() and scores[1].isfinite().all()


def test_a_video_without_rows_of_the_first_modality_has_the_span_of_the_next() -> None:
    arrays = {
        "rgb": [np.ones((2, 3), np.float32), np.ones((0, 3), np.float32)],
        "flow": [np.ones((9, 2), np.float32)] * 2,
    }
    features, config = Features.of(["a", "b"], arrays), AverageConfig(features=("rgb", "flow"), train={"clip_s": 1.0})
    actions = Actions.of([[(0, 0.0, 1.0), (1, 8.0, 9.0)]] * 2)
    both, labels = torch.arange(2), torch.ones(2, 2, dtype=torch.bool)
    data = Data(features=features, labels=labels, train=both, test=both, classes=("a", "b"), actions=actions)
    head = heads.from_config(config, features.shapes, 2)
    loop = Loop(head=head, config=config, train=config.train, data=data, seed=0, device=torch.device("cpu"))
    step = loop._taken((features, both, both), both, dict.fromkeys(arrays, all_rows))
    assert step.labels.tolist() == [[True, False], [True, True]]


def test_without_clips_the_head_itself_speaks() -> None:
    head = heads.build("average", VECTORS, 4)
    assert in_clips(head, None) is head
    assert heads.build("average", VECTORS, 4, clips={"n": 2, "of": "mean"}).num_classes == 4


def test_windows_of_an_end_to_end_head_are_not_torn_apart() -> None:
    """Two clips of a video of three windows: its first, and the two others; the score is the larger."""
    torch.manual_seed(0)
    cnn = {"name": "test_resnet", "crop_px": 24, "frames": 4}
    options = {"dim": 8, "heads": 2, "blocks": 1}
    head = heads.build("vtn", {"pixels": (24, 24, 3)}, 3, network=cnn, **options).eval()
    rows = torch.randint(256, (1, 12, 24, 24, 3), dtype=torch.uint8)

    def scores(first: int, end: int) -> Any:
        part = rows[:, first:end]
        return head({"pixels": part}, {"pixels": torch.ones(1, end - first, dtype=torch.bool)})

    with torch.inference_mode():
        found = in_clips(head, Clips(n=2, of="max"))({"pixels": rows}, {"pixels": torch.ones(1, 12, dtype=torch.bool)})
        torch.testing.assert_close(found, torch.maximum(scores(0, 4), scores(4, 12)))
