"""Features in memory: selections against a slow reference, joins by id, and what `open` refuses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from features.atomic import write_json
from features.batches import Features, Select, all_rows, even_rows, random_rows, segment_rows
from features.errors import DamagedStore, FramepoolError, UserError
from features.manifest import Manifest, manifest_path
from features.outcome import Outcome
from features.store import shard_path, write_shard
from features.stream import Stream

LENGTHS = torch.tensor([0, 1, 4, 9, 25, 30])
Arrays = Sequence[np.ndarray[Any, Any]]


def picked(select: Select, lengths: torch.Tensor = LENGTHS) -> list[list[int]]:
    index, mask = select(lengths)
    assert index.shape == mask.shape
    return [row[m].tolist() for row, m in zip(index, mask, strict=True)]


def test_all_rows() -> None:
    assert picked(all_rows) == [list(range(n)) for n in LENGTHS.tolist()]


@given(st.lists(st.integers(0, 60), min_size=1, max_size=6), st.integers(1, 30))
@settings(max_examples=60)
def test_selections_against_their_definitions(counts: list[int], n: int) -> None:
    lengths, generator = torch.tensor(counts), torch.Generator().manual_seed(0)
    even, random, segments = (
        picked(s, lengths) for s in (even_rows(n), random_rows(n, generator), segment_rows(n, generator))
    )
    for k, length in enumerate(counts):
        if length <= n:
            assert even[k] == random[k] == segments[k] == list(range(length))
            continue
        assert even[k] == [int((j + 0.5) * length / n) for j in range(n)]
        assert len(set(random[k])) == n and random[k] == sorted(random[k]) and random[k][-1] < length
        assert all(s * length // n <= row < (s + 1) * length // n for s, row in enumerate(segments[k]))


def test_random_rows_are_uniform_and_follow_their_generator() -> None:
    def draw() -> torch.Tensor:
        return random_rows(3, torch.Generator().manual_seed(1))(torch.full((4000,), 10))[0]

    assert torch.equal(draw(), draw())
    shares = draw().flatten().bincount(minlength=10) / 4000
    assert float((shares - 0.3).abs().max()) < 0.03


def test_segment_rows_are_tsns_where_n_divides() -> None:
    index, _ = segment_rows(3, torch.Generator().manual_seed(1))(torch.full((3000,), 12))
    for s in range(3):
        assert sorted(index[:, s].unique().tolist()) == [4 * s, 4 * s + 1, 4 * s + 2, 4 * s + 3]


def arrays(counts: Sequence[int], *shape: int, dtype: str = "float16", seed: int = 0) -> list[np.ndarray[Any, Any]]:
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 200, (n, *shape)).astype(dtype) for n in counts]


def test_batches_are_padded_masked_and_keep_uint8() -> None:
    rgb, pixels = arrays([3, 0, 5], 4), arrays([2, 1, 1], 2, 2, 3, dtype="uint8")
    features = Features.of(["a", "b", "c"], {"rgb": rgb, "pixels": pixels})
    assert features.shapes == {"rgb": (4,), "pixels": (2, 2, 3)}
    found, masks = features.batch(torch.tensor([2, 1, 0]), all_rows)
    assert found["rgb"].dtype == torch.float32 and found["pixels"].dtype == torch.uint8
    assert found["rgb"].shape == (3, 5, 4)
    for place, video in enumerate([2, 1, 0]):
        for m, data in (("rgb", rgb), ("pixels", pixels)):
            n = len(data[video])
            np.testing.assert_array_equal(found[m][place, :n].numpy(), data[video])
            assert not found[m][place, n:].any()
            assert masks[m][place].tolist() == [k < n for k in range(masks[m].shape[1])]
    only, mask = features.batch(torch.tensor([1]), {"rgb": all_rows, "pixels": even_rows(1)})
    assert only["rgb"].shape == (1, 1, 4) and not mask["rgb"].any()
    assert features.has_rows().tolist() == [True, True, True]


def store(folder: Path, shards: dict[int, dict[str, np.ndarray[Any, Any]]], **changed: Any) -> Path:
    """A real store; `changed` fields of the manifest apply to the last shard."""
    for shard, videos in shards.items():
        rows = np.concatenate([*videos.values()])
        fields: dict[str, Any] = {
            "extractor": "rgb",
            "digest": "a" * 64,
            "recipe": {},
            "facts": {"weights_sha256": "w"},
            "list_digest": "l",
        }
        if shard == max(shards):
            fields |= changed
        outcomes = tuple(Outcome(outcome="ok" if len(v) else "undecodable", rows=len(v)) for v in videos.values())
        manifest = Manifest(
            **fields, shard=shard, ids=tuple(videos), outcomes=outcomes, row_shape=rows.shape[1:], dtype=str(rows.dtype)
        )

        def blocks(size: int, rows: np.ndarray[Any, Any] = rows) -> Any:
            return (rows[k : k + size] for k in range(0, len(rows), size))

        folder.mkdir(exist_ok=True)
        full = write_shard(shard_path(folder, shard), manifest, blocks, np.arange(len(rows), dtype=np.int64))
        write_json(manifest_path(folder, shard), full.to_json())
    return folder


def test_open_joins_by_id_across_shards_and_modalities(tmp_path: Path) -> None:
    a, b, c, d = arrays([3, 0, 2, 4], 5)
    x, y, z = arrays([1, 2, 3], 2, 2, dtype="uint8")
    rgb = store(tmp_path / "rgb-aaaaaaaa", {0: {"a": a, "b": b}, 3: {"c": c, "d": d}})
    flow = store(tmp_path / "flow", {0: {"d": z, "c": y, "b": x}})
    features = Features.open({"rgb": rgb, "flow": flow}, ["d", "b", "c"])
    assert features.ids == ("d", "b", "c")
    found, masks = features.batch(torch.arange(3), all_rows)
    for place, (r, f) in enumerate([(d, z), (b, x), (c, y)]):
        np.testing.assert_array_equal(found["rgb"][place][masks["rgb"][place]].numpy(), r)
        np.testing.assert_array_equal(found["flow"][place][masks["flow"][place]].numpy(), f)
    assert features.stores["rgb"] == {"store": "rgb-aaaaaaaa", "digest": "a" * 64, "facts": {"weights_sha256": "w"}}
    assert features.rows["rgb"].data.dtype == torch.float16


def test_open_keeps_the_type_and_the_times_of_rows(tmp_path: Path) -> None:
    """Of the videos that are wanted, in the order of the store."""
    a, b, c, d = arrays([3, 2, 1, 2], 96, 64, dtype="float32")
    folder = store(tmp_path / "logmel", {0: {"a": a + 1e-4, "b": b}, 1: {"c": c, "d": d}})
    features = Features.open({"logmel": folder}, ["d", "b"])
    data, starts, lengths, time_us = features.rows["logmel"]
    assert data.dtype == torch.float32 and data.shape == (5, 96, 64) and time_us.dtype == torch.int64
    times = [time_us[s : s + n].tolist() for s, n in zip(starts.tolist(), lengths.tolist(), strict=True)]
    assert times == [[1, 2], [3, 4]]  # each shard's rows are a microsecond apart
    found, _ = Features.open({"logmel": folder}, ["a"]).batch(torch.tensor([0]), all_rows)
    np.testing.assert_array_equal(found["logmel"][0].numpy(), a + np.float32(1e-4))  # which float16 would lose


def test_open_refuses_missing_and_doubled_videos_and_empty_stores(tmp_path: Path) -> None:
    rgb = store(tmp_path / "rgb", {0: {"a": arrays([2], 3)[0]}})
    with pytest.raises(
        FramepoolError, match=r"store lacks videos: .*rgb: expected all 3 videos, got x is not among them, nor are 1 o"
    ):
        Features.open({"rgb": rgb}, ["a", "x", "y"])
    with pytest.raises(FramepoolError, match="a video is listed twice: got a"):
        Features.open({"rgb": rgb}, ["a", "a"])
    (tmp_path / "none").mkdir()
    with pytest.raises(UserError, match="no features here"):
        Features.open({"rgb": tmp_path / "none"}, ["a"])


@pytest.mark.parametrize("changed", [{"digest": "b" * 64}, {"facts": {"weights_sha256": "v"}}])
def test_open_refuses_a_mixed_store(tmp_path: Path, changed: dict[str, Any]) -> None:
    """F33."""
    a, b = arrays([2, 2], 3)
    rgb = store(tmp_path / "rgb", {0: {"a": a}, 1: {"b": b}}, **changed)
    with pytest.raises(FramepoolError, match=f"mixed store: .*shards 00000 and 00001 differ in {next(iter(changed))}"):
        Features.open({"rgb": rgb}, ["a", "b"])


def test_open_refuses_a_video_of_two_shards(tmp_path: Path) -> None:
    """A shard that is left over from a longer list."""
    a, b, old = arrays([2, 2, 3], 3)
    rgb = store(tmp_path / "rgb", {0: {"a": a, "b": b}, 1: {"b": old}})
    for open_ in (Features.open, Stream.open):
        with pytest.raises(FramepoolError, match=r"a video is in two shards: .*rgb: shards 00000 and 00001: got b"):
            open_({"rgb": rgb}, ["a"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_never_stored(tmp_path: Path, value: float) -> None:
    """F35, F37; a reader refuses them too, with the video's id (test_store). A row of zeros is a row."""
    a, b, c = arrays([2, 3, 2], 3)
    c[:] = 0
    assert Features.open({"rgb": store(tmp_path / "good", {0: {"c": c}})}, ["c"]).has_rows().all()
    b[2, 1] = value
    with pytest.raises(DamagedStore, match="non-finite row"):
        store(tmp_path / "bad", {0: {"a": a, "b": b, "c": c}})


def test_open_says_how_much_memory_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rgb = store(tmp_path / "rgb", {0: {"a": arrays([2], 3)[0]}})
    monkeypatch.setattr(psutil, "virtual_memory", type("M", (), {"available": 1000}))
    with pytest.raises(
        FramepoolError, match="features do not fit in memory: expected 268435504 bytes, got 1000 available"
    ):
        Features.open({"rgb": rgb}, ["a"])
