"""Rows of other modalities at the times of one, against a loop over all of them."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from features.align import nearest
from features.batches import Features, all_rows, even_rows, random_rows

times = st.lists(st.integers(0, 40), max_size=12).map(sorted)


@given(st.lists(st.tuples(times, times), min_size=1, max_size=6))
def test_nearest_in_time(videos: list[tuple[list[int], list[int]]]) -> None:
    """The row of the least distance, the earlier of two; 0 without rows, and whatever the padding's times are."""
    longest = max(1, *(len(theirs) for theirs, _ in videos))
    reference = np.array([(theirs + [20] * longest)[:longest] for theirs, _ in videos])
    counts = np.array([len(own) for _, own in videos])
    found = nearest(
        reference, np.array([*itertools.chain(*(own for _, own in videos)), 3]), counts.cumsum() - counts, counts
    )
    assert found.shape == reference.shape
    for (theirs, own), rows in zip(videos, found.tolist(), strict=True):
        if not own:
            assert set(rows) == {0}
            continue
        for time, row in zip(theirs, rows, strict=False):  # what is left over is padding
            assert own[row] == min(own, key=lambda t: (abs(t - time), t))


def made() -> Features:
    """Pictures every 40 ms, sound every half second; rows say when they are. A video lacks sound, another pictures."""
    pictures = [np.arange(50) * 40_000, np.arange(10) * 40_000, np.zeros(0)]
    sound = [np.arange(4) * 500_000 + 250_000, np.zeros(0), np.arange(2) * 500_000]
    arrays = {
        "rgb": [t[:, None].astype(np.float32) for t in pictures],
        "audio": [t[:, None].astype(np.float32) for t in sound],
    }
    return Features.of(["a", "b", "c"], arrays, {"rgb": pictures, "audio": sound})


def test_a_batch_follows_one_modality() -> None:
    features, masks = made().batch(torch.arange(3), {"rgb": even_rows(6), "audio": all_rows}, align="rgb")
    assert features["rgb"].shape == features["audio"].shape == (3, 6, 1)
    at, heard = features["rgb"][0, :, 0], features["audio"][0, :, 0]
    assert at.tolist() == [160_000, 480_000, 800_000, 1_160_000, 1_480_000, 1_800_000]
    assert heard.tolist() == [250_000, 250_000, 750_000, 1_250_000, 1_250_000, 1_750_000]
    assert masks["rgb"].tolist() == [[True] * 6, [True] * 6, [False] * 6]
    assert masks["audio"].tolist() == [[True] * 6, [False] * 6, [False] * 6]
    assert (features["audio"][1:] == 0).all()


def test_the_other_way_round_and_without() -> None:
    features, masks = made().batch(torch.tensor([2, 0]), all_rows, align="audio")
    assert features["rgb"].shape == (2, 4, 1) and masks["rgb"].tolist() == [[False] * 4, [True] * 4]
    assert features["rgb"][1, :, 0].tolist() == [240_000, 760_000, 1_240_000, 1_760_000]
    free, _ = made().batch(torch.arange(3), all_rows)
    assert free["rgb"].shape[1] == 50 and free["audio"].shape[1] == 4


def test_random_rows_are_drawn_once_and_the_others_follow() -> None:
    features, masks = made().batch(torch.tensor([0, 0]), random_rows(5, torch.Generator().manual_seed(0)), align="rgb")
    assert features["rgb"].shape == features["audio"].shape == (2, 5, 1) and masks["audio"].all()
    assert not torch.equal(features["rgb"][0], features["rgb"][1])
    sound = torch.arange(4) * 500_000 + 250_000
    at = (features["rgb"] - sound).abs().argmin(dim=2)  # (2,5)
    assert torch.equal(features["audio"][..., 0], sound[at].float())


def test_has_rows() -> None:
    features = made()
    assert features.has_rows().tolist() == [True, True, True]
    assert features.has_rows("audio").tolist() == [True, False, True]


def test_the_mean_of_rows_is_that_of_the_videos_asked_for() -> None:
    features = made()
    means = features.means(torch.tensor([0, 1]))
    rows = np.concatenate([np.arange(50), np.arange(10)]) * 40_000
    assert abs(float(means["rgb"]) - rows.mean()) < 1 and float(means["audio"]) == 1_000_000
    assert float(features.means(torch.tensor([1]))["audio"]) == 0
