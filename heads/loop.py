"""The one loop that trains every head: epochs of batches by index, tests between, a state to go on from after each.

Nothing random outlives an epoch: every epoch seeds its own generator for order and rows, and torch's global one
(dropout, augmentation; its state is put back afterwards), from the run's seed and its number. So an epoch is a
function of the state before it. Inside of a long one the state is kept every few minutes, generators and all. A killed
run that resumes ends in the same bytes as an unbroken one (CPU, same number of threads and processes).

Several processes (`heads.parallel`) walk through the same batches, each through its part of them; a batch may also go
through the head in parts, whose gradients add up.

An epoch is cut into equal batches of at most `batch` videos: no stray last batch of one, which batch norms cannot
take. The watched loss (plateau, early stop) is that of the held-out videos, or the training loss where none are held
out; never that of the test.
Legend: V videos, B of a batch, C classes.

    Loop(head, config, data, seed=0).run(folder, {"digest": digest, "seed": 0, "split": "1"}, log=print)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from extract.networks.bf16 import autocast, has_bf16
from features.batches import Batch, Block, Features, Picked, Select, Start
from features.errors import UserError
from features.stream import Stream
from heads.base import Head
from heads.checkpoint import Keeper, copy_of, load_resume
from heads.clips import in_clips
from heads.config import BaseConfig, TrainConfig
from heads.data import Data, balanced_weights, hold_out, mix, refuse_non_finite
from heads.denormals import flushed
from heads.distillation import Teacher
from heads.optimise import epochs_without_gain, learning_rate, make_optimizer, set_rate
from heads.pace import Pace
from heads.parallel import ranks, same_buffers, spread, sum_of
from heads.results import Predictions, in_short

History = list[dict[str, float | None]]
CHECKPOINT_S = 600.0


@flushed()
@torch.no_grad()
def predict(head: Head, config: BaseConfig, data: Data, videos: Tensor, device: torch.device) -> Predictions:
    """Scores of `videos` on their test rows; refuses NaN. Of several processes each takes its part of them."""
    head.eval()
    own, scores = ranks(), in_clips(head, config.clips)
    select = {m: head.test_rows(config.rows(m).test) for m in head.shapes}
    found = torch.zeros(len(videos), len(data.classes))
    mine = torch.arange(len(videos))[own.part(len(videos))]
    for rows, places, numbers in data.features.blocks(videos[mine], batch=head.test_batch) if len(mine) else ():
        for part in torch.split(torch.arange(len(places)), head.test_batch):
            logits = scores(*rows.batch(numbers[part], select, device, config.align))
            found[mine[places[part]]] = logits.float().cpu()
    found = sum_of(found, own)
    ids = [data.features.ids[k] for k in videos.tolist()]
    refuse_non_finite(~found.isfinite().all(dim=1), ids, "scores are not finite")
    return Predictions(ids, data.labels[videos].numpy(), found.numpy())


@contextmanager
def seeded(*numbers: int, device: torch.device) -> Iterator[None]:
    """Torch's global generators start from `numbers` inside and are as before outside."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(mix(*numbers))
        yield


@dataclass(frozen=True)
class Step:
    """A batch of training videos: this process's part of it on the device."""

    videos: Tensor  # (B,) of the part
    batch: Batch
    labels: Tensor  # (B,) or (B,C)
    whole: int  # videos of the batch, over all processes
    empty: bool  # there were fewer videos than processes: this one goes along with a video that counts for nothing


@dataclass
class Place:
    """Where an epoch stands between two steps."""

    block: int = 0
    asked: Tensor | None = None  # state of the generator when the block was asked for
    step: int = 0  # of the block
    loss: float = 0.0  # summed over videos, of this process
    hits: int = 0
    videos: int = 0  # done, of all processes


@dataclass(kw_only=True)
class Loop:
    """A training in progress. `history` has a row an epoch; `best` are the best epoch's weights under early stop."""

    head: Head
    config: BaseConfig
    train: TrainConfig
    data: Data
    seed: int
    device: torch.device
    checkpoint_s: float = CHECKPOINT_S
    teacher: Teacher | None = None
    history: History = field(default_factory=list)
    watched: list[float] = field(default_factory=list)
    best: dict[str, Tensor] | None = None
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.videos, self.held_out = hold_out(self.data, self.train.hold_out, self.seed)
        self.weights = (
            balanced_weights(self.data, self.videos) if self.train.balanced else torch.ones(len(self.data.labels))
        )
        if self.train.clip_s is not None and self.data.actions is None:
            fix = "leave train.clip_s away, or take a list with times, such as Charades'"
            raise UserError("labels without times", where=f"head {self.config.kind}: train.clip_s", fix=fix)
        on_cpu = self.precision == "bf16" and self.device.type == "cpu"
        if on_cpu and any(type(m) is nn.Conv3d for m in self.head.modules()):  # ours learn in fp32 there
            where = f"head {self.config.kind}: train.precision"
            fix = "set train.precision: fp32, or take a 3D network of framepool's"
            raise UserError("torch's bf16 gradients of 3D convolutions are wrong on a CPU", where=where, fix=fix)
        self.ranks = ranks()
        self.module = spread(self.head, self.device)
        self.optimizer = make_optimizer(self.train, self.head.named_parameters(), self.head.lr_factors())

    def run(self, folder: Path, run: Mapping[str, Any], log: Callable[[str], None]) -> None:
        """Train to the end, from where the interrupted `run` was, which is known by what is said of it here and by the
        precision of its steps; leaves the head with its final weights."""
        self._run = {**run, "steps": self.precision}
        if self.precision != self.train.precision:
            log("steps are in fp32: bf16 is slower on a processor without instructions for it")
        self._pace = Pace(epochs=self.train.epochs, videos=len(self.videos), log=log)
        inside = self._resume(load_resume(folder, self._run, log), log)
        self.ranks.says(True)  # nobody writes before all have read
        with Keeper(folder) as self._keeper:
            while not self._finished():
                self._began = time.perf_counter()
                self._epoch(inside)
                inside = None
                self._save(None)
                seconds = time.perf_counter() - self._began
                self.seconds += seconds
                log(self._line(seconds))
        if self.best is not None:
            self.head.load_state_dict(self.best)

    @property
    def precision(self) -> str:
        """What steps are in on this device."""
        return self.train.precision if has_bf16(self.device) else "fp32"

    @property
    def best_epoch(self) -> int:
        """The epoch whose weights stay, from 1: the last, or the one of the lowest watched loss under early stop."""
        return len(self.history) - (epochs_without_gain(self.watched) if self.train.early_stop else 0)

    def _finished(self) -> bool:
        stalled = _waited(self.train.early_stop, self.watched)
        tested = [-score for row in self.history if (score := row[f"test_{self.data.primary}"]) is not None]
        return len(self.history) >= self.train.epochs or stalled or _waited(self.train.stop_at_peak, tested)

    def _epoch(self, inside: dict[str, Any] | None = None) -> None:
        epoch = len(self.history)
        lr = learning_rate(self.train, epoch, self.watched)
        set_rate(self.optimizer, lr)
        own = [self.ranks.rank] if self.ranks.rank else []
        with seeded(self.seed, epoch, *own, device=self.device):
            loss, top1 = self._steps(torch.Generator().manual_seed(mix(self.seed, epoch, 1)), inside)
        held_out = self._test(self.held_out)["loss"] if len(self.held_out) else None
        self.watched.append(loss if held_out is None else held_out)
        last = epoch + 1 == self.train.epochs or _waited(self.train.early_stop, self.watched)
        test = self._test(self.data.test) if last or (epoch + 1) % self.train.test_every == 0 else {}
        score = self.data.primary
        row = {
            "epoch": epoch + 1,
            "lr": lr,
            "train_loss": loss,
            f"train_{score}": None if self.data.multi_label else top1,
            **({} if held_out is None else {"held_out_loss": held_out}),
        }
        self.history.append({**row, "test_loss": test.get("loss"), f"test_{score}": test.get(score)})
        if self.train.early_stop and epochs_without_gain(self.watched) == 0:
            self.best = copy_of(self.head.state_dict())

    def _steps(self, generator: torch.Generator, inside: dict[str, Any] | None) -> tuple[float, float]:
        """One pass over the training videos: the mean loss and the share of hits on the way, dropout and all. It begins
        `inside` of the epoch where a run was interrupted there."""
        self.module.train()
        rows = {m: self.config.rows(m).train for m in self.head.shapes}
        select = {m: self.head.train_rows(n, generator) for m, n in rows.items()}
        place = Place()
        if inside is not None:
            place = Place(**inside["place"])
            place.loss, place.hits = self._so_far(inside["states"])
        self._pace.begin(epoch=len(self.history), done=place.videos)
        kept = time.monotonic()
        for step in self._batches(select, generator, place, inside):
            loss, correct = self._step(step)
            place.loss, place.hits = place.loss + loss, place.hits + correct
            place.videos += step.whole
            self._pace.step(step.whole, loss / max(1, len(step.videos)))
            if self.ranks.says(time.monotonic() - kept >= self.checkpoint_s) and place.videos < len(self.videos):
                self._save(self._inside(place, generator))
                kept = time.monotonic()
        same_buffers(self.head)
        if self.ranks.says(time.monotonic() - kept >= self.checkpoint_s / 10):  # a test may take long, too
            self._save(self._inside(place, generator))
        total, hits = self.ranks.total([place.loss, place.hits])
        return total / len(self.videos), hits / len(self.videos)

    def _batches(
        self, select: dict[str, Select], generator: torch.Generator, place: Place, inside: dict[str, Any] | None
    ) -> Iterator[Step]:
        """Each batch with `place` behind it."""
        if place.videos >= len(self.videos):  # a run was interrupted in the test after the last one
            return
        start: Start | None = (place.block, place.asked) if place.block and place.asked is not None else None
        blocks = self.data.features.blocks(self.videos, generator, batch=self.train.batch, start=start)
        done, place.step = place.step, 0
        while True:
            place.asked = place.asked if inside is not None else generator.get_state()
            if (block := next(blocks, None)) is None:
                return
            if inside is not None:
                self._restore(inside, generator)
                inside = None
            parts = torch.arange(len(block[1])).tensor_split(-(-len(block[1]) // self.train.batch))
            for number, part in enumerate(parts):
                place.step = number + 1
                if number >= done:
                    yield self._taken(block, part, select)
            place.block, place.step, done = place.block + 1, 0, 0

    def _taken(self, block: Block, part: Tensor, select: dict[str, Select]) -> Step:
        """The videos at places `part` of a block: their rows are chosen together, and taken by who needs them."""
        rows, places, numbers = block
        mine = self.ranks.part(len(part))
        empty = mine.start == mine.stop
        if empty:
            mine = slice(0, 1)
        picked = {m: (i[mine], k[mine]) for m, (i, k) in rows.pick(numbers[part], select, self.config.align).items()}
        own, videos = numbers[part][mine], self.videos[places[part]][mine]
        labels = self.data.labels[videos]
        if self.train.clip_s is not None and self.data.actions is not None:
            half_us = round(self.train.clip_s * 500_000)
            spans = self._spans_us(rows, own, picked) + torch.tensor([-half_us, half_us])
            labels = self.data.actions.within(videos, spans, len(self.data.classes))
        return Step(videos, rows.take(own, picked, self.device), labels, len(part), empty)

    def _spans_us(self, rows: Features, videos: Tensor, picked: Picked) -> Tensor:
        """(B,2): when the first and the last row are that are `picked` of the reference, or of the first modality that
        a video has rows of."""
        first, *others = sorted(self.head.shapes, key=lambda m: m != self.config.align)
        spans = rows.spans_us(videos, picked, first)
        for modality in others:
            none = spans[:, :1] > spans[:, 1:]
            spans = torch.where(none, rows.spans_us(videos, picked, modality), spans)
        return spans

    def _step(self, step: Step) -> tuple[float, int]:
        """The summed loss and the hits of this process's part."""
        self.optimizer.zero_grad(set_to_none=True)
        count = min(self.train.accumulate or 1, max(1, step.whole // self.ranks.count))
        parts = torch.arange(len(step.videos)).tensor_split(count)
        total, hits = 0.0, 0
        for number, part in enumerate(parts):
            module, more = self.module, number + 1 < count
            with module.no_sync() if more and isinstance(module, DistributedDataParallel) else nullcontext():
                loss, correct = self._backward(step, part if count > 1 else None)
            total, hits = total + loss, hits + correct
        if self.train.clip_value is not None:
            nn.utils.clip_grad_value_(self.head.parameters(), self.train.clip_value)
        if self.train.clip is not None:
            norm = nn.utils.get_total_norm([p.grad for p in self.head.parameters() if p.grad is not None])
            if norm > self.train.clip:  # else it would be scaled by 1, which costs two passes over all gradients
                nn.utils.clip_grads_with_norm_(self.head.parameters(), self.train.clip, norm)
            self._refuse(~norm.isfinite().expand(len(step.videos)), step.videos, "gradient")
        self.optimizer.step()
        return (0.0, 0) if step.empty else (total, hits)

    def _backward(self, step: Step, part: Tensor | None) -> tuple[float, int]:
        """The summed loss and the hits of the videos at `part` (of all), whose gradients are added."""
        (features, masks), videos, labels = step.batch, step.videos, step.labels
        if part is not None:
            own = slice(int(part[0]), int(part[-1]) + 1)
            features, masks = ({m: x[own] for m, x in found.items()} for found in step.batch)
            videos, labels = videos[own], labels[own]
        count, seen = len(videos), torch.stack([mask.any(dim=1) for mask in masks.values()]).any(dim=0)
        if not isinstance(self.module, DistributedDataParallel) and 1 < int(seen.sum()) < count:
            features, masks = ({m: x[seen] for m, x in found.items()} for found in (features, masks))
            videos, labels, seen = videos[seen.cpu()], labels[seen.to(labels.device)], seen[seen]
        with autocast(self.device, self.train.precision):
            features, masks = self.head.augmented(features, masks)
            logits = self.module(features, masks).float()  # (B,C)
            taught = 0 if self.teacher is None else self.teacher.losses(logits, (features, masks))
        if not logits.requires_grad or self._no_row_of(masks):  # no video of the part has a row
            logits = logits + sum(p.sum() for p in self.head.parameters() if p.requires_grad) * 0
        losses = (self.data.losses(logits, labels) + taught) * seen  # of a virtual store all rows may fail
        loss = (losses * self.weights[videos].to(losses.device)).mean()
        loss = loss if len(videos) == count else loss * (len(videos) / count)
        value = float(loss.detach())
        if not np.isfinite(value):
            bad = ~losses.detach().isfinite()
            self._refuse(bad | ~bad.any(), videos, "loss")  # the mean of finite ones may not be
        # its share of the batch; gradients of processes are averaged, not added
        share = 0.0 if step.empty else count * self.ranks.count / step.whole
        torch.autograd.backward(loss if share == 1 else loss * share)
        found = logits.detach().argmax(dim=1).cpu()
        hits = 0 if self.data.multi_label else int(((found == labels) & seen.cpu()).sum())
        return value * count, hits

    def _no_row_of(self, masks: dict[str, Tensor]) -> bool:
        """Whether a process has no row at all: the others wait for gradients that an encoder of rows would not have."""
        return isinstance(self.module, DistributedDataParallel) and not any(bool(m.any()) for m in masks.values())

    def _refuse(self, bad: Tensor, videos: Tensor, what: str) -> None:
        ids = [self.data.features.ids[k] for k in videos.tolist()] if bool(bad.any()) else [""] * len(videos)
        refuse_non_finite(bad, ids, f"{what} is not finite in epoch {len(self.history) + 1}")

    def _test(self, videos: Tensor) -> dict[str, float | None]:
        return in_short(predict(self.head, self.config, self.data, videos, self.device))

    def _line(self, seconds: float) -> str:
        row = self.history[-1]
        shown = [f"{k} {v:.4g}" for k, v in row.items() if v is not None and k != "epoch"]
        left = self._pace.left(len(self.history), self.seconds)
        took = f"{seconds:.1f} s of {self.seconds:.1f} s{left}"
        return f"epoch {len(self.history)}/{self.train.epochs}: {', '.join(shown)} ({took})"

    def _inside(self, place: Place, generator: torch.Generator) -> dict[str, Any]:
        """What an epoch goes on from: its place, and what each process has of its own."""
        own: dict[str, Any] = {"loss": place.loss, "hits": place.hits, "rows": generator.get_state()}
        own["torch"] = torch.get_rng_state()
        if self.device.type == "cuda":
            own["cuda"] = torch.cuda.get_rng_state(self.device)
        return {"place": place.__dict__, "states": self.ranks.gathered(own)}

    def _so_far(self, states: list[dict[str, Any]]) -> tuple[float, int]:
        """The loss and hits that are this process's own; all of them the first one's after other processes."""
        if len(states) == self.ranks.count:
            return states[self.ranks.rank]["loss"], states[self.ranks.rank]["hits"]
        return (sum(s["loss"] for s in states), sum(s["hits"] for s in states)) if self.ranks.first else (0.0, 0)

    def _restore(self, inside: dict[str, Any], generator: torch.Generator) -> None:
        states = inside["states"]
        if len(states) != self.ranks.count:  # interrupted with other processes: the epoch goes on with other chances
            generator.set_state(states[0]["rows"])
            return
        own = states[self.ranks.rank]
        generator.set_state(own["rows"])
        torch.set_rng_state(own["torch"])
        if "cuda" in own and self.device.type == "cuda":
            torch.cuda.set_rng_state(own["cuda"], self.device)

    def _save(self, inside: dict[str, Any] | None) -> None:
        if not self.ranks.first:
            return
        seconds = self.seconds + time.perf_counter() - self._began
        kept = {k: getattr(self, k) for k in ("history", "watched", "best")}
        state = {"head": self.head.state_dict(), "optimizer": self.optimizer.state_dict(), **kept, "seconds": seconds}
        blocks = {"block_bytes": getattr(self.data.features, "block_bytes", None)}
        self._keeper.keep({**self._run, **state, **blocks, "inside": inside})

    def _resume(self, state: dict[str, Any] | None, log: Callable[[str], None]) -> dict[str, Any] | None:
        """Take up a state; gives what lies inside of an epoch."""
        if state is None:
            return None
        self.head.load_state_dict(state["head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history, self.watched, self.best, self.seconds = (
            state[k] for k in ("history", "watched", "best", "seconds")
        )
        if isinstance(self.data.features, Stream) and state.get("block_bytes"):  # other blocks would be other batches
            self.data = replace(self.data, features=replace(self.data.features, block_bytes=state["block_bytes"]))
        inside: dict[str, Any] | None = state.get("inside")
        if inside is None:
            log(f"goes on after epoch {len(self.history)}/{self.train.epochs}")
        else:
            done = f"{inside['place']['videos']} of {len(self.videos)} videos"
            log(f"goes on in epoch {len(self.history) + 1}/{self.train.epochs}, after {done}")
        return inside


def _waited(patience: int | None, losses: list[float]) -> bool:
    return patience is not None and epochs_without_gain(losses) >= patience
