"""Ridge regression on the mean row, one against the rest, in closed form: the yardstick of trained heads.

Minimises |Z w + b - y|^2 + alpha |w|^2 for each class, with targets y of +1 and -1, centred inputs and a free
intercept, as scikit-learn's `RidgeClassifier`. Training videos pass by once; only D x D sums stay. A modality without
rows counts as zeros with `missing: none`.
Legend: B videos, L rows, D dims of all modalities, C classes.

    head = heads.build("ridge", {"rgb": (1280,)}, num_classes=6, alpha=1.0)
    head.fit([(rows, masks, one_hot)])
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from features.errors import FramepoolError, UserError
from heads.base import CONSTANT, OnMeans, Shapes


class Ridge(OnMeans):
    """A linear layer whose weights are solved for, in float64."""

    def __init__(self, shapes: Shapes, num_classes: int, *, alpha: float, standardise: bool) -> None:
        super().__init__(shapes, num_classes, "ridge")
        self.alpha, self.standardise = alpha, standardise

    @torch.no_grad()
    def fit(
        self, batches: Iterable[tuple[dict[str, Tensor], dict[str, Tensor], Tensor]], *, several: bool = False
    ) -> None:
        """Solve for the weights; `several` labels a video are no other problem. Sums over videos of (z, y)(z, y)^T hold
        everything that the solution needs.
        Raises `UserError` where alpha is lost in their rounding."""
        size, dim = 0, self.classifier.in_features
        joint = torch.zeros(dim + self.num_classes + 1, dim + self.num_classes + 1, dtype=torch.float64)
        origin = None  # of the first batch: sums of differences from it lose no digits
        for features, masks, targets in batches:
            means = self._means(features, masks).double().cpu()
            origin = means.mean(dim=0) if origin is None else origin
            columns = torch.cat([means - origin, 2 * targets.double().cpu() - 1, torch.ones(len(means), 1)], dim=1)
            joint += columns.T @ columns
            size += len(means)
        if origin is None:
            raise FramepoolError("ridge has no training videos")
        mean = joint[-1, :-1] / size
        scatter = joint[:-1, :-1] - size * torch.outer(mean, mean)
        inner, cross = scatter[:dim, :dim], scatter[:dim, dim:]  # (D,D), (D,C)
        scale = torch.ones(dim, dtype=torch.float64)
        if self.standardise:
            deviation = (inner.diagonal() / size).clamp_min(0).sqrt()
            constant = deviation <= CONSTANT * (mean[:dim] + origin).abs() + 1e-12
            scale = torch.where(constant, 0.0, 1 / deviation)  # such an input says nothing
        penalised = inner * torch.outer(scale, scale)
        penalised.diagonal().add_(self.alpha)
        lower, failed = torch.linalg.cholesky_ex(penalised)
        if failed:
            got = f"{self.alpha:g}"
            raise UserError("ridge has no solution in float64", where="alpha", got=got, fix="raise alpha")
        solution = scale[:, None] * torch.cholesky_solve(scale[:, None] * cross, lower)
        intercept = mean[dim:] - (mean[:dim] + origin) @ solution
        self.classifier.weight.copy_(solution.T)
        self.classifier.bias.copy_(intercept)
