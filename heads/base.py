"""What a head is: padded rows and their masks in, logits out.

Every head keeps these promises, and one contract test holds all of them to it: any L >= 1; padded rows never matter,
nor does the company in a batch (in evaluation); a video without rows gives finite logits; it saves and loads.

A modality that a video lacks, as its mask says, is by default stood in for by one row: the mean of that modality over
the training videos (for silent videos, Attention Clusters, CVPR 2018), which the head keeps with its weights.

Legend: B videos, L rows, *D one row, C classes.

    class Mine(Head):
        def forward(self, features, masks): ...                 # {"rgb": (B,L,D)}, {"rgb": (B,L)} -> (B,C)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from features.batches import Select, all_rows, even_rows, random_rows
from features.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]


class Head(nn.Module):
    """Base of all heads. `shapes` are the rows it reads, by modality; options come by name from its config."""

    test_batch: ClassVar[int] = 128  # videos that are judged at once
    fitted: ClassVar[bool] = False  # computed by `fit` in one pass over the training videos; no gradient steps
    rows_together: int = 1  # rows of a test that are one to the head, and are not torn apart

    def __init__(self, shapes: Shapes, num_classes: int) -> None:
        super().__init__()
        self.shapes, self.num_classes = dict(shapes), num_classes
        self._stood_in: list[str] = []  # modalities
        self._align: str | None = None

    def stand_in(self, align: str | None = None) -> None:
        """From now on a missing modality of vectors gets its mean, as its only row; zeros until `keep_means`.

        Batches that follow `align` have that row beside each of the reference's, as nothing else is nearer in time.
        """
        for modality in sorted(self.shapes, key=lambda m: m != align):  # what is missing follows a complete reference
            if len(self.shapes[modality]) == 1:
                self.register_buffer(_mean(modality), torch.zeros(self.shapes[modality]))
                self._stood_in.append(modality)
        self._align = align
        self.register_forward_pre_hook(_complete)

    def decode(self, codes: npt.NDArray[np.float32]) -> None:
        """From now on the head's K outputs z are of parts, and those of a class (C) the sum of its parts', by `codes`
        (C,K) of 0 and 1.

        The softmax over classes is then how likely their sets are if parts come independently, each with the logit z:
        with every set a class, cross-entropy is the sum of the parts' binary ones.
        """
        self.register_buffer("codes", torch.from_numpy(codes))
        self.register_forward_hook(_decoded)

    def of_classes(self, outputs: Tensor) -> Tensor:
        """(...,K) of parts -> (...,C) by the codes of `decode`; the same without codes."""
        codes: Tensor | None = getattr(self, "codes", None)
        if codes is None:
            return outputs
        outputs = outputs.float()
        with unrounded(outputs):
            return outputs @ codes.T

    @property
    def stands_in(self) -> bool:
        """Whether there is a modality for which the head needs `keep_means`."""
        return bool(self._stood_in)

    def keep_means(self, means: Mapping[str, Tensor]) -> None:
        """Take the mean row (D,) over the training videos of each modality that the head stands in for."""
        for modality in self._stood_in:
            self.get_buffer(_mean(modality)).copy_(means[modality])

    def completed(
        self, features: dict[str, Tensor], masks: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The same batch with the mean in the place of what a video lacks; what `forward` sees."""
        features, masks = dict(features), dict(masks)
        for modality in self._stood_in:
            mask = masks[modality]
            lacks = ~mask.any(dim=1, keepdim=True)  # (B,1)
            if surely(~lacks):
                continue
            only = torch.arange(mask.shape[1], device=mask.device) == 0  # (L,)
            put = lacks & (only if self._align in (None, modality) else masks[self._align])  # (B,L)
            features[modality] = torch.where(put[..., None], self.get_buffer(_mean(modality)), features[modality])
            masks[modality] = mask | put
        return features, masks

    def augmented(
        self, features: dict[str, Tensor], masks: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The batch as a training step sees it, this head and its teachers alike; random by torch's own generator."""
        return features, masks

    def forward(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> Tensor:
        """{modality: (B,L,*D) float32 or uint8}, {modality: (B,L) bool} -> logits (B,C)."""
        raise NotImplementedError

    def fit(
        self, batches: Iterable[tuple[dict[str, Tensor], dict[str, Tensor], Tensor]], *, several: bool = False
    ) -> None:
        """Set the weights from all training videos: features and masks, `completed`, and targets (B,C) of 0 and 1, of
        which a video may have `several`."""
        raise NotImplementedError

    def train_rows(self, n: int | None, generator: torch.Generator) -> Select:
        """How training picks rows of a video: a random subset of n, or all."""
        return all_rows if n is None else random_rows(n, generator)

    def test_rows(self, n: int | None) -> Select:
        """How testing picks rows of a video: n at equal intervals, or all."""
        return all_rows if n is None else even_rows(n)

    def lr_factors(self) -> dict[str, float]:
        """What the learning rate of a parameter is multiplied by, by its name, where that is not 1."""
        return {}

    def extra_files(self) -> dict[str, bytes]:
        """Files that a finished run keeps beside its weights, by name."""
        return {}


def _mean(modality: str) -> str:
    return f"mean_{modality}"


def _complete(head: Head, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Of the head that is called: one that closed over it would stay with the original of a copied head."""
    return head.completed(*inputs)


def _decoded(head: Head, _: tuple[Any, ...], parts: Tensor) -> Tensor:
    """Of the head that is called, as in `_complete`."""
    return head.of_classes(parts)


def vector_sizes(kind: str, shapes: Shapes) -> dict[str, int]:
    """D of each modality, for a head that reads vectors and no maps."""
    for modality, shape in shapes.items():
        if len(shape) != 1:
            fix = "give it the features of a network, not maps"
            raise UserError(f"{kind} reads vectors", where=modality, expected="rows of shape (D,)", got=shape, fix=fix)
    return {modality: shape[0] for modality, shape in shapes.items()}


def masked_mean(rows: Tensor, mask: Tensor) -> Tensor:
    """(B,L,D), (B,L) -> (B,D): the mean of the rows that are there; zeros where there is none."""
    weights = mask.to(rows.dtype)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp_min(1)
    with unrounded(rows):
        return torch.einsum("bl,bld->bd", weights, zero_padding(rows, mask))


def log_mean_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """(B,L,K), (B,L) -> (B,K): the logarithm of the mean probability of the rows that are there, however unlikely a
    class is; zeros where there is none."""
    counts = mask.sum(dim=1, keepdim=True)  # (B,1)
    summed = mask | (counts == 0)  # the logarithm of no sum is no number
    logs = scores.log_softmax(dim=2).masked_fill(~summed[..., None], -torch.inf)
    return torch.where(counts > 0, logs.logsumexp(dim=1) - counts.clamp_min(1).log(), 0)


def unrounded(rows: Tensor) -> AbstractContextManager[object]:
    """Within it products of `rows` that are float32 stay so under autocast, too: where they are sums, and no layers,
    bf16 would take digits and give no time. Rows of another type are left to autocast."""
    if rows.dtype != torch.float32 or rows.is_meta or torch.compiler.is_compiling():
        return nullcontext()
    return torch.autocast(rows.device.type, enabled=False)


def zero_padding(rows: Tensor, mask: Tensor) -> Tensor:
    """(B,L,D), (B,L) -> (B,L,D): padding set to zero, for 0 * inf would be NaN; no copy where there is none."""
    return rows if surely(mask) else rows.masked_fill(~mask[..., None], 0)


def surely(condition: Tensor) -> bool:
    """Whether `condition` holds all over a batch, so that work can be left out. Never in a graph that is exported: it
    must serve batches that are not known yet. On the meta device, where sizes are counted, always."""
    return not torch.compiler.is_compiling() and (condition.is_meta or bool(condition.all()))


CONSTANT: Final = 1e-6  # deviation over size of an input whose means differ by the rounding of float32 alone


class OnMeans(Head):
    """A linear layer on the mean rows of all modalities, that `fit` computes."""

    fitted = True

    def __init__(self, shapes: Shapes, num_classes: int, kind: str) -> None:
        super().__init__(shapes, num_classes)
        self.classifier = nn.Linear(sum(vector_sizes(kind, shapes).values()), num_classes)

    def forward(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> Tensor:
        """(B,L,D) a modality -> (B,C)."""
        logits: Tensor = self.classifier(self._means(features, masks))
        return logits

    def _means(self, features: dict[str, Tensor], masks: dict[str, Tensor]) -> Tensor:
        return torch.cat([masked_mean(features[m], masks[m]) for m in self.shapes], dim=1)  # (B,D)
