"""The training road: it learns, resumes to the same bytes, stops where it must, refuses what a list got wrong."""

from __future__ import annotations

import csv
import errno
import itertools
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import heads
from features.atomic import Disk, Lock
from features.batches import Features
from features.errors import Busy, DamagedStore, FramepoolError, UserError
from heads.checkpoint import Keeper, load_head, load_resume, save_head, save_resume
from heads.config import BaseConfig, Sample
from heads.data import Data, balanced_weights, hold_out
from heads.kinds import AttentionClusterConfig, AverageConfig, RidgeConfig
from heads.training import _on_device, evaluate_run, train_run
from tests.heads.made import CLASSES, problem

BYTES = ("weights.safetensors", "metrics.json", "history.csv", "predictions.npz", "predictions.csv")
CLUSTER = AttentionClusterConfig(
    features=("rgb",),
    clusters=4,
    dropout=0.5,
    sample=Sample(train=4, test=6),
    train={"epochs": 6, "batch": 16, "lr": 1e-2},
)


def go(folder: Path, config: BaseConfig = CLUSTER, data: Any = None, **changed: Any) -> dict[str, Any]:
    features, labels = problem() if data is None else data
    given = {
        "features": features,
        "labels": labels,
        "train": range(40),
        "test": range(40, 60),
        "classes": CLASSES,
        "seed": 0,
        "split": "1",
    }
    given |= {
        "provenance": {"head": "mine", "digest": "d" * 64, "stores": {}, "versions": {}},
        "log": lambda line: None,
    }
    return train_run(folder, config=config, **(given | changed))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in BYTES}


@pytest.mark.parametrize(
    "config",
    [
        CLUSTER.model_copy(update={"train": CLUSTER.train.model_copy(update={"epochs": 30})}),
        AverageConfig(features=("rgb",), dropout=0.1, train={"epochs": 60, "lr": 5e-2, "schedule": {"kind": "cosine"}}),
        RidgeConfig(features=("rgb",)),
    ],
    ids=lambda c: c.kind,
)
def test_learns_and_leaves_a_whole_run(config: BaseConfig, tmp_path: Path) -> None:
    found = go(tmp_path, config)
    assert found["top1"] >= 0.9
    assert (found["n_train"], found["n_test"]) == (40, 20)
    run = json.loads((tmp_path / "run.json").read_text())
    assert (run["head"], run["kind"], run["seed"], run["split"]) == ("mine", config.kind, 0, "1")
    assert run["classes"] == list(CLASSES)
    assert not (tmp_path / "last.pt").exists()
    with np.load(tmp_path / "predictions.npz") as stored:
        assert stored["ids"].tolist() == [f"v{k:03d}" for k in range(40, 60)]
        assert (stored["logits"].argmax(axis=1) == stored["labels"]).mean() == found["top1"]
    rows = list(csv.DictReader((tmp_path / "predictions.csv").open()))
    assert list(rows[0]) == ["id", "label", "predicted", "probability", "top5"]
    assert "'=run" in {row["label"] for row in rows}  # a spreadsheet must not run it
    features, labels = problem()
    again = evaluate_run(tmp_path, features=features, labels=labels, test=range(40, 60), classes=CLASSES)
    assert again == found


def test_history_has_a_row_an_epoch(tmp_path: Path) -> None:
    config = CLUSTER.model_copy(update={"train": CLUSTER.train.model_copy(update={"test_every": 4})})
    go(tmp_path, config)
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    assert list(rows[0]) == ["epoch", "lr", "train_loss", "train_top1", "test_loss", "test_top1"]
    assert [row["epoch"] for row in rows] == list("123456")
    assert [bool(row["test_top1"]) for row in rows] == [False, False, False, True, False, True]


def test_same_seed_same_bytes_and_torchs_generator_is_left_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    go(tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    go(tmp_path / "b")
    go(tmp_path / "c", seed=1)
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")
    assert bytes_of(tmp_path / "a")["weights.safetensors"] != bytes_of(tmp_path / "c")["weights.safetensors"]


@pytest.mark.parametrize(
    ("optimizer", "large"), [("sgd", 1 << 30), ("adam", 1 << 30), ("rmsprop", 1 << 30), ("adam", 0)]
)
def test_resumed_after_any_epoch_ends_in_the_same_bytes(
    optimizer: str, large: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heads.checkpoint._LARGE", large)  # whether a thread writes the states
    train = {
        "epochs": 4,
        "batch": 16,
        "optimizer": optimizer,
        "early_stop": 2,
        "schedule": {"kind": "plateau", "patience": 1},
    }
    config = CLUSTER.model_copy(update={"train": type(CLUSTER.train)(**train)})
    go(tmp_path / "whole", config)
    for epoch in (1, 3):
        lines: list[str] = []

        def stop(line: str, epoch: int = epoch, lines: list[str] = lines) -> None:
            lines.append(line)
            if line.startswith(f"epoch {epoch}/"):  # what is told is kept
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            go(tmp_path / f"at{epoch}", config, log=stop)
        kept = load_resume(tmp_path / f"at{epoch}", {"digest": "d" * 64}, lines.append)
        assert kept is not None and kept["seconds"] > 0, "those of the first epoch are counted"
        lines.clear()
        go(tmp_path / f"at{epoch}", config, log=lines.append)
        assert lines[0] == f"goes on after epoch {epoch}/4"
        assert bytes_of(tmp_path / f"at{epoch}") == bytes_of(tmp_path / "whole")


@pytest.mark.parametrize("large", [1 << 30, 0])
def test_killed_mid_checkpoint_the_previous_one_loads(
    large: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """F10: every durable write in turn dies halfway; the same command then ends in the undisturbed bytes."""
    monkeypatch.setattr("heads.checkpoint._LARGE", large)  # whether a thread writes the states
    go(tmp_path / "whole")
    write, count = Disk.write, 0

    def dies(stream: Any, data: bytes) -> None:
        nonlocal count
        count += 1
        if count == fatal:
            write(stream, data[: len(data) // 2])
            raise KeyboardInterrupt
        write(stream, data)

    monkeypatch.setattr(Disk, "write", staticmethod(dies))
    fatal = 1
    while True:
        count = 0
        folder = tmp_path / f"killed{fatal}"
        try:
            go(folder)
        except KeyboardInterrupt:
            count = -(10**6)
            go(folder)
            assert bytes_of(folder) == bytes_of(tmp_path / "whole"), fatal
            fatal += 1
            continue
        break
    assert fatal > 6 + 6  # six checkpoints, and what a finished run leaves


@pytest.mark.slow
def test_sigkill_and_again(tmp_path: Path) -> None:
    code = f"""
import os, signal, torch
torch.set_num_threads(1)
from pathlib import Path
from tests.heads.test_training import go
def log(line):
    if line.startswith("epoch 3/"): os.kill(os.getpid(), signal.SIGKILL)
go(Path({str(tmp_path / "killed")!r}), log=log)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "run.json").exists()
    lines: list[str] = []
    go(tmp_path / "killed", log=lines.append)
    assert lines[0] == "goes on after epoch 3/6", "it is kept before it is told of"
    go(tmp_path / "whole")
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")


def test_a_finished_run_is_not_trained_again_but_a_changed_recipe_is(tmp_path: Path) -> None:
    first = go(tmp_path)
    lines: list[str] = []
    assert go(tmp_path, log=lines.append) == first
    assert lines == []
    go(tmp_path, provenance={"digest": "e" * 64}, log=lines.append)
    assert len(lines) == 6


PAUSED = """
import sys, time
from pathlib import Path
from tests.heads.test_training import go
def log(line):
    print(line, flush=True)
    time.sleep(60)
go(Path(sys.argv[1]), log=log)
"""


def test_of_two_trainings_of_a_run_one_works_and_the_other_says_who(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed one is taken up from where it was, and no lock is left behind."""
    go(tmp_path / "whole")
    command = [sys.executable, "-c", PAUSED, str(tmp_path / "run")]
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline().startswith("epoch 1/6")
        kept = (tmp_path / "run" / "last.pt").read_bytes()
        monkeypatch.setattr("heads.checkpoint.LOCK_WAIT_S", 0)
        with pytest.raises(Busy, match=f"locked: .*run/run.lock: got held by process {first.pid} on "):
            go(tmp_path / "run")
        assert (tmp_path / "run" / "last.pt").read_bytes() == kept
        first.kill()
    lines: list[str] = []
    go(tmp_path / "run", log=lines.append)
    assert lines[0] == "goes on after epoch 1/6"
    assert bytes_of(tmp_path / "run") == bytes_of(tmp_path / "whole")
    assert not list(tmp_path.rglob("*.lock"))


def test_what_another_training_has_finished_meanwhile_is_not_trained_again(tmp_path: Path) -> None:
    whole = go(tmp_path / "whole")
    (tmp_path / "run").mkdir()
    lines: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        with Lock(tmp_path / "run" / "run.lock"):
            second = pool.submit(go, tmp_path / "run", log=lines.append)
            with pytest.raises(TimeoutError):
                second.result(timeout=1)
            shutil.copytree(tmp_path / "whole", tmp_path / "run", dirs_exist_ok=True)
        assert second.result() == whole
    assert lines == []


def test_the_state_of_another_run_is_not_taken_up(tmp_path: Path) -> None:
    go(tmp_path / "whole", seed=1)
    lines: list[str] = []

    def stop(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        go(tmp_path / "killed", log=stop)
    go(tmp_path / "killed", seed=1, log=lines.append)
    assert re.match(r"begins anew, the kept state is of another run: .*killed/last.pt: seed 0, not 1$", lines[0])
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")


def test_a_damaged_resume_state_starts_anew(tmp_path: Path) -> None:
    go(tmp_path / "whole")
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "last.pt").write_bytes(b"not a checkpoint")
    lines: list[str] = []
    go(tmp_path / "killed", log=lines.append)
    assert re.match(r"begins anew, the kept state is damaged: .*killed/last.pt: .", lines[0])
    assert lines[1].startswith("epoch 1/6")
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")


def test_a_resume_state_that_cannot_be_read_is_not_taken_for_damage(tmp_path: Path) -> None:
    (tmp_path / "last.pt").mkdir()
    with pytest.raises(
        FramepoolError, match=r"kept state cannot be read: .*last.pt: got IsADirectoryError.*; see to it"
    ):
        go(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]


def test_a_resume_state_that_is_not_finite_is_damaged(tmp_path: Path) -> None:
    save_resume(
        tmp_path, {"digest": "d", "head": {"w": torch.ones(2)}, "optimizer": {"state": {0: {"v": torch.ones(2)}}}}
    )
    lines: list[str] = []
    assert load_resume(tmp_path, {"digest": "d"}, lines.append) is not None
    for state in (
        {"head": {"w": torch.tensor([1, torch.nan])}, "optimizer": {"state": {}}},
        {"head": {"w": torch.ones(2)}, "optimizer": {"state": {0: {"v": torch.tensor([torch.inf])}}}},
    ):
        save_resume(tmp_path, {"digest": "d", **state})
        assert load_resume(tmp_path, {"digest": "d"}, lines.append) is None
        assert lines.pop().endswith("last.pt: its numbers are not all finite")


def test_early_stop_keeps_the_best_epochs_weights(tmp_path: Path) -> None:
    train = {
        "epochs": 40,
        "batch": 16,
        "lr": 0.5,
        "optimizer": "sgd",
        "hold_out": 0.25,
        "early_stop": 3,
        "test_every": 50,
        "clip": None,
        "balanced": False,
    }
    config = AverageConfig(features=("rgb",), dropout=0.9, train=train)
    go(tmp_path, config)
    run = json.loads((tmp_path / "run.json").read_text())
    assert run["epochs"] == run["best_epoch"] + 3 < 40
    rows = list(csv.DictReader((tmp_path / "history.csv").open()))
    watched = [float(row["held_out_loss"]) for row in rows]
    assert watched.index(min(watched)) + 1 == run["best_epoch"]
    assert [bool(row["test_top1"]) for row in rows] == [False] * (len(rows) - 1) + [True]


def test_nan_stops_naming_the_video(tmp_path: Path) -> None:
    """F35: in a row that slipped through."""
    features, labels = problem()
    data = features.rows["rgb"].data.float()
    data[features.rows["rgb"].starts[7]] = torch.nan
    broken = Features(features.ids, {"rgb": features.rows["rgb"]._replace(data=data)}, {})
    with pytest.raises(FramepoolError, match=r"loss is not finite in epoch 1: v007: expected a number, got NaN or inf"):
        go(tmp_path, AverageConfig(features=("rgb",)), data=(broken, labels))
    assert not (tmp_path / "run.json").exists()
    with pytest.raises(FramepoolError, match="scores are not finite: v050"):
        data[features.rows["rgb"].starts[7]] = 0
        data[features.rows["rgb"].starts[50]] = torch.inf
        go(tmp_path, AverageConfig(features=("rgb",)), data=(broken, labels))


def test_a_loss_that_runs_away_stops(tmp_path: Path) -> None:
    """F35: no video is to blame, and the epochs before are kept."""
    features, labels = problem()
    train = {"optimizer": "sgd", "lr": 1e38, "clip": None, "epochs": 4}
    with pytest.raises(FramepoolError, match=r"(loss|gradient) is not finite in epoch \d"):
        go(tmp_path, AverageConfig(features=("rgb",), train=train), data=(features, np.roll(labels, 1)))
    assert not (tmp_path / "run.json").exists()


def test_nan_in_saved_weights_is_refused(tmp_path: Path) -> None:
    go(tmp_path, AverageConfig(features=("rgb",), train={"epochs": 1}))
    head, _ = load_head(tmp_path)
    with torch.no_grad():
        head.get_parameter("classifier.bias")[0] = torch.nan
    save_head(tmp_path, head, kind="average", classes=CLASSES)
    with pytest.raises(DamagedStore, match=r"weights are not finite: .*classifier\.bias"):
        load_head(tmp_path)


def test_another_class_list_is_refused(tmp_path: Path) -> None:
    """F30: caught by the names, not by luck."""
    go(tmp_path, RidgeConfig(features=("rgb",)))
    features, labels = problem()
    permuted = (CLASSES[1], CLASSES[0], *CLASSES[2:])
    with pytest.raises(UserError, match=r"another class list: .*: expected 'jump' as class 0, got 'kick'"):
        evaluate_run(tmp_path, features=features, labels=labels, test=[0], classes=permuted)
    with pytest.raises(UserError, match="expected 4 classes, got 3"):
        load_head(tmp_path, classes=CLASSES[:3])


def test_features_of_another_recipe_are_refused(tmp_path: Path) -> None:
    features, labels = problem()
    ours = Features(features.ids, features.rows, {"rgb": {"store": "rgb-1", "digest": "1" * 64, "facts": {}}})
    go(tmp_path, RidgeConfig(features=("rgb",)), data=(ours, labels), provenance={"digest": "d", "stores": ours.stores})
    theirs = Features(features.ids, features.rows, {"rgb": {"store": "rgb-2", "digest": "2" * 64, "facts": {}}})
    with pytest.raises(UserError, match=r"another recipe of features: .*: rgb: expected 1+, got 2+"):
        evaluate_run(tmp_path, features=theirs, labels=labels, test=[0], classes=CLASSES)


def test_wrong_labels_are_refused_and_overlap_is_loud(tmp_path: Path) -> None:
    features, labels = problem()
    with pytest.raises(UserError, match="label not in the class list: v003: expected 0 to 2, got 3"):
        go(tmp_path, classes=CLASSES[:3])
    with pytest.raises(UserError, match="labels do not fit the videos: expected 60 labels, got 59"):
        go(tmp_path, data=(features, labels[:-1]))
    with pytest.raises(UserError, match="nothing to tell apart: expected training videos of two classes, got 1"):
        go(tmp_path, train=[0, 4, 8])
    lines: list[str] = []
    go(tmp_path, RidgeConfig(features=("rgb",)), train=[0, 1, 2], test=[2, 3], log=lines.append)
    assert lines[0] == "WARNING: 1 videos are in the training and in the test split, v002 is one"
    assert lines[1] == "WARNING: 1 classes have no training video and will never be right: walk"


def test_videos_without_rows_are_tested_but_not_trained_on(tmp_path: Path) -> None:
    features, labels = problem()
    rows = features.rows["rgb"]
    lengths = rows.lengths.clone()
    lengths[[3, 50]] = 0
    found = go(tmp_path, data=(Features(features.ids, {"rgb": rows._replace(lengths=lengths)}, {}), labels))
    assert (found["n_train"], found["n_test"], found["n_test_without_rows"]) == (39, 20, 1)


def two_modalities() -> tuple[dict[str, list[np.ndarray[Any, Any]]], np.ndarray[Any, Any]]:
    """Pictures and sound of 60 videos, either of which tells the class."""
    arrays = {}
    for modality, dim, seed in (("rgb", 16, 0), ("sound", 8, 1)):
        features, labels = problem(dim=dim, modality=modality, seed=seed)
        data, starts, lengths, _ = features.rows[modality]
        pairs = zip(starts.tolist(), lengths.tolist(), strict=True)
        arrays[modality] = [data[s : s + n].float().numpy() for s, n in pairs]
    return arrays, labels


@pytest.mark.parametrize("config", [AverageConfig, RidgeConfig])
def test_silent_videos_are_trained_on_with_the_mean_of_the_training_set(config: Any, tmp_path: Path) -> None:
    """As if the mean of the rows of the other training videos were their only row; the run keeps it."""
    arrays, labels = two_modalities()
    ids, silent = [str(k) for k in range(60)], (3, 7, 45)
    lacking = [x[:0] if k in silent else x for k, x in enumerate(arrays["sound"])]
    mean = np.concatenate(lacking[:40]).mean(axis=0, dtype=np.float64).astype(np.float32)  # 40 to 59 are tested
    filled = [mean[None] if k in silent else x for k, x in enumerate(arrays["sound"])]
    given = Features.of(ids, {**arrays, "sound": lacking})
    found = go(tmp_path / "silent", config(features=("rgb", "sound")), data=(given, labels))
    assert found["n_train"] == 40
    head, _ = load_head(tmp_path / "silent")
    torch.testing.assert_close(head.get_buffer("mean_sound"), torch.from_numpy(mean))
    again = evaluate_run(tmp_path / "silent", features=given, labels=labels, test=range(40, 60), classes=CLASSES)
    assert again == found
    spoken = Features.of(ids, {**arrays, "sound": filled})
    go(tmp_path / "spoken", config(features=("rgb", "sound")), data=(spoken, labels))
    with np.load(tmp_path / "silent" / "predictions.npz") as a, np.load(tmp_path / "spoken" / "predictions.npz") as b:
        np.testing.assert_allclose(a["logits"], b["logits"], rtol=1e-4, atol=1e-5)


def test_aligned_modalities_are_those_that_were_aligned_by_hand(tmp_path: Path) -> None:
    """To the byte, in training and testing; and nothing is learnt from videos that the reference has no rows of."""
    arrays, labels = two_modalities()
    ids = [str(k) for k in range(60)]
    arrays["rgb"][5] = arrays["rgb"][5][:0]
    times = {"rgb": [np.arange(len(x)) * 400_000 for x in arrays["rgb"]]}
    times["sound"] = [np.arange(len(x)) * 960_000 + 480_000 for x in arrays["sound"]]
    by_hand = [
        sound[[int(np.abs(heard - time).argmin()) for time in seen]]
        for sound, seen, heard in zip(arrays["sound"], times["rgb"], times["sound"], strict=True)
    ]
    config = AttentionClusterConfig(
        features=("rgb", "sound"), clusters=4, sample=Sample(), missing="none", train={"epochs": 2, "batch": 16}
    )
    lines: list[str] = []
    aligned = config.model_copy(update={"align": "rgb"})
    found = go(tmp_path / "a", aligned, data=(Features.of(ids, arrays, times), labels), log=lines.append)
    assert lines[0] == "1 training videos without any row of rgb are left out" and found["n_train"] == 39
    go(tmp_path / "b", config, data=(Features.of(ids, {**arrays, "sound": by_hand}), labels))
    assert bytes_of(tmp_path / "a") == bytes_of(tmp_path / "b")


def test_no_test_videos_gives_no_numbers(tmp_path: Path) -> None:
    found = go(tmp_path, RidgeConfig(features=("rgb",)), test=[])
    assert found["top1"] is None


def test_several_labels_a_video(tmp_path: Path) -> None:
    features, labels = problem()
    several = np.eye(4, dtype=bool)[labels] | np.eye(4, dtype=bool)[(labels + (labels == 0)) % 4]
    config = AverageConfig(features=("rgb",), dropout=0, train={"epochs": 40, "lr": 0.03})
    found = go(tmp_path / "average", config, data=(features, several))
    assert found["map"] > 0.9
    assert found["map"] == go(tmp_path / "again", config, data=(features, several))["map"]
    assert go(tmp_path / "ridge", RidgeConfig(features=("rgb",)), data=(features, several))["map"] > 0.9
    header = (tmp_path / "average" / "history.csv").read_text().splitlines()[0]
    assert header == "epoch,lr,train_loss,train_map,test_loss,test_map"
    with pytest.raises(UserError, match="balanced classes need one label a video: head attention_cluster: got several"):
        go(tmp_path / "cluster", data=(features, several))


def data_of(labels: list[int]) -> Data:
    n = len(labels)
    features = Features.of([str(k) for k in range(n)], {"rgb": [np.ones((1, 2), np.float16)] * n})
    return Data(
        features=features,
        labels=torch.tensor(labels),
        train=torch.arange(n),
        test=torch.arange(0),
        classes=("a", "b", "c"),
    )


def test_balanced_weights() -> None:
    data = data_of([0, 0, 0, 1])
    weights = balanced_weights(data, data.train)
    torch.testing.assert_close(weights, torch.tensor([4 / 6, 4 / 6, 4 / 6, 2.0]))  # n / (K n_k), K classes that occur
    assert float(weights.mean()) == pytest.approx(1)


def test_a_large_state_is_kept_as_it_was_while_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heads.checkpoint._LARGE", 8)
    begun, go_on, writers = threading.Event(), threading.Event(), []

    def slow(folder: Path, state: dict[str, Any]) -> None:
        writers.append(threading.current_thread() is threading.main_thread())
        begun.set()
        go_on.wait(60)
        save_resume(folder, state)

    monkeypatch.setattr("heads.checkpoint.save_resume", slow)
    weights = torch.ones(2)
    state = {"digest": "d", "head": {"w": weights}, "optimizer": {"state": {0: [weights]}}, "betas": (0.9, 0.99)}
    with Keeper(tmp_path) as keeper:
        keeper.keep(state)
        begun.wait(60)
        weights.zero_()  # the next step
        assert not (tmp_path / "last.pt").exists()
        go_on.set()
    kept = load_resume(tmp_path, {"digest": "d"}, print)
    assert kept is not None and kept["betas"] == (0.9, 0.99)
    assert torch.equal(kept["head"]["w"], torch.ones(2)) and torch.equal(
        kept["optimizer"]["state"][0][0], torch.ones(2)
    )
    keeper.keep({"digest": "d", "head": {"w": torch.ones(1)}, "optimizer": {"state": {}}})
    assert writers == [False, True], "a small one is written at once"


def test_a_large_state_that_cannot_be_written_ends_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heads.checkpoint._LARGE", 0)

    def full(stream: Any, data: Any) -> None:
        raise OSError(errno.ENOSPC, "x")

    monkeypatch.setattr(Disk, "write", staticmethod(full))
    lines: list[str] = []
    with pytest.raises(FramepoolError, match=r"cannot write: .*last.pt: got No space left on device"):
        go(tmp_path, log=lines.append)
    assert len(lines) == 1, "it is told of when the next is to be kept"

    def stop(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # and what else ended it is told of first
        go(tmp_path, log=stop)


def test_hold_out_is_the_share_that_is_written() -> None:
    """29 of 100, though 0.29 * 100 is a little less in binary."""
    features, _ = problem()
    ids, rows = tuple(f"v{k}" for k in range(200)), features.rows["rgb"]
    many = Features(ids, {"rgb": rows._replace(starts=rows.starts[[0] * 200], lengths=rows.lengths[[0] * 200])}, {})
    everything, nothing = torch.arange(200), torch.arange(0)
    data = Data(features=many, labels=everything % 2, train=everything, test=nothing, classes=("a", "b"))
    assert len(hold_out(data, 0.29, seed=0)[1]) == 58


@pytest.mark.parametrize("kind", ["average", "ridge", "svm"])
@pytest.mark.parametrize("several", [False, True])
def test_training_videos_without_a_row_are_said(tmp_path: Path, kind: str, several: bool) -> None:
    features, labels = problem()
    rows = features.rows["rgb"]
    empty = Features(features.ids, {"rgb": rows._replace(lengths=torch.zeros_like(rows.lengths))}, {})
    config = heads.HEADS[kind][1].parse({"kind": kind, "features": ["rgb"]}, where="here")
    targets = torch.nn.functional.one_hot(torch.as_tensor(labels), len(CLASSES)) if several else labels
    with pytest.raises(UserError, match="nothing to learn from: expected rows, got none of 40 training videos"):
        go(tmp_path, config, data=(empty, targets))


def test_rows_of_bytes_are_numbers(tmp_path: Path) -> None:
    """As others store features: vectors of uint8 train to what the same numbers in float32 do."""
    features, labels = problem()
    rows, found = features.rows["rgb"], {}
    grey = (rows.data - rows.data.min()) / (rows.data.max() - rows.data.min()) * 255
    for name, dtype in (("uint8", torch.uint8), ("float32", torch.float32)):
        data = grey.round().to(torch.uint8).to(dtype)
        go(tmp_path / name, data=(Features(features.ids, {"rgb": rows._replace(data=data)}, {}), labels))
        found[name] = bytes_of(tmp_path / name)
    assert found["uint8"] == found["float32"]


class AllHave(Features):
    """As rows that are computed as they are asked for: what is in a file turns out in training."""

    def has_rows(self, modality: str | None = None) -> torch.Tensor:
        return torch.ones(len(self.ids), dtype=torch.bool)


@pytest.mark.parametrize("kind", ["average", "ts_lstm", "temporal_inception", "bilstm", "nextvlad"])
@pytest.mark.parametrize("missing", ["none", "mean"])
def test_a_video_without_rows_teaches_batch_norms_nothing_either(tmp_path: Path, kind: str, missing: str) -> None:
    """One step with it and one without, of the same length: the same weights and running statistics."""
    features, labels = problem()
    rows, found = features.rows["rgb"], []
    lengths = rows.lengths.clone()
    lengths[8] = 0
    given = AllHave(features.ids, {"rgb": rows._replace(lengths=lengths)}, {})
    for number, train in enumerate((range(9), range(8))):
        optimizer = {"optimizer": "sgd", "lr": 0.1 * len(train), "momentum": 0.0, "clip": None, "balanced": False}
        head = {"kind": kind, "features": ["rgb"], "missing": missing, "dropout": 0.0}
        head["train"] = {**optimizer, "epochs": 1, "batch": 16, "schedule": {"kind": "constant"}, "weight_decay": 0.0}
        config = heads.HEADS[kind][1].parse({**head, "sample": {"train": None, "test": None}}, where="here")
        go(tmp_path / str(number), config, data=(given, labels), train=train, test=range(40, 44))
        found.append(safetensors.torch.load_file(tmp_path / str(number) / "weights.safetensors"))
    for key in found[0]:
        if not key.startswith("mean"):
            torch.testing.assert_close(found[0][key], found[1][key], rtol=1e-4, atol=1e-6, msg=key)


def test_hold_out_takes_its_share_of_each_class() -> None:
    data = data_of([0] * 20 + [1] * 10 + [2] * 3)
    train, held = hold_out(data, 0.2, seed=0)
    assert data.labels[held].bincount(minlength=3).tolist() == [4, 2, 0]
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(33))
    assert not torch.equal(held, hold_out(data, 0.2, seed=1)[1])
    with pytest.raises(UserError, match=r"hold_out takes no video of any class: .* expected 0\.05 or more, got 0\.04"):
        hold_out(data, 0.04, seed=0)
    thirds = data_of([0, 1, 2] * 3)
    with pytest.raises(UserError, match=r"expected 0\.34 or more, got 0\.33"):
        hold_out(thirds, 0.33, seed=0)
    assert len(hold_out(thirds, 0.34, seed=0)[1]) == 3


def test_hold_out_takes_whole_groups(tmp_path: Path) -> None:
    labels = [0] * 20 + [1] * 10
    groups = [f"g{k % 4}" for k in range(12)] + [""] * 8 + ["g0", "wide", "wide", "wide", *[None] * 6]
    data, seen = data_of(labels), set()
    for seed in range(20):
        train, held = hold_out(replace(data, groups=groups), 0.2, seed=seed)
        sides = [{groups[k] for k in side.tolist()} - {"", None} for side in (train, held)]
        assert not sides[0] & sides[1] and len(train) + len(held) == 30
        counts = data.labels[held].bincount(minlength=2).tolist()
        assert counts[0] <= 4 and counts[1] <= 2, "and never more than the share of a class"
        seen |= sides[1]
    assert seen == {"g0", "g1", "g2", "g3"}, "three of ten are too many"
    alone = hold_out(replace(data, groups=[""] * 30), 0.2, seed=0)
    assert torch.equal(alone[1], hold_out(data, 0.2, seed=0)[1])
    train = {"epochs": 1, "hold_out": 0.2}
    with pytest.raises(UserError, match=r"hold_out takes no video of any class: .* expected 1 or more, got 0\.2"):
        go(tmp_path, AverageConfig(features=("rgb",), train=train), groups=["one"] * 60)


def test_memory_that_torch_holds_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    data, free = data_of([0, 1]), [0]
    moved = data.features.only(("rgb",))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: free.append(1 << 20))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[-1], 1 << 30))
    monkeypatch.setattr(Features, "to", lambda self, device: moved)
    assert _on_device(data, torch.device("cuda")).features is moved


def test_fit_sees_every_head_through_the_same_door() -> None:
    assert heads.build("ridge", {"rgb": (3,)}, 2).fitted
    assert not heads.build("average", {"rgb": (3,)}, 2).fitted


@pytest.mark.parametrize("at", [1, 2])
def test_a_full_disk_keeps_the_state_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    rest = {"digest": "d", "optimizer": {"state": {}}}
    save_resume(tmp_path, {**rest, "head": {"w": torch.ones(9)}})
    write, calls = Disk.write, itertools.count(1)

    def full(stream: Any, data: Any) -> None:
        if next(calls) >= at:
            raise OSError(errno.ENOSPC, "x")
        write(stream, data)

    monkeypatch.setattr(Disk, "write", staticmethod(full))
    with pytest.raises(
        FramepoolError, match=r"cannot write: .*last.pt: got No space left on device .*; free some space"
    ):
        save_resume(tmp_path, {**rest, "head": {"w": torch.zeros(1 << 19)}})
    state = load_resume(tmp_path, {"digest": "d"}, print)
    assert state is not None and torch.equal(state["head"]["w"], torch.ones(9))
