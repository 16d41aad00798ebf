"""TSN's flow network begins as the pictures' (cross-modality initialisation), and goes back into stage one."""

from __future__ import annotations

import copy
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from extract.networks.weights import load_state
from extract.shard import extract_shards
from features.errors import UserError
from pipelines import plan as plans
from pipelines.commands.stage_one import gathered, task_of
from pipelines.commands.stage_two import train
from pipelines.config import load
from pipelines.groups import groups
from tests.heads.made import SMALL_CNN
from tests.workflow import world

SIZE = {"resize": 32, "crop": 32}
DIS = {"kind": "tvl1", "backend": "dis"}
STILL = {"epochs": 1, "batch": 6, "lr": 1e-9, "weight_decay": 0.0, "clip": None}
TUNED = {"options": SMALL_CNN["options"], "name": SMALL_CNN["name"]}


def config() -> dict[str, Any]:
    made = copy.deepcopy(world.CONFIG)
    tsn = {"kind": "tsn", "crop_px": 32, "partial_bn": True, "sample": {"train": 3, "test": 4}, "train": STILL}
    made["extractors"] = {
        "pixels": {"kind": "pixels", "sampling": {"kind": "uniform", "n": 4}, "transform": SIZE},
        "tvl1": {
            "kind": "tvl1",
            "sampling": {"kind": "segments", "n": 2},
            "pairs": 2,
            "backend": "dis",
            "transform": SIZE,
        },
        "rgb": {"kind": "rgb", "source": "pixels", "network": {**TUNED, "weights": {"run": "tsn_rgb"}}},
        "flow": {"kind": "flow", "source": "tvl1", "network": {**TUNED, "weights": {"run": "tsn_flow"}}},
    }
    made["heads"] = {
        "tsn_rgb": {**tsn, "features": ["pixels"], "network": TUNED},
        "tsn_flow": {
            **tsn,
            "features": ["tvl1"],
            "first_conv_lr": 5,
            "network": {**TUNED, "reads": "flow", "weights": {"run": "tsn_rgb"}},
        },
        "whole": {
            "kind": "average",
            "features": ["pixels"],
            "encoder": {**TUNED, "weights": {"run": "tsn_rgb"}, "crop_px": 32, "frames": 4, "augment": "none"},
            "train": {"epochs": 1, "batch": 6, "optimizer": "sgd", "lr": 1e-9},
        },
        "average": {"kind": "average", "features": ["rgb", "flow"], "train": {"epochs": 1}},
        "again": {"kind": "average", "features": ["rgb"], "train": {"epochs": 1}},
    }
    return made


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    world.build(tmp_path)
    world.write_config(tmp_path, config())
    monkeypatch.chdir(tmp_path)
    plans.of.cache_clear()
    return tmp_path


def test_what_waits_for_what(there: Path) -> None:
    plan = plans.of("tiny")
    rgb, flow = plan.run("tsn_rgb", "1"), plan.run("tsn_flow", "1")
    assert rgb.summary in flow.inputs and flow.begins_from == rgb and rgb.trains and flow.trains
    assert plan.store("flow", "1").trained_by == flow
    whole = plan.run("whole", "1")
    assert rgb.summary in whole.inputs and whole.begins_from == rgb
    (group,) = groups(plan)
    assert {run.head for run in group.runs} == {"average", "again", "whole"}, "networks somebody waits for come first"
    changed = config()
    changed["heads"]["tsn_rgb"]["train"] = {**STILL, "lr": 2e-9}
    world.write_config(there, changed)
    plans.of.cache_clear()
    assert plans.of("tiny").run("tsn_flow", "1").digest != flow.digest, "other pictures, another flow"


def test_a_start_in_another_dataset_is_of_the_same_seed_where_that_is_trained(there: Path) -> None:
    more = config()
    more["heads"] = {"again": {**more["heads"]["average"], "features": ["pixels"], "encoder": TUNED}}
    more["heads"]["again"]["start"] = {"run": "whole", "dataset": "tiny"}
    world.write_config(there, {**more, "extractors": {"pixels": more["extractors"]["pixels"]}, "seeds": [0, 1]}, "two")
    run, first = plans.of("two").run("again", "1"), plans.of("tiny").run("whole", "1")
    assert (run.seeds, first.seeds) == ((0, 1), (0,))
    assert [run.start_folder(seed) for seed in (0, 1)] == [first.folder / "seed0"] * 2
    (first.folder / "seed1").mkdir(parents=True)
    assert run.start_folder(1) == first.folder / "seed1" and first.start_folder(0) is None


def test_networks_begin_as_that_of_the_pictures(there: Path) -> None:
    """At a rate of nothing they stay so: an encoder the same, of flow the mean of the first kernel over
    colours, all else as it was."""
    plan = plans.of("tiny")
    for shard in range(plan.shard_count):
        extract_shards([task_of(plan.store(name), shard) for name in ("pixels", "tvl1")], workers=1)
    for name in ("pixels", "tvl1"):
        gathered(plan.store(name))
    args = Namespace(
        dataset="tiny",
        head=["tsn_flow"],
        split=None,
        seed=None,
        device="cpu",
        threads=1,
        stream=False,
        checkpoint_minutes=10,
    )
    with pytest.raises(UserError, match=r"weights are not trained yet: .*train tiny --head tsn_rgb"):
        train(args)
    train(Namespace(**{**vars(args), "head": ["tsn_rgb"]}))
    train(args)
    train(Namespace(**{**vars(args), "head": ["whole"]}))
    seen = load_state(plan.run("whole", "1").network)[0]
    began = load_state(plan.run("tsn_rgb", "1").network)[0]
    for key in (k for k in began if k.startswith("trunk.") and k.endswith("weight")):
        torch.testing.assert_close(seen[key], began[key], atol=1e-6, rtol=0)
    old, new = (load_state(plan.run(head, "1").network)[0] for head in ("tsn_rgb", "tsn_flow"))
    (first,) = [key for key in old if old[key].shape != new[key].shape]
    torch.testing.assert_close(
        new[first], old[first].mean(dim=1, keepdim=True).expand(-1, 4, -1, -1), atol=1e-6, rtol=0
    )
    for key in old.keys() - {first}:
        if "running" not in key and "num_batches" not in key:
            torch.testing.assert_close(new[key], old[key], atol=1e-6, rtol=0)
    assert task_of(plan.store("flow", "1"), 0).weights == plan.run("tsn_flow", "1").network


@pytest.mark.parametrize(
    ("head", "weights", "message"),
    [
        ("tsn_rgb", {"run": "tsn_flow"}, "heads that do not wait for each other, not tsn_rgb <- tsn_flow <- tsn_rgb"),
        ("tsn_flow", {"run": "average"}, "the name of a tsn head in heads.tsn_flow.network.weights.run, not 'average'"),
        ("tsn_flow", {"run": "tsn_rbg"}, "the name of a tsn head in heads.tsn_flow.network.weights.run, not 'tsn_rbg'"),
    ],
)
def test_weights_of_no_such_run(there: Path, head: str, weights: dict[str, str], message: str) -> None:
    broken = config()
    broken["heads"][head]["network"] = {**broken["heads"][head]["network"], "weights": weights}
    world.write_config(there, broken)
    with pytest.raises(UserError) as error:
        load("tiny")
    assert message in str(error.value)


def test_an_extractor_cannot_feed_the_head_that_its_own_trainer_begins_from(there: Path) -> None:
    broken = config()
    broken["extractors"]["maps"] = {
        "kind": "rgb",
        "source": "pixels",
        "network": {**TUNED, "weights": {"run": "tsn_flow"}, "layer": "layer1", "pool": False},
    }
    broken["heads"]["tsn_rgb"]["features"] = ["maps"]
    world.write_config(there, broken)
    with pytest.raises(UserError, match="extractors that do not wait for each other, not rgb <- maps <- maps"):
        load("tiny")
