"""The commands on a tiny dataset, made once by them in this process: inventory, verification, repair, evaluation."""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
import yaml

import heads
from features.atomic import Lock
from features.errors import UserError
from heads.kinds import AverageConfig
from pipelines import __main__ as program
from pipelines import plan as plans
from pipelines.commands import stage_one
from pipelines.passes import mentioned
from tests.heads.test_training import bytes_of
from tests.media import write_video
from tests.workflow import world

Call = Callable[..., "Said"]


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The tiny dataset through both stages. Not to be changed."""
    folder = world.build(tmp_path_factory.mktemp("commands") / "made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(program.signal, "signal", lambda *_: None)
        for line in ("index tiny", "extract tiny --extractor rgb --threads 2", "train tiny --head average"):
            plans.of.cache_clear()
            assert program.main(line.split()) == 0
    plans.of.cache_clear()
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the dataset, and the folder that commands run in."""
    folder = shutil.copytree(made, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command as the program does, without its start-up."""
    monkeypatch.setattr(program.signal, "signal", lambda *_: None)

    def run(line: str) -> Said:
        plans.of.cache_clear()
        capsys.readouterr()
        code = program.main(line.split())
        plans.of.cache_clear()
        return Said(code, *capsys.readouterr())

    return run


def chunk_of(store: Path, shard: int) -> Path:
    """The largest file of a shard's rows."""
    return max(
        (p for p in (store / f"{shard:05d}.zarr" / "frames").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )


def test_index_says_what_there_is(here: Path, call: Call) -> None:
    (here / "videos" / f"{world.name_of(3)}.avi").unlink()
    said = call("index tiny")
    assert said.code == 0
    assert said.out.startswith("tiny: 9 videos, 2 classes, 3 shards\n  split 1: ")
    assert world.name_of(3) in said.out, "a video without a file is named"
    assert f"store {world.store(here).name}: about " in said.out


@pytest.mark.parametrize("through", ["the video", pytest.param("what is not stored", marks=pytest.mark.slow)])
def test_videos_that_are_gone_take_no_features_with_them(here: Path, call: Call, through: str) -> None:
    if through != "the video":
        path = here / "config" / "tiny.yaml"
        config = yaml.safe_load(path.read_text())
        config["extractors"]["pixels"] = {"kind": "pixels", "transform": {"resize": 160, "crop": 160}, "store": False}
        rgb = config["extractors"]["rgb"]
        config["extractors"]["rgb"] = {"kind": "rgb", "source": "pixels", "network": rgb["network"]}
        path.write_text(yaml.safe_dump(config))
        shutil.rmtree(here / "work")
        assert call("extract tiny --extractor rgb").code == 0
    before = world.contents(world.store(here))
    for video in (here / "videos").glob("*/*"):
        video.unlink()
    said = call("extract tiny --extractor rgb")
    assert (
        said.code == 2
        and "the videos are not there: config/tiny.yaml: $.videos.root: got none of 9 in videos" in said.err
    )
    assert "features that are there stay" in said.err and world.contents(world.store(here)) == before
    assert call("train tiny --head average --seed 7").code == 0
    shutil.rmtree(here / "videos")
    assert "the folder of videos is not there: videos" in call("index tiny").out
    shutil.rmtree(here / "work")
    said = call("extract tiny --extractor rgb")
    assert said.code == 2 and said.err.endswith("in videos; put them there, or say where they are\n")


@pytest.mark.parametrize("line", ["extract tiny --extractor rgb", "verify tiny --repair"])
def test_many_videos_that_are_gone_take_no_features_with_them(here: Path, call: Call, line: str) -> None:
    """One of two disks is away: what it holds does not count as broken, and a damaged shard waits."""
    chunk = chunk_of(world.store(here), 0)
    chunk.write_bytes(chunk.read_bytes()[:-1])
    before = world.contents(world.store(here))
    for number in (0, 1, 3, 4):
        (here / "videos" / f"{world.name_of(number)}.avi").unlink()
    said = call(line)
    assert said.code == 2 and world.contents(world.store(here)) == before
    got = "got 5 of 9 in videos, and features of 4 of the others"
    assert f"the videos are not there: config/tiny.yaml: $.videos.root: {got}" in said.err


def test_results_are_of_what_is_there_now(here: Path, call: Call) -> None:
    """A shard was made anew by itself: what was judged on the rows of before is no result any more."""
    assert call("train tiny --head ridge").code == call("assemble tiny").code == 0
    number = next(n for n in range(3) if world.name_of(5) in (world.store(here) / f"{n:05d}.json").read_text())
    write_video(here / "videos" / f"{world.name_of(5)}.avi", frames=9, seed=99, codec="mpeg4")
    assert call(f"extract tiny --extractor rgb --shard {number}").code == 0
    said = call("assemble tiny")
    assert said.code == 2 and "a head was judged on another list or other features: work/tiny/runs/" in said.err
    folder = next((here / "work/tiny/runs").glob("ridge-*/seed0"))
    before = json.loads((folder / "run.json").read_bytes())["digest"]
    assert call("train tiny --head ridge").code == 0
    assert json.loads((folder / "run.json").read_bytes())["digest"] != before
    assert call("assemble tiny --partial").out.endswith("1 of 2 heads\n")
    assert call("train tiny --head average").code == call("assemble tiny").code == 0


def test_seeds_may_be_trained_one_by_one(here: Path, call: Call) -> None:
    world.write_config(here, {**world.CONFIG, "seeds": [0, 1]})
    assert call("train tiny --head ridge").code == call("train tiny --head average --seed 1").code == 0
    assert call("assemble tiny").code == 0
    (folder,) = (here / "work/tiny/runs").glob("average-*")
    assert set(json.loads((folder / "trained.json").read_bytes())["metrics"]) == {"0", "1"}


def test_an_unknown_split_is_said(here: Path, call: Call) -> None:
    said = call("extract tiny --extractor rgb --split 7")
    assert said.code == 2 and "unknown split: config/tiny.yaml: got 7" in said.err


def test_index_names_a_head_with_a_network_that_there_is_not(here: Path, call: Call) -> None:
    path = here / "config" / "tiny.yaml"
    config = yaml.safe_load(path.read_text())
    config["heads"]["cnn"] = {"kind": "tsn", "features": ["frames"], "network": {"name": "resnet10t"}}
    config["heads"]["trunk"] = {"kind": "kft", "features": ["frames"], "network": {"name": "kft_trunk"}}
    config["extractors"]["frames"] = {"kind": "pixels", "transform": {"resize": 32, "crop": 32}}
    path.write_text(yaml.safe_dump(config))
    assert call("index tiny").code == 0
    plans.of.cache_clear()
    config["heads"]["cnn"]["network"]["name"] = "resnet10x"
    path.write_text(yaml.safe_dump(config))
    said = call("index tiny")
    assert said.code == 2 and "unknown network: timm: 'resnet10x'; near: " in said.err
    assert "config/tiny.yaml: $.heads.cnn.network" in said.err


def test_a_head_of_one_label_is_refused_before_extraction() -> None:
    def check(balanced: bool, multi_label: bool) -> None:
        head = AverageConfig.model_validate({"kind": "average", "features": ["rgb"], "train": {"balanced": balanced}})
        stage_one._check_head("$.heads.mine", head, multi_label)

    check(balanced=True, multi_label=False)
    check(balanced=False, multi_label=True)
    with pytest.raises(UserError, match=r"one label a video: \$.heads.mine: got several"):
        check(balanced=True, multi_label=True)


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:99"])
def test_a_device_that_there_is_not(here: Path, call: Call, device: str) -> None:
    said = call(f"train tiny --head average --device {device}")
    assert said.code == 2 and said.err.count("\n") == 1 and f"got {device}" in said.err
    assert ("unknown device" if device != "cuda:99" else "no such CUDA device here") in said.err


def test_features_lists_stores(here: Path, call: Call) -> None:
    said = call("features tiny")
    assert said.code == 0
    assert f"{world.store(here).name}: 3 of 3 shards, 36 rows" in said.out
    assert "outcomes 9 ok" in said.out and '"name": "test_resnet"' in said.out


def test_stores_travel_by_hdf5(here: Path, call: Call, tmp_path: Path) -> None:
    store = world.store(here)
    before = world.contents(store)
    assert call(f"features tiny --export {tmp_path}/all.h5").code == 0
    shutil.rmtree(here / "work")
    said = call(f"features tiny --import {tmp_path}/all.h5")
    assert said.code == 0 and said.out.count("imported\n") == 3
    assert call("verify tiny").out.endswith("tiny: all shards match their manifests\n")
    del before["store.json"]  # made by `gather` from the shards
    assert world.contents(store) == before
    assert call(f"features tiny --import {tmp_path}/all.h5").out.count("is there already\n") == 3


def test_an_export_says_what_it_lacks(here: Path, call: Call, tmp_path: Path) -> None:
    (world.store(here) / "00001.json").unlink()
    said = call(f"features tiny --export {tmp_path}/some.h5")
    assert said.code == 0 and said.err == f"{world.store(here).name}: 2 of 3 shards\n" and "2 shards, " in said.out
    shutil.rmtree(here / "work/tiny/features")
    said = call(f"features tiny --export {tmp_path}/none.h5")
    assert said.code == 2 and "no features to export: work/tiny/features: expected shards, got none" in said.err
    assert not (tmp_path / "none.h5").exists()


def test_an_import_that_is_none(here: Path, call: Call) -> None:
    said = call("features tiny --import list.h5")
    assert said.code == 2 and "list.h5" in said.err and said.err.count("\n") == 1


@pytest.mark.parametrize("answer", ["n", "", "y"])
def test_prune_asks(here: Path, call: Call, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    old = here / "work" / "tiny" / "features" / "rgb-00000000"
    old.mkdir()
    (old / "00000.json").write_text("{}")
    monkeypatch.setattr("builtins.input", lambda _: answer)
    said = call("features tiny --prune")
    assert said.code == 0 and str(old.relative_to(here)) in said.out
    assert old.exists() == (answer != "y")
    assert len(list(old.parent.iterdir())) == (1 if answer == "y" else 2)


def test_prune_asks_nobody_when_nobody_is_there(here: Path, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "work" / "tiny" / "features" / "rgb-00000000").mkdir()

    def nobody(_: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", nobody)
    said = call("features tiny --prune")
    assert said.code == 2 and "--yes" in said.err


def test_prune_with_yes_keeps_what_the_config_needs(here: Path, call: Call) -> None:
    before = world.contents(here / "work" / "tiny")
    (here / "work" / "tiny" / "features" / "rgb-00000000").mkdir()
    (here / "work" / "tiny" / "runs" / "gone-split1-00000000" / "seed0").mkdir(parents=True)
    said = call("features tiny --prune --yes")
    assert said.code == 0 and said.out.endswith("2 folders removed\n")
    assert world.contents(here / "work" / "tiny") == before
    assert call("features tiny --prune --yes").out == "tiny: nothing to prune\n"


@pytest.mark.parametrize("lock", ["features/rgb-00000000/00001.lock", "runs/gone-split1-00000000/seed0/run.lock"])
def test_prune_leaves_what_somebody_writes(here: Path, call: Call, lock: str) -> None:
    """A shard or a run that is not finished, of a config that another job has read."""
    held = here / "work" / "tiny" / lock
    held.parent.mkdir(parents=True)
    (held.parent / "kept").write_text("hours of work")
    with Lock(held):
        said = call("features tiny --prune --yes")
        assert said.code == 1 and f"{held.name}: got held by process {os.getpid()} on " in said.err
        assert (held.parent / "kept").exists()
    assert call("features tiny --prune --yes").out.endswith("1 folders removed\n")


@pytest.mark.parametrize(
    ("line", "module", "lock"),
    [
        ("gather tiny --extractor rgb", "stage_one", "features/rgb-*/store.lock"),
        ("train tiny --head average", "stage_two", "runs/average-*/trained.lock"),
    ],
)
def test_a_summary_has_one_writer(
    here: Path, call: Call, monkeypatch: pytest.MonkeyPatch, line: str, module: str, lock: str
) -> None:
    monkeypatch.setattr(f"pipelines.commands.{module}.LOCK_WAIT_S", 0)
    folder, name = Path(lock).parent, Path(lock).name
    (folder,) = (here / "work" / "tiny").glob(str(folder))
    with Lock(folder / name):
        said = call(line)
    assert said.code == 1 and f"{name}: got held by process {os.getpid()} on " in said.err
    assert call(line).code == 0 and not (folder / name).exists()


def test_verify_passes(here: Path, call: Call) -> None:
    said = call("verify tiny")
    assert said.code == 0
    assert said.out == f"{world.store(here).name}: 3 shards, 36 rows\ntiny: all shards match their manifests\n"


@pytest.mark.parametrize("shard", range(3))
def test_verify_names_a_file_with_one_wrong_byte(here: Path, call: Call, shard: int) -> None:
    path = chunk_of(world.store(here), shard)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    said = call("verify tiny")
    assert said.code == 1
    named, last = said.err.splitlines()
    assert named.startswith(f"framepool: bytes do not match their manifest: {path.relative_to(here)}: expected sha256 ")
    assert last.endswith("got 1; run `framepool verify tiny --repair`")


def test_repair_extracts_the_damaged_shard_alone(here: Path, call: Call) -> None:
    store = world.store(here)
    before = world.contents(store)
    times = {n: (store / f"{n:05d}.json").stat().st_mtime_ns for n in range(3)}
    chunk_of(store, 1).write_bytes(b"")
    said = call("verify tiny --repair --threads 2")
    assert said.code == 0 and said.out.endswith("tiny: 1 shards repaired\n")
    assert world.contents(store) == before
    assert [n for n in range(3) if (store / f"{n:05d}.json").stat().st_mtime_ns != times[n]] == [1]
    assert call("verify tiny").code == 0


def test_repair_makes_a_store_that_is_gone(here: Path, call: Call) -> None:
    before = world.contents(world.store(here))
    shutil.rmtree(world.store(here))
    assert call("verify tiny --repair --threads 2").out.endswith("tiny: 3 shards repaired\n")
    del before["store.json"]  # made by `gather`
    assert world.contents(world.store(here)) == before


def test_a_store_by_another_s_name_is_none_of_its(here: Path, call: Call) -> None:
    """Neither to `verify` nor to a training."""
    old = world.store(here)
    config = copy.deepcopy(world.CONFIG)
    config["extractors"]["rgb"]["sampling"]["n"] = 3
    world.write_config(here, config)
    plans.of.cache_clear()
    old.rename(here / plans.of("tiny").store("rgb").folder)
    said = call("verify tiny")
    assert said.code == 1 and said.err.count("shard of another recipe: ") == 3
    said = call("train tiny --head average")
    assert said.code == 1 and "shard of another recipe: " in said.err and "give the folder its name back" in said.err
    assert call("verify tiny --repair --threads 2").code == 0 and call("train tiny --head average").code == 0


def test_work_that_nobody_reads_of_is_not_called_done(here: Path) -> None:
    for path in world.store(here).glob("0*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    words = [sys.executable, "-m", "pipelines", "extract", "tiny", "--extractor", "rgb", "--threads", "1"]
    with subprocess.Popen(words, env=world.environment(), stdout=subprocess.PIPE) as running:
        assert running.stdout is not None
        running.stdout.close()
    assert running.returncode == 141 and len(list(world.store(here).glob("0*.json"))) < 3


def test_a_training_is_old_when_the_run_that_it_begins_with_is_trained_anew(here: Path, call: Call) -> None:
    config = copy.deepcopy(world.CONFIG)
    config["heads"]["fine"] = {**config["heads"]["average"], "start": {"run": "average"}}
    world.write_config(here, config)
    assert call("train tiny --head average --head fine").code == 0
    (first,), (second,) = ((here / "work/tiny/runs").glob(f"{h}-*/seed0/run.json") for h in ("average", "fine"))
    before = second.stat().st_mtime_ns
    assert call("train tiny --head fine").code == 0 and second.stat().st_mtime_ns == before
    assert call("assemble tiny --partial").out.endswith("2 of 3 heads\n")
    record = json.loads(first.read_text())
    first.write_text(json.dumps({**record, "digest": "f" * 64}))  # as of other rows
    assert call("assemble tiny --partial").out.endswith("0 of 3 heads\n")
    assert call("train tiny --head fine").code == 0 and second.stat().st_mtime_ns != before
    first.unlink()  # of one that is gone since nothing is known
    assert call("assemble tiny --partial").out.endswith("1 of 3 heads\n")


def test_what_is_compared_is_of_what_is_there_now(here: Path, call: Call) -> None:
    config = copy.deepcopy(world.CONFIG)
    pair = {"claim": "One is better.", "better": "average", "than": "ridge"}
    world.write_config(here, {**config, "comparisons": [{**pair, "datasets": ["tiny"]}]}, "other")
    assert call("extract other --extractor rgb --threads 2").code == 0
    for name, head in product(("tiny", "other"), ("average", "ridge")):  # one by one, so that nothing is forked here
        assert call(f"train {name} --head {head}").code == 0
    assert call("assemble other").code == 0 and (here / "results/other/tables/comparisons.csv").is_file()
    (run,) = (here / "work/tiny/runs").glob("ridge-*/seed0/run.json")
    run.write_text(json.dumps({**json.loads(run.read_text()), "tested": "others"}))
    said = call("assemble other")
    assert said.code == 2 and "a head that is compared was judged on another list or other features" in said.err
    assert call("assemble other --partial").code == 0
    assert not (here / "results/other/tables/comparisons.csv").exists()


def test_shards_of_a_longer_list_are_taken_away(here: Path, call: Call) -> None:
    world.write_config(here, {**world.CONFIG, "shard_size": 8})
    assert call("extract tiny --extractor rgb --threads 2").code == 0
    left = ["00000.json", "00000.zarr", "00001.json", "00001.zarr"]
    assert sorted(p.name for p in world.store(here).glob("0*")) == left
    said = call("features tiny").out
    assert "2 of 2 shards, 36 rows" in said and "outcomes 9 ok" in said


def test_a_missing_shard_is_damage_too(here: Path, call: Call) -> None:
    shutil.rmtree(world.store(here) / "00002.zarr")
    (world.store(here) / "00002.json").unlink()
    said = call("verify tiny")
    assert said.code == 1 and "00002.json" in said.err


def test_evaluate_gives_the_metrics_of_the_run(here: Path, call: Call) -> None:
    (run,) = (here / "work" / "tiny" / "runs").glob("average-*/seed0")
    said = call(f"evaluate {run.relative_to(here)}")
    assert said.code == 0
    wanted = json.loads((run / "metrics.json").read_text())
    assert json.loads(said.out) == {k: v for k, v in wanted.items() if k != "per_class"}


def test_a_run_refuses_another_class_list(here: Path, call: Call) -> None:
    (run,) = (here / "work" / "tiny" / "runs").glob("average-*/seed0")
    for path in (here / "lists").iterdir():
        text = path.read_text()
        path.write_text("1 Run\n2 Jump\n" if path.name == "classInd.txt" else text)
        if path.name.startswith("trainlist"):
            swapped = {"1": "2", "2": "1"}
            path.write_text("".join(f"{line[:-1]}{swapped[line[-1]]}\n" for line in text.splitlines()))
    said = call(f"evaluate {run.relative_to(here)}")
    assert said.code == 2
    assert (
        said.err.startswith("framepool: another class list: ") and "expected 'Jump' as class 0, got 'Run'" in said.err
    )


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ("x", 1, "run does not load: work/tiny/runs/"),
        ("[]", 1, "run does not load: work/tiny/runs/"),
        ({"dataset": None}, 1, "run does not load: work/tiny/runs/"),
        ({"dataset": 3}, 1, "run does not load: work/tiny/runs/"),
        ({"dataset": "tin"}, 2, "unknown dataset: config: expected the name of a config, got 'tin'; did you mean"),
        ({"extractors": {"rgb": {}}}, 1, "run does not load: work/tiny/runs/"),
        ({"split": "9"}, 2, "unknown split: the list of tiny: got 9; known: 1, 2, 3"),
        ({"stores": ["rgb"]}, 1, "run does not load: work/tiny/runs/"),
        ({"stores": {"rgb": {"store": 3}}}, 1, "run does not load: work/tiny/runs/"),
        (
            {"stores": {"rgb": {"store": "../../../x", "digest": "", "facts": {}}}},
            2,
            "no store of this config: config/tiny.yaml: got x; known: ",
        ),
    ],
)
def test_a_run_whose_record_is_not_right(
    here: Path, call: Call, change: str | dict[str, Any], code: int, said: str
) -> None:
    (run,) = (here / "work" / "tiny" / "runs").glob("average-*/seed0")
    record = json.loads((run / "run.json").read_text())
    if isinstance(change, dict):
        change = json.dumps({k: v for k, v in {**record, **change}.items() if v is not None})
    (run / "run.json").write_text(change)
    got = call(f"evaluate {run.relative_to(here)}")
    assert got.code == code
    assert got.err.startswith(f"framepool: {said}") and got.err.count("\n") == 1


def test_extract_again_changes_nothing(here: Path, call: Call) -> None:
    before = world.contents(here / "work" / "tiny" / "features")
    said = call("extract tiny --extractor rgb --shard 1")
    assert said.code == 0 and said.out.endswith("shard 1: 16 rows; 4 ok\n")
    assert world.contents(here / "work" / "tiny" / "features") == before


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "extract tiny --extractor rbg",
            "unknown extractor: config/tiny.yaml: $.extractors: got rbg; did you mean 'rgb'?",
        ),
        ("extract tiny --extractor rgb --shard 3", "unknown shard: tiny: expected 0 to 2, got 3"),
        ("train tiny --head averge", "unknown head: config/tiny.yaml: $.heads: got averge; did you mean 'average'?"),
        ("train tiny --head average --split 9", "unknown split: config/tiny.yaml: got 9; known: 1"),
        ("verify tinny", "unknown dataset: config: expected the name of a config, got 'tinny'; did you mean 'tiny'?"),
        ("render tiny", "nothing to render: config/tiny.yaml: got videos of format ucf101"),
        ("models no_such_network", "no such network: got no_such_network"),
        ("evaluate work/tiny", "not a finished run: work/tiny: expected a run.json in it; name a folder RUN/seedS"),
        ("evaluate work/tiny/runs/none", "not a finished run: work/tiny/runs/none: "),
        ("assemble tiny", "a head is not trained yet: work/tiny/runs/ridge-split1-"),
    ],
)
def test_mistakes_exit_with_2_on_one_line(here: Path, call: Call, line: str, said: str) -> None:
    got = call(line)
    assert got.code == 2
    assert got.err.startswith(f"framepool: {said}") and got.err.count("\n") == 1


def test_train_before_extract_says_so(here: Path, call: Call) -> None:
    (world.store(here) / "store.json").unlink()
    said = call("train tiny --head ridge")
    assert said.code == 2
    assert said.err.startswith("framepool: features are not complete: work/tiny/features/rgb-")
    assert said.err.endswith("; run `framepool extract tiny --extractor rgb` first\n")


def test_extract_before_render_says_so(here: Path, call: Call) -> None:
    config = {**world.CONFIG, "videos": {"format": "rendered", "generator": "demo", "count": 27}}
    world.write_config(here, config, "clips")
    said = call("extract clips --extractor rgb")
    assert said.code == 2
    assert said.err == "framepool: clips are not there: work/clips/videos; run `framepool render clips` first\n"


def test_too_many_bad_videos_exit_with_3(here: Path, call: Call) -> None:
    for number in range(5):
        (here / "videos" / f"{world.name_of(number)}.avi").write_bytes(b"")
    said = call("extract tiny --extractor rgb --threads 2")
    assert said.code == 3
    assert "4 ok, 5 undecodable" in said.err and "expected at most 5.0%, got 55.6%" in said.err
    assert len(list(world.store(here).glob("0000?.json"))) == 3
    world.write_config(here, {**world.CONFIG, "max_bad_share": 0.6})
    assert call("gather tiny --extractor rgb").code == 0
    summary = json.loads((world.store(here) / "store.json").read_text())
    assert summary["outcomes"] == {"ok": 4, "undecodable": 5} and len(summary["report"]["troubles"]) == 5


@pytest.mark.slow
def test_models_as_json(here: Path, call: Call) -> None:
    found = json.loads(call("models test_resnet --json").out)
    (network,) = found["networks"]
    assert (network["name"], network["library"]) == ("test_resnet", "timm")
    assert network["parameters"] > 0 and network["macs"] > 0 and network["features"] == 96
    assert {head["name"] for head in found["heads"]} == set(heads.HEADS)
    assert all(head["parameters"] > 0 for head in found["heads"])


def test_doctor_finds_nothing_missing(here: Path, call: Call) -> None:
    said = call("doctor")
    assert said.code == 0 and said.out.endswith("nothing is missing\n")


def test_snakemake_makes_the_demo_where_it_is_not_told_what(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.REPO)
    assert [plan.dataset for plan in mentioned(["-n", "--cores", "2"])] == ["demo"]
    assert [plan.dataset for plan in mentioned(["results/ucf101-none"])] == []


def test_trainings_side_by_side_that_are_stopped_go_on(here: Path) -> None:
    """F10 through the command: it ends soon, nobody is left behind, and the end is the undisturbed one."""
    config = yaml.safe_load((here / "config" / "tiny.yaml").read_text())
    train = {"epochs": 400, "batch": 2}
    config["heads"] = {name: {"kind": "average", "features": ["rgb"], "train": train} for name in ("one", "two")}
    world.write_config(here, config)
    command = ["train", "tiny", "--head", "one", "--head", "two", "--threads", "2"]
    told = {"one": 0, "two": 0}
    for sent in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        lines = stopped(here, command, sent, {name: epoch + 3 for name, epoch in told.items()})
        for name, before in told.items():
            if before:
                assert before <= number(lines, rf"{name} seed 0: goes on after epoch (\d+)/400") <= before + 1
            told[name] = number(lines, rf"{name} seed 0: epoch (\d+)/400")
        assert not list((here / "work" / "tiny" / "runs").glob("[ot]*/seed0/metrics.json")), "none had ended"
    printed = world.framepool(here, *command)
    assert all(f"{name} seed 0: goes on after epoch" in printed for name in told)
    runs = sorted((here / "work" / "tiny" / "runs").glob("[ot]*/seed0"))
    kept = [bytes_of(run) for run in runs]
    for run in runs:
        shutil.rmtree(run)
    world.framepool(here, *command)
    assert len(kept) == 2 and [bytes_of(run) for run in runs] == kept


def stopped(folder: Path, command: list[str], sent: signal.Signals, until: dict[str, int]) -> str:
    """What a command printed that was sent a signal once each of its trainings had told of its epoch."""
    lines = ""
    with subprocess.Popen(
        [sys.executable, "-m", "pipelines", *command],
        cwd=folder,
        env=world.environment(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        while any(number(lines, rf"{name} seed 0: epoch (\d+)/") < epoch for name, epoch in until.items()):
            lines += (line := process.stdout.readline())
            assert line, lines
        below = psutil.Process(process.pid).children(recursive=True)
        if sent == signal.SIGINT:  # as Ctrl-C does
            os.killpg(process.pid, sent)
        else:
            process.send_signal(sent)
        lines += process.stdout.read()  # until all that could write have ended
    assert process.returncode and len(below) >= 2
    assert world.gone(below)
    return lines


def number(text: str, pattern: str) -> int:
    """The last one that is found, or 0."""
    return int((re.findall(pattern, text) or [0])[-1])
