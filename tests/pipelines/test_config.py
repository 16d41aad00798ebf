"""F31: a config says where it is wrong, on one line, with what was expected, what was there, and the nearest name."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from features.errors import UserError
from pipelines.config import Dataset, datasets, load, trainer
from tests.misplaced import places, put
from tests.workflow import world

REPO = world.REPO
RGB, MEAN = "extractors.rgb", "heads.average"
DELETED = object()


def config(**changes: Any) -> dict[str, Any]:
    """The tiny config with values put at places such as ``heads.average.dropout``."""
    made = copy.deepcopy(world.CONFIG)
    for place, value in changes.items():
        *path, last = place.split(".")
        node = made
        for part in path:
            node = node[part]
        if value is DELETED:
            del node[last]
        else:
            node[last] = value
    return made


def message(folder: Path, monkeypatch: pytest.MonkeyPatch, value: dict[str, Any] | str) -> str:
    """What `load` says of a config."""
    monkeypatch.chdir(folder)
    if isinstance(value, str):
        (folder / "config").mkdir()
        (folder / "config" / "tiny.yaml").write_text(value)
    else:
        world.write_config(folder, value)
    with pytest.raises(UserError) as caught:
        load("tiny")
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        (f"{RGB}.sampling", {"kind": "fps", "fps": "ten"}, ".sampling.fps: expected a number, got 'ten'"),
        (f"{RGB}.sampling", {"kind": "fps", "fps": -1}, r".sampling.fps: expected a number > 0(\.0)?, got -1"),
        (f"{RGB}.sampling", {"kind": "fps", "fps": float("nan")}, ".sampling.fps: expected a .*number.*, got nan"),
        (f"{RGB}.sampling.n", 0, ".sampling.n: expected a number > 0, got 0"),
        (f"{RGB}.sampling.n", 2.5, ".sampling.n: expected .*, got 2.5"),
        (f"{RGB}.sampling", {"kind": "fsp"}, ".sampling.kind: expected one of 'uniform', 'every', 'fps', .*got 'fsp'"),
        (f"{RGB}.sampling", {"n": 5}, ".sampling.kind: expected a value, got nothing"),
        (f"{RGB}.limits", {"max_pixels": "4GB"}, ".limits.max_pixels: expected .*, got '4GB'"),
        (f"{RGB}.precision", "fp61", ".precision: expected one of 'fp32', 'bf16' or 'int8', got 'fp61'"),
        (f"{RGB}.transform", {"resize": 64, "crop": 99}, ".transform.*: expected crop <= resize, .* 64.*"),
        (
            f"{RGB}.transform",
            {"mean": [0.5], "std": [0.5] * 3},
            ".transform.*: expected mean and std of equal .*",
        ),
        (f"{RGB}.transform", {"mean": [0.5, 0.5]}, ".transform.*: expected mean and std of equal .*"),
        (f"{RGB}.network.weights", DELETED, ".network.weights: expected a value, got nothing"),
    ],
)
def test_bad_values_of_an_extractor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, value: Any, expected: str
) -> None:
    said = message(tmp_path, monkeypatch, config(**{place: value}))
    assert re.fullmatch(rf"invalid config: config/tiny\.yaml: \$\.extractors\.rgb{expected}", said)


@pytest.mark.parametrize(
    ("place", "value", "expected"),
    [
        ("shard_size", 0, "$.shard_size: expected a number > 0, got 0"),
        ("seeds", 0, "$.seeds: expected "),
        ("seeds", [0, -1], "$.seeds[1]: expected a number >= 0, got -1"),
        ("seeds", [0, 1, 0], "$.seeds: expected each once, not 0, 1, 0"),
        ("splits", ["1", "1"], "$.splits: expected each once, not 1, 1"),
        ("splits", [], "$.splits: expected at least 1, got []"),
        ("factors", ["a", "a"], "$.factors: expected each once, not a, a"),
        ("factors", ["kind"], "$.factors: expected names that no column of the leaderboard has, not 'kind'"),
        ("splits", [1], "$.splits[0]: expected text, got 1"),
        ("title", DELETED, "$.title: expected a value, got nothing"),
        ("heads", DELETED, "$.heads: expected a value, got nothing"),
        ("heads", 3, "$.heads: expected keys and values, got 3"),
        (f"{MEAN}.features", 3, "$.heads.average.features: expected a list, got 3"),
        (f"{MEAN}.train", {"betas": []}, "$.heads.average.train.betas[0]: expected a value, got nothing"),
        (f"{MEAN}.features", [], "$.heads.average: expected at least one modality in features"),
        (f"{MEAN}.features", ["rgb", "rgb"], "$.heads.average: expected each modality once, not rgb, rgb"),
        (f"{MEAN}.features", ["rbg"], "$: expected an extractor's name in heads.average.features, not 'rbg'"),
        (f"{RGB}.network.weights", {"run": "tsn"}, "$: expected the name of a tsn head in extractors.rgb.network."),
    ],
)
def test_bad_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, value: Any, expected: str) -> None:
    said = message(tmp_path, monkeypatch, config(**{place: value}))
    assert said.startswith(f"invalid config: config/tiny.yaml: {expected}")


@pytest.mark.parametrize(
    ("place", "value", "where", "fix"),
    [
        ("titel", "x", "$.titel", "did you mean 'title'?"),
        (f"{RGB}.smapling", {}, "$.extractors.rgb.smapling", "did you mean 'sampling'?"),
        (f"{RGB}.network.wieghts", 1, "$.extractors.rgb.network.wieghts", "did you mean 'weights'?"),
        (f"{MEAN}.train", {"epoch": 3}, "$.heads.average.train.epoch", "did you mean 'epochs'?"),
        (
            f"{MEAN}.clusters",
            3,
            "$.heads.average.clusters",
            "known: kind, features, sample, align, missing, codes, clips, encoder, start, distil, dropout, train",
        ),
        ("videos.list", "x", "$.videos.list", "did you mean 'lists'?"),
    ],
)
def test_an_unknown_key_names_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, value: Any, where: str, fix: str
) -> None:
    said = message(tmp_path, monkeypatch, config(**{place: value}))
    assert said == f"unknown key: config/tiny.yaml: {where}; {fix}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("title: x\nseeds: [0\n", "not YAML: config/tiny.yaml:3: got "),
        ("title: x\n\tseeds: [0]\n", "not YAML: config/tiny.yaml:2: got "),
        ("title: x\nheads:\n  a: {}\n  a: {}\n", "key given twice: config/tiny.yaml:4: got a"),
        ("- title\n", "invalid config: config/tiny.yaml: $: expected "),
        ("", "invalid config: config/tiny.yaml: $: expected "),
        ("? [a]\n: b\n", "not YAML: config/tiny.yaml:1: got "),
        ("title: &a [*a]\n", "invalid config: config/tiny.yaml: $."),
    ],
)
def test_what_is_no_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, expected: str) -> None:
    assert message(tmp_path, monkeypatch, text).startswith(expected)


@pytest.mark.parametrize(
    ("name", "fix"),
    [("tinny", "did you mean 'tiny'?"), ("config/tiny.yaml", "did you mean 'tiny'?"), ("../tiny", "did you mean")],
)
def test_an_unknown_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, fix: str) -> None:
    world.write_config(tmp_path, config())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^unknown dataset: config: expected the name of a config, got ") as caught:
        load(name)
    assert fix in str(caught.value)


def test_a_name_as_long_as_a_novel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="unknown dataset"):
        load("x" * 5000)


def test_extractors_that_wait_for_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    circle = config()
    circle["extractors"]["rgb"]["network"]["weights"] = {"run": "tsn"}
    circle["heads"]["tsn"] = {"kind": "tsn", "features": ["rgb"], "network": {"name": "test_resnet"}}
    said = message(tmp_path, monkeypatch, circle)
    assert "expected extractors that do not wait for each other, not rgb <- rgb" in said


def test_every_config_that_is_shipped_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    shipped = {path.stem for path in (REPO / "config").glob("*.yaml")}
    assert {"demo", "ucf6", "kinetics", "ucf101", "hmdb51", "charades"} <= shipped == set(datasets())
    loaded = {name: load(name) for name in shipped}
    assert trainer(loaded["demo"].extractors["rgb"]) == "tsn_rgb"
    assert trainer(loaded["ucf6"].extractors["rgb"]) is None


def test_a_config_holds_science_only() -> None:
    for path in (REPO / "config").glob("*.yaml"):
        keys = set(yaml.safe_load(path.read_text()))
        assert not keys & {"threads", "cores", "memory", "executor", "workers"}


ALL = """
title: All
videos: {format: folder, root: clips}
extractors:
  pixels: {kind: pixels}
  tvl1: {kind: tvl1}
  logmel: {kind: logmel}
  rgb: {kind: rgb, network: &net {name: resnet18, weights: DEFAULT}}
  flow: {kind: flow, source: tvl1, network: *net}
  audio: {kind: audio, source: logmel, network: *net}
  trunk: {kind: trunk, network: {name: r3d_18, library: torchvision, weights: DEFAULT}}
heads:
  average: {kind: average, features: [rgb]}
  tsn: {kind: tsn, features: [tvl1], network: {name: resnet18, reads: flow}}
"""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "source: tvl1",
            "source: logmel",
            "the name of a tvl1 extractor in extractors.flow.source, not 'logmel', which",
        ),
        ("source: tvl1", "source: tlv1", "the name of a tvl1 extractor in extractors.flow.source, not 'tlv1'"),
        ("source: logmel, ", "", "$.extractors.audio.source: expected a value"),
        ("{kind: tvl1}", "{kind: tvl1, store: false, temporary: true}", "temporary: true or store: false, not both"),
        ("{kind: tvl1}", "{kind: tvl1, sampling: {kind: clips}}", "sampling of single frames"),
        ("{kind: tvl1}", "{kind: tvl1, backend: dis, device: cuda}", "backend framepool on device cuda"),
        ("{kind: logmel}", "{kind: logmel, hop_s: 0.005}", "a multiple of 0.01"),
        ("reads: flow", "reads: rgb", "network.reads: flow in heads.tsn, as tvl1 is tvl1"),
        (
            "rgb: {kind: rgb, ",
            "rgb: {kind: rgb, source: pixels, sampling: {kind: uniform}, ",
            "no sampling beside a source",
        ),
        ("rgb: {kind: rgb, ", "rgb: {kind: rgb, sampling: {kind: segments, length: 2}, ", "sampling of single frames"),
        (
            "rgb: {kind: rgb, ",
            "rgb: {kind: rgb, precision: int8, runtime: torch, ",
            "runtime openvino with precision int8",
        ),
        (
            "{name: resnet18, weights: DEFAULT}",
            "{name: resnet18, weights: DEFAULT, pool: false}",
            "the name of a layer",
        ),
        ("trunk: {kind: trunk, ", "trunk: {kind: trunk, sampling: {kind: uniform}, ", "sampling of clips"),
        ("source: tvl1", "source: flow", "the name of a tvl1 extractor"),
    ],
)
def test_extractors_that_do_not_fit_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    path = tmp_path / "config" / "all.yaml"
    path.write_text(ALL)
    load("all")
    assert old in ALL
    path.write_text(ALL.replace(old, new))
    with pytest.raises(UserError) as error:
        load("all")
    assert message in str(error.value)


def test_a_head_reads_what_is_not_stored_where_it_comes_from_the_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    path = tmp_path / "config" / "all.yaml"
    heads = ALL.replace("features: [rgb]", "features: [rgb, flow, audio]")
    virtual = heads.replace("source: tvl1, ", "source: tvl1, store: false, ")
    path.write_text(virtual)
    with pytest.raises(UserError) as error:
        load("all")
    expected = (
        "an extractor in heads.average.features that is stored, or that reads the videos; flow has store: false and"
    )
    assert f"{expected} reads tvl1" in str(error.value)
    path.write_text(virtual.replace("{kind: tvl1}", "{kind: tvl1, store: false}"))
    assert not load("all").extractors["flow"].store


@pytest.mark.parametrize("name", ["ucf6", "charades", "flash-digits"])
def test_whatever_stands_anywhere_is_right_or_a_line(name: str) -> None:
    whole = yaml.safe_load((REPO / "config" / f"{name}.yaml").read_text())
    refused = 0
    for at in places(whole):
        for value in (-1, "x", [[]], {1: None}):
            try:
                Dataset.parse(put(whole, at, value), "config")
            except UserError as error:
                refused += 1
                assert "\n" not in str(error) and str(error).startswith(("invalid config: ", "unknown key: ")), error
    assert refused > 100
