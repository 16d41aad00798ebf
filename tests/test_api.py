"""`import framepool`: what README.md and docs/api.md show runs as it stands there, and says what the commands say."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import framepool
from features.batches import Features
from features.errors import UserError
from features.store import read_shard
from pipelines import __main__ as program
from pipelines import plan as plans
from tests.test_docs import REPO, blocks
from tests.workflow import world


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny dataset with its features, called demo as in the document."""
    folder = world.build(tmp_path_factory.mktemp("api") / "made")
    world.write_config(folder, world.CONFIG, "demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(program.signal, "signal", lambda *_: None)
        for line in ("extract demo --extractor rgb --threads 2", "train demo --head ridge"):
            plans.of.cache_clear()
            assert program.main(line.split()) == 0
    return folder


@pytest.fixture(autouse=True)
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    plans.of.cache_clear()
    return made


SNIPPETS = [block for path in ("README.md", "docs/api.md") for block in blocks(REPO / path, "python")]


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_the_document_runs(number: int) -> None:
    names: dict[str, Any] = {}
    exec(compile(SNIPPETS[number], "a document", "exec"), names)
    data = names["data"]
    assert len(data.videos) == world.VIDEOS and data.classes == world.CLASSES
    match number:
        case 0 | 1:
            assert len(names["labels"]) == 3 and set(names["labels"]) <= set(world.CLASSES)
        case 2:
            rows, offsets = names["rows"], names["offsets"]
            assert rows.shape == (36, 96) and offsets.tolist() == list(range(0, 37, 4))
            assert np.array_equal(names["one"], rows[:4])
            np.testing.assert_allclose(names["mean"], rows.float().mean(dim=0), rtol=1e-5)
        case 3:
            assert 0 <= names["top1"] <= 1 and names["logits"].shape == (world.VIDEOS, 2)
        case 4:
            run = names["run"]
            logits = run.logits(data, data.videos)
            classes = [run.record["classes"][k] for k in logits.argmax(axis=1)]
            named = {Path(video).stem: name for video, name in zip(data.videos, classes, strict=True)}
            assert {Path(video).stem: label for video, label in names["found"].items()} == named
        case _:
            raise AssertionError("a snippet that nothing checks")


def test_a_notebook_trains_what_the_command_trains(here: Path) -> None:
    (folder,) = Path("work/demo/runs").glob("ridge-*/seed0")
    data = framepool.load("demo", "rgb")
    ours = framepool.train(data, "ridge")
    assert [path.suffix for path in (ours.folder / "extractors").iterdir()] == [".safetensors"], "it can be moved"
    theirs = framepool.run(folder)
    assert np.array_equal(ours.logits(data, data.videos), theirs.logits(data, data.videos))
    test = [data.videos[v] for v in data.test_videos]
    kept = np.load(folder / "predictions.npz")
    assert kept["ids"].tolist() == test
    np.testing.assert_allclose(theirs.logits(data, test), kept["logits"], rtol=1e-6)
    assert {k: v for k, v in ours.metrics.items() if k != "per_class"} == {
        k: v for k, v in json.loads((folder / "metrics.json").read_text()).items() if k != "per_class"
    }
    before = (ours.folder / "run.json").stat().st_mtime_ns
    assert framepool.train(data, "ridge").folder == ours.folder
    assert (ours.folder / "run.json").stat().st_mtime_ns == before, "the same call trains nothing again"
    assert framepool.train(data, "ridge", alpha=2.0).folder != ours.folder
    assert data.contents == [json.loads((data.folders["rgb"] / "store.json").read_bytes())["contents"]]
    assert framepool.train(dataclasses.replace(data, contents=["of other rows"]), "ridge").folder != ours.folder


def test_a_dask_array_reads_a_block_only_when_it_is_computed(here: Path) -> None:
    data = framepool.load("demo")
    array = data.array("rgb")
    assert array.shape == (36, 96) and array.numblocks == (3, 1) and array.dtype == np.float16
    rows = read_shard(data.folders["rgb"], 1).frames
    assert np.array_equal(array.blocks[1].compute(), rows)


def test_a_list_in_another_order_than_the_store(here: Path) -> None:
    data = framepool.load("demo", "rgb")
    rows = data.features.rows["rgb"]
    order = torch.randperm(len(data.videos), generator=torch.Generator().manual_seed(0))[:-2]  # two are listed no more
    ids = tuple(data.videos[k] for k in order.tolist())
    moved = {"rgb": rows._replace(starts=rows.starts[order], lengths=rows.lengths[order])}
    other = dataclasses.replace(data, features=Features(ids, moved, data.features.stores))
    stored, offsets = other.tensor("rgb")
    blocks = other.array("rgb").compute()
    assert len(stored) == len(blocks) == int(offsets[-1])
    for number, video in enumerate(ids):
        own = slice(int(offsets[number]), int(offsets[number + 1]))
        expected = data.video(video)["rgb"]
        assert torch.equal(stored[own], expected) and np.array_equal(blocks[own], expected.numpy())


def test_a_run_knows_its_own_features(here: Path) -> None:
    """Of another recipe they are refused; the classes of other data are no matter."""
    data = framepool.load("demo", "rgb")
    run = framepool.train(data, "ridge")
    logits = run.logits(data, data.videos)
    more = dataclasses.replace(data, classes=(*data.classes, "third"))
    assert np.array_equal(run.logits(more, data.videos), logits) and len(run.labels(more, data.videos)) == len(logits)
    stores = {"rgb": {**data.features.stores["rgb"], "digest": "0" * 64}}
    other = dataclasses.replace(data, features=dataclasses.replace(data.features, stores=stores))
    with pytest.raises(UserError, match=r"another recipe of features: .*: rgb: expected \w{64}, got 0{64}"):
        run.logits(other, data.videos)
    with pytest.raises(UserError, match="a modality that is not loaded: demo: got rgb"):
        run.logits(dataclasses.replace(data, features=dataclasses.replace(data.features, rows={})), data.videos)


def test_mistakes_are_said(here: Path) -> None:
    with pytest.raises(UserError, match=r"unknown extractor: .*got rbg; did you mean 'rgb'"):
        framepool.load("demo", "rbg")
    with pytest.raises(UserError, match="unknown split: demo: got 9; known: 1"):
        framepool.load("demo", "rgb", split="9")
    data = framepool.load("demo", "rgb")
    assert repr(data).startswith("<demo, split 1: ") and len(repr(data)) < 200
    with pytest.raises(UserError, match="a modality that is not loaded: demo: got flow; known: rgb"):
        data.tensor("flow")
    with pytest.raises(UserError, match="unknown video: demo: got nov"):
        data.video("nov")
    with pytest.raises(UserError, match="unknown kind of head: got rigde; did you mean 'ridge'"):
        framepool.train(data, "rigde")
    with pytest.raises(UserError, match=r"unknown key: head ridge: \$.alhpa; did you mean 'alpha'"):
        framepool.train(data, "ridge", alhpa=1)
    with pytest.raises(UserError, match=r"not a finished run: work: expected a run.json in it"):
        framepool.run("work")


def test_a_list_with_times_trains_on_clips(here: Path) -> None:
    data = framepool.load("demo", "rgb")
    assert data.groups is not None and data.groups[0] == "Jump/g01" and data.actions is None
    train = {"epochs": 1, "clip_s": 0.1}
    with pytest.raises(UserError, match="labels without times"):
        framepool.train(data, "average", train=train)
    several = dataclasses.replace(data, labels=np.eye(2, dtype=np.int64)[data.labels])
    runs = [
        framepool.train(
            dataclasses.replace(several, actions=[[(label, 0.0, 9.0)]] * len(data.videos)), "average", train=train
        )
        for label in (0, 1)
    ]
    assert runs[0].folder != runs[1].folder and runs[0].metrics["map"] is not None


def test_importing_it_is_light() -> None:
    code = "import framepool, sys; print(*[m for m in ('torch', 'zarr', 'openvino', 'dask') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
