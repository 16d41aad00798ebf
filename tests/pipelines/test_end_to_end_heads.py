"""Heads that begin with a run, or learn from runs: what a config may say, what is planned, and that it trains."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from features.batches import even_rows
from features.errors import UserError
from pipelines import plan as plans
from pipelines.config import load
from pipelines.groups import groups
from tests.workflow import world

SMALL = {"name": "resnet10t", "options": {"stem_width": 8, "channels": [8, 16, 24, 32]}, "crop_px": 32, "frames": 4}
VTN = {
    "kind": "vtn",
    "features": ["pixels"],
    "encoder": SMALL,
    "dim": 16,
    "heads": 4,
    "blocks": 1,
    "train": {"epochs": 1, "batch": 4},
}
CONFIG: dict[str, Any] = {
    **{k: world.CONFIG[k] for k in ("title", "videos", "seeds", "splits")},
    "extractors": {
        "pixels": {"kind": "pixels", "sampling": {"kind": "every", "k": 2}, "transform": {"resize": 40, "crop": 40}},
        "tvl1": {"kind": "tvl1", "pairs": 1, "transform": {"resize": 40, "crop": 40}},
    },
    "heads": {
        "student": {
            **VTN,
            "encoder": {**SMALL, "reads": "stacked"},
            "distil": {"teacher": ["rgb", "diff"], "weight": 0.2},
        },
        "late": {"kind": "fusion", "heads": ["rgb", "diff"]},
        "rgb": VTN,
        "diff": {**VTN, "encoder": {**SMALL, "reads": "rgbdiff"}},
    },
}
TUNED: dict[str, Any] = {
    **CONFIG,
    "extractors": {"pixels": CONFIG["extractors"]["pixels"]},
    "heads": {"tuned": {**VTN, "start": {"run": "rgb", "dataset": "tiny"}, "train": {"epochs": 1, "lr": 1e-5}}},
}


def changed(place: str, value: Any, config: dict[str, Any] = CONFIG) -> dict[str, Any]:
    """The config with another value at a dotted place."""
    found = copy.deepcopy(config)
    *above, last = place.split(".")
    node = found
    for key in above:
        node = node[key]
    node[last] = value
    return found


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (
            "heads.rgb.encoder.reads",
            "flow",
            "encoder.reads: rgb or rgbdiff or stacked in heads.rgb, as pixels is",
        ),
        (
            "heads.student.distil.teacher",
            ["late"],
            "that are trained in heads.student.distil.teacher, not 'late'",
        ),
        ("heads.student.distil.teacher", ["rbg"], "heads that are trained in heads.student.distil.teacher, not 'rbg'"),
        ("heads.student.distil.teacher", [], "distil.teacher: expected"),
        ("heads.student.encoder.frames", 6, "teachers with an encoder of as many frames as that of heads.student"),
        (
            "heads.rgb.distil",
            {"teacher": ["student"]},
            "heads that do not wait for each other, not student <- rgb <- s",
        ),
        ("heads.rgb.start", {"run": "rgb"}, "heads that do not wait for each other, not student <- rgb <- rgb"),
        (
            "extractors.pixels.transform.views",
            ["left", "right"],
            "one view in extractors.pixels.transform.views, as the encoder of heads.student takes rows in turn",
        ),
        ("heads.rgb.start", {"run": "late"}, "a head that is trained in heads.rgb.start.run, not 'late'"),
    ],
)
def test_what_a_config_may_not_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, value: Any, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    world.write_config(tmp_path, CONFIG)
    assert load("tiny").heads["student"].encoder.reads == "stacked"  # type: ignore[union-attr]
    world.write_config(tmp_path, changed(place, value))
    with pytest.raises(UserError) as error:
        load("tiny")
    assert message in str(error.value)


def test_a_teacher_reads_what_its_student_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flow = {**VTN, "features": ["tvl1"], "encoder": {**SMALL, "reads": "flow"}}
    world.write_config(tmp_path, changed("heads.diff", flow))
    with pytest.raises(UserError, match=r"not 'diff', which reads tvl1 and not pixels"):
        load("tiny")
    world.write_config(tmp_path, {**CONFIG, "heads": {"diff": {**flow, "encoder": SMALL}}})
    with pytest.raises(UserError, match=r"encoder.reads: flow in heads.diff, as tvl1 is tvl1"):
        load("tiny")


def test_a_teacher_has_rows_joined_as_its_student_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several modalities heads that follow the order join rows by time by themselves, others do not."""
    monkeypatch.chdir(tmp_path)
    made = copy.deepcopy(world.CONFIG)
    made["extractors"]["more"] = {**made["extractors"]["rgb"], "batch": 7}
    both = {"features": ["rgb", "more"]}
    student = {"kind": "attention_cluster", "clusters": 4, **both, "distil": {"teacher": ["late"]}}
    made["heads"] = {"late": {"kind": "vtn", **both}, "student": student}
    world.write_config(tmp_path, made)
    said = r"rows joined in time as 'late' has them \(align: rgb\) in heads.student, whose align is null"
    with pytest.raises(UserError, match=said):
        load("tiny")
    made["heads"]["student"]["align"] = "rgb"
    world.write_config(tmp_path, made)
    assert load("tiny").heads["student"].align == "rgb"  # type: ignore[union-attr]


def test_crops_of_its_own_are_not_for_distillation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tsn = {"kind": "tsn", "features": ["pixels"], "network": {"name": "resnet10t"}, "distil": {"teacher": ["rgb"]}}
    world.write_config(tmp_path, changed("heads.student", tsn))
    with pytest.raises(UserError, match="no distil with tsn: its crops are its own, and a teacher must see them"):
        load("tiny")


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Both datasets' configs and lists; no clips."""
    world.write_list(tmp_path, [world.name_of(n) for n in range(world.VIDEOS)])
    (tmp_path / "videos").mkdir()
    world.write_config(tmp_path, CONFIG)
    world.write_config(tmp_path, TUNED, "tuned")
    monkeypatch.chdir(tmp_path)
    plans.of.cache_clear()
    yield tmp_path
    plans.of.cache_clear()


def test_a_run_is_named_by_what_it_learns_from_and_begins_with(written: Path) -> None:
    plan, tuned = plans.of("tiny"), plans.of("tuned")
    student, rgb, diff = (plan.run(head, "1") for head in ("student", "rgb", "diff"))
    assert student.teachers == {"rgb": rgb, "diff": diff} and student.members == {}
    assert {rgb.summary, diff.summary} < set(student.inputs) and student.summary not in rgb.inputs
    run = tuned.run("tuned", "1")
    assert run.start == rgb and rgb.summary in run.inputs and tuned.needs == [plan]
    (group,) = groups(plan)
    assert {r.head for r in group.runs} == {"student", "late", "rgb", "diff"}
    assert not set(group.inputs) & set(group.summaries)
    world.write_config(written, changed("heads.diff.dim", 32))
    plans.of.cache_clear()
    assert plans.of("tiny").run("student", "1").digest != student.digest
    assert plans.of("tiny").run("rgb", "1").digest == rgb.digest
    assert plans.of("tuned").run("tuned", "1").digest == run.digest
    world.write_config(written, changed("heads.rgb.dim", 32))
    plans.of.cache_clear()
    assert plans.of("tuned").run("tuned", "1").digest != run.digest


def test_an_extractor_takes_the_encoder_of_a_head(written: Path) -> None:
    """As it takes the network of a tsn: the tuned CNN goes back into stage one."""
    tuned = {"kind": "rgb", "source": "pixels", "transform": {"crop": 32}, "network": {"name": "resnet10t"}}
    tuned["network"] = {"name": "resnet10t", "weights": {"run": "rgb"}, "options": SMALL["options"]}
    config = changed("extractors.tuned", tuned)
    config["heads"]["again"] = {"kind": "average", "features": ["tuned"]}
    world.write_config(written, config)
    plans.of.cache_clear()
    plan = plans.of("tiny")
    store = plan.store("tuned", "1")
    assert store.trained_by == plan.run("rgb", "1") and str(store.weights).endswith("seed0/network.safetensors")
    world.write_config(written, changed("extractors.tuned.network.weights", {"run": "again"}, config))
    with pytest.raises(UserError, match=r"in extractors.tuned.network.weights.run, not 'again'"):
        load("tiny")


def test_the_papers_own_datasets_are_planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kinetics-vtn and, fine-tuned from it, ucf101-vtn, on lists of a few clips: every run, and what it waits for."""
    (tmp_path / "config").mkdir()
    for name in ("kinetics-vtn", "ucf101-vtn"):
        (tmp_path / "config" / f"{name}.yaml").write_bytes((world.REPO / "config" / f"{name}.yaml").read_bytes())
    kinetics, ucf = tmp_path / "data" / "kinetics", tmp_path / "data" / "ucf101"
    for folder in (kinetics / "videos", ucf / "videos"):
        folder.mkdir(parents=True)
    header = "label,youtube_id,time_start,time_end,split\n"
    rows = {"train": ("yoga,a", "archery,b", "zumba,c"), "val": ("yoga,d", "archery,e")}
    for split, names in rows.items():
        (kinetics / f"{split}.csv").write_text(header + "".join(f"{name},0,10,{split}\n" for name in names))
    (kinetics / "mini-kinetics-200.txt").write_text("archery\nyoga\n")
    world.write_list(ucf, [world.name_of(n) for n in range(world.VIDEOS)])
    (ucf / "lists").rename(ucf / "ucfTrainTestlist")
    monkeypatch.chdir(tmp_path)
    plans.of.cache_clear()
    with pytest.raises(
        UserError, match=r"the videos are not there: config/kinetics-vtn.yaml: .*none of 4 in data/kine"
    ):
        plans.requested(["results/ucf101-vtn"])
    for clip in (ucf / "videos" / f"{world.name_of(0)}.avi", kinetics / "videos" / "yoga" / "a_000000_000010.mp4"):
        plans.of.cache_clear()
        with pytest.raises(UserError, match="the videos are not there"):
            plans.requested(["results/ucf101-vtn"])
        clip.parent.mkdir()
        clip.touch()
    plans.of.cache_clear()
    (tuned,) = plans.requested(["results/ucf101-vtn"])
    (first,) = tuned.needs
    assert first.videos.classes == ("archery", "yoga") and len(first.videos.videos) == 4
    by_head = {run.head: run for run in first.runs()}
    assert [t.head for t in by_head["vtn_stacked_distilled"].waits_for] == ["vtn", "vtn_diff"]
    assert [m.head for m in by_head["fused_flow"].waits_for] == ["frames", "flow_stack"]
    assert by_head["cnn_3d"].stores["clips"].extractor == "clips"
    for run in tuned.runs():
        assert run.head == "vtn_two_streams" or run.start == by_head[run.head]
    assert len(tuned.runs()) == 3 * 3
    plans.of.cache_clear()


@pytest.mark.parametrize("name", ["ucf101-kft", "hmdb51-kft"])
def test_the_tables_of_kft_are_planned(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The test takes the middle squares of cached rows, and the paper's figures beside I3D and the three kinds."""
    (tmp_path / "config").mkdir()
    shipped = yaml.safe_load((world.REPO / "config" / f"{name}.yaml").read_text())
    videos = {"format": "ucf101", "root": "data/ucf101/videos", "lists": "data/ucf101/lists"}
    (tmp_path / "config" / f"{name}.yaml").write_text(yaml.safe_dump({**shipped, "videos": videos, "splits": ["1"]}))
    ucf = tmp_path / "data" / "ucf101"
    (ucf / "videos").mkdir(parents=True)
    world.write_list(ucf, [world.name_of(n) for n in range(world.VIDEOS)])
    monkeypatch.chdir(tmp_path)
    plans.of.cache_clear()
    plan = plans.of(name)
    runs = {run.head: run for run in plan.runs()}
    assert {"i3d", "i3d_whole", "kft_3d_whole"} < runs.keys()
    (table,) = (sweep for key, sweep in plan.config.sweeps.items() if key == "table2")
    assert [list(figures) for figures in table.paper.values()] in (
        [[84.5, 87.4, 88.4, 92.4]],
        [[49.8, 55.3, 56.5, 67.2]],
    )
    views, sample = plan.config.extractors["maps"].transform.views, plan.config.heads["i3d"].rows("maps")
    n, test = plan.config.extractors["maps"].sampling.n, sample.test
    rows, mask = even_rows(test)(torch.tensor([n * len(views)]))
    assert mask.all() and [views[k % len(views)] for k in rows[0].tolist()] == ["centre"] * 10
    plans.of.cache_clear()


def test_datasets_that_begin_with_each_others_runs(written: Path) -> None:
    world.write_config(written, changed("heads.rgb.start", {"run": "tuned", "dataset": "tuned"}))
    plans.of.cache_clear()
    with pytest.raises(UserError, match=r"datasets wait for each other: config/tiny.yaml: got tuned takes runs of t"):
        _ = plans.of("tiny").needs


@pytest.mark.slow
def test_the_command_trains_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In whatever order heads are named: one that is begun with, teachers, their student, the fusion; then fine-tuning
    in another dataset. In a process of its own: where torch has trained it cannot be forked."""
    folder = world.build(tmp_path)
    world.write_config(folder, CONFIG)
    world.write_config(folder, TUNED, "tuned")
    monkeypatch.chdir(folder)
    said = ""
    lines = (
        "extract tiny --extractor pixels",
        "train tiny --head late --head student --head diff --head rgb --threads 2",
        "extract tuned --extractor pixels",
        "train tuned --head tuned --threads 1",
    )
    environment = {**os.environ, "PYTHONPATH": str(world.REPO)}
    for line in lines:
        command = [sys.executable, "-m", "pipelines", *line.split()]
        said += subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    plan = plans.of("tuned")
    records = {}
    for run in (*plans.of("tiny").runs(), *plan.runs()):
        records[run.head] = json.loads((run.folder / "seed0" / "run.json").read_text())
    plans.of.cache_clear()
    assert [name.split("-")[0] for name in records["student"]["teachers"]] == ["rgb", "diff"]
    assert records["tuned"]["began"].startswith("rgb-split1-") and "began" not in records["rgb"]
    assert records["late"]["members"].keys() == {"rgb", "diff"}
    assert said.index("student seed 0: top1") > max(said.index(f"{head} seed 0: top1") for head in ("rgb", "diff"))
