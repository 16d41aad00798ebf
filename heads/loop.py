"""The one loop that trains every head: epochs of batches by index, tests between, a state to go on from after each.

Nothing random outlives an epoch: every epoch seeds its own generator for order and rows, and torch's global one
(dropout, augmentation; its state is put back afterwards), from the run's seed and its number. So an epoch is a
function of the state before it, and a killed run that resumes ends in the same bytes as an unbroken one (CPU, same
number of threads).

An epoch is cut into equal batches of at most `batch` videos: no stray last batch of one, which batch norms cannot
take. The watched loss (plateau, early stop) is that of the held-out videos, or the training loss where none are held
out; never that of the test.
Legend: V videos, B of a batch, C classes.

    Loop(head, config, data, seed=0).run(folder, digest, log=print)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from features.batches import Batch, Features, Select
from features.errors import FramepoolError
from features.stream import Stream
from heads.base import Head
from heads.checkpoint import copy_of, load_resume, save_resume
from heads.config import BaseConfig, TrainConfig
from heads.optimise import epochs_without_gain, learning_rate, make_optimizer, set_rate
from heads.results import Predictions, in_short

History = list[dict[str, float | None]]
_NAMED_IDS = 16


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a run trains and tests on: numbers of videos in `features`, and labels (V,) int64 or (V,C) bool."""

    features: Features | Stream
    labels: Tensor
    train: Tensor  # (n,) int64
    test: Tensor  # (m,) int64
    classes: tuple[str, ...]
    factors: tuple[str, ...] = ()

    @property
    def multi_label(self) -> bool:
        return self.labels.ndim == 2

    @property
    def primary(self) -> str:
        """The metric that a run is judged by."""
        return "map" if self.multi_label else "top1"

    def targets(self, videos: Tensor) -> Tensor:
        """(B,) -> (B,C) of 0 and 1."""
        labels = self.labels[videos]
        return labels.float() if self.multi_label else nn.functional.one_hot(labels, len(self.classes)).float()

    def losses(self, logits: Tensor, videos: Tensor) -> Tensor:
        """(B,C), (B,) -> (B,): cross-entropy, or the mean binary one over classes."""
        labels = self.labels[videos].to(logits.device)
        if self.multi_label:
            return nn.functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none").mean(dim=1)
        return nn.functional.cross_entropy(logits, labels, reduction="none")


@torch.no_grad()
def predict(head: Head, config: BaseConfig, data: Data, videos: Tensor, device: torch.device) -> Predictions:
    """Scores of `videos` on their test rows; refuses NaN."""
    head.eval()
    select = {m: head.test_rows(config.rows(m).test) for m in head.shapes}
    found = torch.zeros(len(videos), len(data.classes))
    for rows, places, numbers in data.features.blocks(videos) if len(videos) else ():
        for part in torch.split(torch.arange(len(places)), head.test_batch):
            logits = head(*rows.batch(numbers[part], select, device, config.align))
            found[places[part]] = logits.float().cpu()
    ids = [data.features.ids[k] for k in videos.tolist()]
    refuse_non_finite(~found.isfinite().all(dim=1), ids, "scores are not finite")
    return Predictions(ids, data.labels[videos].numpy(), found.numpy())


def refuse_non_finite(bad: Tensor, ids: list[str], what: str) -> None:
    """Stop where one of (B,) is set, naming the videos."""
    if not bool(bad.any()):
        return
    names = [video for video, b in zip(ids, bad.tolist(), strict=True) if b]
    more = f" and {len(names) - _NAMED_IDS} more" if len(names) > _NAMED_IDS else ""
    fix = "look at these videos' features; if they are sound, lower the learning rate or set clip"
    raise FramepoolError(
        what, where=", ".join(names[:_NAMED_IDS]) + more, expected="a number", got="NaN or inf", fix=fix
    )


@contextmanager
def seeded(*numbers: int, device: torch.device) -> Iterator[None]:
    """Torch's global generators start from `numbers` inside and are as before outside."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(mix(*numbers))
        yield


def mix(*numbers: int) -> int:
    """One 63-bit seed of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


@dataclass(kw_only=True)
class Loop:
    """A training in progress. `history` has a row an epoch; `best` are the best epoch's weights under early stop."""

    head: Head
    config: BaseConfig
    train: TrainConfig
    data: Data
    seed: int
    device: torch.device
    history: History = field(default_factory=list)
    watched: list[float] = field(default_factory=list)
    best: dict[str, Tensor] | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.videos, self.held_out = hold_out(self.data, self.train.hold_out, self.seed)
        self.weights = (
            balanced_weights(self.data, self.videos) if self.train.balanced else torch.ones(len(self.data.labels))
        )
        self.optimizer = make_optimizer(self.train, self.head.named_parameters(), self.head.lr_factors())

    def run(self, folder: Path, digest: str, log: Callable[[str], None]) -> None:
        """Train to the end, from the last finished epoch where there is one; leaves the head with its final weights."""
        self._resume(load_resume(folder, digest), log)
        while not self._finished():
            began = time.perf_counter()
            self._epoch()
            self.seconds += time.perf_counter() - began
            log(self._line())
            save_resume(folder, {"digest": digest, **self._state()})
        if self.best is not None:
            self.head.load_state_dict(self.best)

    @property
    def best_epoch(self) -> int:
        """The epoch whose weights stay, from 1: the last, or the one of the lowest watched loss under early stop."""
        return len(self.history) - (epochs_without_gain(self.watched) if self.train.early_stop else 0)

    def _finished(self) -> bool:
        stalled = _waited(self.train.early_stop, self.watched)
        tested = [-score for row in self.history if (score := row[f"test_{self.data.primary}"]) is not None]
        return len(self.history) >= self.train.epochs or stalled or _waited(self.train.stop_at_peak, tested)

    def _epoch(self) -> None:
        epoch = len(self.history)
        lr = learning_rate(self.train, epoch, self.watched)
        set_rate(self.optimizer, lr)
        with seeded(self.seed, epoch, device=self.device):
            loss, top1 = self._steps(torch.Generator().manual_seed(mix(self.seed, epoch, 1)))
        held_out = self._test(self.held_out)["loss"] if len(self.held_out) else None
        last = epoch + 1 == self.train.epochs
        test = self._test(self.data.test) if last or (epoch + 1) % self.train.test_every == 0 else {}
        score = self.data.primary
        row = {
            "epoch": epoch + 1,
            "lr": lr,
            "train_loss": loss,
            f"train_{score}": None if self.data.multi_label else top1,
        }
        self.history.append({**row, "test_loss": test.get("loss"), f"test_{score}": test.get(score)})
        self.watched.append(loss if held_out is None else held_out)
        if self.train.early_stop and epochs_without_gain(self.watched) == 0:
            self.best = copy_of(self.head.state_dict())

    def _steps(self, generator: torch.Generator) -> tuple[float, float]:
        """One pass over the training videos: the mean loss and the share of hits on the way, dropout and all."""
        self.head.train()
        rows = {m: self.config.rows(m).train for m in self.head.shapes}
        select = {m: self.head.train_rows(n, generator) for m, n in rows.items()}
        total, hits = 0.0, 0
        for videos, batch in self._batches(select, generator):
            loss, correct = self._step(batch, videos)
            total, hits = total + loss * len(videos), hits + correct
        return total / len(self.videos), hits / len(self.videos)

    def _batches(self, select: dict[str, Select], generator: torch.Generator) -> Iterator[tuple[Tensor, Batch]]:
        for rows, places, numbers in self.data.features.blocks(self.videos, generator):
            for part in torch.arange(len(places)).tensor_split(-(-len(places) // self.train.batch)):
                batch = rows.batch(numbers[part], select, self.device, self.config.align)
                yield self.videos[places[part]], batch

    def _step(self, batch: Batch, videos: Tensor) -> tuple[float, int]:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.train.precision == "bf16"):
            logits = self.head(*batch).float()  # (B,C)
        losses = self.data.losses(logits, videos)
        loss = (losses * self.weights[videos].to(losses.device)).mean()
        value = float(loss.detach())
        if not np.isfinite(value):
            self._refuse(~losses.detach().isfinite(), videos, "loss")
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        if self.train.clip_value is not None:
            nn.utils.clip_grad_value_(self.head.parameters(), self.train.clip_value)
        if self.train.clip is not None:
            norm = nn.utils.get_total_norm([p.grad for p in self.head.parameters() if p.grad is not None])
            if norm > self.train.clip:  # else it would be scaled by 1, which costs two passes over all gradients
                nn.utils.clip_grads_with_norm_(self.head.parameters(), self.train.clip, norm)
            self._refuse(~norm.isfinite().expand(len(videos)), videos, "gradient")
        self.optimizer.step()
        correct = (
            0 if self.data.multi_label else int((logits.detach().argmax(dim=1).cpu() == self.data.labels[videos]).sum())
        )
        return value, correct

    def _refuse(self, bad: Tensor, videos: Tensor, what: str) -> None:
        ids = [self.data.features.ids[k] for k in videos.tolist()] if bool(bad.any()) else [""] * len(videos)
        refuse_non_finite(bad, ids, f"{what} is not finite in epoch {len(self.history) + 1}")

    def _test(self, videos: Tensor) -> dict[str, float | None]:
        return in_short(predict(self.head, self.config, self.data, videos, self.device))

    def _line(self) -> str:
        row = self.history[-1]
        shown = [f"{k} {v:.4g}" for k, v in row.items() if v is not None and k != "epoch"]
        return f"epoch {len(self.history)}/{self.train.epochs}: {', '.join(shown)} ({self.seconds:.1f} s)"

    def _state(self) -> dict[str, Any]:
        kept = {k: getattr(self, k) for k in ("history", "watched", "best", "seconds")}
        return {"head": self.head.state_dict(), "optimizer": self.optimizer.state_dict(), **kept}

    def _resume(self, state: dict[str, Any] | None, log: Callable[[str], None]) -> None:
        if state is None:
            return
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history, self.watched, self.best, self.seconds = (
            state[k] for k in ("history", "watched", "best", "seconds")
        )
        log(f"goes on after epoch {len(self.history)}/{self.train.epochs}")


def _waited(patience: int | None, losses: list[float]) -> bool:
    return patience is not None and epochs_without_gain(losses) >= patience


def hold_out(data: Data, share: float, seed: int) -> tuple[Tensor, Tensor]:
    """The training videos, and `share` of those of each class (of all, for several labels) held out of them."""
    if not share:
        return data.train, data.train[:0]
    order = data.train[torch.randperm(len(data.train), generator=torch.Generator().manual_seed(mix(seed, 0, 2)))]
    labels = torch.zeros(len(order), dtype=torch.long) if data.multi_label else data.labels[order]
    held = torch.cat(
        [group[: int(share * len(group))] for group in (order[labels == k] for k in range(int(labels.max()) + 1))]
    )
    return data.train[~torch.isin(data.train, held)], data.train[torch.isin(data.train, held)]


def balanced_weights(data: Data, videos: Tensor) -> Tensor:
    """(V,): n / (K * n_k) for class k with n_k of the n training videos; over these they have mean 1."""
    if data.multi_label:
        raise FramepoolError("balanced classes need one label a video", got="several", fix="set train.balanced: false")
    counts = data.labels[videos].bincount(minlength=len(data.classes))
    weights: Tensor = len(videos) / ((counts > 0).sum() * counts.clamp_min(1).float())
    return weights[data.labels]
