"""Features block by block: the same rows as in memory, every video once an epoch, in another order each time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from features.batches import Features, all_rows
from features.errors import DamagedStore, FramepoolError
from features.rows import TooLarge
from features.stream import Stream
from heads.kinds import AttentionClusterConfig, RidgeConfig
from tests.features import made
from tests.heads.test_training import bytes_of, go

LENGTHS = (3, 1, 4, 2, 5)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two stores of four shards of five videos; flow lacks some rows of one video."""
    root = tmp_path_factory.mktemp("stores")
    for modality, dim in (("rgb", 4), ("flow", 3)):
        for shard in range(4):
            lengths = LENGTHS if modality == "rgb" else [*LENGTHS[:-1], 0 if shard == 2 else 2]
            rows = made.videos(lengths, row_shape=(dim,), seed=shard)
            ids = tuple(f"s{shard}/v{k}" for k in range(5))
            made.make(root / modality, rows, shard=shard, ids=ids)
    return {m: root / m for m in ("rgb", "flow")}


IDS = [f"s{shard}/v{k}" for k in (3, 0, 4, 1, 2) for shard in (2, 0, 3, 1)]


def streamed(stores: dict[str, Path], shards: float = 1) -> Stream:
    block = int(shards * sum(sum(LENGTHS) * 2 * dim for dim in (4, 3)))
    return Stream.open(stores, IDS, block_bytes=block)


@pytest.mark.parametrize("shards", [0.1, 1, 2.1, 9])
def test_blocks_hold_each_video_once_with_its_own_rows(stores: dict[str, Path], shards: float) -> None:
    whole, stream = Features.open(stores, IDS), streamed(stores, shards)
    assert stream.shapes == whole.shapes and stream.ids == whole.ids and stream.stores == whole.stores
    assert torch.equal(stream.has_rows("flow"), whole.has_rows("flow")) and stream.nbytes == whole.nbytes - 2 * 7
    videos, seen, blocks = torch.randperm(20)[:17], [], 0
    for rows, places, numbers in stream.blocks(videos):
        blocks += 1
        seen += places.tolist()
        ours, masks = rows.batch(numbers, all_rows)
        theirs, their_masks = whole.batch(videos[places], all_rows)
        for m in stores:
            assert torch.equal(ours[m], theirs[m]) and torch.equal(masks[m], their_masks[m])
    assert sorted(seen) == list(range(17))
    assert blocks == {0.1: 4, 1: 4, 2.1: 2, 9: 1}[shards]


def test_each_epoch_has_another_order_and_the_same_seed_the_same(stores: dict[str, Path]) -> None:
    def order(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return [p for _, places, _ in streamed(stores).blocks(torch.arange(20), generator) for p in places.tolist()]

    assert order(1) == order(1) != order(2)
    assert sorted(order(1)) == list(range(20))
    firsts = {IDS[order(seed)[0]][:2] for seed in range(12)}
    assert len(firsts) > 2, "blocks come in random order"


def test_means_are_those_in_memory(stores: dict[str, Path]) -> None:
    videos = torch.tensor([0, 3, 9, 11, 19])
    whole, own = Features.open(stores, IDS).means(videos), streamed(stores).means(videos)
    for m in stores:
        torch.testing.assert_close(own[m], whole[m])
    assert streamed(stores).only(["flow"]).shapes == {"flow": (3,)}


def data(stores: dict[str, Path], shards: float) -> dict[str, Any]:
    labels = np.array([int(name[-1]) % 2 for name in IDS])
    return {
        "data": (streamed(stores, shards), labels),
        "train": range(14),
        "test": range(14, 20),
        "classes": ("a", "b"),
    }


def test_a_head_that_needs_no_order_is_the_same(stores: dict[str, Path], tmp_path: Path) -> None:
    config = RidgeConfig(features=("rgb", "flow"))
    for name, given in (("stream", data(stores, 1)), ("memory", data(stores, 1))):
        if name == "memory":
            given["data"] = (Features.open(stores, IDS), given["data"][1])
        go(tmp_path / name, config, **given)
    scores = [np.load(tmp_path / name / "predictions.npz")["logits"] for name in ("stream", "memory")]
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4, atol=1e-5)


def test_streamed_training_resumes_to_the_same_bytes(stores: dict[str, Path], tmp_path: Path) -> None:
    config = AttentionClusterConfig(features=("rgb", "flow"), clusters=2, train={"epochs": 4, "batch": 3})  # type: ignore[arg-type]
    go(tmp_path / "whole", config, **data(stores, 2.1))

    class Stop(Exception):
        pass

    def stop(line: str) -> None:
        if line.startswith("epoch 3"):
            raise Stop

    with pytest.raises(Stop):
        go(tmp_path / "killed", config, **data(stores, 2.1), log=stop)
    go(tmp_path / "killed", config, **data(stores, 2.1))
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")


def test_what_cannot_be_streamed_is_said(stores: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(
        FramepoolError, match=r"store lacks videos: .*: expected all 21 videos, got new is not among them"
    ):
        Stream.open(stores, [*IDS, "new"])
    made.make(tmp_path / "other", made.videos(LENGTHS), ids=("s0/v0", "s1/v0", "s2/v0", "s3/v0", "s0/v1"))
    with pytest.raises(FramepoolError, match=r"stores of other shards cannot be streamed: .*other"):
        Stream.open({**stores, "other": tmp_path / "other"}, ["s0/v0", "s1/v0"])


def test_a_damaged_shard_stops_where_it_is_read(stores: dict[str, Path], tmp_path: Path) -> None:
    made.make(tmp_path, made.videos(LENGTHS), ids=tuple(f"v{k}" for k in range(5)))
    stream = Stream.open({"rgb": tmp_path}, ["v0"])
    part = next(
        path for path in (tmp_path / "00000.zarr" / "frames").rglob("*") if path.is_file() and "c" in path.parts
    )
    part.write_bytes(part.read_bytes()[::-1])
    with pytest.raises(DamagedStore):
        list(stream.blocks(torch.arange(1)))


def test_a_shard_that_memory_has_no_room_for(stores: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    class Free:
        available = 600

    monkeypatch.setattr("psutil.virtual_memory", Free)
    stream = Stream.open(stores, IDS)
    with pytest.raises(TooLarge, match=r"a shard does not fit in memory: .*rgb, .*flow: .*; read what is not stored"):
        list(stream.blocks(torch.arange(20)))
    assert len(list(stream.only(["rgb"]).blocks(torch.arange(20)))) == 4
