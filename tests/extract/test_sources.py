"""Where an extractor reads from: the video, another store, one that is never stored; and several at once."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from extract.config import AnyExtractor, ExtractorConfig, recipe
from extract.decoders import Decoders
from extract.fingerprint import Item
from extract.shard import Task, extract_shard, extract_shards
from features.errors import FramepoolError, UserError
from features.recipe import digest
from features.store import read_shard, verify_shard
from tests.faults import world
from tests.media import share_networks, write_network, write_video
from tests.sounds import click_and_flash

SMALL = {"resize": 64, "crop": 64}
CONFIGS: dict[str, dict[str, Any]] = {
    "pixels": {"kind": "pixels", "sampling": {"kind": "uniform", "n": 3}, "transform": SMALL},
    "tvl1": {"kind": "tvl1", "sampling": {"kind": "segments", "n": 2}, "pairs": 2, "transform": SMALL},
    "logmel": {"kind": "logmel", "hop_s": 0.48},
    "flow": {"kind": "flow", "source": "tvl1", "crop": 48},
    "rgb": {"kind": "rgb", "source": "pixels", "transform": {"crop": 48}},
    "audio": {"kind": "audio", "source": "logmel"},
}
PARSE = TypeAdapter(ExtractorConfig).validate_python


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos with sound, one without, one that is none, one too short for a stack of flow."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "videos").mkdir()
    for number, fps in enumerate((25, 30)):
        click_and_flash(folder / "videos" / f"{number}.mp4", fps=fps)
    write_video(folder / "videos/2.mp4", frames=9)
    (folder / "videos/3.mp4").write_text("no video")
    write_video(folder / "videos/4.mp4", frames=2)
    write_network(folder / "w.safetensors", "test_resnet")
    write_network(folder / "mono.safetensors", "test_resnet", in_chans=1, reads="logmel")
    share_networks(folder / "cache")
    return folder


def task(folder: Path, name: str, store: Path, source: Path | Task | None = None, **fields: Any) -> Task:
    value = dict(CONFIGS[name])
    weights = None
    if "source" in value:
        weights = folder / ("mono.safetensors" if name == "audio" else "w.safetensors")
        value |= {"network": {"name": "test_resnet", "weights": weights}, "batch": 3, **fields}
    config: AnyExtractor = PARSE(value)
    above = None if source is None else digest([str(config.source)])
    return Task(
        extractor=name,
        config=config,
        recipe=recipe(config, str(weights), above),
        weights=weights,
        shard=0,
        items=tuple(Item(f"v{n}", f"{n}.mp4") for n in range(5)),
        root=folder / "videos",
        store=store / name,
        cache=folder / "cache",
        source=source,
    )


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    """Each extractor that reads the video, by itself."""
    for name in ("pixels", "tvl1", "logmel"):
        extract_shard(task(folder, name, folder / "alone"), workers=1)
    return folder / "alone"


def outcomes(store: Path) -> list[str]:
    return [o.outcome for o in verify_shard(store, 0).outcomes]


def test_each_kind_has_its_outcomes(alone: Path) -> None:
    assert outcomes(alone / "pixels") == ["ok", "ok", "ok", "undecodable", "ok"]
    assert outcomes(alone / "tvl1") == ["ok", "ok", "ok", "undecodable", "too_short"]
    assert outcomes(alone / "logmel") == ["ok", "ok", "no_audio", "undecodable", "no_audio"]
    shapes = {name: read_shard(alone / name, 0).frames for name in ("pixels", "tvl1", "logmel")}
    assert {n: (f.shape[1:], f.dtype.name) for n, f in shapes.items()} == {
        "pixels": ((64, 64, 3), "uint8"),
        "tvl1": ((64, 64, 4), "uint8"),
        "logmel": ((96, 64), "float32"),
    }


@pytest.mark.parametrize("workers", [1, 2])
def test_one_pass_gives_the_bytes_of_several(
    folder: Path, alone: Path, tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []
    start = Decoders.__enter__
    monkeypatch.setattr(Decoders, "__enter__", lambda self: (opened.append(len(self.jobs)), start(self))[1])
    names = ("pixels", "tvl1", "logmel")
    manifests = extract_shards([task(folder, name, tmp_path) for name in names], workers=workers)
    assert [m.extractor for m in manifests] == list(names) and opened == [3]
    for name in names:
        assert world.contents(tmp_path / name) == world.contents(alone / name)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("flow", "tvl1"),
        pytest.param("rgb", "pixels", marks=pytest.mark.slow),
        pytest.param("audio", "logmel", marks=pytest.mark.slow),
    ],
)
def test_a_source_that_is_not_stored_gives_the_same_rows(
    folder: Path, alone: Path, tmp_path: Path, name: str, source: str
) -> None:
    extract_shard(task(folder, name, tmp_path / "stored", alone / source), workers=1)
    virtual = task(folder, source, tmp_path)
    extract_shard(task(folder, name, tmp_path / "virtual", virtual), workers=2)
    stored, direct = (read_shard(tmp_path / where / name, 0) for where in ("stored", "virtual"))
    maps = read_shard(alone / source, 0)
    assert stored.frames.tobytes() == direct.frames.tobytes()
    assert stored.manifest.outcomes == direct.manifest.outcomes == maps.manifest.outcomes
    assert np.array_equal(stored.time_us, maps.time_us) and np.array_equal(direct.time_us, maps.time_us)
    assert not (tmp_path / source).exists()


def test_rows_are_those_of_the_network_on_the_maps(folder: Path, alone: Path, tmp_path: Path) -> None:
    import torch

    from extract.networks import FromRows, build

    extract_shard(task(folder, "flow", tmp_path, alone / "tvl1"), workers=1)
    network = build("test_resnet", weights=folder / "w.safetensors", in_chans=4, reads="flow", num_classes=0)
    maps = torch.from_numpy(read_shard(alone / "tvl1", 0).frames[:, 8:56, 8:56])
    with torch.no_grad():
        spec = network.input
        expected = network.trunk(FromRows("flow", spec.mean, spec.std)(maps)).numpy()
    got = read_shard(tmp_path / "flow", 0).frames.astype(np.float32)
    assert np.linalg.norm(got - expected) / np.linalg.norm(expected) < 5e-4


def test_a_kill_on_the_way_through_a_virtual_source(
    folder: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import extract.lanes as module

    class Killed(BaseException):
        pass

    def dying(self: Any, batch: Any, rows: Any, count: list[int] = [0]) -> None:  # noqa: B006
        count[0] += 1
        if count[0] == 2:
            raise Killed
        write(self, batch, rows)

    write = module.Writer._write
    whole = task(folder, "flow", tmp_path / "whole", task(folder, "tvl1", tmp_path))
    extract_shard(whole, workers=1)
    monkeypatch.setattr(module.Writer, "_write", dying)
    job = replace(whole, store=tmp_path / "killed")
    with pytest.raises(Killed):
        extract_shard(job, workers=1)
    monkeypatch.setattr(module.Writer, "_write", write)
    extract_shard(job, workers=1)
    assert world.contents(tmp_path / "killed") == world.contents(tmp_path / "whole/flow")


def test_maps_that_are_too_small_for_the_network(folder: Path, alone: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"maps are smaller than the network's input: .* at least 96 px, got 64x64x4"):
        extract_shard(task(folder, "flow", tmp_path, alone / "tvl1", crop=96), workers=1)


def test_a_source_of_another_list_is_refused(folder: Path, alone: Path, tmp_path: Path) -> None:
    job = task(folder, "flow", tmp_path, alone / "tvl1")
    said = f"source of other videos: .*expected w as video 1 of the shard, got {job.items[1].id} as video 1"
    with pytest.raises(FramepoolError, match=said):
        extract_shard(replace(job, items=(job.items[0], Item("w", "0.mp4"), *job.items[2:])), workers=1)
    with pytest.raises(FramepoolError, match="expected none as video 1 of the shard"):
        extract_shard(replace(job, items=job.items[:1]), workers=1)


def test_a_source_of_other_files_is_refused_where_the_files_are(folder: Path, alone: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "videos", tmp_path / "videos")
    job = replace(task(folder, "rgb", tmp_path, alone / "pixels"), root=tmp_path / "videos")
    write_video(tmp_path / "videos/2.mp4", frames=9, seed=7)
    with pytest.raises(FramepoolError, match=r"source of other files: .*pixels: .*; videos were replaced since"):
        extract_shard(job, workers=1)
    shutil.rmtree(tmp_path / "videos")
    assert extract_shard(job, workers=1).rows > 0


@pytest.mark.slow
def test_a_source_that_was_made_again_otherwise_is_refused(folder: Path, alone: Path, tmp_path: Path) -> None:
    """The first shard's facts hold those of its source."""
    job = task(folder, "flow", tmp_path, alone / "tvl1")
    extract_shard(job, workers=1)
    wider = task(folder, "tvl1", tmp_path / "other")
    config = wider.config.model_copy(update={"pairs": 3})
    extract_shard(replace(wider, config=config), workers=1)
    for shard in (1,):
        other = replace(wider, config=config, shard=shard)
        extract_shard(other, workers=1)
        with pytest.raises(FramepoolError, match="store was made with another"):
            extract_shard(replace(job, shard=shard, source=tmp_path / "other/tvl1"), workers=1)


@pytest.mark.slow
def test_int8_is_calibrated_on_the_datasets_own_rows(folder: Path, alone: Path, tmp_path: Path) -> None:
    job = task(folder, "flow", tmp_path, alone / "tvl1", precision="int8")
    manifest = extract_shard(replace(job, calibration=job.items), workers=1)
    assert "int8" in manifest.facts["int8"]
    assert 0 < manifest.statistics["relative_error"] < 1
    again = replace(job, calibration=job.items, store=tmp_path / "again")
    extract_shard(again, workers=1)
    assert world.contents(tmp_path / "again") == world.contents(tmp_path / "flow")
