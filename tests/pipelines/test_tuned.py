"""The configs that tune their networks as the papers do: what waits for what, and at which rates."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipelines import plan as plans
from pipelines.plan import Plan
from tests.features.test_videolist_contract import KINETICS, hmdb51, ucf101, write
from tests.workflow.world import REPO


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(REPO / "config", tmp_path / "config")
    rows = {"train": ("making tea,a", "cutting bread,b"), "val": ("making tea,c", "cutting bread,d")}
    for side, listed in rows.items():
        lines = "".join(f"{row}aaaaaaaaaa,1,11,{side}\n" for row in listed)
        write(tmp_path / "data/kinetics" / f"{side}.csv", KINETICS.splitlines()[0] + "\n" + lines)
    (tmp_path / "data/kinetics/videos").mkdir()
    for name, made, lists in (
        ("ucf101", ucf101, "ucfTrainTestlist"),
        ("hmdb51", hmdb51, "testTrainMulti_7030_splits"),
    ):
        example = made(tmp_path / "made" / name)
        shutil.copytree(example.lists, tmp_path / "data" / name / lists)
        shutil.copytree(example.root, tmp_path / "data" / name / "videos")
    monkeypatch.chdir(tmp_path)
    plans.of.cache_clear()
    return tmp_path


def waits(plan: Plan, head: str) -> set[str]:
    """The heads whose runs a head's run waits for, whatever lies between."""
    split = plan.config.splits[0]
    run = plan.run(head, split)
    found = {run.begins_from.head} if run.begins_from else set()
    for store in run.stores.values():
        chain = [store, *([store.source] if store.source else [])]
        found |= {s.trained_by.head for s in chain if s.trained_by}
    return found.union(*(waits(plan, other) for other in found)) if found else set()


def test_kinetics_tunes_flow_from_pictures_and_sound_for_itself(there: Path) -> None:
    plan = plans.of("kinetics-tuned")
    assert waits(plan, "rgb_flow_audio") == {"tsn_rgb", "tsn_flow", "tsn_audio"}
    assert waits(plan, "tsn_flow") == {"tsn_rgb"} and not waits(plan, "tsn_audio")
    assert {name for name in ("tsn_rgb", "tsn_flow", "tsn_audio") if plan.run(name, "val").live} == {
        "tsn_rgb", "tsn_flow", "tsn_audio"
    }  # fmt: skip
    assert {s.extractor for s in plan.stores()} == {"rgb", "flow", "audio"}, "no pixels on disk"
    assert plan.config.heads["tsn_rgb"].sample.train == 7  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["ucf101-tuned", "hmdb51-tuned"])
def test_ucf101_and_hmdb51_tune_for_each_split_at_the_rates_of_tsn(there: Path, name: str) -> None:
    plan = plans.of(name)
    assert len({plan.store("rgb", split).digest for split in plan.config.splits}) == 3
    assert waits(plan, "rgb_flow") == {"tsn_rgb", "tsn_flow"} and not waits(plan, "tsn_flow")
    rgb, flow = (plan.config.heads[head] for head in ("tsn_rgb", "tsn_flow"))
    for head, epochs, steps, dropout in ((rgb, 80, (30, 60), 0.8), (flow, 340, (190, 300), 0.7)):
        train = head.train  # type: ignore[union-attr]
        assert (train.epochs, train.schedule.at, head.dropout) == (epochs, steps, dropout)  # type: ignore[union-attr]
        assert (train.lr, train.batch, train.clip, train.momentum, train.weight_decay) == (1e-3, 128, 20, 0.9, 5e-4)
        assert head.partial_bn and head.sample.train == 3  # type: ignore[union-attr]
    assert flow.first_conv_lr == 5  # type: ignore[union-attr]
