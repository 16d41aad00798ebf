"""Linear support vector machine and logistic regression on the mean row, by scikit-learn: yardsticks of trained heads.

Inputs are scaled to mean 0 and deviation 1 over the training videos; the solution is kept as a linear layer on the bare
rows. The machine tells each class from the rest (squared hinge); the regression is multinomial, or one against the
rest where a video may have several labels. A class without a training video is never predicted. A modality without rows
counts as zeros with `missing: none`.
Legend: B videos, L rows, D dims of all modalities, C classes.

    head = heads.build("svm", {"rgb": (1280,)}, num_classes=6, c=1.0)
    head.fit([(rows, masks, one_hot)])
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from features.errors import FramepoolError
from heads.base import CONSTANT, OnMeans, Shapes

_NEVER: Final = -1e4  # logit of a class that training has not seen
_LEAST: Final = 1e-12
_STEPS: Final = 20_000


class _Linear(OnMeans):
    def __init__(self, shapes: Shapes, num_classes: int, *, c: float) -> None:
        super().__init__(shapes, num_classes, "linear")
        self.c = c

    @torch.no_grad()
    def fit(
        self, batches: Iterable[tuple[dict[str, Tensor], dict[str, Tensor], Tensor]], *, several: bool = False
    ) -> None:
        """Solve for the weights, from the means of all training videos at once. `several`: a video may have several
        labels, though none of these does."""
        found = [(self._means(rows, masks).cpu(), targets.cpu()) for rows, masks, targets in batches]
        if not found:
            raise FramepoolError("a linear head has no training videos")
        means, targets = (torch.cat(part).double().numpy() for part in zip(*found, strict=True))
        centre, scale = means.mean(axis=0), means.std(axis=0)
        constant = scale <= CONSTANT * np.abs(centre) + _LEAST
        scale = np.where(constant, np.inf, scale)  # such an input says nothing
        weights, biases = self._solve((means - centre) / scale, targets > 0.5, several)
        weights = weights / scale
        self.classifier.weight.copy_(torch.from_numpy(weights))
        self.classifier.bias.copy_(torch.from_numpy(biases - weights @ centre))

    def _solve(self, inputs: Any, targets: Any, several: bool) -> tuple[Any, Any]:
        """(V,D), (V,C) bool -> (C,D), (C,)."""
        weights, biases = np.zeros((targets.shape[1], inputs.shape[1])), np.full(targets.shape[1], _NEVER)
        for number, positive in enumerate(targets.T):
            if positive.all():
                biases[number] = -_NEVER
            elif positive.any():
                solver = self._one().fit(inputs, positive)
                weights[number], biases[number] = solver.coef_[0], solver.intercept_[0]
        return weights, biases

    def _one(self) -> Any:
        raise NotImplementedError


class Svm(_Linear):
    """A machine for each class."""

    def _one(self) -> Any:
        from sklearn.svm import LinearSVC

        return LinearSVC(C=self.c, max_iter=_STEPS, random_state=0)


class Logistic(_Linear):
    """All classes together where each video has one."""

    def _solve(self, inputs: Any, targets: Any, several: bool) -> tuple[Any, Any]:
        if several or not (targets.sum(axis=1) == 1).all() or targets.any(axis=0).sum() < 2:
            return super()._solve(inputs, targets, several)
        solver = self._one().fit(inputs, targets.argmax(axis=1))
        slopes, offsets = solver.coef_, solver.intercept_
        if len(solver.classes_) == 2:  # scikit-learn has the second against the first
            slopes, offsets = (np.concatenate([-part, part]) / 2 for part in (slopes, offsets))
        weights, biases = np.zeros((targets.shape[1], inputs.shape[1])), np.full(targets.shape[1], _NEVER)
        weights[solver.classes_], biases[solver.classes_] = slopes, offsets
        return weights, biases

    def _one(self) -> Any:
        from sklearn.linear_model import LogisticRegression

        return LogisticRegression(C=self.c, max_iter=_STEPS)
