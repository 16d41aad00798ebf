"""Exported graphs: every head in both formats for any number of videos and rows, whole runs, and real clips."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import yaml

from extract.scaler import Scaler
from features.atomic import make_folder
from features.errors import FramepoolError, UserError
from pipelines import __main__ as program
from pipelines import plan as plans
from pipelines.export.graphs import Clip, HeadGraph, Scaled
from pipelines.export.real import real_clips, real_rows
from pipelines.export.run import apart, export_run, graphs_of
from pipelines.export.write import SUFFIX, runner, write
from pipelines.of_run import of_run
from tests.heads.made import CASES
from tests.heads.test_contract import inputs, make
from tests.media import SHARED, needs_shared, write_video
from tests.workflow import world

QUICK = ("attention_cluster-fc1",)
SLOW = [pytest.param(case, marks=pytest.mark.slow) for case in CASES if case not in QUICK]


@pytest.mark.parametrize("case", [*QUICK, *SLOW])
def test_every_head_gives_the_same_logits_as_a_graph(case: str, tmp_path: Path) -> None:
    head = make(case)
    modalities = list(head.shapes)
    rows = {m: "rows" if head._align or len(modalities) == 1 else f"{m}_rows" for m in modalities}
    names, axes = [*modalities, *(f"{m}_mask" for m in modalities)], [{0: "videos", 1: rows[m]} for m in modalities] * 2
    features, masks = inputs(case)
    write(HeadGraph(head), [*features.values(), *masks.values()], tmp_path / "a.onnx", names, axes, "logits")
    write(HeadGraph(head), [*features.values(), *masks.values()], tmp_path / "a.xml", names, axes, "logits")
    window = getattr(head, "rows_together", 1)  # graphs of an encoder on single frames take one window
    for videos, length in ((4, 6), (1, 1), (3, 30)) if window == 1 else ((4, window), (1, window), (3, window)):
        features, masks = inputs(case, videos=videos, length=length, seed=3)
        for mask in masks.values():
            mask[videos // 2] &= videos == 1  # a video without rows
        with torch.inference_mode():
            expected = head(features, masks).numpy()
        given = {n: t.numpy() for n, t in zip(names, (*features.values(), *masks.values()), strict=True)}
        for path in (tmp_path / "a.onnx", tmp_path / "a.xml"):
            assert apart(runner(path)(given), expected) < 2e-5, path.name


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("height", "width"), [(240, 320), (172, 128)])
def test_a_graph_scales_as_the_decoder_does(height: int, width: int, interpolation: str) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for resize_px, crop_px, width_px in ((256, 224, None), (128, 112, None), (64, 64, None), (160, 150, 208)):
        if resize_px * 2 <= min(height, width):
            continue  # there swscale leaves out every other colour of RGB, which it does not with what codecs give
        scaler = Scaler(resize_px, crop_px, interpolation, width_px=width_px)
        expected = scaler(av.VideoFrame.from_ndarray(image, format="rgb24"))
        got = Scaled(resize_px, crop_px, interpolation, width_px)(torch.from_numpy(image)[None])[0].numpy()
        apart_by = np.abs(got - expected)
        assert apart_by.max() <= 1 and apart_by.mean() < 0.06


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny dataset with a trained head."""
    folder = world.build(tmp_path_factory.mktemp("export") / "made")
    pixels = {"kind": "pixels", "sampling": {"kind": "uniform", "n": 4}, "transform": {"resize": 48, "crop": 40}}
    tsn = {
        "kind": "tsn",
        "features": ["pixels"],
        "crop_px": 32,
        "network": {"name": "test_resnet"},
        "train": {"epochs": 1},
    }
    config = {
        **world.CONFIG,
        "extractors": {**world.CONFIG["extractors"], "pixels": pixels},
        "heads": {
            "average": {"kind": "average", "features": ["rgb"], "sample": {"test": 3}, "train": {"epochs": 2}},
            "tsn": tsn,
            "end_to_end": {
                "kind": "vtn",
                "features": ["pixels"],
                "dim": 16,
                "heads": 2,
                "blocks": 1,
                "train": {"epochs": 1},
                "encoder": {"name": "test_resnet", "crop_px": 32, "frames": 3},
            },
            "late": {"kind": "fusion", "heads": ["average", "tsn"]},
        },
    }
    world.write_config(folder, config)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(program.signal, "signal", lambda *_: None)
        for line in (
            "extract tiny --extractor rgb --extractor pixels --threads 2",
            "train tiny --head average --head tsn --head end_to_end --head late --threads 1",
        ):
            plans.of.cache_clear()
            assert program.main(line.split()) == 0
    return folder


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    monkeypatch.setattr(program.signal, "signal", lambda *_: None)
    plans.of.cache_clear()
    return made


def run_folder(head: str) -> Path:
    (found,) = Path("work/tiny/runs").glob(f"{head}-*/seed0")
    return found


@pytest.mark.parametrize("form", ["onnx", pytest.param("openvino", marks=pytest.mark.slow)])
def test_a_run_becomes_graphs_that_say_what_it_says(here: Path, tmp_path: Path, form: str, capsys: Any) -> None:
    folder = run_folder("average")
    assert program.main(["export", str(folder), "--format", form, "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "export.json").read_text())
    assert report["classes"] == ["Jump", "Run"] and set(report["graphs"]) == {"head", "rgb", "clip"}
    checked = {name: graph["checked"] for name, graph in report["graphs"].items()}
    assert checked["head"]["rows_of_videos"] < 1e-5 and checked["head"]["videos"] == world.VIDEOS
    assert checked["rgb"]["samples_of_videos"] < 1e-3
    assert checked["clip"]["same_label"] == 1.0
    assert report["modalities"]["rgb"]["rows_of_a_test"] == 3
    printed = capsys.readouterr().out
    assert printed.count("made_up") == 3 and str(tmp_path / report["graphs"]["head"]["file"]) in printed


@pytest.mark.slow
def test_an_end_to_end_run_is_a_clip_too(here: Path, tmp_path: Path) -> None:
    report = export_run(of_run(run_folder("tsn")), tmp_path, "onnx", videos=2, say=lambda _: None)
    assert set(report["graphs"]) == {"head", "clip"}
    free = {"0": "videos", "1": "rows", "2": "height", "3": "width"}
    assert report["graphs"]["clip"]["inputs"]["frames"] == free


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_a_head_with_its_encoder_is_a_window_to_label(here: Path, tmp_path: Path, form: str) -> None:
    """Videos of four frames: a window is the first three of them."""
    report = export_run(of_run(run_folder("end_to_end")), tmp_path, form, videos=2, say=lambda _: None)
    assert set(report["graphs"]) == {"head", "clip"}
    assert report["modalities"]["pixels"]["rows_of_a_window"] == 3
    assert report["graphs"]["clip"]["inputs"]["frames"] == {"0": "videos", "2": "height", "3": "width"}
    assert report["graphs"]["head"]["checked"]["rows_of_videos"] < 1e-4
    assert report["graphs"]["clip"]["checked"]["frames_of_videos"] < 0.05  # a grey level more or less


def test_rows_of_heads_on_maps_are_not_bytes(here: Path) -> None:
    """KFT reads float maps of as many axes as clips have."""
    run = of_run(run_folder("average"))
    maps = replace(run.sources["rgb"], facts={**run.sources["rgb"].facts, "row_shape": [8, 8, 3, 4]})
    head = make("kft-concat")
    graph = next(g for g in graphs_of(replace(run, head=head, sources={"maps": maps})) if g.name == "head")
    rows, mask = graph.example(2, 3, 0)
    assert rows.dtype == torch.float32 and rows.shape[2:] == head.shapes["maps"]
    assert graph.module(rows, mask).isfinite().all()


def test_a_fusion_is_not_exported(here: Path, capsys: Any) -> None:
    assert program.main(["export", str(run_folder("late"))]) == 2
    assert "a fusion has no weights of its own" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_brings_its_weights_and_needs_no_dataset(here: Path, tmp_path: Path) -> None:
    """Another file is where its weights were, and the run lies elsewhere."""
    moved = shutil.copytree(run_folder("average").parent, tmp_path / "moved")
    weights, aside = Path("network.safetensors").absolute(), tmp_path / "aside"
    own = weights.read_bytes()
    other = bytes([*own[:-1], own[-1] ^ 1])
    weights.rename(aside)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(make_folder(tmp_path / "empty"))
        plans.of.cache_clear()
        try:
            weights.write_bytes(other)
            report = export_run(of_run(moved / "seed0"), tmp_path / "out", "onnx", videos=2, say=lambda _: None)
            (kept,) = (moved / "extractors").iterdir()
            assert kept.read_bytes() == own
            kept.write_bytes(other)  # and none of the places has the right one
            with pytest.raises(UserError, match=r"weights are not there: .*network.safetensors: expected sha256 .*"):
                of_run(moved / "seed0", tmp_path / "cache")
        finally:
            aside.rename(weights)
    assert set(report["graphs"]) == {"head", "rgb", "clip"}
    assert report["graphs"]["head"]["checked"].keys() == {"made_up"}


def test_other_numbers_are_refused(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.export import run as exporting

    def off(path: Path) -> Any:
        right = runner(path)
        return lambda given: right(given) * 1.001

    export_run(of_run(run_folder("average")), tmp_path / "before", "onnx", videos=0)
    (tmp_path / "export.json").write_bytes((tmp_path / "before" / "export.json").read_bytes())
    shutil.rmtree(tmp_path / "before")
    monkeypatch.setattr(exporting, "runner", off)
    with pytest.raises(
        FramepoolError, match=r"graph gives other numbers: .*head.onnx: made-up inputs: expected <= 0.0001"
    ):
        export_run(of_run(run_folder("average")), tmp_path, "onnx", videos=0)
    assert not list(tmp_path.iterdir()), "nor is anything left that could be taken for a graph that was checked"


def test_what_is_no_run_is_said(here: Path, capsys: Any) -> None:
    assert program.main(["export", "work/tiny"]) == 2
    assert capsys.readouterr().err.startswith("framepool: not a finished run: work/tiny: expected a run.json in it; ")


def test_rows_are_chosen_as_a_test_chooses_them(here: Path) -> None:
    clip = Clip(of_run(run_folder("average")))
    for length, expected in ((1, [0]), (3, [0, 1, 2]), (4, [0, 2, 3]), (10, [1, 5, 8])):
        frames = torch.arange(length, dtype=torch.uint8).view(1, length, 1, 1, 1).expand(-1, -1, 2, 2, 3)
        rows, mask = clip._looked_at(frames)
        assert rows[mask][:, 0, 0, 0].tolist() == expected


@pytest.mark.slow
@needs_shared
@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_24_real_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    """An attention cluster, a VTN and a head of two modalities on MobileNetV2 and YAMNet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(program.signal, "signal", lambda *_: None)
    originals = sorted((SHARED / "ucf6-orig").rglob("*.avi"))
    assert len(originals) == 24
    lines = ["path,label,split"]
    for clip in originals:
        label, group = clip.name.split("_")[1], int(clip.name.split("_g")[1][:2])
        lines.append(f"{label}/{clip.name},{label},{'train' if group > 3 else 'test'}")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    weights = SHARED / "weights"
    config = {
        "title": "Originals",
        "videos": {"format": "table", "root": str(SHARED / "ucf6-orig"), "list": "list.csv"},
        "extractors": {
            "rgb": {
                "kind": "rgb",
                "sampling": {"kind": "uniform", "n": 25},
                "network": {
                    "name": "mobilenetv2_100",
                    "weights": str(weights / "mobilenet_v2" / "mobilenetv2_100_same.safetensors"),
                    "options": {"pad_type": "same"},
                },
                "transform": {"mean": [0.5] * 3, "std": [0.5] * 3},
            },
            "logmel": {"kind": "logmel", "offset": 0.001},
            "audio": {
                "kind": "audio",
                "source": "logmel",
                "network": {
                    "name": "yamnet",
                    "library": "framepool",
                    "weights": str(weights / "yamnet" / "yamnet_folded_fp32.npz"),
                },
            },
        },
        "heads": {
            "cluster": {"kind": "attention_cluster", "features": ["rgb"], "train": {"epochs": 3}},
            "vtn": {"kind": "vtn", "features": ["rgb"], "train": {"epochs": 2}},
            "two": {"kind": "attention_cluster", "features": ["rgb", "audio"], "clusters": 8, "train": {"epochs": 3}},
        },
    }
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "orig.yaml").write_text(yaml.safe_dump(config))
    for line in (
        "extract orig --extractor rgb --extractor logmel --extractor audio",
        "train orig --head cluster --head vtn --head two --threads 1",
    ):
        plans.of.cache_clear()
        assert program.main(line.split()) == 0
    plans.of.cache_clear()
    for head in ("vtn", "two"):
        (folder,) = Path("work/orig/runs").glob(f"{head}-*/seed0")
        run = of_run(folder)
        graphs = graphs_of(run)
        assert [g.name for g in graphs] == (["head", "rgb", "audio"] if head == "two" else ["head", "rgb", "clip"])
        path = tmp_path / f"{head}{SUFFIX[form]}"
        write(graphs[0].module, graphs[0].example(2, 5, 0), path, graphs[0].inputs, graphs[0].axes, "logits")
        found = real_rows(run, real_clips(run, 24))
        assert found is not None and len(found[1]) == 24
        assert np.abs(runner(path)(found[0]) - found[1]).max() < 1e-4
    made = {n: g["checked"] for n, g in export_run(run, tmp_path / "two", form, videos=24)["graphs"].items()}
    assert made["head"]["rows_of_videos"] < 1e-4 and made["head"]["videos"] == made["rgb"]["videos"] == 24
    assert made["audio"]["samples_of_videos"] < 1e-3 and made["audio"]["videos"] == 12, "those that have sound"
    kept = np.load(folder / "predictions.npz")
    assert program.main(f"score {folder} {SHARED / 'ucf6-orig'} --out scores.jsonl --logits".split()) == 0
    rows = {row["video"]: row for row in map(json.loads, Path("scores.jsonl").read_text().splitlines())}
    assert len(rows) == 24 and len(kept["ids"]) == 12
    for video, logits in zip(kept["ids"].tolist(), kept["logits"], strict=True):
        path = next(name for name in rows if Path(name).stem == Path(video).stem)
        assert np.abs(np.array(rows[path]["logits"]) - logits).max() < 1e-5, "all modalities, as they are stored"
    (folder,) = Path("work/orig/runs").glob("cluster-*/seed0")
    checked = {n: g["checked"] for n, g in export_run(of_run(folder), tmp_path, form, videos=24)["graphs"].items()}
    assert checked["head"]["rows_of_videos"] < 1e-4 and checked["rgb"]["samples_of_videos"] < 1e-3
    assert checked["clip"]["videos"] == checked["head"]["videos"] == 24 and checked["clip"]["same_label"] >= 0.9


@pytest.mark.slow
def test_a_clip_of_another_size_goes_through(here: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "wide.avi", width=160, height=64, codec="mpeg4")
    run = of_run(run_folder("average"))
    graph = next(g for g in graphs_of(run) if g.name == "clip")
    write(graph.module, graph.example(1, 4, 0), tmp_path / "clip.onnx", graph.inputs, graph.axes, graph.output)
    from pipelines.export.real import full_frames

    frames = full_frames(tmp_path / "wide.avi", run.sources["rgb"])
    assert frames.shape == (4, 64, 160, 3)
    with torch.inference_mode():
        expected = graph.module(torch.from_numpy(frames)[None]).numpy()
    assert apart(runner(tmp_path / "clip.onnx")({"frames": frames[None]}), expected) < 1e-4
