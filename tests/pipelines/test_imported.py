"""A dataset of features that others made: through the ordinary road, and each video with its outcome."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features.manifest import read_manifest
from features.store import read_shard
from pipelines import __main__ as program
from pipelines import plan as plans
from tests.workflow import world

I3D = {"kind": "imported", "path": "output/i3d", "key": "rgb", "origin": "I3D of Kinetics-400"}
CONFIG = {
    **world.CONFIG,
    "max_bad_share": 0.3,
    "extractors": {"i3d": I3D},
    "heads": {"ridge": {"kind": "ridge", "features": ["i3d"]}},
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lists and features as video_features leaves them, and no video at all."""
    names = [world.name_of(number) for number in range(world.VIDEOS)]
    world.write_list(tmp_path, names)
    world.write_config(tmp_path, CONFIG)
    (tmp_path / "videos").mkdir()
    features = tmp_path / "output" / "i3d"
    features.mkdir(parents=True)
    for number, name in enumerate(names):
        rows = np.random.default_rng(number).standard_normal((3 + number % 2, 6)).astype(np.float32)
        rows[:, 0] += 4 * (number % 2)
        stem = features / name.rpartition("/")[2]
        np.save(f"{stem}_rgb.npy", rows)
        np.save(f"{stem}_timestamps_ms.npy", np.arange(len(rows)) * 640.0)
        np.save(f"{stem}_fps.npy", 25.0)
    np.save(f"{features / names[4].rpartition('/')[2]}_rgb.npy", np.full((3, 6), 1e6, np.float32))  # no float16
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(program.signal, "signal", lambda *_: None)
    plans.of.cache_clear()
    return tmp_path


def call(line: str) -> int:
    plans.of.cache_clear()
    return program.main(line.split())


def test_heads_train_on_features_of_others(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("index tiny") == 0
    assert "3 rows a video, 6 float16 a row" in capsys.readouterr().out
    assert call("features tiny --import output/i3d") == 0
    assert "8 ok, 1 non_finite" in capsys.readouterr().out
    folder = world.store(here, "i3d")
    first = read_manifest(folder, 0)
    assert first.recipe["kind"] == "imported" and first.recipe["origin"] == "I3D of Kinetics-400"
    assert first.dtype == "float16" and first.row_shape == (6,)
    shard = read_shard(folder, 0)
    kept = np.load(f"output/i3d/{first.ids[1].rpartition('/')[2]}_rgb.npy").astype(np.float16)
    rows = slice(int(shard.offsets[1]), int(shard.offsets[2]))
    assert np.array_equal(shard.frames[rows], kept)
    assert shard.time_us[rows].tolist() == [640_000 * n for n in range(len(kept))]
    assert call("train tiny --head ridge") == 0
    (metrics,) = Path("work/tiny/runs").glob("ridge-*/seed0/metrics.json")
    assert json.loads(metrics.read_text())["top1"] == 1.0
    assert call("verify tiny") == 0


def test_changed_features_make_their_shard_anew(here: Path) -> None:
    store = plans.of("tiny").store("i3d")
    assert call("extract tiny --extractor i3d") == 0
    times = [Path(m).stat().st_mtime_ns for m in store.manifests]
    token = plans.of("tiny").shard_token(0, store.name)
    path = Path(f"output/i3d/{world.name_of(8).rpartition('/')[2]}_rgb.npy")
    np.save(path, np.load(path) + 1)
    assert call("extract tiny --extractor i3d") == 0
    changed = [Path(m).stat().st_mtime_ns != t for m, t in zip(store.manifests, times, strict=True)]
    assert sum(changed) == 1
    plans.of.cache_clear()
    assert plans.of("tiny").shard_token(0, store.name) != token


def test_a_worker_that_lives_long_sees_features_that_came(here: Path) -> None:
    from pipelines import cluster

    path = Path(f"output/i3d/{world.name_of(0).rpartition('/')[2]}_rgb.npy")
    aside = path.rename(path.with_suffix(".aside"))

    def asked() -> str:  # of a worker with the plan of before, by a command that reads all anew
        token = cluster._token([plans.Plan("tiny").store("i3d")])
        return str(cluster._extract(here, "tiny", token, ["i3d"], None, 0, 1))

    plans.of.cache_clear()
    assert "1 undecodable" in asked()
    aside.rename(path)
    assert "4 ok" in asked() or "3 ok, 1 non_finite" in asked()


def test_bytes_have_no_fractions(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world.write_config(here, {**CONFIG, "extractors": {"i3d": {**I3D, "dtype": "uint8"}}})
    for path in Path("output/i3d").glob("*_rgb.npy"):
        np.save(path, np.rint(np.abs(np.load(path))).clip(0, 255) + (0.5 if "Run" in path.name else 0))
    assert call("extract tiny --extractor i3d") == 3
    said = capsys.readouterr().err
    assert "5 ok, 4 undecodable" in said and "numbers that are not whole, as uint8 holds them: set dtype" in said


def test_another_place_is_another_store(here: Path) -> None:
    digests = set()
    for change in ({}, {"path": "elsewhere"}, {"key": "flow"}, {"origin": "mine"}, {"dtype": "float32"}):
        world.write_config(here, {**CONFIG, "extractors": {"i3d": {**I3D, **change}}})
        plans.of.cache_clear()
        digests.add(plans.of("tiny").store("i3d").digest)
    assert len(digests) == 5


def test_missing_features_are_outcomes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2):
        Path(f"output/i3d/{world.name_of(number).rpartition('/')[2]}_rgb.npy").unlink()
    assert call("extract tiny --extractor i3d") == 3
    said = capsys.readouterr().err
    assert "no features of it in output/i3d" in said and "6 ok, 2 undecodable, 1 non_finite" in said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "features tiny --import output",
            "no extractor imports these features: config/tiny.yaml: $.extractors: got ",
        ),
        ("features tiny --import output/none.h5", "not an HDF5 file: output/none.h5"),
    ],
)
def test_what_cannot_come_in(here: Path, capsys: pytest.CaptureFixture[str], line: str, said: str) -> None:
    assert call(line) == 2
    assert capsys.readouterr().err.startswith(f"framepool: {said}")


@pytest.mark.parametrize(("path", "layout"), [("out", ""), ("out", "webdataset"), ("o.h5", "videos"), ("o.h5", "flat")])
def test_round_trip_by_commands(here: Path, capsys: pytest.CaptureFixture[str], path: str, layout: str) -> None:
    """Out of one dataset and into another: the same rows and times."""
    assert call("extract tiny --extractor i3d") == 0
    assert call(f"features tiny --export {path}" + (f" --layout {layout}" if layout else "")) == 0
    assert "the rows of 8 videos" in capsys.readouterr().out
    config: dict[str, Any] = {**I3D, "path": path, "key": "i3d"}
    if layout == "webdataset":
        config["layout"] = layout
    world.write_config(
        here,
        {**CONFIG, "extractors": {"again": config}, "heads": {"ridge": {"kind": "ridge", "features": ["again"]}}},
        "other",
    )
    assert call("extract other --extractor again") == 0
    (again,) = Path("work/other/features").glob("again-*")
    for number in range(3):
        old, new = read_shard(world.store(here, "i3d"), number), read_shard(again, number)
        assert np.array_equal(old.frames, new.frames) and np.array_equal(old.time_us, new.time_us)


@pytest.mark.slow
def test_the_workflow_takes_features_of_others(here: Path) -> None:
    world.snakemake(here)
    assert (here / "results" / "tiny" / "index.html").is_file()
    assert world.planned(here) == {}
    path = here / "output" / "i3d" / f"{world.name_of(8).rpartition('/')[2]}_rgb.npy"
    np.save(path, np.load(path) + 1)
    assert world.planned(here)["extract"] == 3, "each shard looks again at what changed"
