"""Head configs: the paper's defaults, errors that name the key, and no torch."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from features.errors import UserError
from features.recipe import Config
from heads.config import Sample
from heads.kinds import NUMERICS, HeadConfig, numerics

NET = {"name": "resnet18"}


class One(Config):
    head: HeadConfig


def parse(**head: Any) -> Any:
    return One.parse({"head": head}, where="config/demo.yaml").head


def test_attention_cluster_has_the_papers_recipe() -> None:
    config = parse(kind="attention_cluster", features=["rgb"], train={"epochs": 3})
    train = config.train
    assert (train.optimizer, train.lr, train.alpha, train.eps) == ("rmsprop", 1e-3, 0.9, 1e-8)
    assert (train.clip, train.balanced, train.batch, train.epochs) == (5, True, 128, 3)
    assert (config.dropout, config.clusters, config.weighting, config.shift) == (0.9, 64, "fc1", True)
    assert config.rows("rgb").train == 15


@pytest.mark.parametrize(
    ("kind", "sample", "own", "train"),
    [
        # Attention Clusters, section 4 and appendix B
        (
            "bilstm",
            (15, 20),
            {"hidden": 1024, "dropout": 0.9},
            {"optimizer": "rmsprop", "lr": 1e-3, "clip": 5, "balanced": True},
        ),
        ("flatten", None, {"dropout": 0.9}, {"optimizer": "rmsprop", "lr": 1e-3, "clip": 5, "balanced": True}),
        # TS-LSTM and Temporal-Inception, the authors' code
        (
            "ts_lstm",
            (25, 25),
            {"segments": 5, "hidden": 512},
            {"optimizer": "adam", "lr": 1e-4, "epochs": 100, "batch": 64, "clip_value": 5},
        ),
        (
            "temporal_inception",
            (25, 25),
            {"dropout": 0.2},
            {"lr": 5e-5, "weight_decay": 0.1, "epochs": 30, "batch": 16},
        ),
        # VTN, section 4; KFT, section 4
        (
            "vtn",
            (16, 16),
            {"blocks": 4, "heads": 8, "dim": 512},
            {"lr": 1e-4, "weight_decay": 1e-4, "epochs": 50, "batch": 32},
        ),
        (
            "stacked_lstm",
            (16, 16),
            {"layers": 3, "hidden": 512, "dropout": 0.5, "between": 0.2},
            {"lr": 1e-4, "epochs": 50},
        ),
        (
            "kft",
            None,
            {"dropout": 0.5, "inside": 0.1, "residual": "add"},
            {"optimizer": "sgd", "lr": 1e-2, "momentum": 0.9, "batch": 32},
        ),
    ],
)
def test_baselines_have_their_own_recipes(kind: str, sample: Any, own: dict[str, Any], train: dict[str, Any]) -> None:
    config = parse(kind=kind, features=["rgb"])
    assert {name: getattr(config, name) for name in own} == own
    assert {name: getattr(config.train, name) for name in train} == train
    assert sample is None or (config.sample.train, config.sample.test) == sample


def test_a_head_samples_as_many_rows_as_it_looks_at() -> None:
    assert parse(kind="vtn", features=["rgb"], length=25).sample == Sample(train=25, test=25)
    assert parse(kind="vtn", features=["rgb"], length=25, sample={"train": 9}).sample == Sample(train=9)
    assert parse(kind="flatten", features=["rgb"], places=50).sample == Sample(train=50, test=50)
    places = parse(kind="flatten", features=["rgb", "audio"], places={"rgb": 9, "audio": 4})
    assert places.rows("audio") == Sample(train=4, test=4) and places.rows("rgb").train == 9


def test_a_recipe_parses_to_the_same_config() -> None:
    for config in (
        parse(kind="average", features=["rgb"]),
        parse(
            kind="attention_cluster",
            features=["a", "b"],
            clusters={"a": 3, "b": 2},
            dropout=0.5,
            sample={"a": {"train": 3}, "b": {}},
        ),
        parse(kind="ridge", features=["rgb"], alpha=3, missing="none"),
        parse(kind="average", features=["a", "b"], align="b", sample={"train": 3}),
        parse(kind="tsn", features=["pixels"], network={"name": "resnet18"}, train={"schedule": {"kind": "cosine"}}),
    ):
        assert parse(**config.recipe()) == config
        assert numerics(config) == NUMERICS[config.kind]


def test_bf16_crops_are_of_another_code() -> None:
    cnn = {"network": {"name": "resnet18"}, "train": {"precision": "bf16"}}
    assert numerics(parse(kind="tsn", features=["pixels"], **cnn)) == NUMERICS["tsn"] + 1
    assert numerics(parse(kind="tsn", features=["pixels"], augment="none", **cnn)) == NUMERICS["tsn"]
    encoder = {"encoder": {"name": "resnet18"}, "train": {"precision": "bf16"}}
    assert numerics(parse(kind="vtn", features=["pixels"], **encoder)) == NUMERICS["vtn"] + 2  # and sums


def test_bf16_lstms_are_of_another_code() -> None:
    for kind in ("ts_lstm", "bilstm", "stacked_lstm"):
        found = [numerics(parse(kind=kind, features=["rgb"], train={"precision": p})) for p in ("fp32", "bf16")]
        assert found == [NUMERICS[kind], NUMERICS[kind] + 1]
    encoder = {"encoder": {"name": "resnet18"}, "train": {"precision": "bf16"}}
    assert numerics(parse(kind="stacked_lstm", features=["pixels"], **encoder)) == NUMERICS["stacked_lstm"] + 3


@pytest.mark.parametrize(
    ("head", "others"),
    [
        ({"kind": "average", "features": ["rgb"]}, 1),
        ({"kind": "noisy_or", "features": ["rgb"], "codes": "+"}, 1),
        ({"kind": "vtn", "features": ["pixels"], "encoder": {**NET, "augment": "none"}}, 1),
        *(({"kind": "kft", "features": ["maps"], "consensus": c}, c != "max") for c in ("softmax", "logits", "max")),
        *(({"kind": kind, "features": ["rgb"]}, 0) for kind in ("noisy_or", "vtn", "netvlad", "attention_cluster")),
    ],
)
def test_sums_of_bf16_steps_are_of_another_code(head: dict[str, Any], others: int) -> None:
    found = [numerics(parse(**head, train={"precision": precision})) for precision in ("fp32", "bf16")]
    assert found[1] - found[0] == others


def test_means_of_probabilities_are_of_another_code() -> None:
    clips, maps = {"kind": "vtn", "features": ["pixels"]}, {"kind": "i3d", "features": ["maps"]}
    fusion: dict[str, Any] = {"kind": "fusion", "heads": ["a", "b"]}
    for changed, same in (
        ({**clips, "encoder": {**NET, "of": "softmax"}}, {**clips, "encoder": NET}),
        ({**maps, "consensus": "softmax"}, {**maps, "consensus": "logits"}),
        ({**fusion, "of": "softmax"}, fusion),
    ):
        assert [numerics(parse(**head)) - NUMERICS[head["kind"]] for head in (changed, same)] == [1, 0]


def test_crops_of_differences_in_an_encoder_are_of_another_code() -> None:
    reads = [{**NET, "reads": "rgbdiff"}, {**NET, "reads": "rgbdiff", "augment": "none"}, {**NET, "reads": "stacked"}]
    found = [numerics(parse(kind="vtn", features=["pixels"], encoder=encoder)) for encoder in reads]
    assert found == [NUMERICS["vtn"] + far for far in (1, 0, 0)]


def test_heavy_dropout_of_a_cluster_is_of_another_code() -> None:
    found = [numerics(parse(kind="attention_cluster", features=["rgb"], dropout=rate)) for rate in (0.7, 0.8, 0.9)]
    assert found == [NUMERICS["attention_cluster"] + heavy for heavy in (0, 1, 1)]


def test_what_clips_and_groups_have_changed_is_of_another_code() -> None:
    vtn, average = {"kind": "vtn", "features": ["pixels"]}, {"kind": "average", "features": ["rgb", "flow"]}
    for changed, same in (
        ({**vtn, "encoder": NET, "sample": {"train": 2}}, {**vtn, "encoder": NET}),
        ({**average, "train": {"clip_s": 1.0}}, {**average, "train": {"clip_s": 1.0}, "align": "rgb"}),
        ({**average, "train": {"hold_out": 0.1}}, average),
    ):
        more = [numerics(parse(**head)) - NUMERICS[head["kind"]] for head in (changed, same)]  # type: ignore[index]
        assert more == [2 if "hold_out" in changed.get("train", {}) else 1, 0]


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (
            {"kind": "average", "features": ["rgb"], "train": {"epoch": 3}},
            r"\$.head.train.epoch; did you mean 'epochs'",
        ),
        ({"kind": "averag", "features": ["rgb"]}, "expected one of 'average', 'attention_cluster', 'flatten', "),
        ({"kind": "average", "features": []}, "expected at least one modality in features"),
        ({"kind": "average", "features": ["/tmp/rgb"]}, "a to z, 0 to 9 and _ in names of features, .*not '/tmp/rgb'"),
        ({"kind": "average", "features": ["head"]}, "neither of head and clip, which an export needs, not 'head'"),
        ({"kind": "average", "features": ["rgb", "rgb"]}, "each modality once, not rgb, rgb"),
        (
            {"kind": "average", "features": ["rgb"], "train": {"momentum": 0.9}},
            r"no momentum with the optimizer adam \(it",
        ),
        ({"kind": "average", "features": ["rgb"], "train": {"lr": "fast"}}, r"\$.head.train.lr: .*got 'fast'"),
        ({"kind": "average", "features": ["rgb"], "dropout": 1}, r"\$.head.dropout: expected a number < 1"),
        (
            {"kind": "average", "features": ["rgb"], "sample": {"flow": {"train": 2}}},
            "a value for each of rgb, not for flow",
        ),
        ({"kind": "average", "features": ["rgb"], "align": "flow"}, "expected one of rgb in align, not flow"),
        (
            {"kind": "average", "features": ["a", "b"], "align": "a", "sample": {"a": {}, "b": {}}},
            "expected one sample for all with align: it is the rows of a",
        ),
        ({"kind": "tsn", "features": ["a"], "network": NET, "missing": "mean"}, "missing: none, as the mean of maps"),
        (
            {"kind": "tsn", "features": ["a"], "network": {**NET, "reads": "logmel"}},
            "augment: none and no crop_px with network.reads: logmel",
        ),
        (
            {"kind": "tsn", "features": ["a"], "network": {"name": "yamnet", "library": "framepool"}},
            r"\$.head.network: expected reads: logmel with framepool's yamnet, not rgb",
        ),
        ({"kind": "ridge", "features": ["rgb"], "train": {}}, r"unknown key: config/demo.yaml: \$.head.train"),
        (
            {"kind": "kft", "features": ["maps"], "codes": "+"},
            "consensus: logits or max with codes, as parts of a class have no softmax among them",
        ),
        ({"kind": "tsn", "features": ["pixels"]}, r"\$.head.network: expected a value, got nothing"),
    ],
)
def test_errors_name_the_place(head: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse(**head)


def test_importing_configs_and_the_registry_imports_no_torch() -> None:
    code = "import heads, heads.kinds, sys; sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
