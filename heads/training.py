"""Train a head into a run folder, or test a finished run again. Every head takes this road; `fitted` ones skip epochs.

A run is finished when its run.json stands; one of the same recipe is not trained again. Killed at any moment, it goes
on from the last epoch whose state is on disk, inside of a long one from a few minutes before. The metrics are those of
the last epoch, or of the best by the watched loss under early stop: the test chooses nothing.

    train_run(folder, config=config, features=features, labels=labels, train=train, test=test, classes=classes, seed=0,
              split="1", provenance={"head": "mine", "digest": digest, "stores": features.stores, "versions": {}})
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import heads
from extract.networks import Network
from features.atomic import Disk, write_json
from features.batches import Features
from features.errors import DamagedStore, UserError
from features.stream import Source
from heads.attention_maps import write_attention
from heads.base import Head
from heads.checkpoint import NETWORK, RESUME, RUN, alone, begin_from, load_head, read_run, save_head
from heads.clip_labels import Actions
from heads.config import BaseConfig, TrainConfig, refuse_one_label
from heads.data import Data
from heads.denormals import flushed
from heads.distillation import Teacher
from heads.loop import CHECKPOINT_S, Loop, predict, seeded
from heads.malloc import keep_freed_memory
from heads.parallel import device_of, ranks
from heads.recompute import recompute
from heads.results import Predictions, measure, write_history, write_predictions

Log = Callable[[str], None]
METRICS = "metrics.json"


@flushed()
def train_run(
    folder: Path,
    *,
    config: BaseConfig,
    features: Source,
    labels: Any,
    train: Any,
    test: Any,
    classes: Sequence[str],
    seed: int,
    split: str,
    provenance: Mapping[str, Any],
    factors: tuple[str, ...] = (),
    actions: Sequence[Sequence[tuple[int, float, float]]] | None = None,
    groups: Sequence[str | None] | None = None,
    start: Path | None = None,
    teachers: Mapping[str, Path] | None = None,
    device: str | torch.device = "cpu",
    checkpoint_s: float = CHECKPOINT_S,
    log: Log = print,
) -> dict[str, Any]:
    """Train the head of `config` in `folder` and return its metrics.

    `labels` stand beside `features.ids`: (V,) class numbers, or (V,C) of 0 and 1 where a video has several, and so do
    `actions`: for each video (label, start, end) in seconds, where that is known; and `groups`, which `hold_out` takes
    whole, "" or None where a video has none. `train` and `test` are numbers of videos. `provenance` goes into
    run.json as it is; its `digest` is the recipe of the run. Inside of an epoch the state is kept every `checkpoint_s`.
    In a group of processes (`heads.parallel`) all call this, and the first writes. `start` and `teachers` are the
    folders of the finished runs that `config` names. Raises `Busy` where somebody else trains in `folder`.
    """
    asked = {"digest": provenance["digest"], "seed": seed, "split": split}
    device, own = device_of(device), ranks()
    if own.says(_finished(folder, asked)):
        return _metrics(folder)
    if not own.first:
        log = _silent
    data = _data(features, labels, train, test, classes, factors, log, config.align)
    data = replace(data, actions=None if actions is None else Actions.of(actions), groups=groups)
    if data.multi_label:
        refuse_one_label(config, f"head {config.kind}")
    data = _on_device(data, device)
    if device.type == "cpu":
        keep_freed_memory()
    with alone(folder, own):
        if own.says(_finished(folder, asked)):  # by who held it until now
            return _metrics(folder)
        if own.first:
            Disk.remove(folder / RUN)  # from here on the folder is no finished run
        began = time.perf_counter()
        with seeded(seed, device=device):
            head = _begun(config, start, features.shapes, classes).to(device)
        _keep_filter(head, features.stores)
        if head.stands_in:
            head.keep_means(data.features.means(data.train))
        history, epochs, best_epoch, seconds, steps = [], 0, 0, 0.0, ""
        if head.fitted:
            head.fit(_fit_batches(head, config, data, device), several=data.multi_label)
        else:
            teacher = None if config.distil is None else Teacher.of(teachers or {}, config.distil, classes, device)
            if teacher is not None:
                teacher.check(head)
            loop = _loop(head, config, data, seed, device, checkpoint_s, teacher)
            loop.run(folder, asked, log)
            data = loop.data  # with the blocks that it went through
            history, epochs, best_epoch, seconds = loop.history, len(loop.history), loop.best_epoch, loop.seconds
            steps = loop.precision if loop.train.precision == "bf16" else ""
        found, predictions = _judged(head, config, data, device)
        if without := found["n_test_without_rows"]:
            of = f"{without} of {len(data.test)} test videos"
            log(f"{of} have no row, and are judged by what the head says of nothing")
        found["n_train"] = len(data.train)
        if not own.first:
            return found
        save_head(folder, head, kind=config.kind, classes=classes)
        write_history(folder, history)
        write_predictions(folder, predictions, data.classes)
        write_attention(folder, head, config, data, predictions)
        write_json(folder / METRICS, found)
        run = {
            "head": config.kind,
            **provenance,
            **asked,
            "kind": config.kind,
            "config": config.recipe(),
            "classes": list(classes),
            "factors": list(factors),
            "multi_label": data.multi_label,
            "shapes": {modality: list(shape) for modality, shape in head.shapes.items()},
            "parameters": sum(p.numel() for p in head.parameters()),
            "epochs": epochs,
            "best_epoch": best_epoch,
            "seconds": round(seconds or time.perf_counter() - began, 3),
            **({"processes": own.count} if own.count > 1 else {}),
            **({"steps": steps} if steps else {}),
        }
        write_json(folder / RUN, run)
        Disk.remove(folder / RESUME)
        return found


def evaluate_run(
    folder: Path,
    *,
    features: Source,
    labels: Any,
    test: Any,
    classes: Sequence[str],
    device: str | torch.device = "cpu",
) -> dict[str, Any]:
    """Metrics of a finished run on the videos numbered `test`; writes nothing. Refuses other classes or features."""
    device = device_of(device)
    head, run = load_head(folder, classes=classes, device=device)
    same_features(folder, run, features)
    data = _data(features, labels, [], test, classes, tuple(run["factors"]), print)
    config = heads.HEADS[run["kind"]][1].parse(run["config"], where=str(folder / RUN))
    found, _ = _judged(head, config, data, device)
    return {**found, "n_train": _metrics(folder)["n_train"]}


def _judged(head: Head, config: BaseConfig, data: Data, device: torch.device) -> tuple[dict[str, Any], Predictions]:
    """The metrics on the test videos, and what they are of."""
    predictions = predict(head, config, data, data.test, device)
    without = int((~data.features.has_rows(config.align)[data.test]).sum())
    return {**measure(predictions, data.classes, data.factors), "n_test_without_rows": without}, predictions


def same_features(folder: Path, run: Mapping[str, Any], features: Source) -> None:
    """Raises `UserError` where the features are of another recipe than those that the run (its record) has learnt."""
    for modality, store in run.get("stores", {}).items():
        expected, got = store.get("digest"), features.stores.get(modality, {}).get("digest")
        if expected and got and expected != got:
            fix = "test with the features that the run was trained on, or train it again"
            raise UserError(
                "another recipe of features", where=f"{folder}: {modality}", expected=expected, got=got, fix=fix
            )


def _begun(
    config: BaseConfig, start: Path | None, shapes: Mapping[str, tuple[int, ...]], classes: Sequence[str]
) -> Head:
    """The head of `config`, fresh or with the weights of the finished run in `start`."""
    if config.start is None:
        return heads.from_config(config, shapes, len(classes), classes=classes)
    if start is None:
        raise UserError("a start without a finished run", got=config.start.run, fix="give its folder to train_run")
    network = start / NETWORK
    begun = config.with_network(str(network)) if network.exists() else config
    head = heads.from_config(begun, shapes, len(classes), classes=classes)

    def larger() -> Head:
        bare = config if config.cnn is None else config.with_network(None)
        with torch.device("meta"):
            return heads.from_config(bare, shapes, len(classes) + 1, classes=[*classes, "one more"])

    begin_from(head, start, classes, larger)
    return head


def _keep_filter(head: Head, stores: Mapping[str, Mapping[str, Any]]) -> None:
    """The filter by which pictures were made smaller, as a part of what the head's network says of its input: an
    extractor that runs the network has to use it, too."""
    transforms = [stores.get(modality, {}).get("facts", {}).get("transform", {}) for modality in head.shapes]
    for network in (module for module in head.modules() if isinstance(module, Network)):
        for transform in transforms:
            if "resize" in transform:
                network.input = replace(network.input, interpolation=transform.get("interpolation") or "bilinear")


def _loop(
    head: Head,
    config: BaseConfig,
    data: Data,
    seed: int,
    device: torch.device,
    checkpoint_s: float,
    teacher: Teacher | None,
) -> Loop:
    train: TrainConfig = getattr(config, "train")  # noqa: B009 - each head that is not fitted has it
    if train.recompute:
        recompute(head)
    return Loop(
        head=head,
        config=config,
        train=train,
        data=data,
        seed=seed,
        device=device,
        checkpoint_s=checkpoint_s,
        teacher=teacher,
    )


def _finished(folder: Path, asked: Mapping[str, Any]) -> bool:
    """Whether the folder has the run that is asked for."""
    done = read_run(folder)
    return done is not None and all(done.get(key) == value for key, value in asked.items())


def _silent(_: str) -> None:
    """The other processes leave speaking to the first."""


def _fit_batches(
    head: Head, config: BaseConfig, data: Data, device: torch.device
) -> Iterator[tuple[dict[str, Tensor], dict[str, Tensor], Tensor]]:
    select = {m: head.test_rows(config.rows(m).train) for m in head.shapes}
    for rows, places, numbers in data.features.blocks(data.train):
        for part in torch.split(torch.arange(len(places)), 1024):
            batch = rows.batch(numbers[part], select, device, config.align)
            yield *head.completed(*batch), data.targets(data.train[places[part]])


def _data(
    features: Source,
    labels: Any,
    train: Any,
    test: Any,
    classes: Sequence[str],
    factors: tuple[str, ...],
    log: Log,
    align: str | None = None,
) -> Data:
    """Check everything that a list can get wrong before anything is trained."""
    numbers = torch.as_tensor(np.asarray(labels))
    numbers = numbers.bool() if numbers.ndim == 2 else numbers.long()
    train, test = (torch.as_tensor(np.asarray(index, dtype=np.int64)) for index in (train, test))
    used = torch.cat([train, test])
    if len(numbers) != len(features.ids):
        raise UserError("labels do not fit the videos", expected=f"{len(features.ids)} labels", got=len(numbers))
    if numbers.ndim == 2 and numbers.shape[1] != len(classes):
        raise UserError("labels do not fit the classes", expected=f"{len(classes)} columns", got=numbers.shape[1])
    wrong = used[(numbers[used] < 0) | (numbers[used] >= len(classes))] if numbers.ndim == 1 else used[:0]
    if len(wrong):
        video = features.ids[int(wrong[0])]
        raise UserError(
            "label not in the class list", where=video, expected=f"0 to {len(classes) - 1}", got=int(numbers[wrong[0]])
        )
    both = train[torch.isin(train, test)]
    if len(both):
        one = features.ids[int(both[0])]
        log(f"WARNING: {len(both)} videos are in the training and in the test split, {one} is one")
    if len(train):
        train = _trainable(features, numbers, train, classes, log, align)
    return Data(features=features, labels=numbers, train=train, test=test, classes=tuple(classes), factors=factors)


def _trainable(
    features: Source, labels: Tensor, train: Tensor, classes: Sequence[str], log: Log, align: str | None
) -> Tensor:
    """The training videos that have rows; every video is tested, but nothing is learnt from one without any."""
    kept = train[features.has_rows(align)[train]]
    if len(kept) < len(train):
        log(f"{len(train) - len(kept)} training videos without any row{f' of {align}' if align else ''} are left out")
    if not len(kept):
        expected, got = f"rows{f' of {align}' if align else ''}", f"none of {len(train)} training videos"
        raise UserError("nothing to learn from", expected=expected, got=got, fix="look at the outcomes of its stores")
    counts = labels[kept].sum(dim=0) if labels.ndim == 2 else labels[kept].bincount(minlength=len(classes))
    seen = counts > 0
    if labels.ndim == 1 and int(seen.sum()) < 2:
        raise UserError("nothing to tell apart", expected="training videos of two classes", got=int(seen.sum()))
    missing = [name for name, s in zip(classes, seen.tolist(), strict=True) if not s]
    if missing:
        log(f"WARNING: {len(missing)} classes have no training video and will never be right: {', '.join(missing[:8])}")
    return kept


def _on_device(data: Data, device: torch.device) -> Data:
    """Rows live on the GPU where they take less than half of its free memory; else every batch travels."""
    if device.type != "cuda" or not isinstance(data.features, Features):
        return data
    torch.cuda.empty_cache()  # what torch holds of a training before is free, too
    if data.features.nbytes > torch.cuda.mem_get_info(device)[0] // 2:
        return data
    return Data(**{**data.__dict__, "features": data.features.to(device)})


def _metrics(folder: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((folder / METRICS).read_text())
        return found
    except (OSError, ValueError) as error:
        raise DamagedStore(
            "run lacks its metrics", where=folder / METRICS, got=error, fix="remove run.json and train it again"
        ) from None
