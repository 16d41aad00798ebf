"""Rows that are computed as a head asks for them: those of the store, in the same batches, to the same weights."""

from __future__ import annotations

import copy
import csv
import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from extract.shard import extract_shards
from features.atomic import Lock
from features.batches import Features, all_rows
from features.errors import Busy, FramepoolError, TooManyBad
from features.outcome import Outcome
from heads.kinds import TsnConfig
from pipelines import plan as plans
from pipelines.commands.stage_one import task_of
from pipelines.computed import note
from pipelines.report.stores import read_store
from pipelines.virtual import Virtual
from tests.heads.made import SMALL_CNN
from tests.heads.test_steps import Stop, stopping
from tests.heads.test_training import bytes_of, go
from tests.workflow import world

CONFIG: dict[str, Any] = copy.deepcopy(world.CONFIG)
SIZE = {"resize": 32, "crop": 32}
CONFIG["extractors"] = {
    "pixels": {"kind": "pixels", "sampling": {"kind": "uniform", "n": 4}, "transform": SIZE},
    "tvl1": {"kind": "tvl1", "sampling": {"kind": "segments", "n": 2}, "pairs": 1, "backend": "dis", "transform": SIZE},
    "flow": {
        "kind": "flow",
        "source": "tvl1",
        "crop": 32,
        "network": {"name": "test_resnet", "weights": "flow.safetensors"},
    },
    "rgb": {**world.CONFIG["extractors"]["rgb"], "transform": SIZE},
}
TSN = {
    "kind": "tsn",
    "features": ["pixels"],
    "network": {**SMALL_CNN},
    "crop_px": 32,
    "sample": {"train": 2, "test": 4},
}
CONFIG["heads"] = {
    "tsn": {
        **TSN,
        "sample": {"train": 2, "test": 4},
        "train": {"epochs": 2, "batch": 3, "lr": 0.01, "schedule": {"kind": "constant"}},
    },
    "both": {"kind": "average", "features": ["flow", "rgb"], "train": {"epochs": 2, "batch": 3}},
}


def virtual(config: dict[str, Any], *names: str) -> dict[str, Any]:
    made = copy.deepcopy(config)
    for name in names:
        made["extractors"][name]["store"] = False
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine clips, one of them broken, and the same config with and without stores, which are made."""
    here = world.build(tmp_path_factory.mktemp("virtual"))
    (here / "videos" / f"{world.name_of(4)}.avi").write_bytes(b"broken")
    world.write_network(here / "flow.safetensors", "test_resnet", in_chans=2, reads="flow")
    config = {**CONFIG, "max_bad_share": 0.3}
    world.write_config(here, config, "stored")
    world.write_config(here, virtual(config, "pixels", "tvl1", "flow"), "virtual")
    return here


@pytest.fixture
def there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(folder)
    plans.of.cache_clear()
    yield folder
    plans.of.cache_clear()


def stored(*names: str) -> Features:
    plan = plans.of("stored")
    stores = [plan.store(name) for name in names]
    for shard in range(plan.shard_count):
        extract_shards(
            [task_of(store, shard) for store in sorted(stores, key=lambda s: s.extractor == "flow")], workers=1
        )
    return Features.open({s.extractor: s.folder for s in stores}, [v.id for v in plan.videos.videos])


def opened(*names: str, kept: Features | None = None, share: float = 0.3, tell: Any = lambda *_: None) -> Virtual:
    plan = plans.of("virtual")
    videos = plan.videos.videos
    return Virtual.open(
        {name: task_of(plan.store(name), 0) for name in names},
        kept,
        [v.id for v in videos],
        [plan.root / v.path for v in videos],
        stores={name: {"store": name, "digest": name} for name in names},
        workers=2,
        max_bad_share=share,
        tell=tell,
    )


def times(features: Features, modality: str, video: int) -> list[int]:
    rows = features.rows[modality]
    return rows.time_us[rows.starts[video] :][: rows.lengths[video]].tolist()


@pytest.mark.slow
def test_rows_are_those_of_the_stores(there: Path) -> None:
    """Pixels, and a network on flow that is not stored either, out of one decoding, beside stored rows."""
    whole = stored("pixels", "tvl1", "flow", "rgb").only(("pixels", "flow", "rgb"))
    videos, seen = torch.tensor([7, 0, 4, 3, 8]), []
    with opened("pixels", "flow", kept=whole.only(("rgb",))) as features:
        assert features.shapes == whole.shapes and features.ids == whole.ids
        for rows, places, numbers in features.blocks(videos, torch.Generator().manual_seed(1), batch=2):
            seen += places.tolist()
            ours, masks = rows.batch(numbers, all_rows)
            theirs, their_masks = whole.batch(videos[places], all_rows)
            for m in whole.shapes:
                torch.testing.assert_close(ours[m], theirs[m], rtol=1e-3, atol=1e-4)
                assert torch.equal(masks[m], their_masks[m])
                for place, number in zip(places, numbers, strict=True):
                    assert times(rows, m, int(number)) == times(whole, m, int(videos[place]))
        assert sorted(seen) == [0, 1, 2, 3, 4] != seen
        assert features.in_words().startswith("pixels: 4 ok, 1 undecodable; flow: 4 ok, 1 ")
        means, theirs_too = features.only(("flow", "rgb")).means(videos), whole.means(videos)
        for m, mean in means.items():
            torch.testing.assert_close(mean, theirs_too[m], rtol=1e-3, atol=1e-4)
        assert features.only(("rgb",)).shapes == {"rgb": whole.shapes["rgb"]}


def test_one_process_decodes_for_all_passes(there: Path) -> None:
    videos = torch.tensor([0, 1, 2])
    with opened("pixels") as features:
        passes = []
        for _ in range(3):
            assert sum(len(places) for _, places, _ in features.blocks(videos, batch=2)) == 3
            time.sleep(0.3)  # for a signal to come
            children = psutil.Process().children(recursive=True)
            passes.append({child.pid for child in children if child.status() != psutil.STATUS_ZOMBIE})
    assert passes[0] == passes[1] == passes[2] and len(passes[0]) >= 2


LABELS = np.array([0, 1] * 5)[:9]
GIVEN: dict[str, Any] = {"train": [0, 1, 2, 3, 5, 6], "test": [7, 8], "classes": world.CLASSES}


def test_a_head_trains_to_the_same_weights(there: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With other random rows, crops and dropout in every step; also where it was stopped inside of an epoch."""
    config = TsnConfig.model_validate(CONFIG["heads"]["tsn"])
    go(tmp_path / "stored", config, data=(stored("pixels"), LABELS), **GIVEN)
    with opened("pixels") as features:
        go(tmp_path / "virtual", config, data=(features, LABELS), **GIVEN)
        with monkeypatch.context() as patch, pytest.raises(Stop):
            stopping(patch, 4)
            go(tmp_path / "killed", config, data=(features, LABELS), checkpoint_s=0, **GIVEN)
        lines: list[str] = []
        go(tmp_path / "killed", config, data=(features, LABELS), checkpoint_s=0, log=lines.append, **GIVEN)
    assert lines[0] == "goes on in epoch 2/2, after 3 of 6 videos"
    for name in ("weights.safetensors", "predictions.npz"):
        assert bytes_of(tmp_path / "virtual")[name] == bytes_of(tmp_path / "stored")[name]
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "virtual")


def broken() -> int:
    """Its place in the list."""
    return [v.id for v in plans.of("virtual").videos.videos].index(world.name_of(4))


def test_a_video_that_does_not_decode_teaches_nothing(there: Path, tmp_path: Path) -> None:
    """Whatever its label is."""
    config = TsnConfig.model_validate(CONFIG["heads"]["tsn"])
    bad = broken()
    train = [n for n in range(5) if n != bad][:3]
    with opened("pixels") as features:
        for name, label in (("one", 0), ("other", 1)):
            labels = np.where(np.arange(9) == bad, label, LABELS)
            given = {**GIVEN, "train": sorted([*train, bad]), "test": [8]}
            assert go(tmp_path / name, config, data=(features, labels), **given)["loss"] is not None
    weights = [bytes_of(tmp_path / name)["weights.safetensors"] for name in ("one", "other")]
    assert weights[0] == weights[1]
    with (
        opened("pixels", share=0.1) as features,
        pytest.raises(TooManyBad, match=r"pixels: expected at most 10\.0% of the list, got 11"),
    ):
        list(features.blocks(torch.arange(9)))


def test_what_became_of_videos_is_told_where_it_is_news(there: Path) -> None:
    """After each pass, one that is broken off and one of too many bad ones included."""
    told: list[tuple[str, int]] = []
    bad = broken()
    with opened("pixels", share=0, tell=lambda m, _, found: told.append((m, len(found)))) as features:
        good = torch.tensor([v for v in range(9) if v != bad])
        for videos in (good[:3], good[:2], good):
            list(features.blocks(videos))
        assert told == [("pixels", 3), ("pixels", 8)]
        passing = features.blocks(torch.arange(9), batch=4, generator=torch.Generator().manual_seed(0))
        next(passing)
        passing.close()
        with pytest.raises(TooManyBad):
            list(features.blocks(torch.arange(9)))
    assert told[-1] == ("pixels", 9)


def test_what_cannot_be_told_now_is_told_later(there: Path) -> None:
    told: list[int] = []

    def tell(_: str, __: Any, found: Any) -> None:
        told.append(len(found))
        if len(told) == 1:
            raise Busy("another process of the training writes")

    good = torch.tensor([v for v in range(9) if v != broken()])
    with opened("pixels", tell=tell) as features:
        for _ in range(3):
            list(features.blocks(good))
    assert told == [8, 8]


def test_trainings_add_what_they_saw(there: Path) -> None:
    """To a summary as stores have it, in the order of the list and of its videos alone."""
    store = plans.of("virtual").store("pixels")
    names = [v.id for v in store.plan.videos.videos]
    fine, gone = Outcome(outcome="ok", rows=4, decoded=8, promised=8), Outcome(outcome="timeout", reason="slow")
    given: dict[str, Any] = {"facts": {"transform": {"crop": 32}}, "row_shape": (32, 32, 3), "dtype": "uint8"}
    note(store, **given, outcomes={names[2]: gone, names[1]: gone, "left/long_ago": fine})
    note(store, **given, outcomes={names[0]: fine, names[1]: fine})
    found = read_store(store.computed)
    assert (found.name, found.digest, found.recipe) == (store.name, store.digest, store.recipe)
    assert (found.videos, found.rows, found.shards, found.bytes) == (3, 8, 0, 0)
    assert found.counts == {"ok": 2, "timeout": 1} and (found.row_shape, found.dtype) == ((32, 32, 3), "uint8")
    assert [(t.video, t.outcome, t.reason) for t in found.troubles] == [(names[2], "timeout", "slow")]
    store.computed.write_text("{")
    with pytest.raises(FramepoolError, match=r"^no summary of outcomes: .*remove it"):
        read_store(store.computed)
    note(store, **given, outcomes={names[0]: fine})
    assert read_store(store.computed).counts == {"ok": 1}
    store.computed.unlink()
    with Lock(store.computed.with_name(f"{store.computed.name}.lock")), pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipelines.computed.WAIT_S", 0.1)
        with pytest.raises(Busy):
            note(store, **given, outcomes={names[0]: fine})


def test_a_batch_of_nothing_but_broken_videos(there: Path, tmp_path: Path) -> None:
    config = TsnConfig.model_validate({**CONFIG["heads"]["tsn"], "train": {"epochs": 1, "batch": 1}})
    bad = broken()
    other = next(n for n in range(9) if LABELS[n] != LABELS[bad])
    with opened("pixels") as features:
        go(tmp_path, config, data=(features, LABELS), **{**GIVEN, "train": sorted([bad, other]), "test": [bad]})


@pytest.mark.slow
def test_the_workflow_trains_on_what_is_not_stored(folder: Path, tmp_path: Path) -> None:
    """No store is made; a changed video trains the head anew."""
    here = shutil.copytree(folder, tmp_path / "copy", symlinks=True)
    shutil.rmtree(here / "work", ignore_errors=True)
    (here / "config" / "virtual.yaml").rename(here / "config" / "tiny.yaml")
    world.snakemake(here)
    assert [p.name[:3] for p in (here / "work" / "tiny" / "features").iterdir()] == ["rgb"]
    (run,) = (here / "work" / "tiny" / "runs").glob("tsn-*/seed0")
    stores = json.loads((run / "run.json").read_text())["stores"]
    assert stores["pixels"]["facts"]["transform"]["crop"] == 32
    with (here / "results" / "tiny" / "outcomes.csv").open() as file:
        (row,) = (row for row in csv.DictReader(file) if row["store"].startswith("pixels-"))
    assert (row["video"], row["outcome"]) == (world.name_of(4), "undecodable")
    page = (here / "results" / "tiny" / "index.html").read_text()
    assert '<td class="num">none kept</td>' in page and "8 ok" in page
    assert ": keeps no rows\n  outcomes 8 ok, 1 undecodable\n" in world.framepool(here, "features", "tiny")
    printed = json.loads(world.framepool(here, "evaluate", str(run.relative_to(here))))
    assert printed["n_test"] == json.loads((run / "metrics.json").read_text())["n_test"]
    assert world.planned(here) == {}
    shutil.copy(here / "videos" / f"{world.name_of(0)}.avi", here / "videos" / f"{world.name_of(4)}.avi")
    assert {"train", "extract"} <= world.planned(here).keys()


@pytest.mark.slow
def test_two_processes_compute_a_part_each(folder: Path) -> None:
    """To the losses of one; each decodes its own videos of a batch, and the broken one teaches nothing."""
    config = virtual({**CONFIG, "max_bad_share": 0.3}, "tvl1", "flow", "rgb")
    config["heads"] = {"both": {**CONFIG["heads"]["both"], "dropout": 0, "missing": "none"}}
    found = []
    for name, command in (
        ("one", []),
        ("two", ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]),
    ):
        world.write_config(folder, config, name)
        train = [sys.executable, "-m", *command, "pipelines", "train", name, "--head", "both", "--threads", "2"]
        printed = world.command(folder, train)
        assert "computed as asked" in printed
        (history,) = (folder / "work" / name / "runs").glob("both-*/seed0/history.csv")
        for path in (folder / "work" / name / "computed").glob("*.json"):
            assert read_store(path).counts == {"ok": 8, "undecodable": 1}
        found.append(np.genfromtxt(history, delimiter=",", skip_header=1))
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)
    assert np.isfinite(found[0]).all()
