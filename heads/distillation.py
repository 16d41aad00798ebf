"""Knowledge distillation: finished runs as a teacher, whose softened scores a head learns beside the labels.

"Distilling the Knowledge in a Neural Network" (Hinton et al., 2015), as VTN (Kozlov et al., 2019), Table 1, has it from
two streams: weight * T^2 * KL(softmax(teacher / T) || softmax(student / T)), with T = 8 and the weight 0.4 of the
authors' code. Teachers only look, in evaluation mode, at the very batch of the student, crops and all; what they read
of it, such as differences of frames, they make themselves.
Legend: B videos, C classes.

    teacher = Teacher.of({"rgb": folder / "seed0", "diff": other / "seed0"}, config.distil, classes)
    loss = losses + teacher.losses(logits, batch)               # (B,C), the batch -> (B,)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from features.batches import Batch
from features.errors import UserError
from heads.base import Head
from heads.checkpoint import load_head
from heads.config import Distil
from heads.end_to_end import EndToEnd


@dataclass(frozen=True)
class Teacher:
    """Heads and their shares of the mean, and how much they are listened to."""

    members: tuple[tuple[Head, float], ...]
    temperature: float
    weight: float

    @classmethod
    def of(
        cls, folders: Mapping[str, Path], config: Distil, classes: Sequence[str], device: torch.device | str = "cpu"
    ) -> Self:
        """The finished runs in `folders`, by the names that `config` has for them. Refuses runs of other classes, and a
        teacher whose folder is not given."""
        for name in config.weights:
            if name not in folders:
                raise UserError("a teacher without a finished run", got=name, fix="give its folder to train_run")
        total = sum(config.weights.values())
        loaded = {name: load_head(folders[name], classes=classes, device=device)[0] for name in config.weights}
        members = tuple((loaded[name].requires_grad_(False), w / total) for name, w in config.weights.items())
        return cls(members, config.temperature, config.weight)

    def check(self, student: Head) -> None:
        """Refuse members that would see another part of the student's crops, or them at another size."""
        if not isinstance(student, EndToEnd) or student.encoder.config.augment == "none":
            return
        own_px = student.encoder.size_px
        for member, _ in self.members:
            size_px = member.encoder.size_px if isinstance(member, EndToEnd) else None
            if size_px != own_px:
                fix = "give the encoders of both the same crop_px"
                raise UserError("a teacher of another crop", where="distil", expected=own_px, got=size_px, fix=fix)

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """The batch -> (B,C): the mean of the members' logits."""
        return torch.stack([share * head(*batch).float() for head, share in self.members]).sum(dim=0)

    def losses(self, student: Tensor, batch: Batch) -> Tensor:
        """(B,C) logits of the student, and the batch that it saw -> (B,)."""
        soft, t = F.log_softmax(self.logits(batch) / self.temperature, dim=1), self.temperature
        apart = F.kl_div(F.log_softmax(student / t, dim=1), soft, reduction="none", log_target=True).sum(dim=1)
        return self.weight * t * t * apart
