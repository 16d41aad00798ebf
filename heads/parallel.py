"""One training in several processes, each with a part of every batch: `torchrun --nproc-per-node 4 -m pipelines train`.

A batch of the config is that of all processes together, so a recipe means the same on one GPU and on eight. Gradients
are averaged by DistributedDataParallel; on GPUs batch norms count the whole batch (SyncBatchNorm), on CPUs, and where
they tell rows from padding, each process its own part, and after an epoch all have what the first one counted. What is
drawn at random for a batch is drawn alike everywhere, but for rows of a virtual store, whose number only the process
knows that decoded them; dropout and augmentation are each process's own.

    with group("cuda") as device:
        module = spread(head, device)           # forward and backward as before
        mine = ranks().part(128)                # which of the batch's 128 videos are this process's
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from features.errors import UserError
from heads.ordered import BatchNorm

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process, and how many there are."""

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether it is the one that writes and speaks."""
        return self.rank == 0

    def part(self, n: int) -> slice:
        """Which of `n` things in a row are this process's: equal parts, those of the first are one longer."""
        small, more = divmod(n, self.count)
        start = self.rank * small + min(self.rank, more)
        return slice(start, start + small + (self.rank < more))

    def gathered(self, own: T) -> list[T]:
        """What each process has, in their order."""
        if self.count == 1:
            return [own]
        found: list[T | None] = [None] * self.count
        distributed.all_gather_object(found, own)
        return found  # type: ignore[return-value]

    def total(self, numbers: Sequence[float]) -> list[float]:
        """The sum of each number over all processes."""
        if self.count == 1:
            return list(numbers)
        sums = torch.tensor(numbers, dtype=torch.float64)
        distributed.all_reduce(sums)
        return [float(value) for value in sums]

    def says(self, own: bool) -> bool:
        """What the first process says; the others wait for it."""
        if self.count == 1:
            return own
        said = torch.tensor([own])
        distributed.broadcast(said, 0)
        return bool(said)

    def least(self, own: int) -> int:
        """The smallest of a number over all processes."""
        return min(self.gathered(own))


def ranks() -> Ranks:
    """Of the group that this process has joined; without one it is alone."""
    if not distributed.is_initialized():
        return Ranks()
    return Ranks(distributed.get_rank(), distributed.get_world_size())


def asked() -> Ranks:
    """What torchrun says that this process is; without torchrun it is alone."""
    return Ranks(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def here() -> int:
    """How many of the processes run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def device_of(device: str | torch.device) -> torch.device:
    """The device of this name, where fp32 is fp32: convolutions on GPUs leave out no digits, as cuDNN's would. Raises
    `UserError` where there is none."""
    try:
        found = torch.device(device)
    except RuntimeError:
        found = torch.device("meta")
    if found.type not in ("cpu", "cuda"):
        raise UserError("unknown device", expected="cpu, cuda or cuda:1", got=device)
    if found.type == "cuda":
        count = torch.cuda.device_count()
        if (found.index or 0) >= count:
            known = f"cuda:0 to cuda:{count - 1}" if count else "none"
            raise UserError("no such CUDA device here", got=device, fix=f"there: {known}; say --device cpu")
        torch.backends.cudnn.allow_tf32 = False
    return found


@contextmanager
def group(device: str) -> Iterator[torch.device]:
    """Join the other processes while inside; gives the own device: of `cuda` the GPU of the process's own number."""
    own = device_of(device)
    if asked().count == 1:
        yield own
        return
    if own.type == "cuda":
        if device != "cuda":
            raise UserError("one GPU for several processes", got=device, fix="say --device cuda: each takes its own")
        own = device_of(f"cuda:{os.environ.get('LOCAL_RANK', '0')}")
        torch.cuda.set_device(own)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if own.type == "cuda" else "gloo")
    try:
        yield own
    finally:
        distributed.destroy_process_group()


def spread(head: nn.Module, device: torch.device) -> nn.Module:
    """`head` as all processes train it: what they call instead; the head itself where there is one process."""
    if ranks().count == 1:
        return head
    if device.type == "cuda":
        synchronise_norms(head)
    return nn.parallel.DistributedDataParallel(head, device_ids=[device.index] if device.type == "cuda" else None)


def synchronise_norms(module: nn.Module) -> None:
    """Put a batch norm over all processes in the place of each of `module` that learns; frozen ones stay. Keys of the
    state stay too."""
    from timm.layers.norm_act import convert_sync_batchnorm

    for name, child in list(module.named_children()):
        if isinstance(child, BatchNorm):  # which counts the rows that are there: each process's own
            continue
        if not isinstance(child, _BatchNorm):
            synchronise_norms(child)
        elif any(p.requires_grad for p in child.parameters()) or not child.affine:
            setattr(module, name, convert_sync_batchnorm(child))  # type: ignore[no-untyped-call]


def waited_for(module: nn.Module) -> bool:
    """Whether a norm of `module` counts over all processes now: then it has to be called without any row, too."""
    return any(isinstance(m, nn.SyncBatchNorm) and m.training for m in module.modules())


@torch.no_grad()
def same_buffers(module: nn.Module) -> None:
    """Give all processes the buffers of the first one, such as the statistics of batch norms."""
    if ranks().count > 1:
        for buffer in module.buffers():
            distributed.broadcast(buffer, 0)


def sum_of(found: Tensor, own: Ranks) -> Tensor:
    """(...) -> (...): the sum over all processes, of a tensor on the CPU."""
    if own.count > 1:
        distributed.all_reduce(found)
    return found
