"""F32-F34: what a change of config, list or files does to digests, names and shards; and that planning is light."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from extract import config as extract_config
from extract.config import Limits, NetworkConfig, Pixels, Rgb, Transform, recipe
from extract.samplings import Clips, Every, Fps, Segments, Uniform
from features.errors import UserError
from features.recipe import digest
from pipelines import plan as plans
from pipelines.passes import passes
from pipelines.plan import Plan
from tests.workflow import world

NETWORK = NetworkConfig(name="test_resnet", weights=Path("network.safetensors"))
OTHERS: dict[str, Any] = {  # for each field of an extractor another value
    "sampling": [Uniform(n=7), Every(kind="every", k=3), Fps(kind="fps", fps=2.0), Segments(kind="segments", n=3)],
    "network": [NETWORK.model_copy(update={"name": "resnet18"}), NETWORK.model_copy(update={"options": {"a": 1}})],
    "transform": [
        Transform(resize=200),
        Transform(crop=128),
        Transform(mean=(0.5, 0.5, 0.5)),
        Transform(std=(0.5, 0.5, 0.5)),
        Transform(interpolation="bicubic"),
    ],
    "device": ["cuda"],
    "runtime": ["torch"],
    "precision": ["bf16"],
    "batch": [9],
    "decoder": ["cuda"],
}
UNSEEN = {"store": False, "temporary": True}


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """A plan of the tiny dataset, made anew from the config given; its videos are empty files."""
    world.write_list(tmp_path, [world.name_of(n) for n in range(world.VIDEOS)])
    for number in range(world.VIDEOS):
        path = tmp_path / "videos" / f"{world.name_of(number)}.avi"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(number))
    (tmp_path / "network.safetensors").write_bytes(b"weights")
    monkeypatch.chdir(tmp_path)

    def make(config: dict[str, Any] = world.CONFIG) -> Plan:
        world.write_config(tmp_path, config)
        return Plan("tiny")

    return make


def names(videos: int) -> list[str]:
    return [world.name_of(number) for number in range(videos)]


def test_every_field_of_a_recipe_changes_its_digest() -> None:
    base = Rgb(kind="rgb", network=NETWORK)
    elsewhere = {"kind", "limits", "source", "calibration"}
    assert OTHERS.keys() | UNSEEN.keys() | elsewhere == Rgb.model_fields.keys(), "a new field needs a value here"
    found = {digest(recipe(base, "sha"))}
    count = 1
    for name, values in OTHERS.items():
        for value in values:
            found.add(digest(recipe(base.model_copy(update={name: value}), "sha")))
            count += 1
    for name, value in UNSEEN.items():
        assert digest(recipe(base.model_copy(update={name: value}), "sha")) in found, "where rows are is no number"
    int8 = [base.model_copy(update={"precision": "int8", "calibration": n}) for n in (64, 65)]
    found |= {digest(recipe(config, "sha")) for config in int8}
    found |= {digest(recipe(base, "sha", source)) for source in ("one", "other")}
    count += 4
    for name, field in Limits.model_fields.items():
        limits = Limits(**{name: 0.5 if name == "min_decoded_ratio" else field.default + 1})
        changed = digest(recipe(base.model_copy(update={"limits": limits}), "sha"))
        if name == "timeout_s":
            assert changed in found, "how long one may wait is no number of a feature"
        else:
            found.add(changed)
            count += 1
    found |= {digest(recipe(base, "other sha")), digest(recipe(Pixels(kind="pixels"), None))}
    assert len(found) == count + 2


@pytest.mark.parametrize("sampling", get_args(get_args(extract_config.Sampling)[0]))
def test_every_field_of_a_sampling_changes_the_digest(sampling: type[Any]) -> None:
    kind = get_args(sampling.model_fields["kind"].annotation)[0]
    base = sampling(kind=kind, **({"fps": 3} if sampling is Fps else {}))
    for name in sampling.model_fields.keys() - {"kind"}:
        other = base.model_copy(update={name: (getattr(base, name) or 1) + 1})
        pair = [recipe(Pixels(kind="pixels", sampling=value), None) for value in (base, other)]
        assert digest(pair[0]) != digest(pair[1]), name


def test_the_code_s_number_is_in_the_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    before = digest(recipe(Pixels(kind="pixels"), None))
    monkeypatch.setitem(extract_config.NUMERICS, "pixels", 99)
    assert digest(recipe(Pixels(kind="pixels"), None)) != before
    assert Clips(kind="clips").frames == 16


def test_a_store_and_a_run_are_named_by_their_digests(tiny: Callable[..., Plan]) -> None:
    plan = tiny()
    (store,), runs = plan.stores(), plan.runs()
    assert store.name == f"rgb-{store.digest[:8]}" and plan.store_named(store.name) is store
    assert [run.head for run in runs] == ["average", "ridge"] and plan.run_named(runs[0].name) is runs[0]
    assert store.manifests == [f"work/tiny/features/{store.name}/0000{n}.json" for n in range(3)]


def test_a_changed_recipe_lives_beside_the_old_one(tiny: Callable[..., Plan]) -> None:
    changed = copy.deepcopy(world.CONFIG)
    changed["extractors"]["rgb"]["batch"] = 2
    before, after = tiny(), tiny(changed)
    assert before.stores()[0].folder != after.stores()[0].folder
    assert {run.name for run in before.runs()}.isdisjoint(run.name for run in after.runs())


def test_other_weights_are_another_store(tiny: Callable[..., Plan], tmp_path: Path) -> None:
    before = tiny().stores()[0].digest
    (tmp_path / "network.safetensors").write_bytes(b"others")
    assert tiny().stores()[0].digest != before


def test_a_run_of_a_tsn_head_makes_a_store_for_each_split(tiny: Callable[..., Plan]) -> None:
    config = copy.deepcopy(world.CONFIG)
    config["splits"], config["seeds"] = ["1", "2"], [3, 4]
    config["extractors"]["pixels"] = {"kind": "pixels"}
    config["extractors"]["rgb"]["network"]["weights"] = {"run": "tsn"}
    config["heads"]["tsn"] = {"kind": "tsn", "features": ["pixels"], "network": {"name": "test_resnet"}}
    plan = tiny(config)
    rgb = [store for store in plan.stores() if store.extractor == "rgb"]
    assert [store.split for store in rgb] == ["1", "2"]
    trained_by = rgb[1].trained_by
    assert trained_by is not None and trained_by is plan.run("tsn", "2")
    assert rgb[1].weights == trained_by.folder / "seed3" / "network.safetensors"
    assert plan.run("average", "2").stores == {"rgb": rgb[1]}
    config["heads"]["tsn"]["dropout"] = 0.1
    again = tiny(config)
    assert {s.name for s in again.stores()} & {s.name for s in plan.stores()} == {plan.store("pixels").name}


def test_seeds_are_no_part_of_a_run_and_ridge_needs_one(tiny: Callable[..., Plan]) -> None:
    one, more = tiny(), tiny({**world.CONFIG, "seeds": [5, 6]})
    assert [run.name for run in one.runs()] == [run.name for run in more.runs()]
    assert [run.seeds for run in more.runs()] == [(5, 6), (5,)]


@pytest.mark.parametrize("at", [0, 3, 9])
def test_more_videos_keep_the_earlier_in_their_place(tiny: Callable[..., Plan], tmp_path: Path, at: int) -> None:
    from features import videolist

    plan = tiny()
    before = [plan.shard_token(shard) for shard in range(plan.shard_count)]
    plan.work.mkdir(parents=True)
    videolist.save(plan.videos, plan.list_file)
    listed, fresh = names(9), names(19)[9:]
    world.write_list(tmp_path, [*listed[:at], *fresh, *listed[at:]])
    grown = tiny()
    after = [grown.shard_token(shard) for shard in range(grown.shard_count)]
    assert (len(before), len(after)) == (3, 5)
    assert after[:2] == before[:2] and after[2] != before[2]
    assert grown.token != plan.token


def test_a_replaced_file_touches_its_shard_alone(tiny: Callable[..., Plan], tmp_path: Path) -> None:
    plan = tiny()
    path = tmp_path / "videos" / plan.videos.videos[5].path
    before = [plan.shard_token(shard) for shard in range(3)]
    path.write_bytes(b"another")
    assert [tiny().shard_token(n) == before[n] for n in range(3)] == [True, False, True]


def test_a_file_that_is_only_touched_asks_for_a_look(tiny: Callable[..., Plan], tmp_path: Path) -> None:
    plan = tiny()
    before = plan.shard_token(1)
    os.utime(tmp_path / "videos" / plan.videos.videos[5].path, (1, 1))
    assert tiny().shard_token(1) != before and tiny().token == plan.token


def test_a_link_to_nothing_beside_the_videos_is_no_matter(tiny: Callable[..., Plan], tmp_path: Path) -> None:
    before = tiny().shard_token(0)
    (tmp_path / "videos" / "Jump" / "gone.avi").symlink_to(tmp_path / "nowhere")
    assert tiny().shard_token(0) == before


def test_a_pass_of_many_extractors_has_names_that_a_disk_takes(tiny: Callable[..., Plan]) -> None:
    config = copy.deepcopy(world.CONFIG)
    for number in range(17):
        transform = {"resize": 32 + number, "crop": 32}
        config["extractors"][f"rgb_backbone_{number:02d}"] = {"kind": "pixels", "transform": transform}
    (whole,) = passes(tiny(config))
    for path in (whole.log, whole.benchmark):
        (Path(path).parent / "00000").mkdir(parents=True)
    assert Path(whole.log).parts[3].startswith("rgb+rgb_backbone_00+rgb_backbone_01+")
    assert whole.rule.startswith("extract_tiny_rgb_rgb_backbone_00_") and len(whole.rule) == 200
    other = replace(whole, stores=whole.stores[:-1])
    assert len({p.rule for p in (whole, other)}) == len({p.log for p in (whole, other)}) == 2
    few = replace(whole, stores=whole.stores[:2])
    assert (few.rule, Path(few.log).parts[3]) == ("extract_tiny_rgb_rgb_backbone_00", "rgb+rgb_backbone_00")


def test_clips_that_the_workflow_renders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = {**world.CONFIG, "videos": {"format": "rendered", "generator": "demo", "count": 54}}
    config["extractors"] = {"rgb": {"kind": "pixels"}}
    world.write_config(tmp_path, config)
    plan = Plan("tiny")
    assert plan.shard_count == 14 and plan.annotations == ["work/tiny/rendered.json"]
    token = plan.clips_token
    world.write_config(tmp_path, {**config, "videos": {**config["videos"], "count": 81}})
    assert token and Plan("tiny").clips_token != token


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (
            lambda p: p.store("rbg"),
            r"unknown extractor: config/tiny\.yaml: \$\.extractors: got rbg; did you mean 'rgb'",
        ),
        (lambda p: p.run("averge", "1"), r"unknown head: .*\$\.heads: got averge; did you mean 'average'\?"),
        (lambda p: p.run("average", "7"), r"unknown split: config/tiny\.yaml: got 7; known: 1"),
        (
            lambda p: p.store_named("rgb-00000000"),
            r"no store of this config: config/tiny\.yaml: got rgb-00000000; known: rgb-",
        ),
        (lambda p: p.run_named("no-split1-0"), r"no run of this config: config/tiny\.yaml: got no-split1-0"),
    ],
)
def test_names_that_are_not_there(tiny: Callable[..., Plan], ask: Callable[[Plan], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ask(tiny())


def test_a_split_that_the_list_does_not_have(tiny: Callable[..., Plan]) -> None:
    with pytest.raises(UserError, match=r"unknown split: config/tiny\.yaml: \$\.splits: expected splits of the list"):
        tiny({**world.CONFIG, "splits": ["4"]}).runs()


def test_weights_that_are_not_there(tiny: Callable[..., Plan], tmp_path: Path) -> None:
    (tmp_path / "network.safetensors").unlink()
    with pytest.raises(UserError, match=r"weights are not there: .*extractors.rgb.network.weights: expected a file"):
        tiny().stores()


def test_what_is_lost_beside_results(tiny: Callable[..., Plan]) -> None:
    plan = tiny()
    assert plan.lost() == []
    plan.results.mkdir(parents=True)
    (store,) = plan.stores()
    assert plan.lost() == [*store.manifests, store.summary, *(run.summary for run in plan.runs())]


def test_what_was_trained_before_a_seed_was_asked_for_is_lost(tiny: Callable[..., Plan]) -> None:
    config = {**world.CONFIG, "seeds": [0, 1]}
    for run in tiny(config).runs():
        run.folder.joinpath("seed0").mkdir(parents=True)
        run.folder.joinpath("seed0", "run.json").touch()
        Path(run.summary).touch()
    assert tiny().lost() == []
    plan = tiny(config)
    assert plan.lost() == [plan.run("average", "1").summary]
    assert not plan.run("average", "1").complete and plan.run("ridge", "1").complete


def test_what_was_made_without_the_workflow_is_lost_when_its_videos_change(
    tiny: Callable[..., Plan], tmp_path: Path
) -> None:
    """Snakemake has no record of such a job, so that it would see nothing to do."""
    from features import videolist

    plan = tiny()
    (store,) = plan.stores()
    plan.work.mkdir(parents=True)
    videolist.save(plan.videos, plan.list_file)
    for shard, path in enumerate(store.manifests):
        for made, text in ((Path(path), "{}"), (store.made_with(shard), plan.shard_token(shard, store.name))):
            made.parent.mkdir(parents=True, exist_ok=True)
            made.write_text(text)
    assert tiny().lost() == []
    (tmp_path / "videos" / plan.videos.videos[5].path).write_bytes(b"another")
    assert tiny().lost() == [store.manifests[1]]
    world.write_list(tmp_path, names(10))
    grown = tiny()
    assert grown.lost() == [store.manifests[1], store.manifests[2], str(grown.list_file)]
    store.made_with(1).unlink()  # of before such notes
    assert tiny().lost() == [store.manifests[2], str(grown.list_file)]


def test_a_mean_of_heads_without_chance_is_one(tiny: Callable[..., Plan]) -> None:
    two = {"again": {"kind": "ridge", "features": ["rgb"], "alpha": 2.0}}
    fused = {n: {"kind": "fusion", "heads": {"ridge": 1, n: 1}} for n in ("again", "average")}
    made = {f"with_{name}": config for name, config in fused.items()}
    plan = tiny({**world.CONFIG, "seeds": [3, 4], "heads": {**world.CONFIG["heads"], **two, **made}})
    assert plan.run("with_again", "1").seeds == (3,) and plan.run("with_average", "1").seeds == (3, 4)


def test_videos_that_may_have_several_labels_are_others(tiny: Callable[..., Plan], tmp_path: Path) -> None:
    """Though each has one as yet."""
    (tmp_path / "mine.csv").write_text("path,label,split\na.avi,Jump,train\nb.avi,Run,train\nc.avi,Jump,test\n")
    videos = {"format": "table", "root": "videos", "list": "mine.csv"}
    one, other = (tiny({**world.CONFIG, "videos": {**videos, "multi_label": several}}) for several in (False, True))
    assert one.token != other.token
    assert one.run("average", "1").digest != other.run("average", "1").digest


def test_a_seed_that_is_not_the_config_s_has_its_own_folder(tiny: Callable[..., Plan]) -> None:
    """But for a head without chance, of which there is one."""
    average, ridge = (tiny().run(head, "1") for head in ("average", "ridge"))
    assert average.seed_folder(11).name == "seed11" and ridge.seed_folder(11).name == "seed0"


def test_labels_of_test_videos_are_in_what_a_run_is_judged_by(tiny: Callable[..., Plan], tmp_path: Path) -> None:
    plans_ = []
    for label in ("Jump", "Run"):
        lines = ["path,label,split", "a.avi,Jump,train", "b.avi,Run,train", f"c.avi,{label},test", "d.avi,Run,test"]
        (tmp_path / "mine.csv").write_text("\n".join(lines))
        plans_.append(tiny({**world.CONFIG, "videos": {"format": "table", "root": "videos", "list": "mine.csv"}}))
        assert plans_[-1].videos.classes == ("Jump", "Run")
    one, other = plans_
    assert one.tested("1") != other.tested("1")
    assert [run.name for run in one.runs()] == [run.name for run in other.runs()]


@pytest.mark.parametrize(
    ("factors", "said"), [(["what", "where"], r"\$\.factors: expected <what>-<where>, got Jump"), (["what"], None)]
)
def test_factors_that_no_class_name_has(tiny: Callable[..., Plan], factors: list[str], said: str | None) -> None:
    with pytest.raises(UserError, match=said) if said else nullcontext():
        assert tiny({**world.CONFIG, "factors": factors}).videos


def test_a_dataset_s_list_is_read_once(tiny: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch) -> None:
    plan = tiny()
    plan.runs()
    monkeypatch.setattr(plans.videolist, "read", None)
    assert plan.stores() and plan.runs() and plan.token and plan.shard_token(0)


@pytest.mark.parametrize("module", ["features", "extract", "heads", "pipelines.plan", "pipelines.cli"])
def test_planning_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(*(n for n in ('torch', 'openvino', 'zarr', 'timm') if n in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], env=world.environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""
